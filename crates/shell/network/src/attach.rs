//! Connecting and disconnecting containers.
//!
//! Owns: a container's namespace and the links between it and ours.
//! Does not know: what is filtered or balanced.
//! Invariant: the record is written before the first link is made, so that nothing of a container
//! is ever without an owner.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use netplan::{
    GATEWAY_HARDWARE, HostPortPlan, LocalContainer, LocalLink, Scope, Wanted, link, task_hardware,
};
use ports::network::{Attached, ContainerNetwork, HostPort};
use types::{NetworkId, PortProtocol};

use crate::container::{self, Interface};
use crate::names::task_link;
use crate::namespace::enter;
use crate::node::Node;
use crate::route::{self, PairEnd, V6};
use crate::space::{Kind, Space};
use crate::sysctl;

impl Node {
    /// Connects a container, or mends what is connected.
    pub(crate) fn attach(&mut self, wanted: &ContainerNetwork) -> io::Result<Attached> {
        let container = self.plan_container(wanted)?;
        let known = self.planner.containers().get(&wanted.id);
        if known.is_some_and(|known| *known != container) {
            self.disconnect(&wanted.id)?;
        }
        self.records.write(&wanted.id, &container)?;
        self.ensure_namespace(&wanted.id, wanted.attachments.first().map(|a| a.network))?;
        // The links first: what leads to a container needs them.
        let changes = self.planner.attach(&wanted.id, container.clone());
        let connected = self.connect(&wanted.id, Lead::Elsewhere);
        self.carry_out(changes, &BTreeSet::new())?;
        connected?;
        Ok(Attached {
            netns: self.containers.path(&wanted.id),
            hosts: container::host_lines(wanted, &container, self.links.host_v4())?,
            resolv_conf: None,
            host_ports: container::chosen_ports(&container),
        })
    }

    /// What the container's links should be: those that it has, where they are as asked for.
    fn plan_container(&mut self, wanted: &ContainerNetwork) -> io::Result<LocalContainer> {
        let known = self.planner.containers().get(&wanted.id).cloned().unwrap_or_default();
        let mut plan = LocalContainer {
            host_ports: self.choose_ports(wanted, &known)?,
            ..LocalContainer::default()
        };
        let first = wanted.attachments.first().map(|attachment| attachment.network);
        if matches!(first, Some(NetworkId::HOST | NetworkId::NONE)) {
            return Ok(plan);
        }
        let mut outward = wanted.attachments.is_empty();
        for attachment in &wanted.attachments {
            let part = self.planner.network(attachment.network).ok_or_else(|| {
                let network = attachment.network;
                io::Error::other(format!("network {network} is not known on this node yet"))
            })?;
            outward |= !part.internal;
            let mut end = container::local_link(attachment, String::new());
            end.link = match known.links.iter().find(|link| link.network == end.network) {
                Some(link) if (link.v4, link.v6) == (end.v4, end.v6) => link.link.clone(),
                _ => self.new_link(),
            };
            plan.links.push(end);
        }
        plan.outward = outward;
        let before = known.links.iter().find(|end| end.network.is_none());
        let mesh = self.plan_mesh_link(wanted, before)?;
        plan.links.push(mesh);
        Ok(plan)
    }

    fn plan_mesh_link(
        &mut self,
        wanted: &ContainerNetwork,
        before: Option<&LocalLink>,
    ) -> io::Result<LocalLink> {
        let local = |address: &Ipv4Addr| self.links.v4.contains(address);
        let (v4, v6) = match (&wanted.mesh, before) {
            (Some(mesh), _) => (mesh.v4, mesh.v6),
            (None, Some(LocalLink { v4: Some(v4), v6, .. })) if local(v4) => (Some(*v4), *v6),
            (None, _) => {
                let ends = self.planner.containers().values().flat_map(|c| &c.links);
                let taken: BTreeSet<Ipv4Addr> = ends.filter_map(|end| end.v4).collect();
                let v4 = self.links.free(&taken).ok_or_else(|| {
                    io::Error::other(format!("no address is left in {}", self.links.v4))
                })?;
                (Some(v4), Some(self.links.companion(v4)))
            }
        };
        let link = match before {
            Some(before) if (before.v4, before.v6) == (v4, v6) => before.link.clone(),
            _ => self.new_link(),
        };
        Ok(LocalLink { network: None, link, v4, v6, hardware: task_hardware(v4, v6) })
    }

