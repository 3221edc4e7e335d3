//! The dispatcher's messages, made of the snapshot.
//!
//! Owns: assignments, directives and subscriptions as messages, cut to size.
//! Invariant: no message carries more than `TASKS_PER_MESSAGE_MAX` tasks.

use dispatch::Difference;
use state::Snapshot;
use types::{NodeId, NodeRole, TaskId};
use wire::bytes_of;
use wire::v1::{
    AssignedRevision, Assignments, Directive, ManagerMessage, TaskAssignment, manager_message,
};

use crate::options::TASKS_PER_MESSAGE_MAX;

pub(crate) fn message(message: manager_message::Message) -> ManagerMessage {
    ManagerMessage { message: Some(message) }
}

/// The assignments for a difference, in as many messages as it takes.
pub(crate) fn assignments(
    view: &Snapshot,
    difference: &Difference,
    full: bool,
) -> Vec<Assignments> {
    let epoch = view.cluster().map_or(0, |cluster| cluster.epoch);
    let mut messages = Vec::new();
    let mut revisions: Vec<AssignedRevision> = difference
        .revisions
        .iter()
        .filter_map(|(service, number)| revision(view, *service, *number))
        .collect();
    let mut removed = difference.removed.iter().map(|id| bytes_of(id.0)).collect();
    let mut chunks = difference.tasks.chunks(TASKS_PER_MESSAGE_MAX).peekable();
    loop {
        let tasks = chunks.next().unwrap_or_default();
        messages.push(Assignments {
            epoch,
            index: view.index(),
            full,
            more: chunks.peek().is_some(),
            revisions: std::mem::take(&mut revisions),
            tasks: tasks.iter().filter_map(|id| assignment(view, *id)).collect(),
            removed: std::mem::take(&mut removed),
        });
        if chunks.peek().is_none() {
            return messages;
        }
    }
}

fn revision(view: &Snapshot, service: types::ServiceId, number: u64) -> Option<AssignedRevision> {
    let revision = view.revision(service, number)?;
    let known = view.service(service);
    Some(AssignedRevision {
        service: bytes_of(service.0),
        revision: number,
        service_name: known.map_or_else(|| service.to_string(), |s| s.spec.name.clone()),
        service_labels: known.map(|s| s.spec.labels.clone()).unwrap_or_default(),
        spec: Some((&*revision.spec).into()),
    })
}

fn assignment(view: &Snapshot, id: TaskId) -> Option<TaskAssignment> {
    let task = view.task(id)?;
    Some(TaskAssignment {
        task: bytes_of(task.id.0),
        service: bytes_of(task.service.0),
        revision: task.revision,
        slot: task.slot.number(),
        desired: task.desired as i32,
    })
}

/// What the node itself should know and do.
pub(crate) fn directive(view: &Snapshot, node: NodeId) -> Option<Directive> {
    let (node, cluster) = (view.node(node)?, view.cluster()?);
    Some(Directive {
        role: node.role as i32,
        managers: manager_addresses(view),
        heartbeat_ms: cluster.spec.dispatcher_heartbeat.0,
        renew_certificate: false,
        node_name: node.hostname().to_owned(),
    })
}

/// Addresses of all managers, in the order of their nodes.
pub(crate) fn manager_addresses(view: &Snapshot) -> Vec<String> {
    view.nodes()
        .filter(|node| node.role == NodeRole::Manager)
        .filter_map(|node| node.manager.as_ref().map(|manager| manager.address.clone()))
        .collect()
}
