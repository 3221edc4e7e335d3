//! What a node is told of the networks that it takes part in.
//!
//! Owns: the parts of that knowledge, each replaced as a whole, and their increments.
//! Does not know: how they are derived from the store, or what a node makes of them.
//! Invariant: a part belongs to one network; a network that is removed takes its parts along.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::{
    EndpointMode, NetworkDriver, NetworkId, NodeId, OwnEncryption, PeerEncryption, PortSpec,
    ServiceId, TaskId,
};

/// A network that this node takes part in. Every node takes part in the ingress network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPart {
    pub id: NetworkId,
    pub name: String,
    pub driver: NetworkDriver,
    pub vni: u32,
    /// Bytes; the largest packet that a container may send.
    pub mtu: u32,
    pub ingress: bool,
    pub internal: bool,
    pub encrypted: bool,
    /// Each with its gateway address, which is the same on every node.
    pub subnets: Vec<(IpNet, IpAddr)>,
    pub options: BTreeMap<String, String>,
    /// Of a network that each node makes for itself: the node's configuration that it is made of.
    pub config_from: String,
}

/// This node itself, as its cluster sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPart {
    pub node: NodeId,
    /// Small number, unique among nodes.
    pub number: u32,
    /// UDP port of VXLAN, of the whole cluster.
    pub data_path_port: u16,
    pub encryption: OwnEncryption,
}

/// Another node of the network; this node itself is never among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPart {
    pub network: NetworkId,
    pub node: NodeId,
    pub name: String,
    /// Small number, unique among nodes: hardware and link addresses are made of it.
    pub number: u32,
    /// Where its VXLAN packets come from and go to.
    pub address: IpAddr,
    /// Bytes that a packet inside the network may have towards it; zero: as the network's.
    pub mtu: u32,
    /// On an encrypted network, once the peer has said it.
    pub encryption: Option<PeerEncryption>,
}

/// A service on one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePart {
    pub network: NetworkId,
    pub service: ServiceId,
    pub name: String,
    /// Further names of the service on this network.
    pub aliases: Vec<String>,
    pub mode: EndpointMode,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    /// On the ingress network those published by the mesh; elsewhere all, for SRV records.
    pub ports: Vec<PortPart>,
}

/// One port of a service: on the ingress network never one of mode host.
pub type PortPart = PortSpec;

/// A task on one network, from when its node is known until it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPart {
    pub network: NetworkId,
    pub task: TaskId,
    /// `None`: an attachment of a container that no service made.
    pub service: Option<ServiceId>,
    pub node: NodeId,
    /// Of its node, as in [`PeerPart`].
    pub number: u32,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    /// Names of its own, the first one also the answer to a reverse query.
    pub names: Vec<String>,
    /// It runs, is healthy and is not about to leave: it gets new connections, and
    /// `tasks.SERVICE` names it. Its address is reachable whether or not it serves.
    pub serving: bool,
}

/// What has changed since the last update; a full one replaces everything.
///
/// Removals are carried out before the rest, so that a part may be replaced by a removal and an
/// addition in one update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryUpdate {
    pub full: bool,
    /// Raft index that the node is up to with this update.
    pub index: u64,
    /// In every full update, and when it changes.
    pub own: Option<OwnPart>,
    pub networks: Vec<NetworkPart>,
    pub removed_networks: Vec<NetworkId>,
    pub peers: Vec<PeerPart>,
    pub removed_peers: Vec<(NetworkId, NodeId)>,
    pub services: Vec<ServicePart>,
    pub removed_services: Vec<(NetworkId, ServiceId)>,
    pub endpoints: Vec<EndpointPart>,
    pub removed_endpoints: Vec<(NetworkId, TaskId)>,
}

impl DirectoryUpdate {
    /// It changes nothing but the index.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.full
            && self.own.is_none()
            && self.networks.is_empty()
            && self.removed_networks.is_empty()
            && self.peers.is_empty()
            && self.removed_peers.is_empty()
            && self.services.is_empty()
            && self.removed_services.is_empty()
            && self.endpoints.is_empty()
            && self.removed_endpoints.is_empty()
    }
}
