//! Networks that the node has for itself, in the kernel.
//!
//! Owns: bridges in the host's namespace, what stands in for a missing parent, and the links of
//! containers to them.
//! Does not know: who keeps the list of such networks, names.
//! Invariant: a link of the host that we did not make is used, and never removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use netplan::{
    Bridge, GATEWAY_HARDWARE, Hardware, LocalContainer, LocalLink, Scope, Surroundings,
    task_hardware,
};
use types::{
    ErrorCode, Family, Fault, LocalNetwork, NetworkDriver, NetworkId, NetworkSpec, Subnet,
};

use crate::container::{Interface, UPLINK_MTU};
use crate::devices::{self, Device, Part};
use crate::node::Node;
use crate::pair::{PairEnd, add_pair};
use crate::route::{self, ABSENT, Link, V4, V6};
use crate::space::{Kind, Space};

impl Node {
    /// Subnets for a new network, which keep clear of everything on this node.
    pub(crate) fn plan_local(
        &mut self,
        spec: &NetworkSpec,
    ) -> io::Result<Result<Vec<Subnet>, Fault>> {
        let links = self.host.learn_links()?;
        let name = |index: u32| {
            let link = links.iter().find(|link| link.index == index);
            link.map_or_else(String::new, |link| link.name.clone())
        };
        let own: BTreeSet<String> = self.planner.bridges().keys().cloned().collect();
        let mut routes = Vec::new();
        for family in [V4, V6] {
            for route in self.host.route.routes(family)? {
                let link = name(route.link);
                // What the node's own networks have is known better than by their routes.
                let counts = route.net.prefix_len() > 0
                    && route.kind == libc::RTN_UNICAST
                    && !own.contains(&link)
                    && !is_for_neighbours(route.net);
                if counts {
                    routes.push((route.net, format!("route of this host ({link})")));
                }
            }
        }
        for part in self.planner.networks().chain(self.planner.ingress()) {
            let what = format!("network {}", part.name);
            routes.extend(part.subnets.iter().map(|(net, _)| (net.trunc(), what.clone())));
        }
        let around = Surroundings {
            networks: self.local.values().collect(),
            routes,
            v6: self.names.local_v6(),
        };
        Ok(netplan::choose_subnets(spec, &around))
    }

    /// Takes a network, and makes in the kernel what it needs; refuses what the kernel cannot do.
    pub(crate) fn make_local(&mut self, network: &LocalNetwork) -> io::Result<Result<(), Fault>> {
        if self.local.get(&network.id) == Some(network) {
            return Ok(Ok(()));
        }
        let links = self.host.learn_links()?;
        if let Err(fault) = self.check_local(network, &links) {
            return Ok(Err(fault));
        }
        self.local.insert(network.id, network.clone());
        let made = match self.ensure_local(network, &links) {
            Ok(_) if network.spec.driver == NetworkDriver::Bridge => self.tell_bridges().map(Ok),
            Ok(_) => self.try_part(network),
            Err(error) => Err(error),
        };
        let refused = match made {
            Ok(Ok(())) => return Ok(Ok(())),
            Ok(Err(fault)) => fault,
            Err(error) => cannot(network, &error),
        };
        self.local.remove(&network.id);
        self.take_down(network)?;
        self.tell_bridges()?;
        Ok(Err(refused))
    }

    /// The networks that the node has, at the beginning. One that cannot be made now is made as
    /// soon as it can be.
    pub(crate) fn set_local(&mut self, networks: Vec<LocalNetwork>) -> io::Result<()> {
        self.local = networks.into_iter().map(|network| (network.id, network)).collect();
        self.mend_local();
        self.tell_bridges()?;
        self.repair_containers(false).map(drop)
    }

    /// Forgets a network that no container is on, and takes down what was made for it.
    pub(crate) fn remove_local(&mut self, id: NetworkId) -> io::Result<Result<(), Fault>> {
        let Some(network) = self.local.get(&id).cloned() else { return Ok(Ok(())) };
        let on = |end: &LocalLink| end.network == Some(id);
        let users: Vec<&str> = self
            .planner
            .containers()
            .iter()
            .filter(|(_, container)| container.links.iter().any(on))
            .map(|(id, container)| container.names.first().map_or(id.as_str(), String::as_str))
            .collect();
        if !users.is_empty() {
            let (name, users) = (&network.spec.name, users.join(", "));
            let message = format!("network {name} has active endpoints: {users}");
            return Ok(Err(Fault::new(ErrorCode::Conflict, message)
                .hint("disconnect them first: shoal network disconnect")));
        }
        self.local.remove(&id);
        self.tell_bridges()?;
        self.take_down(&network)?;
        // Those of containers that left it end with their namespaces, which may take the kernel a
        // while.
        self.sweep_links()?;
        Ok(Ok(()))
    }

