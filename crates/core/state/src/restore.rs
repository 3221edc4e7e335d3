//! Builds a state from the records of a stored snapshot.
//!
//! Owns: the order in which records become tables and indexes, and the check of their references.
//! Invariant: what it returns is a state that `apply` could have made, or an error.

use std::sync::Arc;

use base::Timestamp;
use types::{Cluster, Node, NodeId, Revision, Service, ServiceId, SlotKey, Tally, Task, TaskId};

use crate::Snapshot;

/// Collects records in any order.
#[derive(Debug, Default)]
pub struct Restore {
    state: Snapshot,
    tasks: Vec<Task>,
}

/// The records do not fit together: the snapshot is damaged, take another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("service name {name} occurs twice")]
    NameTwice { name: String },
    #[error("task {task} occurs twice")]
    TaskTwice { task: TaskId },
    #[error("task {task} refers to revision {revision} of service {service}, which is not there")]
    RevisionMissing { task: TaskId, service: ServiceId, revision: u64 },
    #[error("service {service} has no current revision")]
    CurrentRevisionMissing { service: ServiceId },
}

impl Restore {
    #[must_use]
    pub fn new(index: u64, time: Timestamp) -> Self {
        Self { state: Snapshot { index, time, ..Snapshot::default() }, tasks: Vec::new() }
    }

    pub fn cluster(&mut self, cluster: Cluster) {
        self.state.cluster = Some(Arc::new(cluster));
    }

    pub fn node(&mut self, node: Node) {
        self.state.nodes.insert(node.id, Arc::new(node));
    }

    pub fn service(&mut self, service: Service) {
        self.state.services.insert(service.id, Arc::new(service));
    }

    pub fn revision(&mut self, revision: Revision) {
        self.state.revisions.insert((revision.service, revision.number), Arc::new(revision));
    }

    pub fn task(&mut self, task: Task) {
        self.tasks.push(task);
    }

    pub fn tally(&mut self, service: ServiceId, slot: SlotKey, tally: Tally) {
        self.state.tallies.insert((service, slot), Arc::new(tally));
    }

    pub fn removed(&mut self, node: NodeId, until: Timestamp) {
        self.state.removed.insert(node, until);
    }

    /// Checks the references and derives the indexes.
    pub fn finish(mut self) -> Result<Snapshot, RestoreError> {
        for service in self.state.services.values() {
            let name = service.spec.name.to_lowercase();
            if self.state.names.insert(name.as_str().into(), service.id).is_some() {
                return Err(RestoreError::NameTwice { name });
            }
            if !self.state.revisions.contains_key(&(service.id, service.revision)) {
                return Err(RestoreError::CurrentRevisionMissing { service: service.id });
            }
        }
        for task in self.tasks {
            let (service, revision) = (task.service, task.revision);
            if !self.state.revisions.contains_key(&(service, revision)) {
                return Err(RestoreError::RevisionMissing { task: task.id, service, revision });
            }
            self.state.reindex(None, Some(&task));
            if let Some(twice) = self.state.tasks.insert(task.id, Arc::new(task)) {
                return Err(RestoreError::TaskTwice { task: twice.id });
            }
        }
        Ok(self.state)
    }
}
