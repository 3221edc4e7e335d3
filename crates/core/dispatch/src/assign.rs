//! The difference between what a node was told and what it should know.
//!
//! Owns: the memory of one session. Invariant: after `update`, the session knows exactly the tasks
//! of the snapshot that name the node, with their desired states.

use std::collections::{BTreeMap, BTreeSet};

use state::Snapshot;
use types::{NodeId, ServiceId, Task, TaskId, TaskState};

/// What one session was told.
#[derive(Debug, Default)]
pub struct Told {
    tasks: BTreeMap<TaskId, TaskState>,
    revisions: BTreeSet<(ServiceId, u64)>,
}

/// What it must be told now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Revisions that the session does not know yet; before the tasks that refer to them.
    pub revisions: Vec<(ServiceId, u64)>,
    pub tasks: Vec<TaskId>,
    pub removed: Vec<TaskId>,
}

impl Difference {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.removed.is_empty()
    }
}

impl Told {
    /// Computes the difference and counts it as told. `holds` says of a task that the node was told
    /// to run whether its stop is held back; then the node is not told of it yet.
    pub fn update(
        &mut self,
        view: &Snapshot,
        node: NodeId,
        mut holds: impl FnMut(&Task) -> bool,
    ) -> Difference {
        let mut difference = Difference::default();
        let mut seen = BTreeSet::new();
        for task in view.tasks_on_node(node) {
            if task.status.state < TaskState::Assigned {
                continue; // a global task whose node is not confirmed yet
            }
            seen.insert(task.id);
            let told = self.tasks.get(&task.id).copied();
            if told == Some(task.desired) {
                continue;
            }
            let leaves = told.is_some_and(|told| told <= TaskState::Running)
                && task.desired > TaskState::Running
                && task.status.state == TaskState::Running;
            if leaves && holds(task) {
                continue;
            }
            self.tasks.insert(task.id, task.desired);
            let key = (task.service, task.revision);
            if view.revision(key.0, key.1).is_some() && self.revisions.insert(key) {
                difference.revisions.push(key);
            }
            difference.tasks.push(task.id);
        }
        let gone: Vec<TaskId> =
            self.tasks.keys().filter(|id| !seen.contains(id)).copied().collect();
        for id in &gone {
            self.tasks.remove(id);
        }
        difference.removed = gone;
        difference
    }
}

#[cfg(test)]
mod tests {
    use testkit::{fixture, node_id};

    use super::*;

    const BASE: &str = "node a ready
         service web replicas=3
         task web.1 @a running
         task web.2 @b assigned
         task web.3 @a failed desired=shutdown
         task web.4 pending";

    #[test]
    fn a_session_learns_of_its_tasks_once() {
        let view = fixture(BASE).view;
        let mut told = Told::default();
        let first = told.update(&view, node_id("a"), |_| false);
        assert_eq!((first.tasks.len(), first.revisions.len(), first.removed.len()), (2, 1, 0));
        assert!(told.update(&view, node_id("a"), |_| false).is_empty());
    }

    #[test]
    fn changed_desires_and_deleted_tasks_are_told() {
        let mut told = Told::default();
        told.update(&fixture(BASE).view, node_id("a"), |_| false);
        let changed = BASE.replace("@a running", "@a running desired=shutdown").replace(
            "task web.3 @a failed desired=shutdown",
            "task web.3 @b failed desired=shutdown",
        );
        let difference = told.update(&fixture(&changed).view, node_id("a"), |_| false);
        assert_eq!((difference.tasks.len(), difference.removed.len()), (1, 1));
        assert!(difference.revisions.is_empty());
    }
    #[test]
    fn a_stop_that_is_held_back_is_told_once_it_is_let_go() {
        let mut told = Told::default();
        told.update(&fixture(BASE).view, node_id("a"), |_| true);
        let leaving = BASE.replace("@a running", "@a running desired=shutdown");
        let view = fixture(&leaving).view;
        assert!(told.update(&view, node_id("a"), |_| true).is_empty());
        assert_eq!(told.update(&view, node_id("a"), |_| false).tasks.len(), 1);
        // A new session does not know that it ran: its node does, and stops it.
        let mut anew = Told::default();
        assert_eq!(anew.update(&view, node_id("a"), |_| true).tasks.len(), 2);
    }
}
