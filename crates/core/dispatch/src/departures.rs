//! Stops that are held back until nobody sends to the task any more.
//!
//! Owns: which tasks leave, since when, and up to which index their nodes' peers must have come.
//! Does not know: which nodes those are or how far each is; it is told.
//! Invariant: a stop is held back at most `DEPARTURE_WAIT_MAX`, and once let go stays so.

use std::collections::{BTreeMap, BTreeSet};

use base::Millis;
use types::{NetworkId, TaskId, limits::DEPARTURE_WAIT_MAX};

/// Tasks on their way out of the balancers and names.
#[derive(Debug, Default)]
pub struct Departures {
    held: BTreeMap<TaskId, Held>,
    /// In the order in which their waits end.
    deadlines: BTreeSet<(Millis, TaskId)>,
    gone: BTreeSet<TaskId>,
}

#[derive(Debug)]
struct Held {
    /// The state in which it no longer serves has this index.
    index: u64,
    until: Millis,
    networks: Vec<NetworkId>,
}

/// A stop that was held back as long as allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    pub task: TaskId,
    pub index: u64,
    pub networks: Vec<NetworkId>,
}

impl Departures {
    /// Whether a task's stop is held back; the first question begins the wait.
    pub fn holds(&mut self, task: TaskId, networks: &[NetworkId], index: u64, now: Millis) -> bool {
        if networks.is_empty() || self.gone.contains(&task) {
            return false;
        }
        self.held.entry(task).or_insert_with(|| {
            let until = Millis(now.0.saturating_add(DEPARTURE_WAIT_MAX.0));
            self.deadlines.insert((until, task));
            Held { index, until, networks: networks.to_vec() }
        });
        true
    }

    /// Lets go those that nobody sends to any more, by the lowest index that the nodes of a
    /// network have come to, and those whose time is over, which are named apart.
    pub fn let_go(
        &mut self,
        now: Millis,
        mut passed: impl FnMut(NetworkId) -> u64,
    ) -> (Vec<TaskId>, Vec<Overdue>) {
        let (mut gone, mut overdue) = (Vec::new(), Vec::new());
        for (task, held) in &mut self.held {
            let done = held.networks.iter().all(|network| passed(*network) >= held.index);
            if !done && held.until > now {
                continue;
            }
            if !done {
                let networks = std::mem::take(&mut held.networks);
                overdue.push(Overdue { task: *task, index: held.index, networks });
            }
            gone.push(*task);
        }
        for task in &gone {
            self.forget(*task);
            self.gone.insert(*task);
        }
        (gone, overdue)
    }

    /// A task that is over needs no memory.
    pub fn forget(&mut self, task: TaskId) {
        self.gone.remove(&task);
        if let Some(held) = self.held.remove(&task) {
            self.deadlines.remove(&(held.until, task));
        }
    }

    /// When the next wait is over; `None`: nothing is held back.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first().map(|(until, _)| *until)
    }
}

#[cfg(test)]
mod tests {
    use base::Id;

    use super::*;

    fn id<T: From<Id>>(number: u128) -> T {
        T::from(Id::from_u128(number).unwrap())
    }

    #[test]
    fn a_stop_waits_for_the_last_node_and_not_for_ever() {
        let mut departures = Departures::default();
        let (task, other, network): (TaskId, TaskId, NetworkId) = (id(1), id(2), id(3));
        assert!(!departures.holds(task, &[], 5, Millis(0)), "nobody sends to it");
        assert!(departures.holds(task, &[network], 5, Millis(0)));
        assert!(departures.holds(other, &[network], 9, Millis(10)));
        assert_eq!(departures.next_deadline(), Some(DEPARTURE_WAIT_MAX));
        assert_eq!(departures.let_go(Millis(20), |_| 4), (vec![], vec![]));
        assert_eq!(departures.let_go(Millis(20), |_| 5), (vec![task], vec![]));
        assert!(!departures.holds(task, &[network], 99, Millis(30)), "it stays let go");
        let late = Millis(10 + DEPARTURE_WAIT_MAX.0);
        let (gone, overdue) = departures.let_go(late, |_| 5);
        assert_eq!(gone, [other]);
        assert_eq!(overdue, [Overdue { task: other, index: 9, networks: vec![network] }]);
        assert_eq!(departures.next_deadline(), None);
        departures.forget(task);
        assert!(departures.holds(task, &[network], 6, late));
    }
}
