//! Amounts for people: `3 minutes`, `23.28GiB`, and names cut to a width.
//!
//! Owns: docker's wording and rounding. Does not know: what is measured.
//! Invariant: the same input gives the same text; the time is an argument.

use base::{Millis, Timestamp};

/// `About a minute`, `3 weeks`: how long ago `then` was.
pub(crate) fn ago(now: Timestamp, then: Timestamp) -> String {
    format!("{} ago", duration(now.since(then)))
}

/// A length of time in its largest unit.
pub(crate) fn duration(length: Millis) -> String {
    let seconds = length.0 / 1_000;
    let minutes = seconds / 60;
    let hours = (seconds + 1_800) / 3_600;
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// Go's text of a duration: `1h30m0s`, `500ms`, `0s`.
pub(crate) fn go_duration(length: Millis) -> String {
    let (seconds, millis) = (length.0 / 1_000, length.0 % 1_000);
    let (hours, minutes, rest) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if seconds == 0 && millis > 0 {
        return format!("{millis}ms");
    }
    let mut fraction = format!("{rest}.{millis:03}");
    if millis == 0 {
        fraction = rest.to_string();
    }
    let fraction = if millis == 0 { fraction } else { fraction.trim_end_matches('0').to_owned() };
    match (hours, minutes) {
        (0, 0) => format!("{fraction}s"),
        (0, minutes) => format!("{minutes}m{fraction}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{fraction}s"),
    }
}

/// `4.26MB`: decimal units with three digits, as docker shows images.
pub(crate) fn size(bytes: u64) -> String {
    scaled(bytes, 1_000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// `23.28GiB`: binary units with four digits, as docker shows memory.
pub(crate) fn memory(bytes: u64) -> String {
    scaled(bytes, 1_024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4)
}

fn scaled(bytes: u64, base: f64, units: &[&str], digits: usize) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), units[unit])
}

/// Go's `%.Ng` for values from 0 to 9999: so many significant digits, no trailing zeros.
fn significant(value: f64, digits: usize) -> String {
    let before = if value < 1.0 { 1 } else { value.log10().floor() as usize + 1 };
    let text = format!("{value:.*}", digits.saturating_sub(before));
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Billionths of a core as Go prints the float: `0.5`, `2`.
pub(crate) fn cpus(nanos: u64) -> String {
    let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The first twelve characters of an id.
pub(crate) fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// First letter in upper case: `running` becomes `Running`.
pub(crate) fn title(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

/// Orders `web.2` before `web.10`.
pub(crate) fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    loop {
        let (Some(&x), Some(&y)) = (left.first(), right.first()) else {
            return left.len().cmp(&right.len()).then_with(|| a.cmp(b));
        };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let (m, n) = (digits(left), digits(right));
            let order = number(&left[..m]).cmp(&number(&right[..n]));
            if order.is_ne() {
                return order;
            }
            (left, right) = (&left[m..], &right[n..]);
        } else if x == y {
            (left, right) = (&left[1..], &right[1..]);
        } else {
            return x.cmp(&y);
        }
    }
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// Without leading zeros a longer number is larger, and equal lengths compare as text.
fn number(digits: &[u8]) -> (usize, &[u8]) {
    let zeros = digits.iter().take_while(|byte| **byte == b'0').count();
    (digits.len() - zeros, &digits[zeros..])
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::*;

    #[test]
    fn durations_are_dockers() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3_599, "59 minutes"),
            (3_600, "About an hour"),
            (3 * 3_600, "3 hours"),
            (48 * 3_600, "2 days"),
            (14 * 86_400, "2 weeks"),
            (60 * 86_400, "2 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(duration(Millis::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn go_durations() {
        for (millis, text) in [
            (0, "0s"),
            (500, "500ms"),
            (1_500, "1.5s"),
            (5_000, "5s"),
            (90_000, "1m30s"),
            (7_776_000_000, "2160h0m0s"),
        ] {
            assert_eq!(go_duration(Millis(millis)), text);
        }
    }

    #[test]
    fn amounts() {
        for (bytes, text) in [(0, "0B"), (999, "999B"), (4_260_000, "4.26MB"), (1_000, "1kB")] {
            assert_eq!(size(bytes), text);
        }
        for (bytes, text) in [(25_000_000_000, "23.28GiB"), (512 << 20, "512MiB"), (0, "0B")] {
            assert_eq!(memory(bytes), text);
        }
        for (nanos, text) in [(500_000_000, "0.5"), (2_000_000_000, "2"), (0, "0")] {
            assert_eq!(cpus(nanos), text);
        }
    }

    #[test]
    fn numbers_in_names_count() {
        for (a, b, order) in [
            ("web.2", "web.10", Ordering::Less),
            ("web.10", "web.10", Ordering::Equal),
            ("a", "b", Ordering::Less),
            ("web", "web.1", Ordering::Less),
            ("x02", "x1", Ordering::Greater),
        ] {
            assert_eq!(natural(a, b), order, "{a} {b}");
        }
    }
}
