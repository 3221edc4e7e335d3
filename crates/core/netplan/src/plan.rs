//! The plan of one node: from what was learned to what changes in which namespace.
//!
//! Owns: the directory, the containers of this node, and the state wanted in each namespace.
//! Does not know: whether a change was carried out.
//! Invariant: after every call the wanted states are what directory and containers ask for, and the
//! changes answered lead there from those before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use types::{
    DirectoryUpdate, NetworkDriver, NetworkId, NetworkPart, OwnPart, PeerPart, PortBinding,
    PortProtocol, ServiceId, TaskId,
};

use crate::directory::{Table, as_increment};
use crate::local::Bridge;
use crate::mesh::{Host, Mesh, MeshLinks, is_everywhere, mesh_end};
use crate::overlay::{End, Fabric, addresses, settle_edits};
use crate::state::{Changes, Hardware, Wanted};
use crate::tunnel::{Membership, Tunnel, is_shared, memberships};

/// A namespace of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Of all encrypted networks: the tunnel to the other nodes.
    Tunnel,
    /// Of one network.
    Overlay(NetworkId),
    Mesh,
    Host,
}

/// A container of this node, as it is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalContainer {
    /// In the order in which they were asked for.
    pub links: Vec<LocalLink>,
    /// It may open connections to the world.
    pub outward: bool,
    pub host_ports: Vec<HostPortPlan>,
    /// By which others on the node's own networks know it; the first one is its name.
    pub names: Vec<String>,
    /// Resolvers that it was given instead of the host's.
    pub nameservers: Vec<String>,
}

/// Who wants a container to be on a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AskedBy {
    /// Its service, from its beginning.
    #[default]
    Service,
    /// Somebody who connected it to a network of the cluster.
    Managers,
    /// Somebody who connected it to a network of this node.
    Node,
}

/// The end of one of its links that lies in a namespace of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalLink {
    /// `None`: to the mesh.
    pub network: Option<NetworkId>,
    pub asked_by: AskedBy,
    /// Name of the container's own end.
    pub interface: String,
    /// Empty: there is no end of ours.
    pub link: String,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    /// Of the container's own end; zero: the kernel's choice.
    pub hardware: Hardware,
    /// Further names of the container, on this network of the node's.
    pub aliases: Vec<String>,
}

/// A port of the node that leads to one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPortPlan {
    pub protocol: PortProtocol,
    pub published: u16,
    pub target: u16,
    /// Address or link that it is bound to; empty: all.
    pub host: String,
}

impl HostPortPlan {
    pub(crate) fn is_everywhere(&self) -> bool {
        is_everywhere(&self.host)
    }
}

impl LocalLink {
    /// Its address of the same family.
    pub(crate) fn towards(&self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    pub(crate) table: Table,
    fabric: Fabric,
    virtuals: BTreeMap<ServiceId, BTreeSet<IpAddr>>,
}

/// What every namespace of the node should hold.
#[derive(Clone, Debug)]
pub struct Planner {
    own: Option<OwnPart>,
    pub(crate) overlays: BTreeMap<NetworkId, Overlay>,
    pub(crate) ingress: Option<Table>,
    pub(crate) mesh: Mesh,
    pub(crate) host: Host,
    pub(crate) tunnel: Tunnel,
    /// Where managers listen.
    pub(crate) managers: BTreeSet<SocketAddr>,
    pub(crate) containers: BTreeMap<String, LocalContainer>,
    /// Of the host's links.
    pub(crate) node_addresses: BTreeMap<String, Vec<IpAddr>>,
    pub(crate) unavailable: BTreeSet<PortBinding>,
    /// Of the node's own networks, by link.
    pub(crate) bridges: BTreeMap<String, Bridge>,
    /// Numbers of nodes that do not answer, while nobody else says who lives.
    pub(crate) suspected: BTreeSet<u32>,
    /// Addresses that get no new connections any more, and where they did.
    pub(crate) departed: Vec<(Scope, IpAddr)>,
}

/// Changes of each namespace.
pub(crate) type All = BTreeMap<Scope, Changes>;

impl Planner {
    /// `gateway` is the host's end of its link to the mesh.
    #[must_use]
    pub fn new(links: MeshLinks, gateway: &str) -> Self {
        Self {
            own: None,
            overlays: BTreeMap::new(),
            ingress: None,
            mesh: Mesh::new(links),
            host: Host::new(links, gateway),
            tunnel: Tunnel::default(),
            managers: BTreeSet::new(),
            containers: BTreeMap::new(),
            node_addresses: BTreeMap::new(),
            unavailable: BTreeSet::new(),
            bridges: BTreeMap::new(),
            suspected: BTreeSet::new(),
            departed: Vec::new(),
        }
    }

