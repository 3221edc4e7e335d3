//! The facts of one moment.
//!
//! Owns: what can be told. Does not know: how it is written.
//! Invariant: what is not known is absent, never zero.

use std::collections::BTreeMap;
use std::time::SystemTime;

use types::{ClusterId, EncryptionBackend, NodeId, NodeState, TaskState};

/// What a node tells.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub build: BuildFacts,
    /// `None` outside of a cluster, and while the membership changes.
    pub member: Option<MemberFacts>,
    /// Only a manager has them, from its own copy of the cluster's state.
    pub manager: Option<ManagerFacts>,
    /// `None`: it could not be asked in time.
    pub encryption: Option<EncryptionFacts>,
}

/// Which program it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuildFacts {
    pub version: &'static str,
    pub commit: &'static str,
}

/// A member of a cluster.
#[derive(Clone, Debug)]
pub struct MemberFacts {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub manager: bool,
}

/// The cluster as a manager sees it.
#[derive(Clone, Debug, Default)]
pub struct ManagerFacts {
    pub leader: bool,
    pub nodes: BTreeMap<NodeState, u64>,
    pub tasks: BTreeMap<TaskState, u64>,
    pub services: u64,
    pub networks: u64,
}

/// A node's end of encrypted networks.
#[derive(Clone, Debug, Default)]
pub struct EncryptionFacts {
    /// Who encrypts; `None` before it was ever needed.
    pub backend: Option<EncryptionBackend>,
    /// The newest generation of keys that is used towards every peer; `None`: there is no key.
    pub generation: Option<u32>,
    /// One of each generation that this node has a key of.
    pub tunnels: Vec<TunnelFacts>,
    /// Packets of encrypted networks that came to the host unencrypted, and were dropped.
    pub clear_received: u64,
    /// The same of those that would have left it.
    pub clear_sent: u64,
    /// Packets that came through the tunnel with the identifier of a network that their sender is
    /// not on, and were dropped.
    pub strange: u64,
}

/// One device.
#[derive(Clone, Debug, Default)]
pub struct TunnelFacts {
    pub generation: u32,
    pub works: bool,
    pub peers: Vec<PeerFacts>,
    /// All drops by cause, with and without a peer.
    pub drops: BTreeMap<String, u64>,
}

/// One peer of a device.
#[derive(Clone, Debug)]
pub struct PeerFacts {
    pub node: NodeId,
    pub hostname: String,
    /// It is sent to through this device.
    pub in_use: bool,
    /// `None`: there was none.
    pub last_handshake: Option<SystemTime>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub drops: BTreeMap<String, u64>,
}
