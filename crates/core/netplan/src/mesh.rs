//! The mesh of one node: published ports, the way out of its containers, and the host's part.
//!
//! Owns: the state of the mesh namespace and of the host's table.
//! Does not know: how a port is reserved, which containers there are.
//! Invariant: what the host hands to the mesh is what is published and not unavailable; whether
//! anything answers there is the mesh's matter.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use types::{
    EndpointPart, PeerPart, PortBinding, PortPart, PortProtocol, PublishMode, ServiceId, TaskId,
};

use crate::directory::Table;
use crate::keys::{Bytes, Key};
use crate::numbers::{HOST_HARDWARE, MESH_HARDWARE, RETURN_HARDWARE, RETURN_HOP};
use crate::overlay::{Fabric, Front, MAIN, addresses, host_net, serving};
use crate::plan::{LocalContainer, LocalLink};
use crate::state::{Changes, Elements, RouteKey, RouteTo, Value, Wanted};
use crate::{link, set};

/// Addresses between the mesh and its host, and of containers without one on the ingress network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshLinks {
    pub v4: Ipv4Net,
    pub v6: Ipv6Net,
}

impl MeshLinks {
    #[must_use]
    pub fn host_v4(&self) -> Ipv4Addr {
        offset_v4(self.v4, 1)
    }

    #[must_use]
    pub fn mesh_v4(&self) -> Ipv4Addr {
        offset_v4(self.v4, 2)
    }

    /// The next hop of containers.
    #[must_use]
    pub fn gateway_v4(&self) -> Ipv4Addr {
        offset_v4(self.v4, 5)
    }

    #[must_use]
    pub fn host_v6(&self) -> Ipv6Addr {
        offset_v6(self.v6, 1)
    }

    #[must_use]
    pub fn mesh_v6(&self) -> Ipv6Addr {
        offset_v6(self.v6, 2)
    }

    #[must_use]
    pub fn gateway_v6(&self) -> Ipv6Addr {
        offset_v6(self.v6, 5)
    }

    /// The IPv6 address of the container that has this IPv4 one.
    #[must_use]
    pub fn companion(&self, v4: Ipv4Addr) -> Ipv6Addr {
        offset_v6(self.v6, v4.to_bits().wrapping_sub(self.v4.network().to_bits()))
    }

    /// The lowest address that nobody has.
    #[must_use]
    pub fn free(&self, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let mut hosts = self.v4.hosts().skip(7);
        let is_alias =
            |v4: Ipv4Addr| self.is_alias(v4.into()) || self.is_alias(self.companion(v4).into());
        hosts.find(|address| !taken.contains(address) && !is_alias(*address))
    }

    /// The host's own, too, by which it sends to the others.
    #[must_use]
    pub fn is_alias(&self, address: IpAddr) -> bool {
        let (v6, address) = (address.is_ipv6(), Some(address));
        let (first, last) = (self.alias(0, v6), self.alias(ALIASES_MAX, v6));
        first.is_some() && (first..=last).contains(&address)
    }

    /// By which the mesh knows one address of the host among the others: the host sends there what
    /// comes to ports that only this address has. Number zero is the host's own.
    pub(crate) fn alias(&self, number: usize, v6: bool) -> Option<IpAddr> {
        match v6 {
            false => self.alias_v4(number).map(IpAddr::V4),
            true => Some(offset_v6(self.v6, ALIAS_V6 + number as u32).into()),
        }
    }

    /// The last addresses of the subnet; `None` where it is too small for them.
    fn alias_v4(&self, number: usize) -> Option<Ipv4Addr> {
        let net = Ipv4Net::new(self.v4.broadcast(), ALIAS_PREFIX_V4).ok()?;
        let is_large = self.v4.prefix_len() + 2 <= ALIAS_PREFIX_V4;
        is_large.then(|| offset_v4(net, number as u32 + 1))
    }
}

/// Addresses of one host that have ports of their own; more have none.
pub(crate) const ALIASES_MAX: usize = 29;
const ALIAS_PREFIX_V4: u8 = 27;
const ALIAS_PREFIX_V6: u8 = 120;
/// Far from the companions of IPv4 addresses in a subnet of the usual size.
const ALIAS_V6: u32 = 0xff01;

