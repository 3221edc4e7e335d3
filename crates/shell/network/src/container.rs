//! One container's links: how they are laid, and what the container sees of them.
//!
//! Owns: addresses, routes and names inside a container's namespace.
//! Does not know: who else there is; what the namespaces at the other ends do.
//! Invariant: what is asked for twice is the same twice: addresses and chosen ports are kept.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use netplan::{
    AskedBy, Changes, GATEWAY_HARDWARE, LocalContainer, LocalLink, MAIN_TABLE, MeshLinks,
    RETURN_TABLE, RouteKey, RouteTo, Wanted, task_hardware,
};
use ports::network::{ContainerNetwork, HostPort};
use types::{Attachment, Family, LocalNetwork, NetworkDriver, NetworkPart};

use crate::source_rule::{Order, SourceRule};
use crate::space::Space;

/// What one interface of a container is made of.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    pub(crate) name: String,
    /// Zero: the parent's.
    pub(crate) mtu: u32,
    /// Own address, its prefix length and the next hop.
    addresses: Vec<(IpAddr, u8, IpAddr)>,
    /// What is reached by it, of the same family as the next hop's.
    nets: Vec<IpNet>,
    way: Way,
}

/// How packets leave by an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// By the next hop, which is a sandbox: to its own network only.
    Network,
    /// By the next hop, which is the mesh: to everywhere.
    Mesh,
    /// Directly to whoever is on the link, and to everywhere by these.
    Link(Vec<(IpNet, RouteTo)>),
}

impl Interface {
    /// On an overlay network.
    pub(crate) fn on(end: &LocalLink, part: &NetworkPart) -> Self {
        let own = end.v4.map(IpAddr::V4).into_iter().chain(end.v6.map(IpAddr::V6));
        Self {
            name: end.interface.clone(),
            mtu: part.mtu,
            addresses: own.filter_map(|a| placed(a, part)).collect(),
            nets: part.subnets.iter().map(|(net, _)| net.trunc()).collect(),
            way: Way::Network,
        }
    }

    /// On a network that the node has for itself.
    pub(crate) fn on_own(end: &LocalLink, network: &LocalNetwork) -> Self {
        let own = end.v4.map(IpAddr::V4).into_iter().chain(end.v6.map(IpAddr::V6));
        let placed = |address: IpAddr| {
            let subnet = network.subnet_of(address)?;
            Some((address, subnet.net.prefix_len(), subnet.gateway))
        };
        let routed = network.spec.driver == NetworkDriver::Ipvlan && network.mode() != "l2";
        let out = |family: Family| {
            let subnet = network.subnet(family)?;
            let to = match network.gateway(family) {
                Some(hop) => RouteTo::via(&end.interface, hop),
                None if routed && !network.spec.internal => RouteTo::link(&end.interface),
                None => return None,
            };
            Some((default_net(subnet.family() == Family::V4), to))
        };
        let default = if network.spec.driver == NetworkDriver::Bridge { UPLINK_MTU } else { 0 };
        Self {
            name: end.interface.clone(),
            mtu: network.spec.mtu().unwrap_or(default),
            addresses: own.filter_map(placed).collect(),
            nets: network.nets().collect(),
            way: Way::Link(Family::ALL.into_iter().filter_map(out).collect()),
        }
    }

    /// To the mesh, with an address of the ingress network or one of the node's own.
    pub(crate) fn to_mesh(
        end: &LocalLink,
        ingress: Option<&NetworkPart>,
        links: MeshLinks,
    ) -> Self {
        let own = |address: IpAddr| match address {
            IpAddr::V4(_) => (address, links.v4.prefix_len(), links.gateway_v4().into()),
            IpAddr::V6(_) => (address, links.v6.prefix_len(), links.gateway_v6().into()),
        };
        let all = end.v4.map(IpAddr::V4).into_iter().chain(end.v6.map(IpAddr::V6));
        let addresses = all
            .map(|address| {
                ingress.and_then(|part| placed(address, part)).unwrap_or_else(|| own(address))
            })
            .collect();
        let mtu = ingress.map_or(UPLINK_MTU, |part| part.mtu);
        Self { name: end.interface.clone(), mtu, addresses, nets: Vec::new(), way: Way::Mesh }
    }

