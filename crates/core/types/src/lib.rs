//! The nouns of Shoal, valid by construction, and every limit.
//!
//! Owns: services, tasks, nodes, the cluster, their specs and the checks of user input.
//! Does not know: storage, wire formats, or who decides what about them.
//! Invariant: a spec that passed [`ServiceSpec::check`] needs no second check anywhere.

mod capability;
mod check;
mod cluster;
mod constraint;
mod directory;
mod encryption;
mod fault;
mod ids;
mod image_name;
pub mod limits;
mod local_network;
mod network;
mod node;
mod paths;
mod service;
mod spec;
mod task;

pub use capability::{CAPABILITIES, Capability};
pub use check::{
    POOL_DEFAULT, POOL_MASK, check_address_pools, check_aliases, check_cluster_spec, check_labels,
    check_local_network_spec, check_network_spec, check_node_spec, check_udp_ports, from_config,
};
pub use cluster::{Cluster, ClusterSpec};
pub use constraint::{Constraint, ConstraintKey, Matchable};
pub use directory::{
    DirectoryUpdate, EndpointPart, NetworkPart, OwnPart, PeerPart, PortPart, ServicePart,
};
pub use encryption::{
    EncryptionBackend, NetworkKey, NetworkKeys, NodeEncryption, OwnEncryption, PeerEncryption,
    encryption_port,
};
pub use fault::{ErrorCode, Fault};
pub use ids::{ClusterId, NetworkId, NodeId, ServiceId, TaskId};
pub use image_name::ImageName;
pub use local_network::{LocalNetwork, local_option};
pub use network::{
    Attachment, Connection, Endpoint, EndpointMode, Family, HostPort, IpamPool, Network,
    NetworkDriver, NetworkSpec, PortBinding, PortProtocol, PublishMode, Subnet, TaskNetwork,
    VirtualAddress, nets_overlap,
};
pub use node::{
    Availability, Condition, ConditionCode, DataPath, ManagerStatus, Node, NodeDescription,
    NodeRole, NodeSpec, NodeState, NodeStatus, Platform,
};
pub use paths::{BadPath, NetworkCheck, PathCheck, PathTrouble, TunnelCheck};
pub use service::{Reason, Revision, Service, UpdateState, UpdateStatus};
pub use spec::{
    ContainerSpec, DnsConfig, EndpointSpec, FailureAction, FileReference, Healthcheck, LogDriver,
    Mount, NetworkAttachment, Placement, PortSpec, Privileges, ReplicatedJob, Resources,
    RestartCondition, RestartPolicy, Secret, ServiceMode, ServiceSpec, TaskSpec, Ulimit,
    UpdateConfig, UpdateOrder,
};
pub use task::{Slot, SlotKey, Tally, Task, TaskState, TaskStatus};

/// When an object was made and last changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub created: base::Timestamp,
    pub updated: base::Timestamp,
    /// Raft index of the last change.
    pub version: u64,
    /// Raft index of the last change by a user: what API updates compare.
    pub spec_version: u64,
}

/// Labels, sorted by key.
pub type Labels = std::collections::BTreeMap<String, String>;
