//! `shoal swarm rotate-network-key`.
//!
//! Owns: waiting for the nodes, with progress. Does not know: how a node changes its key.
//! Invariant: it ends: nodes that are not done in time are named, and the change goes on.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use wire::v1;

use super::print_line;
use crate::args::swarm::RotateNetworkKey;
use crate::client::Daemon;
use crate::error::CliError;

pub(super) async fn rotate(daemon: &mut Daemon, args: &RotateNetworkKey) -> Result<(), CliError> {
    let request = v1::RotateNetworkKeyRequest {};
    let mut now = daemon.control.rotate_network_key(request).await?.into_inner();
    let wanted = now.generation;
    let (begun, mut screen) = (Instant::now(), Screen::new(args.quiet));
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    // Who changed the keys once more after this one found it finished.
    while !args.detach && !now.lags.is_empty() && now.generation == wanted {
        screen.show(&progress(&now));
        if begun.elapsed() >= WAIT_MAX {
            screen.end();
            let waited = WAIT_MAX.as_secs();
            return Err(CliError::timed_out(format!("not done after {waited} s: {}", waits(&now)))
                .hint("the change goes on; see the log of the daemon on these nodes"));
        }
        tokio::select! {
            biased;
            _ = &mut interrupted => {
                screen.end();
                return print_line("Operation continuing in background.");
            }
            () = tokio::time::sleep(POLL_PERIOD) => {}
        }
        let request = v1::GetNetworkKeyProgressRequest {};
        now = daemon.control.get_network_key_progress(request).await?.into_inner();
    }
    screen.end();
    if args.quiet {
        return Ok(());
    }
    print_line(ending(&now, wanted, args.detach))
}

fn ending(now: &v1::NetworkKeyProgress, wanted: u32, detached: bool) -> String {
    let text = match detached {
        true => format!("Nodes change their keys of encrypted networks to generation {wanted}."),
        false => format!(
            "Successfully rotated the keys of encrypted networks: generation {wanted}, on {}.",
            nodes(now.live)
        ),
    };
    match now.away {
        0 => text,
        1 => format!("{text}\n1 node is away and gets its key when it is back."),
        away => format!("{text}\n{away} nodes are away and get their keys when they are back."),
    }
}

fn nodes(count: u32) -> String {
    match count {
        1 => "1 node".to_owned(),
        count => format!("{count} nodes"),
    }
}

fn progress(now: &v1::NetworkKeyProgress) -> String {
    let done = now.live.saturating_sub(u32::try_from(now.lags.len()).unwrap_or(u32::MAX));
    format!("{done} of {} are done: {}", nodes(now.live), waits(now))
}

fn waits(now: &v1::NetworkKeyProgress) -> String {
    let shown = now.lags.iter().take(NAMED_MAX);
    let mut texts: Vec<String> =
        shown.map(|lag| format!("{} waits for {}", lag.name, lag.waits_for)).collect();
    if now.lags.len() > NAMED_MAX {
        texts.push(format!("and {} more", now.lags.len() - NAMED_MAX));
    }
    texts.join(", ")
}

/// A line that is written over on a terminal; elsewhere one for each change.
struct Screen {
    quiet: bool,
    terminal: bool,
    last: String,
}

impl Screen {
    fn new(quiet: bool) -> Self {
        Self { quiet, terminal: io::stderr().is_terminal(), last: String::new() }
    }

    fn show(&mut self, text: &str) {
        if self.quiet || self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        let mut err = io::stderr();
        // Where it cannot be written to nothing is shown, which does no harm.
        let _ = match self.terminal {
            true => write!(err, "\r\x1b[K{text}"),
            false => writeln!(err, "{text}"),
        };
        let _ = err.flush();
    }

    fn end(&mut self) {
        if self.terminal && !self.last.is_empty() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

const POLL_PERIOD: Duration = Duration::from_millis(300);
/// Longer than nodes wait for peers that are down, so that an end is seen.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// Nodes that a line names.
const NAMED_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(live: u32, away: u32, lags: &[&str]) -> v1::NetworkKeyProgress {
        let lag = |name: &&str| v1::NetworkKeyLag {
            name: (*name).to_owned(),
            waits_for: "its new key".into(),
            ..v1::NetworkKeyLag::default()
        };
        v1::NetworkKeyProgress { generation: 2, live, away, lags: lags.iter().map(lag).collect() }
    }

    #[test]
    fn progress_names_who_is_waited_for() {
        assert_eq!(progress(&at(3, 0, &["a"])), "2 of 3 nodes are done: a waits for its new key");
        let many = progress(&at(9, 0, &["a", "b", "c", "d", "e"]));
        assert!(many.starts_with("4 of 9 nodes are done: a waits"), "{many}");
        assert!(many.ends_with("and 2 more"), "{many}");
    }

    #[test]
    fn the_end_says_who_is_away() {
        assert_eq!(
            ending(&at(3, 0, &[]), 2, false),
            "Successfully rotated the keys of encrypted networks: generation 2, on 3 nodes."
        );
        let away = ending(&at(1, 1, &[]), 2, false);
        assert!(away.ends_with("on 1 node.\n1 node is away and gets its key when it is back."));
        let away = ending(&at(1, 2, &["a"]), 2, true);
        assert!(away.starts_with("Nodes change their keys"), "{away}");
        assert!(away.ends_with("2 nodes are away and get their keys when they are back."));
    }
}
