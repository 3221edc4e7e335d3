//! The cluster: its settings, its root of trust and its join tokens.
//!
//! Owns: the one record of that kind.
//! Invariant: its secrets are not printed, not even for debugging.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};

use base::Millis;
use ipnet::Ipv6Net;

use crate::{ClusterId, Labels, Meta, PortProtocol, limits};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSpec {
    pub labels: Labels,
    /// Old tasks kept per slot; negative: all.
    pub task_history_limit: i64,
    pub dispatcher_heartbeat: Millis,
    pub certificate_expiry: Millis,
    /// Log entries between two snapshots.
    pub snapshot_interval: u64,
    pub snapshots_kept: u64,
    /// From a node's last heartbeat until its tasks are replaced.
    pub down_grace: Millis,
    pub autolock: bool,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            labels: Labels::new(),
            task_history_limit: limits::TASK_HISTORY_DEFAULT,
            dispatcher_heartbeat: limits::HEARTBEAT_DEFAULT,
            certificate_expiry: limits::CERTIFICATE_EXPIRY_DEFAULT,
            snapshot_interval: limits::SNAPSHOT_INTERVAL_DEFAULT,
            snapshots_kept: 0,
            down_grace: limits::DOWN_GRACE_DEFAULT,
            autolock: false,
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    pub spec: ClusterSpec,
    pub ca_certificate: String,
    /// Secret.
    pub ca_key: String,
    /// Secret.
    pub worker_token: String,
    /// Secret.
    pub manager_token: String,
    pub format_level: u32,
    /// Raised by a restore, so that nodes follow it though its index is lower.
    pub epoch: u64,
    pub data_path_port: u32,
    /// UDP ports of encrypted networks.
    pub encryption_ports: [u16; 2],
    /// Which keys nodes should have; raised when they are to change. At least 1.
    pub network_key_generation: u32,
    pub address_pools: Vec<String>,
    pub address_pool_mask: u32,
    pub next_node_number: u32,
    /// The /48 that IPv6 subnets are cut of; `None` in a cluster that was made without.
    pub ula_prefix: Option<Ipv6Net>,
    /// Where the search for the next free VXLAN network identifier begins.
    pub next_vni: u32,
    /// Where the search for the next free dynamic port begins, by protocol.
    pub next_ports: BTreeMap<PortProtocol, u16>,
}

impl Cluster {
    /// Whose a UDP port is, of those that the cluster itself has on every node.
    #[must_use]
    pub fn owner_of_udp_port(&self, port: u16) -> Option<&'static str> {
        match port {
            0 => None,
            port if self.encryption_ports.contains(&port) => Some(ENCRYPTED_NETWORKS),
            port if u32::from(port) == self.data_path_port => Some(DATA_PATH),
            _ => None,
        }
    }
}

/// The owners of UDP ports.
const DATA_PATH: &str = "the data path of the cluster";
const ENCRYPTED_NETWORKS: &str = "encrypted networks of the cluster";

impl Debug for Cluster {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.id)
            .field("meta", &self.meta)
            .field("spec", &self.spec)
            .field("format_level", &self.format_level)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}