    /// What the container's namespace holds because of this interface.
    fn add_to(&self, wanted: &mut Wanted) {
        for (own, prefix, hop) in &self.addresses {
            if let Ok(net) = IpNet::new(*own, *prefix) {
                wanted.addresses.insert((self.name.clone(), net));
            }
            let to = match self.way {
                Way::Link(_) => RouteTo::link(&self.name),
                Way::Network | Way::Mesh => {
                    wanted.neighbours.insert((self.name.clone(), *hop), GATEWAY_HARDWARE);
                    RouteTo::via(&self.name, *hop)
                }
            };
            let to = RouteTo { source: Some(*own), ..to };
            for net in self.nets_of(*own) {
                wanted.routes.insert(RouteKey { table: MAIN_TABLE, net: *net }, to);
            }
        }
    }

    fn nets_of(&self, own: IpAddr) -> impl Iterator<Item = &IpNet> {
        self.nets.iter().filter(move |net| net.addr().is_ipv4() == own.is_ipv4())
    }

    /// Routes to everywhere.
    fn outward(&self) -> Vec<(IpNet, RouteTo)> {
        match &self.way {
            Way::Network => Vec::new(),
            Way::Link(routes) => routes.clone(),
            Way::Mesh => {
                let route = |(_, _, hop): &(IpAddr, u8, IpAddr)| {
                    (default_net(hop.is_ipv4()), RouteTo::via(&self.name, *hop))
                };
                self.addresses.iter().map(route).collect()
            }
        }
    }
}

/// What a container's namespace holds, and the rules about where answers go.
///
/// Everything else goes by one interface: the mesh's where the container may go out by it, or else
/// the first one of a network of the node's own that leads out. What comes by another interface
/// that leads out is answered by it. Where the node itself has no way out for IPv6, only answers
/// do.
pub(crate) fn inside(
    interfaces: &[Interface],
    outward: bool,
    v6_outwards: bool,
) -> (Wanted, Vec<SourceRule>) {
    let (mut wanted, mut rules) = (Wanted::default(), Vec::new());
    let mesh = interfaces.iter().position(|one| one.way == Way::Mesh);
    let link = interfaces
        .iter()
        .position(|one| matches!(&one.way, Way::Link(routes) if !routes.is_empty()));
    let default = if outward { mesh.or(link) } else { link.or(mesh) };
    for (number, interface) in interfaces.iter().enumerate() {
        interface.add_to(&mut wanted);
        for (net, to) in interface.outward() {
            let v4 = net.addr().is_ipv4();
            let (table, order) = match Some(number) == default {
                true if v4 || v6_outwards => (MAIN_TABLE, None),
                true => (RETURN_TABLE, Some(Order::After)),
                false => (ANSWER_TABLES + number as u32, Some(Order::Before)),
            };
            wanted.routes.insert(RouteKey { table, net }, to);
            let own = interface.addresses.iter().map(|(own, ..)| *own);
            for source in own.filter(|own| own.is_ipv4() == v4) {
                rules.extend(order.map(|order| SourceRule { source, table, order }));
                if order == Some(Order::Before) && matches!(interface.way, Way::Link(_)) {
                    let to = RouteTo { source: Some(source), ..RouteTo::link(&interface.name) };
                    for net in interface.nets_of(source) {
                        wanted.routes.insert(RouteKey { table, net: *net }, to);
                    }
                }
            }
        }
    }
    (wanted, rules)
}

/// The address with the prefix length and the gateway of its subnet.
fn placed(address: IpAddr, part: &NetworkPart) -> Option<(IpAddr, u8, IpAddr)> {
    let (net, gateway) = part.subnets.iter().find(|(net, _)| net.contains(&address))?;
    Some((address, net.prefix_len(), *gateway))
}

