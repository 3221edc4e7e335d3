//! Identity of a process beyond its number.
//!
//! Owns: (boot id, pid, start time), which is never used twice.
//! Does not know: whose process it is.
//! Invariant: a process counts as alive only when all three agree, because numbers are reused.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// A process that can be told apart from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    pub boot_id: String,
    pub pid: u32,
    /// Clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
}

impl ProcessIdentity {
    /// Observes a process that exists now.
    pub fn observe(pid: u32) -> io::Result<Self> {
        Ok(Self { boot_id: boot_id()?, pid, start_ticks: start_ticks(pid)? })
    }

    /// Whether this very process still exists; a zombie does not count.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        boot_id().is_ok_and(|id| id == self.boot_id)
            && start_ticks(self.pid).is_ok_and(|ticks| ticks == self.start_ticks)
    }
}

/// The kernel's identity of this boot.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Start time of `pid` in clock ticks since boot; an error when it is gone or a zombie.
fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat)
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat: not a living process")))
}

/// The name in parentheses may hold anything, blanks and parentheses too.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let state = *fields.first()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_name() {
        let tail = "1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4711 2289664 0";
        for (stat, ticks) in [
            (format!("7 (sh) S {tail}"), Some(4711)),
            (format!("7 (a) b) (c) R {tail}"), Some(4711)),
            (format!("7 (sh) Z {tail}"), None),
            ("7 (sh".to_owned(), None),
            ("7 (sh) S 1".to_owned(), None),
        ] {
            assert_eq!(parse_start_ticks(&stat), ticks, "{stat}");
        }
    }

    #[test]
    fn another_process_with_the_same_number_is_told_apart() {
        let me = ProcessIdentity::observe(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessIdentity { start_ticks: me.start_ticks + 1, ..me.clone() }.is_alive());
        assert!(!ProcessIdentity { boot_id: "other".into(), ..me }.is_alive());
    }
}
