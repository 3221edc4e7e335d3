//! The difference between what a node was told and what it should know.
//!
//! Owns: the memory of one session. Invariant: after `update`, the session knows exactly the tasks
//! of the snapshot that name the node, with their desired states.

use std::collections::{BTreeMap, BTreeSet};

use state::Snapshot;
use types::{Connection, NodeId, ServiceId, Task, TaskId, TaskState};

/// What one session was told.
#[derive(Debug, Default)]
pub struct Told {
    tasks: BTreeMap<TaskId, TaskState>,
    /// Of tasks that somebody connected to further networks: few.
    connected: BTreeMap<TaskId, Vec<Connection>>,
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
            if told == Some(task.desired) && !self.connects(task) {
                continue;
            }
            let leaves = told.is_some_and(|told| told <= TaskState::Running)
                && task.desired > TaskState::Running
                && task.status.state == TaskState::Running;
            if leaves && holds(task) {
                continue;
            }
            self.connects(task);
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
            self.connected.remove(id);
        }
        difference.removed = gone;
        difference
    }

    /// Takes in what the task is connected to; whether the node was told otherwise.
    fn connects(&mut self, task: &Task) -> bool {
        let now = task.network.as_deref().map_or(&[][..], |given| &given.connected);
        if self.connected.get(&task.id).map_or(&[][..], Vec::as_slice) == now {
            return false;
        }
        match now.is_empty() {
            true => self.connected.remove(&task.id),
            false => self.connected.insert(task.id, now.to_vec()),
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use state::{Author, Change};
    use testkit::{apply, fixture, node_id};

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
    fn what_a_task_is_connected_to_is_told_once() {
        let mut view = fixture(BASE).view;
        let mut told = Told::default();
        told.update(&view, node_id("a"), |_| false);
        let network = types::NetworkId::MAX;
        let spec = types::NetworkSpec {
            name: "back".into(),
            attachable: true,
            ipv4: true,
            ..types::NetworkSpec::default()
        };
        let subnets = vec![types::Subnet::new("10.1.0.0/24".parse().unwrap(), None, None)];
        let task = view.tasks_on_node(node_id("a")).next().unwrap().id;
        let v4 = Some([10, 1, 0, 7].into());
        let attachment = types::Attachment { network, v4, v6: None };
        let connection = Box::new(Connection { attachment, aliases: Vec::new() });
        for (author, change) in [
            (Author::Api, Change::CreateNetwork { id: network, spec: spec.into() }),
            (
                Author::Allocator,
                Change::AllocateNetwork { id: network, vni: 5_000, mtu: 1_450, subnets },
            ),
            (Author::Allocator, Change::ConnectTask { task, connection }),
        ] {
            apply(&mut view, author, change);
        }
        assert_eq!(told.update(&view, node_id("a"), |_| false).tasks, [task]);
        assert!(told.update(&view, node_id("a"), |_| false).is_empty());
        apply(&mut view, Author::Allocator, Change::DisconnectTask { task, network });
        assert_eq!(told.update(&view, node_id("a"), |_| false).tasks, [task]);
        assert!(told.update(&view, node_id("a"), |_| false).is_empty());
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