    /// A name that no link of a container has, nor had while this daemon ran.
    fn new_link(&mut self) -> String {
        loop {
            let name = task_link(self.next_link);
            self.next_link += 1;
            let mut ends = self.planner.containers().values().flat_map(|c| &c.links);
            if !ends.any(|end| end.link == name) {
                return name;
            }
        }
    }

    /// Ports of the node: those asked for, and free ones where the choice is ours.
    fn choose_ports(
        &self,
        wanted: &ContainerNetwork,
        known: &LocalContainer,
    ) -> io::Result<Vec<HostPortPlan>> {
        let mut taken: BTreeSet<(PortProtocol, u16)> = self
            .planner
            .bindings()
            .iter()
            .map(|binding| (binding.protocol, binding.port))
            .collect();
        let mut all = Vec::new();
        for (number, port) in wanted.host_ports.iter().enumerate() {
            let kept = known.host_ports.get(number).filter(|kept| {
                (kept.protocol, kept.target, &kept.host) == (port.protocol, port.target, &port.host)
                    && (port.published == 0 || port.published == kept.published)
            });
            let published = match (kept, port.published) {
                (Some(kept), _) => kept.published,
                (None, 0) => self.free_port(port, &taken)?,
                (None, published) if taken.contains(&(port.protocol, published)) => {
                    let name = port.protocol.name();
                    return Err(io::Error::other(format!(
                        "port {published}/{name} of this node is taken"
                    )));
                }
                (None, published) => published,
            };
            taken.insert((port.protocol, published));
            all.push(HostPortPlan {
                protocol: port.protocol,
                published,
                target: port.target,
                host: port.host.clone(),
            });
        }
        Ok(all)
    }

    /// One that no program of the host has either.
    fn free_port(&self, port: &HostPort, taken: &BTreeSet<(PortProtocol, u16)>) -> io::Result<u16> {
        let protocol = port.protocol;
        for _ in 0..FREE_PORT_ATTEMPTS {
            let free = enter(&self.namespace, move || {
                Ok(match protocol {
                    PortProtocol::Udp => UdpSocket::bind(ANY)?.local_addr()?.port(),
                    PortProtocol::Tcp | PortProtocol::Sctp => {
                        TcpListener::bind(ANY)?.local_addr()?.port()
                    }
                })
            })?;
            if !taken.contains(&(protocol, free)) {
                return Ok(free);
            }
        }
        Err(io::Error::other("no free port of this node was found"))
    }

    /// The namespace of a container; on the network of the host it is the host's.
    fn ensure_namespace(&mut self, id: &str, first: Option<NetworkId>) -> io::Result<()> {
        if self.containers.is_mounted(id) {
            return Ok(());
        }
        if first == Some(NetworkId::HOST) {
            return self.containers.adopt(id, &self.namespace);
        }
        self.containers.make(id, || {
            sysctl::container();
            let mut space = Space::open(Kind::Container)?;
            match space.index(link::LOOPBACK)? {
                Some(loopback) => space.route.request(route::set_up(loopback)),
                None => Ok(()),
            }
        })
    }

