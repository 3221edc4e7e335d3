//! Reading ahead of the queue.
//!
//! Owns: finding the services and templates of the next groups, some dozens at a time. They lie
//! all over the memory: looked at one after the other, each costs five waits for it; looked at
//! together, the processor waits for many at once.
//! Does not know: what is done with them. Invariant: what is given is what a look-up would give.

use std::collections::VecDeque;
use std::hint::black_box;
use std::iter::Peekable;

use state::Snapshot;
use types::{Revision, Service, ServiceId, TaskId};

/// Groups that are looked at together.
const GROUPS: usize = 64;
/// Tasks looked at for them: where groups are large, reading ahead gains nothing.
const TASKS_MAX: usize = 1_024;

type Key = (ServiceId, u64);
type Found<'a> = Option<(&'a Service, &'a Revision)>;

/// The groups that come next. `Q` is the queue, a second time.
pub(crate) struct Ahead<'a, Q: Iterator<Item = (ServiceId, u64, TaskId)>> {
    view: &'a Snapshot,
    queue: Peekable<Q>,
    next: VecDeque<(Key, Found<'a>)>,
    gave_up: bool,
}

impl<'a, Q: Iterator<Item = (ServiceId, u64, TaskId)>> Ahead<'a, Q> {
    pub(crate) fn new(view: &'a Snapshot, queue: Q) -> Self {
        Self {
            view,
            queue: queue.peekable(),
            next: VecDeque::with_capacity(GROUPS),
            gave_up: false,
        }
    }

    /// Service and template of a group; groups are asked for in the order of the queue.
    pub(crate) fn get(&mut self, key: Key) -> Found<'a> {
        loop {
            match self.next.pop_front() {
                Some((known, found)) if known == key => return found,
                Some((known, _)) if known < key => {}
                Some(later) => {
                    self.next.push_front(later);
                    return find(self.view, key);
                }
                None if self.gave_up => return find(self.view, key),
                None => self.read(),
            }
        }
    }

    fn read(&mut self) {
        for _ in 0..TASKS_MAX {
            let Some((service, revision, _)) = self.queue.next() else { break };
            let key = (service, revision);
            if self.next.back().is_none_or(|(last, _)| *last != key) {
                self.next.push_back((key, find(self.view, key)));
            }
            if self.next.len() >= GROUPS {
                break;
            }
        }
        self.gave_up = self.next.len() < GROUPS;
        // Level by level, so that no look waits for the one before.
        let found = || self.next.iter().filter_map(|(_, found)| found.as_ref());
        found().for_each(|(service, revision)| {
            black_box((&raw const *service.spec, &raw const *revision.spec));
        });
        found().for_each(|(service, revision)| {
            let placement = &revision.spec.placement;
            let lengths = placement.constraints.len() + placement.spread.len();
            let image = revision.spec.container.image.as_ptr();
            black_box((service.spec.mode, revision.spec.reservations.cpu_nanos, lengths, image));
        });
        found().for_each(|(_, revision)| {
            black_box(revision.spec.container.image.as_bytes().first());
        });
    }
}

fn find(view: &Snapshot, (service, number): Key) -> Found<'_> {
    Some((view.service(service)?, view.revision(service, number)?))
}

#[cfg(test)]
mod tests {
    use testkit::fixture;

    use super::*;

    #[test]
    fn what_is_read_ahead_is_what_is_there() {
        for services in [1, GROUPS - 1, GROUPS, GROUPS * 2 + 3] {
            let mut text = String::from("now 12:00:00\nnode a ready\n");
            for number in 0..services {
                text += &format!("service s{number} replicas=1\ntask s{number}.1 pending\n");
            }
            // One whose tasks fill the look ahead.
            text += "service many replicas=2000\n";
            for slot in 1..=TASKS_MAX + 10 {
                text += &format!("task many.{slot} pending\n");
            }
            let view = fixture(&text).view;
            let mut ahead = Ahead::new(&view, view.pending_tasks());
            let mut keys: Vec<Key> = view.pending_tasks().map(|(s, r, _)| (s, r)).collect();
            keys.dedup();
            assert_eq!(keys.len(), services + 1);
            for (at, key) in keys.iter().enumerate() {
                if at % 7 != 3 {
                    let (service, revision) = ahead.get(*key).unwrap();
                    assert_eq!((service.id, revision.number), *key);
                }
            }
        }
    }

    #[test]
    fn a_group_whose_service_is_gone_is_none() {
        let view = fixture("now 12:00:00\nservice web replicas=1\ntask web.1 pending").view;
        let (service, revision, _) = view.pending_tasks().next().unwrap();
        let mut ahead = Ahead::new(&view, view.pending_tasks());
        assert!(ahead.get((service, revision + 1)).is_none());
    }
}
