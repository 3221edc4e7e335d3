//! Which nodes have a clock that differs from the managers'.
//!
//! Owns: the last reading of each node's clock, in leader memory, and the judgement of it.
//! Does not know: how a clock is read; a reading comes with the bound of its error.
//! Invariant: the managers' common clock is the median of theirs, so that a leader whose clock is
//! the odd one is found too; of two managers that differ, it is the leader's.

use std::collections::{BTreeMap, BTreeSet};

use types::limits::CLOCK_TOLERANCE;
use types::{Condition, ConditionCode, NodeId};

/// A clock that was off is right again only when it is by that much, in milliseconds.
const MARGIN_MS: u64 = 1_000;
/// A text stays while the clock is within so many seconds of what it says.
const TEXT_SLACK_SECS: u64 = 2;
/// Readings beyond it are of no use for arithmetic: three hundred years.
const READING_MAX_MS: i64 = 10_000_000_000_000;

/// How far a node's clock is ahead of the leader's, and how wrong that may be, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reading {
    ahead_ms: i64,
    error_ms: u64,
}

impl Reading {
    #[must_use]
    pub fn new(ahead_ms: i64, error_ms: u64) -> Self {
        Self { ahead_ms: ahead_ms.clamp(-READING_MAX_MS, READING_MAX_MS), error_ms }
    }
}

/// What is known of a clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not read yet, or so roughly that it says nothing: what was known stays.
    Unknown,
    Right,
    Off(Condition),
}

/// Readings of all nodes.
#[derive(Debug, Default)]
pub struct Clocks {
    readings: BTreeMap<NodeId, Reading>,
    /// Seconds ahead that were told of a node.
    told: BTreeMap<NodeId, i64>,
}

impl Clocks {
    pub fn read(&mut self, node: NodeId, reading: Reading) {
        self.readings.insert(node, reading);
    }

    /// The node is gone, or no longer heard of.
    pub fn forget(&mut self, node: NodeId) {
        self.readings.remove(&node);
        self.told.remove(&node);
    }

    /// Judges a node's clock by those of `managers`: all that are connected, once each was read. A
    /// few of them may be the odd ones.
    pub fn judge(&mut self, node: NodeId, managers: &BTreeSet<NodeId>) -> Verdict {
        let Some(reading) = self.readings.get(&node).copied() else { return Verdict::Unknown };
        let Some(common) = self.common(managers) else { return Verdict::Unknown };
        let ahead = reading.ahead_ms.saturating_sub(common.ahead_ms);
        let error = reading.error_ms.saturating_add(common.error_ms);
        let limit = CLOCK_TOLERANCE.0;
        let margin = if self.told.contains_key(&node) { MARGIN_MS } else { 0 };
        if ahead.unsigned_abs().saturating_sub(error) > limit {
            return Verdict::Off(self.tell(node, ahead));
        }
        if ahead.unsigned_abs().saturating_add(error) <= limit - margin {
            self.told.remove(&node);
            return Verdict::Right;
        }
        Verdict::Unknown
    }

    /// The median of the managers' clocks; of two in the middle, the one nearer to the leader's.
    fn common(&self, managers: &BTreeSet<NodeId>) -> Option<Reading> {
        let known = managers.iter().map(|node| self.readings.get(node).copied());
        let mut known = known.collect::<Option<Vec<Reading>>>()?;
        known.sort_unstable();
        let upper = *known.get(known.len() / 2)?;
        let lower = known[(known.len() - 1) / 2];
        Some(match lower.ahead_ms.unsigned_abs() <= upper.ahead_ms.unsigned_abs() {
            true => lower,
            false => upper,
        })
    }

    fn tell(&mut self, node: NodeId, ahead_ms: i64) -> Condition {
        let found = (ahead_ms + 500 * ahead_ms.signum()) / 1_000;
        let told = self.told.entry(node).or_insert(found);
        if told.abs_diff(found) >= TEXT_SLACK_SECS {
            *told = found;
        }
        let side = if *told < 0 { "behind" } else { "ahead" };
        let message = format!("clock {} s {side}", told.unsigned_abs());
        Condition::new(ConditionCode::ClockOff, message)
    }
}

#[cfg(test)]
mod tests {
    use testkit::node_id;

    use super::*;