fn offset_v4(net: Ipv4Net, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(net.network().to_bits().wrapping_add(offset))
}

fn offset_v6(net: Ipv6Net, offset: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(net.network().to_bits().wrapping_add(u128::from(offset)))
}

/// A published one.
type Port = (PortProtocol, u16);

/// The mesh namespace.
#[derive(Clone, Debug)]
pub(crate) struct Mesh {
    pub(crate) fabric: Fabric,
    /// Ports published by each service.
    published: BTreeMap<ServiceId, BTreeSet<Port>>,
    /// Ports of the node that lead to one container each.
    single: BTreeSet<Port>,
    /// What other nodes may reach at each task of this node.
    targets: BTreeMap<TaskId, BTreeSet<(IpAddr, PortProtocol, u16)>>,
}

impl Mesh {
    pub(crate) fn new(links: MeshLinks) -> Self {
        let mut mesh = Self {
            fabric: Fabric::balancing(),
            published: BTreeMap::new(),
            single: BTreeSet::new(),
            targets: BTreeMap::new(),
        };
        let (wanted, none) = (&mut mesh.fabric.wanted, &mut Changes::default());
        let pairs: [(IpAddr, IpAddr, IpNet); 2] = [
            (links.mesh_v4().into(), links.host_v4().into(), links.v4.into()),
            (links.mesh_v6().into(), links.host_v6().into(), links.v6.into()),
        ];
        for (own, host, net) in pairs {
            wanted.address(link::UP, up_net(own), true, none);
            wanted.neighbour(link::UP, host, Some(HOST_HARDWARE), none);
            let everything = if own.is_ipv4() { DEFAULT_V4 } else { DEFAULT_V6 };
            let key = RouteKey { table: MAIN, net: everything };
            wanted.route(key, Some(RouteTo::via(link::UP, host)), none);
            let key = RouteKey { table: MAIN, net: net.trunc() };
            wanted.route(key, Some(RouteTo::UNREACHABLE), none);
        }
        // With it the host sends from its loopback to the aliases of its addresses.
        for v6 in [false, true] {
            let host = pairs[usize::from(v6)].1;
            if let Some(own) = links.alias(0, v6) {
                let key = RouteKey { table: MAIN, net: host_net(own) };
                wanted.route(key, Some(RouteTo::via(link::UP, host)), none);
            }
        }
        for gateway in [links.gateway_v4().into(), links.gateway_v6().into()] {
            wanted.address(link::LOOPBACK, host_net(gateway), true, none);
        }
        mesh
    }

    /// The way back of what other nodes sent here, once there is an ingress network.
    pub(crate) fn set_return(&mut self, present: bool, changes: &mut Changes) {
        let wanted = &mut self.fabric.wanted;
        for net in [DEFAULT_V4, DEFAULT_V6] {
            let to = present.then(|| RouteTo::via(link::VXLAN, RETURN_HOP));
            wanted.route(RouteKey { table: RETURN_TABLE, net }, to, changes);
        }
        let hardware = present.then_some(RETURN_HARDWARE);
        wanted.neighbour(link::VXLAN, RETURN_HOP.into(), hardware, changes);
    }

    /// Takes from a service the ports that it does not publish any more.
    pub(crate) fn withdraw(&mut self, table: &Table, service: ServiceId, changes: &mut Changes) {
        let Some(before) = self.published.remove(&service) else { return };
        let now: BTreeSet<Port> = published_by(table, service).map(number_of_port).collect();
        for port in before.difference(&now) {
            self.lead_if_free(*port, |_| BTreeSet::new(), changes);
        }
        if !now.is_empty() {
            self.published.insert(service, now);
        }
    }