    /// Addresses that updates took out of the balancers, and the namespaces where they were. Flows
    /// without an end are to be forgotten there.
    pub fn take_departed(&mut self) -> Vec<(Scope, IpAddr)> {
        std::mem::take(&mut self.departed)
    }

    #[must_use]
    pub fn own(&self) -> Option<&OwnPart> {
        self.own.as_ref()
    }

    /// The networks that have a namespace of their own here.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkPart> + '_ {
        self.overlays.values().map(|overlay| &overlay.table.part)
    }

    #[must_use]
    pub fn network(&self, id: NetworkId) -> Option<&NetworkPart> {
        self.overlays.get(&id).map(|overlay| &overlay.table.part)
    }

    #[must_use]
    pub fn ingress(&self) -> Option<&NetworkPart> {
        self.ingress.as_ref().map(|table| &table.part)
    }

    /// `None`: the node has no such namespace.
    #[must_use]
    pub fn wanted(&self, scope: Scope) -> Option<&Wanted> {
        match scope {
            Scope::Tunnel => self.tunnel.is_wanted().then_some(&self.tunnel.wanted),
            Scope::Overlay(id) => self.overlays.get(&id).map(|overlay| &overlay.fabric.wanted),
            Scope::Mesh => Some(&self.mesh.fabric.wanted),
            Scope::Host => Some(&self.host.wanted),
        }
    }

    #[must_use]
    pub fn containers(&self) -> &BTreeMap<String, LocalContainer> {
        &self.containers
    }

    /// Ports of the node that its own programs must not get.
    #[must_use]
    pub fn bindings(&self) -> &BTreeSet<PortBinding> {
        &self.host.bindings
    }

    #[must_use]
    pub fn unavailable(&self) -> &BTreeSet<PortBinding> {
        &self.unavailable
    }

    /// Takes what the managers say.
    pub fn update(&mut self, update: &DirectoryUpdate) -> All {
        let mut tables: BTreeMap<NetworkId, &Table> =
            self.overlays.iter().map(|(id, overlay)| (*id, &overlay.table)).collect();
        tables.extend(self.ingress.iter().map(|table| (table.part.id, table)));
        let update = as_increment(&tables, update);
        let mut all = All::new();
        let before = self.own.as_ref().map(|own| own.number);
        if update.own.is_some() {
            self.own.clone_from(&update.own);
            self.guard_ports(&mut all);
        }
        let renumbered = self.own.as_ref().map(|own| own.number) != before;
        self.take_away(&update, &mut all);
        for part in &update.networks {
            self.put_network(part, &mut all);
        }
        if renumbered {
            let parts: Vec<NetworkPart> = self.networks().chain(self.ingress()).cloned().collect();
            for part in parts {
                self.put_network(&part, &mut all);
            }
        }
        for peer in &update.peers {
            self.put_peer(peer, &mut all);
        }
        let (services, tasks) = self.put_parts(&update, renumbered, &mut all);
        for (network, service) in services {
            self.spread(network, service, &mut all);
        }
        let own = self.own.as_ref().map(|own| own.number);
        for task in tasks {
            let changes = all.entry(Scope::Mesh).or_default();
            self.mesh.open_targets(self.ingress.as_ref(), task, own, changes);
        }
        if touches_ports(&update) {
            self.after_ports(&mut all);
        }
        self.settle(all)
    }

    /// Peers and networks that went; endpoints and services go with their parts.
    fn take_away(&mut self, update: &DirectoryUpdate, all: &mut All) {
        for id in &update.removed_networks {
            self.remove_network(*id, all);
        }
        for (network, node) in &update.removed_peers {
            let Some((scope, table, fabric)) = self.side(*network) else { continue };
            let Some(peer) = table.peers.remove(node) else { continue };
            let membership = Membership::of(&table.part, &peer);
            fabric.remove_peer(peer.number, all.entry(scope).or_default());
            if !is_shared(table, &membership) {
                self.dismiss_peer(&membership, all);
            }
        }
    }

