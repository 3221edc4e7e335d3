//! Connecting and disconnecting containers.
//!
//! Owns: a container's namespace and the links between it and ours.
//! Does not know: what is filtered or balanced.
//! Invariant: the record is written before the first link is made, so that nothing of a container
//! is ever without an owner.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use netplan::{AskedBy, HostPortPlan, LocalContainer, LocalLink, Scope, link, task_hardware};
use ports::network::{Attached, ContainerNetwork, HostPort};
use types::{Attachment, LocalNetwork, NetworkDriver, NetworkId, PortProtocol};

use crate::container::{self, Connected, Interface};
use crate::devices;
use crate::names::task_link;
use crate::namespace::enter;
use crate::node::Node;
use crate::pair::Pair;
use crate::route::{self, V4, V6};
use crate::source_rule::{SourceRule, add_source_rule, delete_source_rule};
use crate::space::{Kind, Space};
use crate::spare::{Prepared, Spare, first_network};

impl Node {
    /// Connects a container, or mends what is connected; `begun` is told what is being laid.
    /// [`Node::after_attach`] does what nobody waits for.
    pub(crate) fn attach(
        &mut self,
        wanted: &ContainerNetwork,
        begun: impl FnOnce(&LocalContainer),
    ) -> io::Result<Attached> {
        // Before a namespace is taken for it, which would be lost with each attempt.
        for one in wanted.attachments.iter().chain(&wanted.connected) {
            if !self.is_own(one.network) {
                self.known_network(one.network)?;
            }
        }
        let made = self.new_namespace(wanted)?;
        let container = self.plan_container(wanted, made.as_ref())?;
        let known = self.planner.containers().get(&wanted.id).cloned();
        let mut gone = Vec::new();
        if let Some(known) = known.filter(|known| *known != container) {
            match extends(&known, &container) {
                // What stays is not touched.
                true => gone = missing_links(&known, &container),
                false => self.disconnect(&wanted.id)?,
            }
        }
        self.records.write(&wanted.id, &container)?;
        self.ensure_namespace(wanted, made.as_ref())?;
        begun(&container);
        // The links first: what leads to a container needs them.
        let changes = self.planner.attach(&wanted.id, container.clone());
        let connected = self.connect(&wanted.id, Lead::Elsewhere, made);
        self.carry_out(changes, &BTreeSet::new())?;
        connected?.settle(&container)?;
        self.cut(&wanted.id, &gone)?;
        Ok(Attached {
            netns: self.containers.path(&wanted.id),
            hosts: container::host_lines(wanted, &container, self.links.host_v4())?,
            resolv_conf: None,
            host_ports: container::chosen_ports(&container),
        })
    }

    /// Says whose the links are that were made ahead of time, and has others made.
    pub(crate) fn after_attach(&mut self, wanted: &ContainerNetwork) {
        let alias = self.names.alias_of(&wanted.id);
        let container = self.planner.containers().get(&wanted.id);
        for end in container.into_iter().flat_map(|container| &container.links) {
            let scope = end.network.map_or(Scope::Mesh, Scope::Overlay);
            let Some(space) = self.spaces.get_mut(&scope) else { continue };
            let named = devices::own(0, &alias).text(libc::IFLA_IFNAME, &end.link);
            if let Err(error) = space.route.request(named) {
                tracing::debug!(%error, link = end.link, "a link has no alias");
            }
        }
        self.replace_spares(self.plannable(wanted));
    }

    /// What the container's links should be: those that were `made` with its namespace, or that it
    /// has, where they are as asked for.
    fn plan_container(
        &mut self,
        wanted: &ContainerNetwork,
        made: Option<&Spare>,
    ) -> io::Result<LocalContainer> {
        let known = self.planner.containers().get(&wanted.id).cloned().unwrap_or_default();
        let mut plan = LocalContainer {
            host_ports: self.choose_ports(wanted, &known)?,
            names: wanted.names.clone(),
            nameservers: wanted.dns.nameservers.clone(),
            ..LocalContainer::default()
        };
        if matches!(first_network(wanted), Some(NetworkId::HOST | NetworkId::NONE)) {
            return Ok(plan);
        }
        let mut outward = wanted.attachments.is_empty();
        for attachment in &wanted.attachments {
            outward |= !self.is_own(attachment.network)
                && !self.known_network(attachment.network)?.internal;
            self.plan_link(&mut plan, &known, attachment, AskedBy::Service)?;
        }
        for end in &mut plan.links {
            if let Some(made) = made.and_then(|made| made.link(end.network)) {
                end.link.clone_from(&made.planned.near);
                end.hardware = made.hardware;
            }
        }
        plan.outward = outward;
        if self.is_on_mesh(wanted) {
            let before = known.links.iter().find(|end| end.network.is_none());
            let prepared = made.and_then(|made| made.link(None));
            let mut mesh = self.plan_mesh_link(wanted, before, prepared)?;
            mesh.interface = container::free_interface(&plan);
            plan.links.push(mesh);
        }
        let mut later: Vec<LocalLink> = known.links.clone();
        later.retain(|end| {
            let asked = |one: &Attachment| Some(one.network) == end.network;
            match end.asked_by {
                AskedBy::Service => false,
                AskedBy::Managers => wanted.connected.iter().any(asked),
                AskedBy::Node => true,
            }
        });
        plan.links.extend(later);
        for attachment in &wanted.connected {
            self.plan_link(&mut plan, &known, attachment, AskedBy::Managers)?;
        }
        Ok(plan)
    }

