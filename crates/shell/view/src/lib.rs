//! Docker-shaped JSON of every object.
//!
//! Owns: the field names of the Engine API 1.50 (Service, Task, Node, ClusterInfo), and what of an
//! object is left out because it is secret.
//! Does not know: how anything is decided, or who asks; the command line and the Engine API use it.
//! Invariant: a field that docker's API leaves out when empty is left out, any other is there.

mod cluster;
mod json;
mod network;
mod node;
mod service;
mod spec;
mod task;

pub use cluster::{ClusterFacts, cluster, cluster_spec};
pub use network::{TunnelFacts, network, node_network, tunnel};
pub use node::{NodeFacts, node, node_encryption, tls_status};
pub use service::{ServiceFacts, published_ports, service};
pub use spec::service_spec;
pub use task::{TaskFacts, task, task_ports};
