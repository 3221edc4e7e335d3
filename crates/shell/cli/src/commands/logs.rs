//! `shoal service logs`.
//!
//! Owns: how a line is prefixed, and the times that `--since` takes.
//! Does not know: where logs are kept.
//! Invariant: the bytes of a line are written as they are; what is not text is not changed.

use std::io::Write;

use base::Timestamp;
use wire::v1;

use super::{id_text, now};
use crate::args::service::Logs;
use crate::client::Daemon;
use crate::error::CliError;
use crate::output::human;
use crate::values::parse_duration;

pub(super) async fn run(daemon: &mut Daemon, args: &Logs) -> Result<(), CliError> {
    use v1::logs_item::Item;
    let request = v1::LogsRequest {
        services: args.targets.clone(),
        follow: args.follow,
        tail: tail(&args.tail)?,
        since: since(&args.since, now())?.0,
        until: 0,
    };
    let mut lines = daemon.control.logs(request).await?.into_inner();
    let mut widest = 0;
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    while let Some(item) = lines.message().await? {
        match item.item {
            Some(Item::Line(line)) => {
                let mut bytes = head(&line, args, &mut widest).into_bytes();
                bytes.extend_from_slice(&line.data);
                if bytes.last() != Some(&b'\n') {
                    bytes.push(b'\n');
                }
                let stream: &mut dyn Write = if line.stderr { &mut err } else { &mut out };
                stream.write_all(&bytes)?;
                stream.flush()?;
            }
            Some(Item::Warning(warning)) => eprintln!("WARNING: {warning}"),
            None => {}
        }
    }
    Ok(())
}

/// `web.1.hgh62r83yrec@node1    | `, and the time before it when asked for.
fn head(line: &v1::LogLine, args: &Logs, widest: &mut usize) -> String {
    let mut text = String::new();
    if args.timestamps {
        text.push_str(&nanosecond_time(line.at_ns));
        text.push(' ');
    }
    if args.raw {
        return text;
    }
    let task = id_text(&line.task);
    let task = if args.no_trunc { task } else { human::short(&task) };
    let mut name = if args.no_resolve || line.task_name.is_empty() {
        let slot = line.task_name.rsplit('.').next().unwrap_or_default();
        format!("{}.{slot}", id_text(&line.service))
    } else {
        line.task_name.clone()
    };
    if !args.no_task_ids {
        name = format!("{name}.{task}");
    }
    let node = if args.no_resolve || line.node_name.is_empty() {
        id_text(&line.node)
    } else {
        line.node_name.clone()
    };
    let name = format!("{name}@{node}");
    *widest = (*widest).max(name.chars().count());
    format!("{text}{name:<width$}    | ", width = *widest)
}

fn nanosecond_time(at_ns: u64) -> String {
    let (y, mo, d, h, mi, s, _) = Timestamp(at_ns / 1_000_000).civil();
    let nanos = at_ns % 1_000_000_000;
    format!("{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}.{nanos:09}Z")
}

fn tail(text: &str) -> Result<Option<u64>, CliError> {
    if text == "all" {
        return Ok(None);
    }
    let wrong = || CliError::usage("--tail", format!("`{text}`: write a number of lines, or all"));
    text.parse().map(Some).map_err(|_| wrong())
}

/// A length of time before now, a number of seconds since 1970, or a date.
fn since(text: &str, now: Timestamp) -> Result<Timestamp, CliError> {
    if text.is_empty() {
        return Ok(Timestamp::ZERO);
    }
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Timestamp(seconds.saturating_mul(1_000)));
    }
    if let Ok(length) = parse_duration(text) {
        return Ok(now - length);
    }
    parse_date(text).ok_or_else(|| {
        CliError::usage("--since", format!("`{text}` is no time"))
            .hint("write for example 10m, or 2026-01-31T12:00:00Z")
    })
}

/// `2026-01-31`, with `T12:00:00` and `Z` or an offset; UTC when it says nothing.
fn parse_date(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let mut parts = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let (time, ahead_minutes) = split_zone(time)?;
    let time = time.split_once('.').map_or(time, |(whole, _)| whole);
    let mut parts = time.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute) = (parts.next()??, parts.next()??);
    let second = parts.next().unwrap_or(Some(0))?;
    let dates = (1970..=9999).contains(&year) && (1..=12).contains(&month);
    if !dates || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    let seconds = i64::try_from(seconds).ok()? - ahead_minutes * 60;
    Some(Timestamp(u64::try_from(seconds).ok()? * 1_000))
}

/// The time without its zone, and the zone's minutes ahead of UTC.
fn split_zone(time: &str) -> Option<(&str, i64)> {
    if let Some(time) = time.strip_suffix('Z') {
        return Some((time, 0));
    }
    let Some(at) = time.rfind(['+', '-']) else { return Some((time, 0)) };
    let (hours, minutes) = time[at + 1..].split_once(':')?;
    let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
    let ahead = if time[at..].starts_with('-') { -minutes } else { minutes };
    Some((&time[..at], ahead))
}

/// Days from 1970-01-01 (H. Hinnant, days_from_civil).
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::service::Service;
    use crate::args::{Args, Command};

    fn args(flags: &str) -> Logs {
        let line = format!("shoal service logs {flags} web");
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Service(Service::Logs(logs)) = args.command else { panic!("not logs") };
        logs
    }

    fn line() -> v1::LogLine {
        let id = base::Id::from_u128(u128::MAX).unwrap().to_bytes().to_vec();
        v1::LogLine {
            task: id.clone().into(),
            node: id.clone().into(),
            service: id.into(),
            task_name: "web.1".into(),
            node_name: "node1".into(),
            at_ns: 1_795_373_999_123_456_789,
            ..v1::LogLine::default()
        }
    }

    #[test]
    fn lines_are_prefixed_as_dockers() {
        for (flags, expected) in [
            ("", "web.1.f5lxx1zz5pno@node1    | "),
            ("--no-task-ids", "web.1@node1    | "),
            ("--raw", ""),
            ("--raw -t", "2026-11-22T18:59:59.123456789Z "),
            ("--no-task-ids -t", "2026-11-22T18:59:59.123456789Z web.1@node1    | "),
            ("--no-trunc", "web.1.f5lxx1zz5pnorynqglhzmsp33@node1    | "),
        ] {
            assert_eq!(head(&line(), &args(flags), &mut 0), expected, "{flags}");
        }
    }

    #[test]
    fn times() {
        let now = Timestamp(1_000_000);
        for (text, millis) in [
            ("", 0),
            ("10s", 990_000),
            ("60", 60_000),
            ("1970-01-02", 86_400_000),
            ("2026-11-22T18:59:59Z", 1_795_373_999_000),
            ("2026-11-22T19:59:59.5+01:00", 1_795_373_999_000),
            ("2000-02-29T00:00:00", 951_782_400_000),
        ] {
            assert_eq!(since(text, now), Ok(Timestamp(millis)), "{text}");
        }
        for text in ["yesterday", "2026-13-01", "2026-01-01T25:00:00", "-5s"] {
            assert!(since(text, now).is_err(), "{text}");
        }
        assert_eq!((tail("all"), tail("3")), (Ok(None), Ok(Some(3))));
        assert!(tail("-1").is_err());
    }
}