    /// What a service publishes, and what of it runs where; after it was withdrawn.
    pub(crate) fn publish(&mut self, table: &Table, service: ServiceId, changes: &mut Changes) {
        let mut now = BTreeSet::new();
        for port in published_by(table, service) {
            now.insert(number_of_port(port));
            let backends =
                |v6| serving(table, service, v6).map(|address| (address, port.target)).collect();
            self.lead_if_free(number_of_port(port), backends, changes);
        }
        if !now.is_empty() {
            self.published.insert(service, now);
        }
    }

    /// A container's port stays the container's.
    fn lead_if_free(
        &mut self,
        port: Port,
        backends: impl Fn(bool) -> BTreeSet<(IpAddr, u16)>,
        changes: &mut Changes,
    ) {
        if !self.single.contains(&port) {
            self.lead(port.0, port.1, backends, changes);
        }
    }

    fn lead(
        &mut self,
        protocol: PortProtocol,
        port: u16,
        backends: impl Fn(bool) -> BTreeSet<(IpAddr, u16)>,
        changes: &mut Changes,
    ) {
        let Fabric { balancers, wanted, .. } = &mut self.fabric;
        for v6 in [false, true] {
            let front = Front::Port(v6, protocol, port);
            balancers.spread(front, &backends(v6), wanted, changes);
        }
    }

    /// What other nodes may reach at a task of this node: its service's published targets.
    pub(crate) fn open_targets(
        &mut self,
        table: Option<&Table>,
        task: TaskId,
        own: Option<u32>,
        changes: &mut Changes,
    ) {
        let part = table.and_then(|table| table.endpoints.get(&task));
        let part = part.filter(|part| Some(part.number) == own);
        let service = part.and_then(|part| table?.services.get(&part.service?));
        let now: BTreeSet<(IpAddr, PortProtocol, u16)> = part
            .into_iter()
            .flat_map(|part: &EndpointPart| addresses(part.v4, part.v6))
            .flat_map(|address| {
                let ports = service.into_iter().flat_map(|service| &service.ports);
                ports.filter(|p| is_mesh(p)).map(move |p| (address, p.protocol, p.target))
            })
            .collect();
        let before = self.targets.remove(&task).unwrap_or_default();
        let wanted = &mut self.fabric.wanted;
        for target in before.difference(&now) {
            let (set, key) = target_key(*target);
            wanted.delete(set, key, &mut changes.edits);
        }
        for target in &now {
            let (set, key) = target_key(*target);
            wanted.put(set, key, Value::Member, &mut changes.edits);
        }
        if !now.is_empty() {
            self.targets.insert(task, now);
        }
    }

    /// A container's end of its link to the mesh.
    pub(crate) fn admit(&mut self, end: &LocalLink, outward: bool, changes: &mut Changes) {
        let wanted = &mut self.fabric.wanted;
        for address in addresses(end.v4, end.v6) {
            let (set, key) = source_key(&end.link, address);
            wanted.put(set, key, Value::Member, &mut changes.edits);
        }
        if outward {
            let key = Key::new().link(&end.link).done();
            wanted.put(set::OUTWARD, key, Value::Member, &mut changes.edits);
        }
    }

    pub(crate) fn dismiss(&mut self, end: &LocalLink, changes: &mut Changes) {
        let wanted = &mut self.fabric.wanted;
        for address in addresses(end.v4, end.v6) {
            let (set, key) = source_key(&end.link, address);
            wanted.delete(set, key, &mut changes.edits);
        }
        wanted.delete(set::OUTWARD, Key::new().link(&end.link).done(), &mut changes.edits);
    }

    /// What leads to one container each, from addresses of the node with a port and from the
    /// aliases of those addresses.
    pub(crate) fn hold(
        &mut self,
        held: impl Iterator<Item = (PortBinding, Option<IpAddr>, IpAddr, u16)>,
        changes: &mut Changes,
    ) {
        let (mut v4, mut v6) = (Elements::new(), Elements::new());
        for (binding, alias, to, target) in held {
            let elements = if to.is_ipv4() { &mut v4 } else { &mut v6 };
            for address in binding.address.into_iter().chain(alias) {
                let key = Key::new().address(address).protocol(binding.protocol).port(binding.port);
                let value = Key::new().address(to).port(target).done();
                elements.insert(key.done(), Value::Bytes(value));
            }
        }
        self.fabric.wanted.sync(set::HELD4, v4, &mut changes.edits);
        self.fabric.wanted.sync(set::HELD6, v6, &mut changes.edits);
    }

