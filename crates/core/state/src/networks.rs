//! Networks, and who holds what of them: tables, indexes, and how they are read.
//!
//! Owns: the table of networks and of what rests, and the indexes of addresses, ports and users.
//! Does not know: how they change; that is `apply_network` and `index_network`.
//! Invariant: the indexes are functions of networks, services and tasks; what rests is a table.

use std::net::IpAddr;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

use base::{Millis, Timestamp};
use imbl::{OrdMap, OrdSet};
use types::{
    Network, NetworkId, NodeId, PortProtocol, PublishMode, Service, ServiceId, Task, TaskId,
};

use crate::Snapshot;

/// How soon it is looked again whether the last node has caught up.
const BEHIND_RETRY_PERIOD: Millis = Millis::from_secs(5);

/// Who holds an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    Service(ServiceId),
    Task(TaskId),
}

/// What was freed a short time ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resting {
    Address(NetworkId, IpAddr),
    Port(PortProtocol, u16),
    Vni(u32),
}

/// The part of the state that is about networks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Networks {
    pub(crate) networks: OrdMap<NetworkId, Arc<Network>>,
    /// Freed, and not to be given out in the circle until then.
    pub(crate) resting: OrdMap<Resting, Timestamp>,
    pub(crate) resting_until: OrdSet<(Timestamp, Resting)>,
    /// Live nodes that have not carried out what they were told: meanwhile no rest ends.
    pub(crate) behind: OrdSet<NodeId>,
    pub(crate) names: OrdMap<Arc<str>, NetworkId>,
    pub(crate) vnis: OrdMap<u32, NetworkId>,
    pub(crate) ingress: Option<NetworkId>,
    pub(crate) held: OrdMap<(NetworkId, IpAddr), Holder>,
    /// Fixed addresses that the specs of services ask for, held or not.
    pub(crate) fixed: OrdMap<(NetworkId, IpAddr), ServiceId>,
    pub(crate) attached: OrdSet<(NetworkId, TaskId)>,
    /// How many attached tasks a node has.
    pub(crate) present: OrdMap<(NetworkId, NodeId), u32>,
    pub(crate) users: OrdSet<(NetworkId, ServiceId)>,
    /// Ports that the specs of services ask for.
    pub(crate) asked_ports: OrdSet<(PortProtocol, u16, PublishMode, ServiceId)>,
    /// Ports of the mesh that services were given.
    pub(crate) mesh_ports: OrdMap<(PortProtocol, u16), ServiceId>,
}