    /// Without ports, and with a way out of its own, it has no business there.
    pub(crate) fn is_on_mesh(&self, wanted: &ContainerNetwork) -> bool {
        let is_own = |one: &Attachment| self.is_own(one.network);
        let own_only = !wanted.attachments.is_empty() && wanted.attachments.iter().all(is_own);
        !own_only || wanted.mesh.is_some() || !wanted.host_ports.is_empty()
    }

    /// The node has it for itself, or no containers' links are on it.
    fn is_own(&self, network: NetworkId) -> bool {
        self.local.contains_key(&network) || matches!(network, NetworkId::HOST | NetworkId::NONE)
    }

    fn known_network(&self, network: NetworkId) -> io::Result<&types::NetworkPart> {
        self.planner.network(network).ok_or_else(|| {
            io::Error::other(format!("network {network} is not known on this node yet"))
        })
    }

    /// Puts a link to one network into the plan, the known one if it is as asked for.
    pub(crate) fn plan_link(
        &mut self,
        plan: &mut LocalContainer,
        known: &LocalContainer,
        attachment: &Attachment,
        asked_by: AskedBy,
    ) -> io::Result<()> {
        let is_it = |link: &&LocalLink| link.network == Some(attachment.network);
        let known = known.links.iter().find(is_it);
        let mut end = container::local_link(attachment, asked_by);
        let network = self.local.get(&attachment.network).cloned();
        if let Some(network) = &network {
            self.place_locally(network, &mut end, known)?;
        }
        let same = |a: &LocalLink, b: &LocalLink| (a.v4, a.v6) == (b.v4, b.v6);
        match known.filter(|known| same(known, &end) && known.asked_by == asked_by) {
            Some(known) => {
                end.link.clone_from(&known.link);
                end.hardware = known.hardware;
            }
            None => end.link = self.new_end(network.as_ref()),
        }
        let there = plan.links.iter().position(|link| link.network == Some(attachment.network));
        match there {
            Some(place) => {
                end.interface.clone_from(&plan.links[place].interface);
                plan.links[place] = end;
            }
            None => {
                end.interface = container::free_interface(plan);
                plan.links.push(end);
            }
        }
        Ok(())
    }

    fn plan_mesh_link(
        &mut self,
        wanted: &ContainerNetwork,
        before: Option<&LocalLink>,
        prepared: Option<&Prepared>,
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
        let (link, hardware) = match before {
            _ if let Some(made) = prepared => (made.planned.near.clone(), made.hardware),
            Some(before) if (before.v4, before.v6) == (v4, v6) => {
                (before.link.clone(), before.hardware)
            }
            _ => (self.new_link(), task_hardware(v4, v6)),
        };
        Ok(LocalLink { link, v4, v6, hardware, ..LocalLink::default() })
    }

    /// A name for our end of a new link: none of a part of one of the host's links.
    fn new_end(&mut self, network: Option<&LocalNetwork>) -> String {
        match network.map(|network| network.spec.driver) {
            None => self.new_link(),
            Some(NetworkDriver::Bridge) => {
                let name = self.new_link();
                format!("{}{name}", self.names.link_prefix)
            }
            Some(_) => String::new(),
        }
    }