/// Lines for `/etc/hosts`: the host name with the addresses of the first interface, and what the
/// user asked for. `host-gateway` is the host's end of its link to the mesh.
pub(crate) fn host_lines(
    wanted: &ContainerNetwork,
    container: &LocalContainer,
    host_gateway: Ipv4Addr,
) -> io::Result<Vec<(IpAddr, String)>> {
    let mut lines = Vec::new();
    let own: Vec<IpAddr> = match container.links.first() {
        Some(first) => {
            first.v4.map(IpAddr::V4).into_iter().chain(first.v6.map(IpAddr::V6)).collect()
        }
        // On the host's network, or on none: what answers there is the loopback.
        None => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    };
    if !wanted.hostname.is_empty() {
        lines.extend(own.into_iter().map(|address| (address, wanted.hostname.clone())));
    }
    for line in &wanted.hosts {
        let (name, address) = line
            .split_once(['=', ':'])
            .ok_or_else(|| io::Error::other(format!("host {line:?} must be NAME:ADDRESS")))?;
        let address = match address.trim_matches(['[', ']']) {
            "host-gateway" => host_gateway.into(),
            text => text.parse::<IpAddr>().map_err(|_| {
                io::Error::other(format!("host {line:?}: {text:?} is not an address"))
            })?,
        };
        lines.push((address, name.to_owned()));
    }
    Ok(lines)
}

/// A container's end of a network; without the names of its ends.
pub(crate) fn local_link(attachment: &Attachment, asked_by: AskedBy) -> LocalLink {
    LocalLink {
        network: Some(attachment.network),
        asked_by,
        v4: attachment.v4,
        v6: attachment.v6,
        hardware: task_hardware(attachment.v4, attachment.v6),
        ..LocalLink::default()
    }
}

/// What was asked for, with the ports that were chosen.
pub(crate) fn chosen_ports(container: &LocalContainer) -> Vec<HostPort> {
    let port = |port: &netplan::HostPortPlan| HostPort {
        protocol: port.protocol,
        target: port.target,
        published: port.published,
        host: port.host.clone(),
    };
    container.host_ports.iter().map(port).collect()
}

/// A first state's additions.
pub(crate) fn additions(wanted: &Wanted) -> Changes {
    wanted.changes_from(&Wanted::default(), netplan::Surplus::Keep)
}

/// What connecting a container did.
#[derive(Debug, Default)]
pub(crate) struct Connected {
    /// How much of what is inside differed.
    pub(crate) differing: usize,
    /// The container's namespace, where links were laid.
    pub(crate) inside: Option<Space>,
}

impl Connected {
    /// The kernel makes an address of IPv6 its own some time after it was added, when its lock for
    /// links is free; what comes for it before is lost. Waits for that, though not for ever.
    pub(crate) fn settle(self, container: &LocalContainer) -> io::Result<()> {
        let Some(mut inside) = self.inside else { return Ok(()) };
        let mut looks = 0..ADDRESS_LOOKS;
        for address in container.links.iter().filter_map(|end| end.v6) {
            // The kernel's thread has its turn where this one runs.
            std::thread::yield_now();
            while !inside.route.is_local(address.into())?
                && let Some(look) = looks.next()
            {
                match look < ADDRESS_LOOKS_QUICK {
                    true => std::thread::yield_now(),
                    false => std::thread::sleep(ADDRESS_PERIOD),
                }
            }
        }
        Ok(())
    }
}

/// The first name that none of its links has.
pub(crate) fn free_interface(container: &LocalContainer) -> String {
    let taken = |name: &String| container.links.iter().any(|end| end.interface == *name);
    let mut names = (0..=container.links.len()).map(|number| format!("eth{number}"));
    names.find(|name| !taken(name)).unwrap_or_default()
}

fn default_net(v4: bool) -> IpNet {
    if v4 { IpNet::V4(ipnet::Ipv4Net::default()) } else { IpNet::V6(ipnet::Ipv6Net::default()) }
}

/// Tables of what goes back by the interface that it came by, one for each.
const ANSWER_TABLES: u32 = RETURN_TABLE + 1;

/// Of a container's link to the mesh when there is no ingress network, and to a bridge.
pub(crate) const UPLINK_MTU: u32 = 1500;

/// A tenth of a second, by far more than is needed.
const ADDRESS_LOOKS: u32 = 500;
/// A look takes some 20 us, a sleep several times as long.
const ADDRESS_LOOKS_QUICK: u32 = 10;
const ADDRESS_PERIOD: Duration = Duration::from_micros(200);