impl Snapshot {
    #[must_use]
    pub fn network(&self, id: NetworkId) -> Option<&Arc<Network>> {
        self.net.networks.get(&id)
    }

    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.net.networks.values()
    }

    #[must_use]
    pub fn network_count(&self) -> usize {
        self.net.networks.len()
    }

    /// Names are unique without regard to case.
    #[must_use]
    pub fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        let id = self.net.names.get(name.to_lowercase().as_str())?;
        self.net.networks.get(id)
    }

    /// The network of the routing mesh.
    #[must_use]
    pub fn ingress(&self) -> Option<&Arc<Network>> {
        self.net.networks.get(&self.net.ingress?)
    }

    /// The network that has a VXLAN network identifier.
    #[must_use]
    pub fn network_of_vni(&self, vni: u32) -> Option<NetworkId> {
        self.net.vnis.get(&vni).copied()
    }

    #[must_use]
    pub fn holder(&self, network: NetworkId, address: IpAddr) -> Option<Holder> {
        self.net.held.get(&(network, address)).copied()
    }

    /// Addresses of a network that are held, in their order, from `first` on.
    pub fn held_from(
        &self,
        network: NetworkId,
        first: IpAddr,
    ) -> impl Iterator<Item = (IpAddr, Holder)> {
        let range = (Included((network, first)), Unbounded);
        let own = move |((of, _), _): &(&(NetworkId, IpAddr), &Holder)| *of == network;
        self.net.held.range(range).take_while(own).map(|((_, at), holder)| (*at, *holder))
    }

    /// The service whose spec asks for an address.
    #[must_use]
    pub fn fixed_for(&self, network: NetworkId, address: IpAddr) -> Option<ServiceId> {
        self.net.fixed.get(&(network, address)).copied()
    }

    /// Whether something was freed so lately that a node may still lead to who had it.
    #[must_use]
    pub fn rests(&self, what: Resting, now: Timestamp) -> bool {
        let until = self.net.resting.get(&what);
        until.is_some_and(|until| *until > now || !self.net.behind.is_empty())
    }

    /// All that rests, also what has rested long enough and was not looked at since.
    pub fn resting(&self) -> impl Iterator<Item = (Resting, Timestamp)> {
        self.net.resting.iter().map(|(what, until)| (*what, *until))
    }

    /// When the next thing may have rested, after `now`.
    #[must_use]
    pub fn next_rested(&self, now: Timestamp) -> Option<Timestamp> {
        if !self.net.behind.is_empty() && !self.net.resting.is_empty() {
            return Some(now + BEHIND_RETRY_PERIOD);
        }
        let after = (Excluded((now, Resting::Vni(u32::MAX))), Unbounded);
        self.net.resting_until.range(after).next().map(|(until, _)| *until)
    }

    /// Tasks that hold an address of a network, or are on it without one.
    pub fn tasks_on_network(&self, network: NetworkId) -> impl Iterator<Item = &Arc<Task>> {
        let range = (network, TaskId::MIN)..=(network, TaskId::MAX);
        self.net.attached.range(range).filter_map(|(_, id)| self.task(*id))
    }

    /// Services whose spec names a network; of the ingress network those with a port of the mesh.
    pub fn services_on_network(&self, network: NetworkId) -> impl Iterator<Item = &Arc<Service>> {
        let range = (network, ServiceId::MIN)..=(network, ServiceId::MAX);
        self.net.users.range(range).filter_map(|(_, id)| self.service(*id))
    }

    /// Nodes with a task on a network, and with how many.
    pub fn nodes_on_network(&self, network: NetworkId) -> impl Iterator<Item = (NodeId, u32)> {
        let range = (network, NodeId::MIN)..=(network, NodeId::MAX);
        self.net.present.range(range).map(|((_, node), count)| (*node, *count))
    }

    /// Whether a node has a task on a network.
    #[must_use]
    pub fn is_on_network(&self, node: NodeId, network: NetworkId) -> bool {
        self.net.present.contains_key(&(network, node))
    }

    /// A service or a task needs the network.
    #[must_use]
    pub fn is_network_used(&self, network: NetworkId) -> bool {
        self.services_on_network(network).next().is_some()
            || self.tasks_on_network(network).next().is_some()
    }

    /// The service that was given a port of the mesh.
    #[must_use]
    pub fn mesh_port(&self, protocol: PortProtocol, port: u16) -> Option<ServiceId> {
        self.net.mesh_ports.get(&(protocol, port)).copied()
    }

    /// Every port of the mesh with its service.
    pub fn mesh_ports(&self) -> impl Iterator<Item = (PortProtocol, u16, ServiceId)> {
        self.net.mesh_ports.iter().map(|((protocol, port), id)| (*protocol, *port, *id))
    }

    /// Services whose spec asks for a port, and how it is to be published.
    pub fn asking_for_port(
        &self,
        protocol: PortProtocol,
        port: u16,
    ) -> impl Iterator<Item = (PublishMode, ServiceId)> {
        let first = (protocol, port, PublishMode::Ingress, ServiceId::MIN);
        let last = (protocol, port, PublishMode::Host, ServiceId::MAX);
        self.net.asked_ports.range(first..=last).map(|(_, _, mode, id)| (*mode, *id))
    }
}