    /// A name that no link of a container has, nor had while this daemon ran.
    pub(crate) fn new_link(&mut self) -> String {
        loop {
            let name = task_link(self.next_link);
            self.next_link += 1;
            let mut ends = self.planner.containers().values().flat_map(|c| &c.links);
            if !ends.any(|end| end.link.ends_with(&name)) {
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
        let mut all: Vec<HostPortPlan> = Vec::new();
        for (number, port) in wanted.host_ports.iter().enumerate() {
            let kept = known.host_ports.get(number).filter(|kept| {
                (kept.protocol, kept.target, &kept.host) == (port.protocol, port.target, &port.host)
                    && (port.published == 0 || port.published == kept.published)
            });
            if let Some(kept) = kept {
                all.push(kept.clone());
                continue;
            }
            let HostPort { protocol, target, published, ref host } = *port;
            let mut plan = HostPortPlan { protocol, published, target, host: host.clone() };
            if published == 0 {
                plan.published = self.free_port(&plan, &all)?;
            } else if self.planner.is_taken(&plan, &all) {
                let name = protocol.name();
                return Err(io::Error::other(format!(
                    "port {published}/{name} of this node is taken"
                )));
            }
            all.push(plan);
        }
        Ok(all)
    }

    /// One that no program of the host has either.
    fn free_port(&self, port: &HostPortPlan, besides: &[HostPortPlan]) -> io::Result<u16> {
        let (protocol, mut plan) = (port.protocol, port.clone());
        for _ in 0..FREE_PORT_ATTEMPTS {
            plan.published = enter(&self.namespace, move || {
                Ok(match protocol {
                    PortProtocol::Udp => UdpSocket::bind(ANY)?.local_addr()?.port(),
                    PortProtocol::Tcp | PortProtocol::Sctp => {
                        TcpListener::bind(ANY)?.local_addr()?.port()
                    }
                })
            })?;
            if !self.planner.is_taken(&plan, besides) {
                return Ok(plan.published);
            }
        }
        Err(io::Error::other("no free port of this node was found"))
    }

    /// Lays the links that are missing, and configures the container's ends. In a namespace that
    /// was `made` just now, there are none.
    pub(crate) fn connect(
        &mut self,
        id: &str,
        lead: Lead,
        made: Option<Spare>,
    ) -> io::Result<Connected> {
        let known = self.planner.containers().get(id).cloned();
        let Some(container) = known.filter(|container| !container.links.is_empty()) else {
            return Ok(Connected::default());
        };
        let new = made.is_some();
        let (mut inside, namespace, there, prepared) = match made {
            Some(Spare { inside, namespace, links, .. }) => (inside, namespace, Vec::new(), links),
            None => {
                let namespace = self.containers.open_one(id)?;
                let mut inside = enter(&namespace, || Space::open(Kind::Container))?;
                let there = inside.learn_links()?;
                (inside, namespace, there, Vec::new())
            }
        };
        let known = self.interfaces(&container);
        let alias = self.names.alias_of(id);
        // First, for one's name may be another link's.
        let claimed = self.claim(prepared, &known, &alias, &mut inside)?;
        let mut laid = claimed.clone();
        for (end, interface) in &known {
            let far = there.iter().find(|link| link.name == interface.name);
            if let Some(network) = self.local_network(end) {
                if self.lay_locally(id, &network, (end, interface), far, &mut inside)? {
                    laid.push(*end);
                }
                continue;
            }
            let scope = end.network.map_or(Scope::Mesh, Scope::Overlay);
            let Some(space) = self.spaces.get_mut(&scope) else { continue };
            if claimed.contains(end) {
                continue;
            }
            // One that is left of an earlier namespace is found when it is in the way.
            let near = if new { None } else { space.index_of(&end.link)? };
            if near.is_some() && far.is_some_and(|link| link.up) {
                continue;
            }
            if let Some(near) = near {
                space.route.batch(vec![route::delete_link(near)], route::ABSENT)?;
            } else if let Some(far) = far {
                inside.route.batch(vec![route::delete_link(far.index)], route::ABSENT)?;
            }
            Pair { end, interface, alias: &alias }.lay(space, &namespace)?;
            laid.push(*end);
        }
        if !laid.is_empty() {
            let lost = self.set_up(&mut inside, &known, (&laid, &claimed), lead)?;
            self.lay_lost(&lost, &known, (&mut inside, &namespace), &alias)?;
        }
        let interfaces: Vec<Interface> = known.into_iter().map(|(_, one)| one).collect();
        let state = if new {
            Inside::New
        } else if !laid.is_empty() && there.len() <= 1 {
            Inside::Empty
        } else {
            Inside::Unknown
        };
        let differing = self.configure(&mut inside, &interfaces, container.outward, state)?;
        Ok(Connected { differing, inside: (!laid.is_empty()).then_some(inside) })
    }

    /// Those of the container's links whose networks are known here.
    fn interfaces<'a>(&self, container: &'a LocalContainer) -> Vec<(&'a LocalLink, Interface)> {
        let interface = |end: &LocalLink| match end.network {
            None => Some(Interface::to_mesh(end, self.planner.ingress(), self.links)),
            Some(network) => match self.local.get(&network) {
                Some(own) => Some(Interface::on_own(end, own)),
                None => Some(Interface::on(end, self.planner.network(network)?)),
            },
        };
        container.links.iter().filter_map(|end| Some((end, interface(end)?))).collect()
    }

    fn configure(
        &self,
        inside: &mut Space,
        interfaces: &[Interface],
        outward: bool,
        state: Inside,
    ) -> io::Result<usize> {
        let (wanted, rules) = container::inside(interfaces, outward, self.v6_outwards);
        if state == Inside::New {
            let rules = rules.iter().map(add_source_rule).collect();
            return inside.apply_after(rules, &container::additions(&wanted)).map(|()| 0);
        }
        for family in [V4, V6] {
            let wanted: Vec<&SourceRule> =
                rules.iter().filter(|rule| route::family_of(rule.source) == family).collect();
            if state == Inside::Empty && wanted.is_empty() {
                continue;
            }
            let there = inside.route.source_rules(family)?;
            let gone = there.iter().filter(|rule| !wanted.contains(rule)).map(delete_source_rule);
            inside.route.batch(gone.collect(), route::ABSENT)?;
            let missing = wanted.iter().filter(|rule| !there.contains(rule));
            let missing = missing.map(|rule| add_source_rule(rule));
            inside.route.batch(missing.collect(), route::PRESENT)?;
        }
        if state == Inside::Empty {
            return inside.apply(&container::additions(&wanted)).map(|()| 0);
        }
        // What a container added itself is its own affair.
        inside.repair(&wanted, netplan::Surplus::Keep)
    }

    /// Mends the links of all containers that are there, and what is inside of some of them, the
    /// next ones in turn; answers how much differed.
    pub(crate) fn repair_containers(&mut self, thoroughly: bool) -> io::Result<usize> {
        let (mut count, mut result) = (0, Ok(()));
        let all: Vec<String> = self.planner.containers().keys().cloned().collect();
        for id in &all {
            if self.containers.is_mounted(id) && !self.is_connected(id)? {
                count += 1;
                // One that cannot be mended must not keep the others from it.
                let mended = self.connect(id, Lead::Here, None).map(drop);
                result = result.and(mended);
            }
        }
        if !thoroughly {
            return result.map(|()| count);
        }
        let first = all.partition_point(|id| *id <= self.compared);
        let turn = all[first..].iter().chain(&all[..first]).take(COMPARED_AT_ONCE);
        for id in turn {
            self.compared.clone_from(id);
            if self.containers.is_mounted(id) {
                match self.connect(id, Lead::Here, None) {
                    Ok(connected) => count += connected.differing,
                    Err(error) => result = result.and(Err(error)),
                }
                count += usize::from(self.repair_resolver(id)?);
            }
        }
        result.map(|()| count)
    }

    fn is_connected(&mut self, id: &str) -> io::Result<bool> {
        let Some(container) = self.planner.containers().get(id).cloned() else { return Ok(true) };
        for end in &container.links {
            if self.local_network(end).is_some() {
                if !end.link.is_empty() && self.host.index_of(&end.link)?.is_none() {
                    return Ok(false);
                }
                continue;
            }
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
        self.resolvers.forget(id);
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
        let containers = self.planner.containers().values();
        let mut known: BTreeSet<String> = containers
            .flat_map(|container| container.links.iter().map(|end| end.link.clone()))
            .collect();
        known.extend(self.spares.links().cloned());
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
        let prefix = format!("{}{}", self.names.link_prefix, link::TASK_PREFIX);
        let links = self.host.learn_links()?.into_iter();
        let stale = links.filter(|l| l.name.starts_with(&prefix) && !known.contains(&l.name));
        let stale: Vec<u32> = stale.map(|link| link.index).collect();
        self.host.route.delete_links(&stale, group)
    }
}

/// The later one has the same links of its service and to the mesh, and the same ports.
fn extends(known: &LocalContainer, now: &LocalContainer) -> bool {
    let first = |container: &LocalContainer| -> Vec<LocalLink> {
        let own = container.links.iter().filter(|end| end.asked_by == AskedBy::Service);
        own.cloned().collect()
    };
    first(known) == first(now) && known.outward == now.outward && known.host_ports == now.host_ports
}

/// Links that the later one has not.
pub(crate) fn missing_links(known: &LocalContainer, now: &LocalContainer) -> Vec<LocalLink> {
    known.links.iter().filter(|end| !now.links.contains(end)).cloned().collect()
}

/// Who sees to what leads to links that are laid anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    Here,
    /// The changes of the plan, which come after.
    Elsewhere,
}

/// What a container's namespace holds besides the links that were laid just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    /// Nothing.
    New,
    /// Neither addresses nor routes.
    Empty,
    Unknown,
}

const ANY: (Ipv4Addr, u16) = (Ipv4Addr::UNSPECIFIED, 0);

/// Ports are chosen at random by the host; a few are taken.
const FREE_PORT_ATTEMPTS: usize = 16;

/// A comparison of a container's namespace takes half a millisecond.
const COMPARED_AT_ONCE: usize = 32;