    fn remove_network(&mut self, id: NetworkId, all: &mut All) {
        let table = match self.overlays.remove(&id) {
            Some(overlay) => {
                all.remove(&Scope::Overlay(id));
                overlay.table
            }
            None if self.ingress.as_ref().is_some_and(|table| table.part.id == id) => {
                let Some(table) = self.ingress.take() else { return };
                self.leave_ingress(&table, all);
                table
            }
            None => return,
        };
        for peer in memberships(&table) {
            self.dismiss_peer(&peer, all);
        }
        self.close_network(&table.part, all);
    }

    /// The mesh namespace outlives the ingress network: everything of it goes one by one.
    fn leave_ingress(&mut self, table: &Table, all: &mut All) {
        let changes = all.entry(Scope::Mesh).or_default();
        let empty = Table::new(table.part.clone());
        for service in table.services.keys() {
            self.mesh.publish(&empty, *service, changes);
        }
        for part in table.endpoints.values() {
            self.mesh.open_targets(None, part.task, None, changes);
            self.mesh.fabric.remove_remote(part, changes);
        }
        for peer in table.peers.values() {
            self.mesh.fabric.remove_peer(peer.number, changes);
        }
        self.mesh.fabric.lift(&table.part.subnets, changes);
        self.mesh.fabric.leave(changes);
        self.mesh.set_return(false, changes);
    }

    fn put_network(&mut self, part: &NetworkPart, all: &mut All) {
        if part.driver != NetworkDriver::Overlay {
            return;
        }
        let Some(own) = self.own.as_ref().map(|own| own.number) else { return };
        if part.ingress && self.ingress.as_ref().is_none_or(|table| table.part.id != part.id) {
            if let Some(before) = self.ingress.as_ref().map(|table| table.part.id) {
                self.remove_network(before, all);
            }
            self.ingress = Some(Table::new(part.clone()));
        } else if !part.ingress && !self.overlays.contains_key(&part.id) {
            let (table, fabric) = (Table::new(part.clone()), Fabric::default());
            let overlay = Overlay { table, fabric, virtuals: BTreeMap::new() };
            self.overlays.insert(part.id, overlay);
            self.readmit(part.id, all);
        }
        let suspected = self.suspected.clone();
        let Some((scope, table, fabric)) = self.side(part.id) else { return };
        table.suspected = suspected;
        let earlier = memberships(table);
        let before = std::mem::replace(&mut table.part, part.clone());
        let peers = memberships(table);
        let changes = all.entry(scope).or_default();
        let gone: Vec<_> = before
            .subnets
            .iter()
            .filter(|subnet| !part.subnets.contains(subnet))
            .copied()
            .collect();
        fabric.lift(&gone, changes);
        fabric.lay(part, own, changes);
        if scope != Scope::Mesh {
            fabric.lay_choices(changes);
        }
        for (peer, to) in table.peers.values().zip(&peers) {
            fabric.add_peer(peer, to.destination(), changes);
        }
        if scope == Scope::Mesh {
            self.mesh.set_return(true, changes);
        }
        if (before.vni, before.encrypted) != (part.vni, part.encrypted) {
            for peer in &earlier {
                self.dismiss_peer(peer, all);
            }
            self.close_network(&before, all);
        }
        self.open_network(part, own, all);
        for peer in &peers {
            self.admit_peer(peer, all);
        }
    }

    /// Containers that were there before their network was.
    fn readmit(&mut self, network: NetworkId, all: &mut All) {
        let containers: Vec<LocalContainer> = self.containers.values().cloned().collect();
        for end in containers.iter().flat_map(|container| &container.links) {
            if end.network == Some(network) {
                self.admit(end, false, all);
            }
        }
    }

    fn put_peer(&mut self, peer: &PeerPart, all: &mut All) {
        let Some((scope, table, fabric)) = self.side(peer.network) else { return };
        let changes = all.entry(scope).or_default();
        let before = table.peers.insert(peer.node, peer.clone());
        if let Some(before) = before.as_ref().filter(|before| before.number != peer.number) {
            fabric.remove_peer(before.number, changes);
        }
        let membership = Membership::of(&table.part, peer);
        fabric.add_peer(peer, membership.destination(), changes);
        let before = before.map(|before| Membership::of(&table.part, &before));
        if let Some(before) = before.filter(|before| !is_shared(table, before)) {
            self.dismiss_peer(&before, all);
        }
        self.admit_peer(&membership, all);
    }