    /// Ports of the mesh that some addresses of nodes have only: containers find them there.
    pub(crate) fn narrow(&mut self, bound: &BTreeSet<PortBinding>, changes: &mut Changes) {
        let (mut ports, mut v4, mut v6) = (Elements::new(), Elements::new(), Elements::new());
        for binding in bound {
            let port = Key::new().protocol(binding.protocol).port(binding.port).done();
            ports.insert(port, Value::Member);
            let Some(address) = binding.address else { continue };
            let elements = if address.is_ipv4() { &mut v4 } else { &mut v6 };
            let key = Key::new().address(address).protocol(binding.protocol).port(binding.port);
            elements.insert(key.done(), Value::Member);
        }
        self.fabric.wanted.sync(set::NARROW, ports, &mut changes.edits);
        self.fabric.wanted.sync(set::OPEN4, v4, &mut changes.edits);
        self.fabric.wanted.sync(set::OPEN6, v6, &mut changes.edits);
    }

    /// The node's own port that leads to one container; `None`: to nothing any more.
    pub(crate) fn lead_host_port(
        &mut self,
        protocol: PortProtocol,
        port: u16,
        to: Option<(&LocalLink, u16)>,
        changes: &mut Changes,
    ) {
        let backends = |v6| {
            let addresses = to.into_iter().flat_map(|(end, target)| {
                addresses(end.v4, end.v6).map(move |address| (address, target))
            });
            addresses.filter(|(address, _)| address.is_ipv6() == v6).collect()
        };
        self.lead(protocol, port, backends, changes);
        let port = (protocol, port);
        match to {
            Some(_) => self.single.insert(port),
            None => self.single.remove(&port),
        };
    }

    /// The service that publishes a port.
    pub(crate) fn publisher(&self, protocol: PortProtocol, port: u16) -> Option<ServiceId> {
        let mut all = self.published.iter();
        all.find(|(_, ports)| ports.contains(&(protocol, port))).map(|(service, _)| *service)
    }

    /// What containers must not reach: managers, and more `ports` of nodes.
    pub(crate) fn guard(
        &mut self,
        managers: &BTreeSet<SocketAddr>,
        mut ports: Elements,
        changes: &mut Changes,
    ) {
        let (mut v4, mut v6) = (Elements::new(), Elements::new());
        for manager in managers {
            let port = Key::new().protocol(PortProtocol::Tcp).port(manager.port()).done();
            ports.insert(port, Value::Member);
            let elements = if manager.is_ipv4() { &mut v4 } else { &mut v6 };
            elements.insert(Key::new().address(manager.ip()).done(), Value::Member);
        }
        self.fabric.wanted.sync(set::GUARDED, ports, &mut changes.edits);
        self.fabric.wanted.sync(set::MANAGERS4, v4, &mut changes.edits);
        self.fabric.wanted.sync(set::MANAGERS6, v6, &mut changes.edits);
    }

    /// Addresses by which containers may reach the ports of nodes.
    pub(crate) fn name_nodes<'a>(
        &mut self,
        peers: impl Iterator<Item = &'a PeerPart>,
        own: impl Iterator<Item = IpAddr>,
        changes: &mut Changes,
    ) {
        let (mut v4, mut v6) = (Elements::new(), Elements::new());
        for address in peers.map(|peer| peer.address).chain(own) {
            if address.is_loopback() || address.is_unspecified() {
                continue;
            }
            let elements = if address.is_ipv4() { &mut v4 } else { &mut v6 };
            elements.insert(Key::new().address(address).done(), Value::Member);
        }
        self.fabric.wanted.sync(set::NODES4, v4, &mut changes.edits);
        self.fabric.wanted.sync(set::NODES6, v6, &mut changes.edits);
    }
}

