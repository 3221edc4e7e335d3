//! The indexes, kept by every change of a task.
//!
//! Owns: how a task's entry in each index follows from its record.
//! Invariant: `reindex(old, new)` leaves exactly what a fresh derivation from the tables would.

use types::{NodeId, Resources, Task, TaskState};

use crate::Snapshot;

/// What a node's tasks hold: those that have a node and have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub tasks: u32,
    pub cpu_nanos: u64,
    pub memory_bytes: u64,
}

impl Snapshot {
    /// Takes `old` out of every index and puts `new` in.
    pub(crate) fn reindex(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let same_place = |a: &Task, b: &Task| a.service == b.service && a.slot == b.slot;
        if !matches!((old, new), (Some(a), Some(b)) if same_place(a, b)) {
            if let Some(task) = old {
                self.by_service.remove(&(task.service, task.slot, task.id));
                self.count_revision(task, -1);
            }
            if let Some(task) = new {
                self.by_service.insert((task.service, task.slot, task.id));
                self.count_revision(task, 1);
            }
        }
        self.reindex_node(old, new);
        self.reindex_queues(old, new);
        self.reindex_counts(old, new);
        self.net.reindex_task(old, new);
    }

    fn reindex_node(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let (was, is) = (old.and_then(|t| t.node), new.and_then(|t| t.node));
        if was == is {
            return;
        }
        if let (Some(task), Some(node)) = (old, was) {
            self.by_node.remove(&(node, task.id));
        }
        if let (Some(task), Some(node)) = (new, is) {
            self.by_node.insert((node, task.id));
        }
    }

    fn reindex_queues(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let (was, is) = (old.is_some_and(is_fresh), new.is_some_and(is_fresh));
        if let (Some(task), true, false) = (old, was, is) {
            self.fresh.remove(&(task.service, task.id));
        }
        if let (Some(task), false, true) = (new, was, is) {
            self.fresh.insert((task.service, task.id));
        }
        let (was, is) = (old.is_some_and(is_pending), new.is_some_and(is_pending));
        if let (Some(task), true, false) = (old, was, is) {
            self.pending.remove(&(task.service, task.revision, task.id));
        }
        if let (Some(task), false, true) = (new, was, is) {
            self.pending.insert((task.service, task.revision, task.id));
        }
    }

    fn reindex_counts(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let (was, is) = (old.and_then(held_node), new.and_then(held_node));
        if was != is {
            if let (Some(task), Some(node)) = (old, was) {
                self.count_usage(task, node, false);
            }
            if let (Some(task), Some(node)) = (new, is) {
                self.count_usage(task, node, true);
            }
        }
        let (was, is) = (old.and_then(active_node), new.and_then(active_node));
        if was != is {
            if let (Some(task), Some(node)) = (old, was) {
                self.count_placed(task, node, -1);
            }
            if let (Some(task), Some(node)) = (new, is) {
                self.count_placed(task, node, 1);
            }
        }
    }

    fn count_usage(&mut self, task: &Task, node: NodeId, add: bool) {
        let none = Resources::default();
        let revision = self.revisions.get(&(task.service, task.revision)).cloned();
        let held = revision.as_ref().map_or(&none, |r| &r.spec.reservations);
        let mut usage = self.usage.get(&node).copied().unwrap_or_default();
        if add {
            usage.tasks += 1;
            usage.cpu_nanos = usage.cpu_nanos.saturating_add(held.cpu_nanos);
            usage.memory_bytes = usage.memory_bytes.saturating_add(held.memory_bytes);
        } else {
            usage.tasks = usage.tasks.saturating_sub(1);
            usage.cpu_nanos = usage.cpu_nanos.saturating_sub(held.cpu_nanos);
            usage.memory_bytes = usage.memory_bytes.saturating_sub(held.memory_bytes);
        }
        if usage == Usage::default() {
            self.usage.remove(&node);
        } else {
            self.usage.insert(node, usage);
        }
    }

    fn count_placed(&mut self, task: &Task, node: NodeId, by: i64) {
        let key = (task.service, node);
        let count = i64::from(self.placed.get(&key).copied().unwrap_or(0)) + by;
        match u32::try_from(count) {
            Ok(count) if count > 0 => drop(self.placed.insert(key, count)),
            _ => drop(self.placed.remove(&key)),
        }
    }

    /// A revision that no task refers to, and that is not its service's current one, goes.
    fn count_revision(&mut self, task: &Task, by: i64) {
        let key = (task.service, task.revision);
        let count = i64::from(self.revision_users.get(&key).copied().unwrap_or(0)) + by;
        match u32::try_from(count) {
            Ok(count) if count > 0 => drop(self.revision_users.insert(key, count)),
            _ => {
                self.revision_users.remove(&key);
            }
        }
    }

    /// Drops a revision that nothing refers to any more.
    pub(crate) fn release_revision(&mut self, key: (types::ServiceId, u64)) {
        let current = self.services.get(&key.0).is_some_and(|s| s.revision == key.1);
        if !current && !self.revision_users.contains_key(&key) {
            self.revisions.remove(&key);
        }
    }
}

pub(crate) fn is_fresh(task: &Task) -> bool {
    task.status.state == TaskState::New && task.desired <= TaskState::Running
}

pub(crate) fn is_pending(task: &Task) -> bool {
    task.status.state == TaskState::Pending && task.desired <= TaskState::Running
}

pub(crate) fn held_node(task: &Task) -> Option<NodeId> {
    task.node.filter(|_| task.holds_resources())
}

pub(crate) fn active_node(task: &Task) -> Option<NodeId> {
    task.node.filter(|_| task.is_active())
}