    /// Services and endpoints: their routes at once; what is balanced is answered, and which tasks
    /// of the ingress network may be others.
    fn put_parts(
        &mut self,
        update: &DirectoryUpdate,
        renumbered: bool,
        all: &mut All,
    ) -> (BTreeSet<(NetworkId, ServiceId)>, BTreeSet<TaskId>) {
        let mut services: BTreeSet<(NetworkId, ServiceId)> = BTreeSet::new();
        let mut tasks = BTreeSet::new();
        let mut departed = Vec::new();
        let ingress = self.ingress().map(|part| part.id);
        for (network, task) in &update.removed_endpoints {
            let Some((scope, table, fabric)) = self.side(*network) else { continue };
            let Some(gone) = table.remove_endpoint(*task) else { continue };
            fabric.remove_remote(&gone, all.entry(scope).or_default());
            if gone.serving {
                departed.extend(addresses(gone.v4, gone.v6).map(|a| (scope, a)));
            }
            services.extend(gone.service.map(|service| (*network, service)));
            tasks.extend((Some(*network) == ingress).then_some(*task));
        }
        for key in &update.removed_services {
            let Some((_, table, _)) = self.side(key.0) else { continue };
            table.services.remove(&key.1);
            services.insert(*key);
        }
        for part in &update.services {
            let Some((_, table, _)) = self.side(part.network) else { continue };
            table.services.insert(part.service, part.clone());
            services.insert((part.network, part.service));
        }
        for part in &update.endpoints {
            let Some((scope, table, fabric)) = self.side(part.network) else { continue };
            let changes = all.entry(scope).or_default();
            if let Some(before) = table.put_endpoint(part.clone()) {
                if (before.v4, before.v6, before.number) != (part.v4, part.v6, part.number) {
                    fabric.remove_remote(&before, changes);
                }
                if before.serving && !part.serving {
                    departed.extend(addresses(before.v4, before.v6).map(|a| (scope, a)));
                }
                services.extend(before.service.map(|service| (part.network, service)));
            }
            fabric.add_remote(part, changes);
            services.extend(part.service.map(|service| (part.network, service)));
            tasks.extend((Some(part.network) == ingress).then_some(part.task));
        }
        self.departed.extend(departed);
        if let Some(table) = &self.ingress {
            let id = table.part.id;
            let touched = services.iter().filter(|(network, _)| *network == id);
            tasks.extend(touched.flat_map(|(_, s)| table.endpoints_of(*s).map(|part| part.task)));
            if renumbered {
                tasks.extend(table.endpoints.keys());
            }
        }
        (services, tasks)
    }

    pub(crate) fn spread(&mut self, network: NetworkId, service: ServiceId, all: &mut All) {
        if let Some(overlay) = self.overlays.get_mut(&network) {
            let Overlay { table, fabric, virtuals } = overlay;
            let changes = all.entry(Scope::Overlay(network)).or_default();
            let before = virtuals.remove(&service).unwrap_or_default();
            let now = fabric.spread_service(table, service, &before, changes);
            if !now.is_empty() {
                virtuals.insert(service, now);
            }
        } else if let Some(table) = self.ingress.as_ref().filter(|t| t.part.id == network) {
            self.mesh.publish(table, service, all.entry(Scope::Mesh).or_default());
        }
    }

    /// Takes a container, or its new form.
    pub fn attach(&mut self, id: &str, container: LocalContainer) -> All {
        let mut all = All::new();
        if let Some(before) = self.containers.remove(id)
            && before != container
        {
            self.let_go(&before, &mut all);
        }
        for end in &container.links {
            self.admit(end, container.outward, &mut all);
        }
        for port in container.host_ports.iter().filter(|port| port.is_everywhere()) {
            let to = mesh_end(&container).map(|end| (end, port.target));
            let changes = all.entry(Scope::Mesh).or_default();
            self.mesh.lead_host_port(port.protocol, port.published, to, changes);
        }
        let ports = !container.host_ports.is_empty();
        self.containers.insert(id.to_owned(), container);
        if ports {
            self.after_ports(&mut all);
        }
        self.settle(all)
    }