/// The host's table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) wanted: Wanted,
    /// What would be published were nothing unavailable.
    pub(crate) bindings: BTreeSet<PortBinding>,
    links: Option<MeshLinks>,
    gateway: String,
    /// Addresses of the host that have ports of their own, by number.
    aliases: BTreeMap<IpAddr, usize>,
}

impl Host {
    pub(crate) fn new(links: MeshLinks, gateway: &str) -> Self {
        let gateway = gateway.to_owned();
        let mut host = Self { links: Some(links), gateway, ..Self::default() };
        let (gateway, none) = (host.gateway.clone(), &mut Changes::default());
        let gateway = gateway.as_str();
        for address in [links.host_v4().into(), links.host_v6().into()] {
            host.wanted.address(gateway, up_net(address), true, none);
        }
        for address in [links.mesh_v4().into(), links.mesh_v6().into()] {
            host.wanted.neighbour(gateway, address, Some(MESH_HARDWARE), none);
        }
        host
    }

    /// Who may send what on the VXLAN port.
    pub(crate) fn admit(&mut self, vni: u32, peer: IpAddr, changes: &mut Changes) {
        let (set, key) = member_key(vni, peer);
        self.wanted.put(set, key, Value::Member, &mut changes.edits);
    }

    pub(crate) fn dismiss(&mut self, vni: u32, peer: IpAddr, changes: &mut Changes) {
        let (set, key) = member_key(vni, peer);
        self.wanted.delete(set, key, &mut changes.edits);
    }

    pub(crate) fn guard(&mut self, vni: u32, present: bool, changes: &mut Changes) {
        let key = Key::new().vni(vni).done();
        match present {
            true => self.wanted.put(set::VNIS, key, Value::Member, &mut changes.edits),
            false => self.wanted.delete(set::VNIS, key, &mut changes.edits),
        }
    }

    /// Gives each of these addresses of the host an alias, as far as they reach; those that have
    /// one keep it.
    pub(crate) fn name_aliases(&mut self, bound: &BTreeSet<IpAddr>, changes: &mut Changes) {
        let gone: Vec<IpAddr> =
            self.aliases.keys().filter(|address| !bound.contains(address)).copied().collect();
        for address in gone {
            self.lead_to_alias(address, false, changes);
            self.aliases.remove(&address);
        }
        for address in bound {
            let taken: BTreeSet<usize> = self.aliases.values().copied().collect();
            let free = (1..=ALIASES_MAX).find(|number| !taken.contains(number));
            if let (false, Some(number)) = (self.aliases.contains_key(address), free) {
                self.aliases.insert(*address, number);
                self.lead_to_alias(*address, true, changes);
            }
        }
        for v6 in [false, true] {
            let own = self.links.and_then(|links| links.alias(0, v6));
            let prefix = if v6 { ALIAS_PREFIX_V6 } else { ALIAS_PREFIX_V4 };
            let Some(own) = own.and_then(|own| IpNet::new(own, prefix).ok()) else { continue };
            let present = self.aliases.keys().any(|address| address.is_ipv6() == v6);
            let gateway = self.gateway.clone();
            self.wanted.address(&gateway, own, present, changes);
        }
    }

    fn lead_to_alias(&mut self, address: IpAddr, present: bool, changes: &mut Changes) {
        let (gateway, hardware) = (self.gateway.clone(), present.then_some(MESH_HARDWARE));
        if let Some(alias) = self.alias(address) {
            self.wanted.neighbour(&gateway, alias, hardware, changes);
        }
    }

    /// `None`: this address has no ports of its own, or there are too many that do.
    pub(crate) fn alias(&self, address: IpAddr) -> Option<IpAddr> {
        self.links?.alias(*self.aliases.get(&address)?, address.is_ipv6())
    }

