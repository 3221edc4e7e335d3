//! The plan of one node: from what was learned to what changes in which namespace.
//!
//! Owns: the directory, the containers of this node, and the state wanted in each namespace.
//! Does not know: whether a change was carried out.
//! Invariant: after every call the wanted states are what directory and containers ask for, and the
//! changes answered lead there from those before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use types::{NetworkId, NetworkPart, OwnPart, PortBinding, PortProtocol, ServiceId};

use crate::directory::Table;
use crate::local::Bridge;
use crate::mesh::{Host, Mesh, MeshLinks, is_everywhere, mesh_end};
use crate::overlay::{End, Fabric, addresses, settle_edits};
use crate::state::{Changes, Hardware, Wanted};
use crate::tunnel::Tunnel;

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
    pub(crate) fabric: Fabric,
    pub(crate) virtuals: BTreeMap<ServiceId, BTreeSet<IpAddr>>,
}

/// What every namespace of the node should hold.
#[derive(Clone, Debug)]
pub struct Planner {
    pub(crate) own: Option<OwnPart>,
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

    /// Whether connections of the network are to be led from virtual addresses.
    #[must_use]
    pub fn is_balanced(&self, id: NetworkId) -> bool {
        self.overlays.get(&id).is_some_and(|overlay| overlay.fabric.is_balanced())
    }

    /// The network's namespace leads connections from virtual addresses that nobody may know any
    /// more, and is to go on with it. What is wanted of it is to be compared as a whole then.
    pub fn keep_balanced(&mut self, id: NetworkId) {
        if let Some(overlay) = self.overlays.get_mut(&id) {
            overlay.fabric.balance(&mut Changes::default());
        }
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

    pub(crate) fn admit(&mut self, end: &LocalLink, outward: bool, all: &mut All) {
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
            self.free_port(port, all);
        }
    }

    /// A service may have published the port meanwhile.
    fn free_port(&mut self, port: &HostPortPlan, all: &mut All) {
        let changes = all.entry(Scope::Mesh).or_default();
        self.mesh.lead_host_port(port.protocol, port.published, None, changes);
        let service = self.mesh.publisher(port.protocol, port.published);
        if let Some((table, service)) = self.ingress.as_ref().zip(service) {
            self.mesh.publish(table, service, changes);
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

    pub(crate) fn side(&mut self, network: NetworkId) -> Option<(Scope, &mut Table, &mut Fabric)> {
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
            settle_edits(wanted, changes);
            !changes.is_empty()
        });
        all
    }
}