    pub fn detach(&mut self, id: &str) -> All {
        let mut all = All::new();
        if let Some(container) = self.containers.remove(id) {
            self.let_go(&container, &mut all);
            if !container.host_ports.is_empty() {
                self.after_ports(&mut all);
            }
        }
        self.settle(all)
    }

    fn admit(&mut self, end: &LocalLink, outward: bool, all: &mut All) {
        let inner = End { link: end.link.clone(), hardware: end.hardware };
        let (scope, fabric) = match end.network {
            None => {
                let changes = all.entry(Scope::Mesh).or_default();
                self.mesh.admit(end, outward, changes);
                (Scope::Mesh, &mut self.mesh.fabric)
            }
            Some(network) => {
                let Some(overlay) = self.overlays.get_mut(&network) else { return };
                (Scope::Overlay(network), &mut overlay.fabric)
            }
        };
        for address in addresses(end.v4, end.v6) {
            fabric.add_local(address, &inner, all.entry(scope).or_default());
        }
    }

    fn let_go(&mut self, container: &LocalContainer, all: &mut All) {
        for end in &container.links {
            let inner = End { link: end.link.clone(), hardware: end.hardware };
            let (scope, fabric) = match end.network {
                None => {
                    self.mesh.dismiss(end, all.entry(Scope::Mesh).or_default());
                    (Scope::Mesh, &mut self.mesh.fabric)
                }
                Some(network) => {
                    let Some(overlay) = self.overlays.get_mut(&network) else { continue };
                    (Scope::Overlay(network), &mut overlay.fabric)
                }
            };
            for address in addresses(end.v4, end.v6) {
                fabric.remove_local(address, &inner, all.entry(scope).or_default());
            }
        }
        for port in container.host_ports.iter().filter(|port| port.is_everywhere()) {
            let changes = all.entry(Scope::Mesh).or_default();
            self.mesh.lead_host_port(port.protocol, port.published, None, changes);
        }
    }

    /// The addresses of the host's own links, without those of ours.
    pub fn set_node_addresses(&mut self, addresses: BTreeMap<String, Vec<IpAddr>>) -> All {
        let mut all = All::new();
        if self.node_addresses != addresses {
            self.node_addresses = addresses;
            self.after_ports(&mut all);
        }
        self.settle(all)
    }

    /// Where managers listen: no container reaches these ports, at these addresses or at any
    /// other address of a node.
    pub fn set_managers(&mut self, managers: &BTreeSet<SocketAddr>) -> All {
        let mut all = All::new();
        self.managers.clone_from(managers);
        self.guard_ports(&mut all);
        self.settle(all)
    }

    /// Ports that somebody else holds: they are not published.
    pub fn set_unavailable(&mut self, unavailable: BTreeSet<PortBinding>) -> All {
        let mut all = All::new();
        if self.unavailable != unavailable {
            self.unavailable = unavailable;
            self.after_ports(&mut all);
        }
        self.settle(all)
    }

    fn side(&mut self, network: NetworkId) -> Option<(Scope, &mut Table, &mut Fabric)> {
        if let Some(overlay) = self.overlays.get_mut(&network) {
            return Some((Scope::Overlay(network), &mut overlay.table, &mut overlay.fabric));
        }
        let table = self.ingress.as_mut().filter(|table| table.part.id == network)?;
        Some((Scope::Mesh, table, &mut self.mesh.fabric))
    }

    pub(crate) fn settle(&self, mut all: All) -> All {
        all.retain(|scope, changes| {
            let Some(wanted) = self.wanted(*scope) else { return false };
            wanted.settle(changes);
            settle_edits(wanted, &mut changes.later);
            !changes.is_empty()
        });
        all
    }
}

/// It may change which ports are published, or the addresses of nodes.
fn touches_ports(update: &DirectoryUpdate) -> bool {
    !(update.services.is_empty()
        && update.removed_services.is_empty()
        && update.peers.is_empty()
        && update.removed_peers.is_empty()
        && update.networks.is_empty()
        && update.removed_networks.is_empty())
}