    /// Publishes all bindings but those that somebody else holds: those that are held by one
    /// container at the alias of their address, all others at the mesh's own.
    pub(crate) fn publish(
        &mut self,
        bindings: BTreeSet<PortBinding>,
        held: &BTreeSet<PortBinding>,
        unavailable: &BTreeSet<PortBinding>,
        changes: &mut Changes,
    ) {
        let (mut ports, mut v4, mut v6) = (Elements::new(), Elements::new(), Elements::new());
        for binding in bindings.difference(unavailable) {
            let key = Key::new();
            let (elements, key, value) = match (binding.address, self.links) {
                (Some(address), Some(links)) => {
                    let alias = self.alias(address).filter(|_| held.contains(binding));
                    let mesh = match address {
                        IpAddr::V4(_) => links.mesh_v4().into(),
                        IpAddr::V6(_) => links.mesh_v6().into(),
                    };
                    let to = Key::new().address(alias.unwrap_or(mesh)).done();
                    let elements = if address.is_ipv4() { &mut v4 } else { &mut v6 };
                    (elements, key.address(address), Value::Bytes(to))
                }
                _ => (&mut ports, key, Value::Member),
            };
            elements.insert(key.protocol(binding.protocol).port(binding.port).done(), value);
        }
        self.bindings = bindings;
        self.wanted.sync(set::PORTS, ports, &mut changes.edits);
        self.wanted.sync(set::BOUND4, v4, &mut changes.edits);
        self.wanted.sync(set::BOUND6, v6, &mut changes.edits);
    }
}

/// What a port that is bound to `host` has to be bound to: an address, those of a link, or all.
/// A link that is not there has none.
pub(crate) fn bindings_of(
    protocol: PortProtocol,
    port: u16,
    host: &str,
    own: &BTreeMap<String, Vec<IpAddr>>,
) -> Vec<PortBinding> {
    let binding = |address| PortBinding { protocol, port, address };
    if is_everywhere(host) {
        return vec![binding(None)];
    }
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) => vec![binding(Some(address))],
        Err(_) => own.get(host).into_iter().flatten().map(|a| binding(Some(*a))).collect(),
    }
}

/// Neither an address nor a link.
pub(crate) fn is_everywhere(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host.is_empty() || address.is_ok_and(|address| address.is_unspecified())
}

/// Every port of a mesh that the services of a table publish.
pub(crate) fn mesh_ports(table: &Table) -> impl Iterator<Item = &PortPart> + '_ {
    table.services.values().flat_map(|service| service.ports.iter().filter(|port| is_mesh(port)))
}

fn published_by(table: &Table, service: ServiceId) -> impl Iterator<Item = &PortPart> + '_ {
    let part = table.services.get(&service);
    part.into_iter().flat_map(|part| part.ports.iter().filter(|port| is_mesh(port)))
}

fn number_of_port(port: &PortPart) -> Port {
    (port.protocol, port.published)
}

fn is_mesh(port: &PortPart) -> bool {
    port.mode == PublishMode::Ingress && port.published != 0
}

/// Local ends of containers' links, with the mesh's first.
pub(crate) fn mesh_end(container: &LocalContainer) -> Option<&LocalLink> {
    container.links.iter().find(|end| end.network.is_none())
}

fn up_net(address: IpAddr) -> IpNet {
    let prefix = if address.is_ipv4() { 30 } else { 126 };
    IpNet::new(address, prefix).unwrap_or_else(|_| host_net(address))
}

fn target_key((address, protocol, port): (IpAddr, PortProtocol, u16)) -> (&'static str, Bytes) {
    let set = if address.is_ipv4() { set::LOCAL4 } else { set::LOCAL6 };
    (set, Key::new().address(address).protocol(protocol).port(port).done())
}

fn source_key(link: &str, address: IpAddr) -> (&'static str, Bytes) {
    let set = if address.is_ipv4() { set::SOURCE4 } else { set::SOURCE6 };
    (set, Key::new().link(link).address(address).done())
}

pub(crate) fn member_key(vni: u32, peer: IpAddr) -> (&'static str, Bytes) {
    let set = if peer.is_ipv4() { set::MEMBERS4 } else { set::MEMBERS6 };
    (set, Key::new().address(peer).vni(vni).done())
}

const DEFAULT_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
const DEFAULT_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0));

/// Of what goes back to another node.
pub const RETURN_TABLE: u32 = 100;