    /// Lays the links that are missing, and configures the container's ends.
    /// Answers how much of these differed.
    fn connect(&mut self, id: &str, lead: Lead) -> io::Result<usize> {
        let Some(container) = self.planner.containers().get(id).cloned() else { return Ok(0) };
        if container.links.is_empty() {
            return Ok(0);
        }
        let mut inside = self.containers.enter(id, || Space::open(Kind::Container))?;
        let there = inside.learn_links()?;
        let interfaces = self.interfaces(&container);
        let namespace = self.containers.open_one(id)?;
        let mut fresh = false;
        for (end, interface) in container.links.iter().zip(&interfaces) {
            let scope = end.network.map_or(Scope::Mesh, Scope::Overlay);
            let Some(space) = self.spaces.get_mut(&scope) else { continue };
            let near = space.index_of(&end.link)?;
            let far = there.iter().find(|link| link.name == interface.name);
            if near.is_some() && far.is_some_and(|link| link.up) {
                continue;
            }
            if let Some(near) = near {
                space.route.batch(vec![route::delete_link(near)], route::ABSENT)?;
            } else if let Some(far) = far {
                inside.route.batch(vec![route::delete_link(far.index)], route::ABSENT)?;
            }
            lay(space, end, interface, &namespace, &format!("{}/{id}", self.names.alias))?;
            fresh = true;
        }
        if fresh {
            let links = inside.learn_links()?.into_iter();
            let ours = links.filter(|l| interfaces.iter().any(|i| i.name == l.name));
            inside.route.batch(ours.map(|link| route::set_up(link.index)).collect(), &[])?;
            for end in container.links.iter().filter(|_| lead == Lead::Here) {
                self.settle_link(end)?;
            }
        }
        self.configure(&mut inside, &interfaces, fresh && there.len() <= 1)
    }

    /// What leads to a link that was laid again is there again.
    fn settle_link(&mut self, end: &LocalLink) -> io::Result<()> {
        let scope = end.network.map_or(Scope::Mesh, Scope::Overlay);
        let Some(wanted) = self.planner.wanted(scope) else { return Ok(()) };
        let Some(space) = self.spaces.get_mut(&scope) else { return Ok(()) };
        let mut part = Wanted::default();
        for address in end.v4.map(Into::into).into_iter().chain(end.v6.map(Into::into)) {
            let key =
                netplan::RouteKey { table: netplan::MAIN_TABLE, net: ipnet::IpNet::from(address) };
            if let Some(to) = wanted.routes.get(&key) {
                part.routes.insert(key, to.clone());
            }
            let key = (end.link.clone(), address);
            if let Some(hardware) = wanted.neighbours.get(&key) {
                part.neighbours.insert(key, *hardware);
            }
        }
        space.apply(&container::additions(&part))
    }

    fn interfaces(&self, container: &LocalContainer) -> Vec<Interface> {
        let interface = |(number, end): (usize, &LocalLink)| match end.network {
            Some(network) => {
                let part = self.planner.network(network)?;
                let attachment = types::Attachment { network, v4: end.v4, v6: end.v6 };
                Some(Interface::on(number, part, &attachment))
            }
            None => Some(Interface::to_mesh(number, end, self.planner.ingress(), self.links)),
        };
        container.links.iter().enumerate().filter_map(interface).collect()
    }

    fn configure(
        &self,
        inside: &mut Space,
        interfaces: &[Interface],
        empty: bool,
    ) -> io::Result<usize> {
        let mut wanted = Wanted::default();
        for interface in interfaces {
            interface.add_to(&mut wanted);
        }
        if let Some(last) = interfaces.last() {
            last.add_default(self.v6_outwards, &mut wanted);
            if !self.v6_outwards {
                let rules = inside.route.sources(V6)?;
                let missing = last.v6().filter(|own| !rules.contains(own));
                let rules = missing.map(|own| route::add_source_rule(own, netplan::RETURN_TABLE));
                inside.route.batch(rules.collect(), route::PRESENT)?;
            }
        }
        if empty {
            return inside.apply(&container::additions(&wanted)).map(|()| 0);
        }
        // What a container added itself is its own affair.
        inside.repair(&wanted, netplan::Surplus::Keep)
    }