    /// Readings as `name=ahead` or `name=ahead~error`, in milliseconds; managers have capitals.
    fn clocks(text: &str) -> (Clocks, BTreeSet<NodeId>) {
        let (mut clocks, mut managers) = (Clocks::default(), BTreeSet::new());
        for word in text.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap();
            let (ahead, error) = value.split_once('~').unwrap_or((value, "0"));
            let reading = Reading::new(ahead.parse().unwrap(), error.parse().unwrap());
            clocks.read(node_id(name), reading);
            if name.to_uppercase() == name {
                managers.insert(node_id(name));
            }
        }
        (clocks, managers)
    }

    /// The nodes that are off, with their texts, in the order of the readings.
    fn off(text: &str) -> String {
        let (mut clocks, managers) = clocks(text);
        let names = text.split_whitespace().filter_map(|word| word.split_once('='));
        let one = |(name, _): (&str, &str)| match clocks.judge(node_id(name), &managers) {
            Verdict::Off(condition) => Some(format!("{name}: {}", condition.message)),
            Verdict::Right => None,
            Verdict::Unknown => Some(format!("{name}: unknown")),
        };
        names.filter_map(one).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_odd_clock_is_the_one_that_differs_from_most_managers() {
        for (readings, want) in [
            ("A=0 B=9000 C=-900", ""),
            ("A=0 B=0 C=60000", "C: clock 60 s ahead"),
            ("A=0 B=-12400 C=300", "B: clock 12 s behind"),
            // The leader itself, from which all readings are taken.
            ("A=0 B=60000 C=60100", "A: clock 60 s behind"),
            ("A=0 B=-60000 C=-60000", "A: clock 60 s ahead"),
            // Two that differ: the leader's counts. So it does with two against two.
            ("A=0 B=60000", "B: clock 60 s ahead"),
            ("A=0 B=0 C=60000 D=60000", "C: clock 60 s ahead, D: clock 60 s ahead"),
            // Workers are judged, and do not judge.
            ("A=0 w=60000 x=60000", "w: clock 60 s ahead, x: clock 60 s ahead"),
            ("A=0", ""),
        ] {
            assert_eq!(off(readings), want, "{readings}");
        }
    }

    #[test]
    fn a_reading_counts_only_as_far_as_its_error_allows() {
        for (readings, want) in [
            ("A=0 b=10000", ""),
            ("A=0 b=10001", "b: clock 10 s ahead"),
            ("A=0 b=10100~99", "b: clock 10 s ahead"),
            ("A=0 b=10100~100", "b: unknown"),
            ("A=0~60 b=10100~60", "b: unknown"),
            ("A=0 b=9000~1001", "b: unknown"),
            ("A=0 b=9000~1000", ""),
            ("A=0 b=60000~49000", "b: clock 60 s ahead"),
            ("A=0 b=9223372036854775807~18446744073709551615", "b: unknown"),
        ] {
            assert_eq!(off(readings), want, "{readings}");
        }
    }

    #[test]
    fn a_clock_at_the_edge_does_not_flap() {
        let (mut clocks, managers) = clocks("A=0 b=10001");
        let mut told = Vec::new();
        for ahead in [10_001, 9_999, 9_001, 11_499, 11_500, 9_000, 9_999, 10_001] {
            clocks.read(node_id("b"), Reading::new(ahead, 0));
            told.push(match clocks.judge(node_id("b"), &managers) {
                Verdict::Off(condition) => condition.message,
                verdict => format!("{verdict:?}"),
            });
        }
        let want = [
            "clock 10 s ahead",
            "Unknown",
            "Unknown",
            "clock 10 s ahead",
            "clock 12 s ahead",
            "Right",
            "Right",
            "clock 10 s ahead",
        ];
        assert_eq!(told, want);
    }

    #[test]
    fn nothing_is_said_of_a_clock_that_was_never_read_or_is_forgotten() {
        let (mut clocks, managers) = clocks("A=0 b=60000");
        assert_eq!(clocks.judge(node_id("c"), &managers), Verdict::Unknown);
        clocks.forget(node_id("b"));
        assert_eq!(clocks.judge(node_id("b"), &managers), Verdict::Unknown);
    }

    #[test]
    fn nobody_is_judged_before_each_connected_manager_was_read() {
        let (mut clocks, mut managers) = clocks("A=0 B=-60000 w=-60000");
        managers.insert(node_id("C"));
        let judge = |clocks: &mut Clocks| {
            ["A", "B", "w"].map(|name| match clocks.judge(node_id(name), &managers) {
                Verdict::Off(condition) => condition.message,
                verdict => format!("{verdict:?}"),
            })
        };
        assert_eq!(judge(&mut clocks), ["Unknown"; 3]);
        clocks.read(node_id("C"), Reading::new(-60_000, 0));
        assert_eq!(judge(&mut clocks), ["clock 60 s ahead", "Right", "Right"]);
    }
}