    /// At the end of everything: the links go, the list is its owner's.
    pub(crate) fn take_down_local(&mut self) -> io::Result<()> {
        for network in std::mem::take(&mut self.local).into_values() {
            self.take_down(&network)?;
        }
        Ok(())
    }

    fn check_local(&self, network: &LocalNetwork, links: &[Link]) -> Result<(), Fault> {
        let find = |name: &str| links.iter().find(|link| link.name == name);
        let bad = |text: String| Err(Fault::invalid("--opt", text));
        match (network.spec.driver, network.bridge_name(), network.parent()) {
            (NetworkDriver::Bridge, Some(name), _) => {
                let taken = |other: &&LocalNetwork| other.bridge_name() == Some(name);
                if let Some(other) = self.local.values().find(taken) {
                    let other = &other.spec.name;
                    return bad(format!("bridge name {name} is that of network {other} already"));
                }
                match find(name) {
                    Some(link) if link.kind != "bridge" => {
                        bad(format!("link {name} of this host is no bridge"))
                    }
                    _ => Ok(()),
                }
            }
            (NetworkDriver::Macvlan | NetworkDriver::Ipvlan, _, Some(parent)) => {
                let is_vlan = split_vlan(parent).is_some_and(|(base, _)| find(base).is_some());
                match find(parent) {
                    Some(link) if link.name == netplan::link::LOOPBACK => {
                        bad("the loopback cannot be the parent of a network".to_owned())
                    }
                    None if !is_vlan => bad(format!("parent={parent}: this host has no such link")),
                    Some(_) | None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Name in the host's namespace of what the network stands on.
    pub(crate) fn local_device(&self, network: &LocalNetwork) -> String {
        let own = |letter: char| {
            let id = network.id.to_string();
            format!("{}{letter}{}", self.names.link_prefix, &id[id.len() - ID_CHARS..])
        };
        match network.spec.driver {
            NetworkDriver::Bridge => {
                network.bridge_name().map_or_else(|| own('b'), ToOwned::to_owned)
            }
            _ => network.parent().map_or_else(|| own('d'), ToOwned::to_owned),
        }
    }

    /// Everything that the node's networks stand on, and that containers are plugged in; answers
    /// how much differed.
    pub(crate) fn mend_local(&mut self) -> usize {
        let mut count = 0;
        if self.local.is_empty() {
            return count;
        }
        let all: Vec<LocalNetwork> = self.local.values().cloned().collect();
        for network in all {
            let links = match self.host.learn_links() {
                Ok(links) => links,
                Err(error) => {
                    tracing::warn!(%error, "the host's links are not known");
                    return count;
                }
            };
            let mended = self
                .ensure_local(&network, &links)
                .and_then(|made| Ok(usize::from(made) + self.plug_all(&network, &links)?));
            match mended {
                Ok(differing) => count += differing,
                Err(error) => {
                    let name = &network.spec.name;
                    tracing::warn!(network = name, %error, "a network is not as it should be");
                }
            }
        }
        count
    }

    /// Makes what a network stands on, if it is missing; answers whether something differed.
    fn ensure_local(&mut self, network: &LocalNetwork, links: &[Link]) -> io::Result<bool> {
        let name = self.local_device(network);
        let there = links.iter().find(|link| link.name == name);
        if network.spec.driver != NetworkDriver::Bridge {
            return self.ensure_parent(network, &name, links);
        }
        let mut differs = false;
        let index = match there {
            Some(link) => link.index,
            None => {
                differs = true;
                self.add_device(&name, Device::Bridge(bridge_hardware(network)))?
            }
        };
        let ours = there.is_none_or(|link| link.alias == self.names.alias);
        let mtu = network.spec.mtu().unwrap_or(UPLINK_MTU);
        if ours && there.is_none_or(|link| !link.up || link.mtu != mtu) {
            differs = true;
            let all = vec![route::quiet(index, false), route::dress(index, &self.names.alias, mtu)];
            self.host.route.batch(all, &[])?;
        }
        let has = self.host.route.addresses()?;
        for subnet in &network.subnets {
            let Ok(net) = IpNet::new(subnet.gateway, subnet.net.prefix_len()) else { continue };
            if !has.contains(&(index, net)) {
                differs = true;
                self.host.route.request(route::add_connected_address(index, net))?;
            }
        }
        Ok(differs)
    }

    /// A parent that is a VLAN of a link is made of it; one that nobody named is a dummy of ours.
    fn ensure_parent(
        &mut self,
        network: &LocalNetwork,
        name: &str,
        links: &[Link],
    ) -> io::Result<bool> {
        if links.iter().any(|link| link.name == name && link.up) {
            return Ok(false);
        }
        let there = links.iter().find(|link| link.name == name);
        let index = match (there, network.parent().and_then(split_vlan)) {
            // Whether a link of the host's is up is the host's affair.
            (Some(link), _) if link.alias != self.names.alias => return Ok(false),
            (Some(link), _) => link.index,
            (None, Some((base, tag))) => {
                let Some(base) = links.iter().find(|link| link.name == base) else {
                    return Ok(false);
                };
                self.add_device(name, Device::Vlan { parent: base.index, tag })?
            }
            (None, None) if network.parent().is_some() => return Ok(false),
            (None, None) => self.add_device(name, Device::Dummy)?,
        };
        self.host.route.request(route::set_up(index))?;
        Ok(true)
    }

    fn add_device(&mut self, name: &str, device: Device) -> io::Result<u32> {
        // Until it says whose it is, it has a name that tells: what is left of a crash is removed.
        let first = self.new_link();
        let first = format!("{}{first}", self.names.link_prefix);
        self.host.route.request(devices::add_device(&first, device))?;
        let Some(index) = self.host.index_of(&first)? else {
            return Err(io::Error::other(format!("{first} vanished")));
        };
        let whose = devices::own(index, &self.names.alias);
        if let Err(error) = self.host.route.batch(vec![whose, devices::rename(index, name)], &[]) {
            self.host.route.delete_links(&[index], self.names.group)?;
            return Err(error);
        }
        Ok(index)
    }

    /// Whether this kernel makes such links on this parent is found out by making one.
    fn try_part(&mut self, network: &LocalNetwork) -> io::Result<Result<(), Fault>> {
        let parent = self.local_device(network);
        let Some(parent) = self.host.index_of(&parent)? else {
            return Err(io::Error::other(format!("parent {parent} is not there")));
        };
        let name = format!("{}try", self.names.link_prefix);
        let part = Part { name: &name, parent, hardware: [0; 6], mtu: 0, namespace: None };
        if let Some(left) = self.host.index_of(&name)? {
            self.host.route.batch(vec![route::delete_link(left)], ABSENT)?;
        }
        if let Err(error) = self.host.route.request(devices::add_part(network, &part)) {
            return Ok(Err(cannot(network, &error)));
        }
        if let Some(made) = self.host.index_of(&name)? {
            self.host.route.batch(vec![route::delete_link(made)], ABSENT)?;
        }
        Ok(Ok(()))
    }

    /// Removes what was made for a network; what was there before stays.
    fn take_down(&mut self, network: &LocalNetwork) -> io::Result<()> {
        let name = self.local_device(network);
        let shared = self
            .local
            .values()
            .any(|other| other.id != network.id && self.local_device(other) == name);
        let links = self.host.learn_links()?.into_iter();
        let mut ours = links.filter(|link| link.name == name && link.alias == self.names.alias);
        match ours.next().filter(|_| !shared) {
            Some(link) => self.host.route.delete_links(&[link.index], self.names.group),
            None => Ok(()),
        }
    }

    /// Has the host's table know the bridges that there are.
    fn tell_bridges(&mut self) -> io::Result<()> {
        let bridges: BTreeMap<String, Bridge> = self
            .local
            .values()
            .filter(|network| network.spec.driver == NetworkDriver::Bridge)
            .map(|network| {
                let internal = network.spec.internal;
                let bridge = Bridge { masquerades: network.masquerades(), internal };
                (self.local_device(network), bridge)
            })
            .collect();
        let changes = self.planner.set_bridges(bridges);
        self.carry_out(changes, &BTreeSet::new())?;
        // The gateways are addresses of the host, too.
        self.look_around()?;
        self.pass_firewalls().map(drop)
    }

    /// The network of the node's own that a link leads to.
    pub(crate) fn local_network(&self, end: &LocalLink) -> Option<LocalNetwork> {
        self.local.get(&end.network?).cloned()
    }

    /// Fills in the addresses of a container's end: those asked for, or that it has, or free ones.
    pub(crate) fn place_locally(
        &self,
        network: &LocalNetwork,
        end: &mut LocalLink,
        known: Option<&LocalLink>,
    ) -> io::Result<()> {
        let mut taken = BTreeSet::new();
        for link in self.planner.containers().values().flat_map(|container| &container.links) {
            if link.network == Some(network.id) {
                taken.extend(link.v4.map(IpAddr::V4).into_iter().chain(link.v6.map(IpAddr::V6)));
            }
        }
        for family in Family::ALL.into_iter().filter(|family| network.subnet(*family).is_some()) {
            let (asked, kept) = match family {
                Family::V4 => (end.v4.map(IpAddr::V4), known.and_then(|k| k.v4).map(IpAddr::V4)),
                Family::V6 => (end.v6.map(IpAddr::V6), known.and_then(|k| k.v6).map(IpAddr::V6)),
            };
            let address = match (asked, kept) {
                (Some(asked), kept) if kept == Some(asked) => asked,
                (Some(asked), _) if taken.contains(&asked) => {
                    return Err(io::Error::other(format!("Address already in use: {asked}")));
                }
                (Some(asked), _) => asked,
                (None, Some(kept)) if network.may_hold(kept) => kept,
                (None, _) => {
                    let free = network.free(family, |address| taken.contains(&address));
                    free.ok_or_else(|| {
                        let (name, family) = (&network.spec.name, family.name());
                        io::Error::other(format!(
                            "network {name} has no free {family} address left"
                        ))
                    })?
                }
            };
            match address {
                IpAddr::V4(v4) => end.v4 = Some(v4),
                IpAddr::V6(v6) => end.v6 = Some(v6),
            }
        }
        end.hardware = match devices::has_own_hardware(network) {
            true => task_hardware(end.v4, end.v6),
            false => [0; 6],
        };
        Ok(())
    }

    /// Lays one container's link to a network of the node's own, unless it is there.
    pub(crate) fn lay_locally(
        &mut self,
        id: &str,
        network: &LocalNetwork,
        (end, interface): (&LocalLink, &Interface),
        far: Option<&Link>,
        inside: &mut Space,
    ) -> io::Result<bool> {
        let near = match end.link.is_empty() {
            true => None,
            false => self.host.index_of(&end.link)?,
        };
        if far.is_some_and(|link| link.up) && (end.link.is_empty() || near.is_some()) {
            return Ok(false);
        }
        if let Some(near) = near {
            self.host.route.batch(vec![route::delete_link(near)], ABSENT)?;
        } else if let Some(far) = far {
            inside.route.batch(vec![route::delete_link(far.index)], ABSENT)?;
        }
        let device = self.local_device(network);
        let mut stands_on = self.host.index_of(&device)?;
        if stands_on.is_none() {
            let links = self.host.learn_links()?;
            self.ensure_local(network, &links)?;
            stands_on = self.host.index_of(&device)?;
        }
        let Some(stands_on) = stands_on else {
            let name = &network.spec.name;
            return Err(io::Error::other(format!("network {name}: link {device} is not there")));
        };
        let namespace = self.containers.open_one(id)?;
        if network.spec.driver != NetworkDriver::Bridge {
            // Kernels until 6.1 look for the name where the request is made: the host has it too.
            self.lay_part(network, (end, interface), stands_on, inside, &namespace)?;
            return Ok(true);
        }
        let mtu = interface.mtu;
        let near = PairEnd { name: &end.link, hardware: GATEWAY_HARDWARE, mtu, namespace: None };
        let far = PairEnd {
            name: &interface.name,
            hardware: end.hardware,
            mtu,
            namespace: Some(&namespace),
        };
        self.host.route.request(add_pair(&near, &far))?;
        let Some(port) = self.host.index_of(&end.link)? else {
            return Err(io::Error::other(format!("{} vanished", end.link)));
        };
        let alias = self.names.alias_of(id);
        self.host.route.batch(vec![route::quiet(port, false)], &[])?;
        self.plug(network, port, stands_on)?;
        self.host.route.request(route::dress(port, &alias, mtu))?;
        Ok(true)
    }

    /// Makes a container's part of one of the host's links.
    fn lay_part(
        &mut self,
        network: &LocalNetwork,
        (end, interface): (&LocalLink, &Interface),
        parent: u32,
        inside: &mut Space,
        namespace: &OwnedFd,
    ) -> io::Result<()> {
        let name = self.new_link();
        let prefix = &self.names.link_prefix;
        let left = inside.learn_links()?.into_iter().filter(|l| l.name.starts_with(prefix));
        let left = left.map(|link| route::delete_link(link.index)).collect();
        inside.route.batch(left, ABSENT)?;
        // Kernels until 6.1 look for the name where the request is made: the host has it too.
        let name = format!("{prefix}{name}");
        let part = Part {
            name: &name,
            parent,
            hardware: end.hardware,
            mtu: interface.mtu,
            namespace: Some(namespace),
        };
        self.host.route.request(devices::add_part(network, &part))?;
        let Some(index) = inside.index_of(&name)? else {
            return Err(io::Error::other(format!("{name} vanished")));
        };
        inside.route.request(devices::rename(index, &interface.name))
    }

    fn plug(&mut self, network: &LocalNetwork, port: u32, bridge: u32) -> io::Result<()> {
        self.host.route.request(devices::plug(port, bridge))?;
        match network.connects_containers() {
            true => Ok(()),
            false => self.host.route.request(devices::isolate(port, true)),
        }
    }

    /// Plugs in containers whose bridge was made anew.
    fn plug_all(&mut self, network: &LocalNetwork, links: &[Link]) -> io::Result<usize> {
        if network.spec.driver != NetworkDriver::Bridge {
            return Ok(0);
        }
        let device = self.local_device(network);
        let Some(bridge) = self.host.index_of(&device)? else { return Ok(0) };
        let ends: Vec<String> = self
            .planner
            .containers()
            .values()
            .flat_map(|container| &container.links)
            .filter(|end| end.network == Some(network.id))
            .map(|end| end.link.clone())
            .collect();
        let mut count = 0;
        for link in links.iter().filter(|link| link.master != bridge && ends.contains(&link.name)) {
            count += 1;
            self.plug(network, link.index, bridge)?;
        }
        Ok(count)
    }

    /// Removes links that a running container no longer has.
    pub(crate) fn cut(&mut self, id: &str, gone: &[LocalLink]) -> io::Result<()> {
        let kept: Vec<String> = match self.planner.containers().get(id) {
            Some(LocalContainer { links, .. }) => {
                links.iter().map(|end| end.interface.clone()).collect()
            }
            None => return Ok(()),
        };
        for end in gone {
            let is_own = end.network.is_some_and(|network| self.local.contains_key(&network));
            let scope = end.network.map_or(Scope::Mesh, Scope::Overlay);
            let space = if is_own { Some(&mut self.host) } else { self.spaces.get_mut(&scope) };
            if let Some(space) = space.filter(|_| !end.link.is_empty()) {
                if let Some(near) = space.index_of(&end.link)? {
                    space.route.batch(vec![route::delete_link(near)], ABSENT)?;
                }
                continue;
            }
            if kept.contains(&end.interface) || !self.containers.is_mounted(id) {
                continue;
            }
            let interface = end.interface.clone();
            self.containers.enter(id, move || {
                let mut inside = Space::open(Kind::Container)?;
                match inside.index_of(&interface)? {
                    Some(index) => inside.route.batch(vec![route::delete_link(index)], ABSENT),
                    None => Ok(()),
                }
            })?;
        }
        Ok(())
    }
}

fn cannot(network: &LocalNetwork, error: &io::Error) -> Fault {
    let (driver, name) = (network.spec.driver.name(), &network.spec.name);
    let parent = network.parent().map_or_else(String::new, |parent| format!(" on {parent}"));
    let what = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) if network.parent().is_none() && driver != "bridge" => {
            return Fault::invalid(
                "--opt",
                "parent: name the link of this host that it is a part of",
            )
            .hint("this kernel has no dummy links, which would stand in for one");
        }
        Some(libc::EOPNOTSUPP) => format!("this kernel has no {driver} links"),
        Some(libc::EBUSY) => "another kind of network, or its mode, has it for itself".to_owned(),
        _ => error.to_string(),
    };
    let message = format!("network {name}: {driver}{parent} cannot be made: {what}");
    Fault { field: "--driver".into(), ..Fault::new(ErrorCode::FailedPrecondition, message) }
}

/// `eth0.50`: the link and the tag.
fn split_vlan(name: &str) -> Option<(&str, u16)> {
    let (base, tag) = name.rsplit_once('.')?;
    let tag: u16 = tag.parse().ok()?;
    ((1..4095).contains(&tag) && !base.is_empty()).then_some((base, tag))
}

/// The bridge's own: it stays the same, whichever ports come and go.
fn bridge_hardware(network: &LocalNetwork) -> Hardware {
    let gateway = network.subnets.first().map(|subnet| subnet.gateway);
    match gateway {
        Some(IpAddr::V4(v4)) => task_hardware(Some(v4), None),
        Some(IpAddr::V6(v6)) => task_hardware(None, Some(v6)),
        None => GATEWAY_HARDWARE,
    }
}

/// Every link has such a route: it says nothing about what is in use.
fn is_for_neighbours(net: IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_multicast() || v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast() || v6.is_loopback(),
    }
}

/// Of an identity in a link's name.
const ID_CHARS: usize = 8;
