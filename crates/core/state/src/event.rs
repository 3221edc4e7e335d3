//! What an applied change touched.
//!
//! Owns: the closed list of events. Invariant: an event says where to look, never what is there.

use types::{NetworkId, NodeId, ServiceId, TaskId};

/// Something changed: look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Cluster,
    Node(NodeId),
    Service(ServiceId),
    /// A network or what was given to it; not that addresses of it were given out.
    Network(NetworkId),
    /// A task, with its service and its node (for a removed one: as they were).
    Task {
        task: TaskId,
        service: ServiceId,
        node: Option<NodeId>,
    },
}