    /// Mends the links of all containers that are there, and what is inside of some of them, the
    /// next ones in turn; answers how much differed.
    pub(crate) fn repair_containers(&mut self, thoroughly: bool) -> io::Result<usize> {
        let mut count = 0;
        let all: Vec<String> = self.planner.containers().keys().cloned().collect();
        for id in &all {
            if self.containers.is_mounted(id) && !self.is_connected(id)? {
                count += 1;
                self.connect(id, Lead::Here)?;
            }
        }
        if !thoroughly {
            return Ok(count);
        }
        let first = all.partition_point(|id| *id <= self.compared);
        let turn = all[first..].iter().chain(&all[..first]).take(COMPARED_AT_ONCE);
        for id in turn {
            self.compared.clone_from(id);
            if self.containers.is_mounted(id) {
                count += self.connect(id, Lead::Here)?;
                count += usize::from(self.repair_resolver(id)?);
            }
        }
        Ok(count)
    }

    fn is_connected(&mut self, id: &str) -> io::Result<bool> {
        let Some(container) = self.planner.containers().get(id).cloned() else { return Ok(true) };
        for end in &container.links {
            let scope = end.network.map_or(Scope::Mesh, Scope::Overlay);
            if let Some(space) = self.spaces.get_mut(&scope)
                && space.index_of(&end.link)?.is_none()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes a container out of everything.
    pub(crate) fn detach(&mut self, id: &str) -> io::Result<()> {
        self.disconnect(id)?;
        self.resolvers.remove(id);
        self.containers.remove(id)?;
        self.records.remove(id)
    }

    /// What leads to the container goes; its links go with its namespace, or are swept up later.
    fn disconnect(&mut self, id: &str) -> io::Result<()> {
        let changes = self.planner.detach(id);
        self.carry_out(changes, &BTreeSet::new())
    }

    /// Removes links of containers that are not there any more, all at once.
    pub(crate) fn sweep_links(&mut self) -> io::Result<()> {
        let known: BTreeSet<String> = self
            .planner
            .containers()
            .values()
            .flat_map(|container| container.links.iter().map(|end| end.link.clone()))
            .collect();
        let group = self.names.group;
        for space in self.spaces.values_mut() {
            let links: Vec<u32> = space
                .learn_links()?
                .into_iter()
                .filter(|link| link.name.starts_with(link::TASK_PREFIX))
                .filter(|link| !known.contains(&link.name))
                .map(|link| link.index)
                .collect();
            space.route.delete_links(&links, group)?;
        }
        Ok(())
    }
}

/// Who sees to what leads to links that are laid anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lead {
    Here,
    /// The changes of the plan, which come after.
    Elsewhere,
}

/// Makes one pair: our end is up at once, the container's is set up from inside.
fn lay(
    space: &mut Space,
    end: &LocalLink,
    interface: &Interface,
    namespace: &std::os::fd::OwnedFd,
    alias: &str,
) -> io::Result<()> {
    let near = PairEnd {
        name: &end.link,
        hardware: GATEWAY_HARDWARE,
        mtu: interface.mtu,
        namespace: None,
    };
    let far = PairEnd {
        name: &interface.name,
        hardware: end.hardware,
        mtu: interface.mtu,
        namespace: Some(namespace),
    };
    space.route.request(route::add_pair(&near, &far))?;
    let Some(index) = space.index_of(&end.link)? else {
        return Err(io::Error::other(format!("{} vanished", end.link)));
    };
    // Nobody on a network sends with another's address; the mesh has a rule for both families.
    let strict = end.network.is_some();
    let all = vec![route::quiet(index, strict), route::dress(index, alias, interface.mtu)];
    space.route.batch(all, &[])
}

const ANY: (Ipv4Addr, u16) = (Ipv4Addr::UNSPECIFIED, 0);

/// Ports are chosen at random by the host; a few are taken.
const FREE_PORT_ATTEMPTS: usize = 16;

/// A comparison of a container's namespace takes half a millisecond.
const COMPARED_AT_ONCE: usize = 32;
