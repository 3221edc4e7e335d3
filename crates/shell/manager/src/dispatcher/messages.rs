//! The dispatcher's messages, made of the snapshot.
//!
//! Owns: assignments, directives and subscriptions as messages, cut to size.
//! Invariant: no message carries more than `TASKS_PER_MESSAGE_MAX` tasks.

use dispatch::Difference;
use state::Snapshot;
use types::{
    DirectoryUpdate, EndpointMode, HostPort, NodeId, NodeRole, PortSpec, Task, TaskId, limits,
};
use wire::bytes_of;
use wire::v1::{
    AssignedNetwork, AssignedRevision, Assignments, Directive, Directory, ManagerMessage,
    TaskAssignment, manager_message,
};

use crate::options::{PARTS_PER_MESSAGE_MAX, TASKS_PER_MESSAGE_MAX};

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
        network: network(view, task),
    })
}

/// What its container sees of the network; `None`: outgoing access only.
fn network(view: &Snapshot, task: &Task) -> Option<AssignedNetwork> {
    let revision = view.revision(task.service, task.revision)?;
    let given = task.network.as_deref();
    if given.is_none() && revision.host_ports.is_empty() {
        return None;
    }
    let service = view.service(task.service);
    let named = service.is_some_and(|s| s.spec.endpoint_mode() == EndpointMode::Dnsrr);
    Some(AssignedNetwork {
        network: given.map(Into::into),
        host_ports: revision.host_ports.iter().map(host_port).collect(),
        drain_min_ms: if named { limits::TASK_NAME_TTL.0 } else { 0 },
        drain_max_ms: limits::DRAIN_LIMIT_DEFAULT.0,
    })
}

fn host_port(port: &PortSpec) -> wire::v1::HostPort {
    let PortSpec { protocol, target, published, ref host, .. } = *port;
    (&HostPort { protocol, target, published, host: host.clone() }).into()
}

/// An update that is cut into messages.
struct Cut {
    messages: Vec<Directory>,
    /// What every message has.
    head: Directory,
    /// Parts that the last message still takes.
    room: usize,
}

impl Cut {
    fn place<T>(&mut self, parts: Vec<T>, list: fn(&mut Directory) -> &mut Vec<T>) {
        for part in parts {
            if self.room == 0 {
                self.messages.push(self.head.clone());
                self.room = PARTS_PER_MESSAGE_MAX;
            }
            self.room -= 1;
            if let Some(last) = self.messages.last_mut() {
                list(last).push(part);
            }
        }
    }
}

/// An update of the directory, in as many messages as it takes.
pub(crate) fn directory(view: &Snapshot, update: DirectoryUpdate) -> Vec<Directory> {
    let epoch = view.cluster().map_or(0, |cluster| cluster.epoch);
    let whole = Directory { epoch, ..(&update).into() };
    let head = Directory { epoch: whole.epoch, index: whole.index, ..Directory::default() };
    let messages = vec![Directory {
        full: whole.full,
        own: whole.own,
        networks: whole.networks,
        removed_networks: whole.removed_networks,
        ..head.clone()
    }];
    let mut cut = Cut { messages, head, room: PARTS_PER_MESSAGE_MAX };
    cut.place(whole.removed_peers, |to| &mut to.removed_peers);
    cut.place(whole.removed_services, |to| &mut to.removed_services);
    cut.place(whole.removed_endpoints, |to| &mut to.removed_endpoints);
    cut.place(whole.peers, |to| &mut to.peers);
    cut.place(whole.services, |to| &mut to.services);
    cut.place(whole.endpoints, |to| &mut to.endpoints);
    let mut messages = cut.messages;
    let last = messages.len() - 1;
    messages[..last].iter_mut().for_each(|message| message.more = true);
    messages
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
