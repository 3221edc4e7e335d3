//! The session with the managers: who is asked, when it is given up.
//!
//! Owns: the list of managers, the order in which they are tried, back-off and silence.
//! Does not know: what is said in a session.
//! Invariant: at most one session at a time; a silent one ends within three heartbeats.

use base::{IdSource, Millis};

/// Back-off between two tries when no manager takes the node.
const BACKOFF_FLOOR: Millis = Millis(100);
const BACKOFF_CAP: Millis = Millis::from_secs(5);
/// How long one manager may take to answer in the first round through all, and in a later one. The
/// first is well below the grace after which a silent node is down: a manager that hangs takes
/// connections, and must not keep the node from those that answer.
const PATIENCE_FLOOR: Millis = Millis::from_secs(3);
const PATIENCE_CAP: Millis = Millis::from_secs(10);
/// Addresses remembered.
const MANAGERS_MAX: usize = 64;

/// Which manager to ask next.
#[derive(Debug)]
pub(crate) struct Choice {
    managers: Vec<String>,
    /// The leader, as some manager named it.
    hint: Option<String>,
    /// The one whose session has just ended: the others are asked before it.
    lost: Option<String>,
    next: usize,
    failures: u32,
}

impl Choice {
    pub(crate) fn new(managers: Vec<String>) -> Self {
        Self { managers, hint: None, lost: None, next: 0, failures: 0 }
    }

    pub(crate) fn managers(&self) -> &[String] {
        &self.managers
    }

    /// Replaces the list; an empty one says nothing. `true` when it changed.
    pub(crate) fn learn(&mut self, mut managers: Vec<String>) -> bool {
        managers.truncate(MANAGERS_MAX);
        let news = !managers.is_empty() && managers != self.managers;
        if news {
            self.managers = managers;
        }
        news
    }

    /// The address to dial now: the named leader first, then one after the other.
    pub(crate) fn address(&mut self) -> Option<String> {
        if let Some(hint) = self.hint.take() {
            return Some(hint);
        }
        let lost = self.lost.take();
        let mut address = self.next_in_turn();
        if address.is_some() && address == lost {
            address = self.next_in_turn();
        }
        address
    }

    fn next_in_turn(&mut self) -> Option<String> {
        let count = self.managers.len();
        let address = self.managers.get(self.next % count.max(1)).cloned();
        self.next = self.next.wrapping_add(1);
        address
    }

    /// The session with this manager has ended.
    pub(crate) fn lost(&mut self, address: String) {
        self.lost = Some(address);
    }

    /// How long the manager that is dialled now may take.
    pub(crate) fn patience(&self) -> Millis {
        PATIENCE_FLOOR.saturating_mul(u64::from(self.rounds()) + 1).min(PATIENCE_CAP)
    }

    /// Rounds through all managers without success.
    fn rounds(&self) -> u32 {
        self.failures / (self.managers.len() as u32).max(1)
    }

    /// A manager sent the node to another one, or knows of none.
    pub(crate) fn redirected(&mut self, leader: String) {
        self.hint = (!leader.is_empty()).then_some(leader);
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// How long to wait before the next try, with jitter so that nodes do not come in step.
    pub(crate) fn failed(&mut self, ids: &mut IdSource) -> Millis {
        self.failures = self.failures.saturating_add(1);
        // The first round through all managers is quick: one of them is probably there.
        let wait = BACKOFF_FLOOR.saturating_mul(1 << self.rounds().min(10)).min(BACKOFF_CAP);
        Millis(wait.0 / 2 + ids.below(wait.0 / 2 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_leader_is_tried_first_then_all_in_turn() {
        let mut choice = Choice::new(vec!["a".into(), "b".into()]);
        choice.redirected("c".into());
        let tried: Vec<String> = (0..4).filter_map(|_| choice.address()).collect();
        assert_eq!(tried, ["c", "a", "b", "a"]);
        choice.redirected(String::new());
        assert_eq!(choice.address().as_deref(), Some("b"));
    }

    #[test]
    fn a_manager_that_was_lost_is_tried_after_the_others() {
        let mut choice = Choice::new(vec!["a".into(), "b".into(), "c".into()]);
        assert_eq!(choice.address().as_deref(), Some("a"));
        choice.next = 0;
        choice.lost("a".into());
        let tried: Vec<String> = (0..4).filter_map(|_| choice.address()).collect();
        assert_eq!(tried, ["b", "c", "a", "b"]);
        let mut alone = Choice::new(vec!["a".into()]);
        alone.lost("a".into());
        assert_eq!(alone.address().as_deref(), Some("a"));
    }

    #[test]
    fn the_first_round_waits_for_nobody_long() {
        let (mut choice, mut ids) = (Choice::new(vec!["a".into(), "b".into()]), IdSource::new(1));
        let mut patience = Vec::new();
        for _ in 0..8 {
            patience.push(choice.patience().0);
            choice.failed(&mut ids);
        }
        assert_eq!(patience, [3_000, 3_000, 6_000, 6_000, 9_000, 9_000, 10_000, 10_000]);
        choice.succeeded();
        assert_eq!(choice.patience(), PATIENCE_FLOOR);
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let (mut choice, mut ids) = (Choice::new(vec!["a".into()]), IdSource::new(1));
        let waits: Vec<Millis> = (0..20).map(|_| choice.failed(&mut ids)).collect();
        assert!(waits[0] <= Millis(200) && waits.iter().all(|wait| *wait <= BACKOFF_CAP));
        assert!(waits[19] >= Millis(BACKOFF_CAP.0 / 2));
    }

    #[test]
    fn an_empty_list_teaches_nothing() {
        let mut choice = Choice::new(vec!["a".into()]);
        assert!(!choice.learn(Vec::new()));
        assert!(choice.learn(vec!["b".into()]) && !choice.learn(vec!["b".into()]));
    }
}
