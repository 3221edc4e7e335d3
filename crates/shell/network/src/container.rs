//! One container's links: how they are laid, and what the container sees of them.
//!
//! Owns: addresses, routes and names inside a container's namespace.
//! Does not know: who else there is; what the namespaces at the other ends do.
//! Invariant: what is asked for twice is the same twice: addresses and chosen ports are kept.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netplan::{
    Changes, GATEWAY_HARDWARE, LocalContainer, LocalLink, MAIN_TABLE, MeshLinks, RETURN_TABLE,
    RouteKey, RouteTo, Wanted, task_hardware,
};
use ports::network::{ContainerNetwork, HostPort};
use types::{Attachment, NetworkPart};

/// What one interface of a container is made of.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// Own address, its prefix length and the next hop.
    addresses: Vec<(IpAddr, u8, IpAddr)>,
    /// What is reached by it, of the same family as the next hop's.
    nets: Vec<IpNet>,
}

impl Interface {
    /// On an overlay network.
    pub(crate) fn on(number: usize, part: &NetworkPart, attachment: &Attachment) -> Self {
        Self {
            name: interface_name(number),
            mtu: part.mtu,
            addresses: attachment.addresses().filter_map(|a| placed(a, part)).collect(),
            nets: part.subnets.iter().map(|(net, _)| net.trunc()).collect(),
        }
    }

    /// To the mesh, with an address of the ingress network or one of the node's own.
    pub(crate) fn to_mesh(
        number: usize,
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
        Self { name: interface_name(number), mtu, addresses, nets: Vec::new() }
    }

    /// What the container's namespace holds because of this interface.
    pub(crate) fn add_to(&self, wanted: &mut Wanted) {
        for (own, prefix, hop) in &self.addresses {
            if let Ok(net) = IpNet::new(*own, *prefix) {
                wanted.addresses.insert((self.name.clone(), net));
            }
            wanted.neighbours.insert((self.name.clone(), *hop), GATEWAY_HARDWARE);
            for net in self.nets.iter().filter(|net| net.addr().is_ipv4() == own.is_ipv4()) {
                let key = RouteKey { table: MAIN_TABLE, net: *net };
                let to = RouteTo { source: Some(*own), ..RouteTo::via(&self.name, *hop) };
                wanted.routes.insert(key, to);
            }
        }
    }

    /// Everything else goes by this interface. Where the node itself has no way out for IPv6, only
    /// answers do: they have the address that they were asked at.
    pub(crate) fn add_default(&self, v6_outwards: bool, wanted: &mut Wanted) {
        for (_, _, hop) in &self.addresses {
            let (net, table) = match hop {
                IpAddr::V4(_) => (default_net(true), MAIN_TABLE),
                IpAddr::V6(_) if v6_outwards => (default_net(false), MAIN_TABLE),
                IpAddr::V6(_) => (default_net(false), RETURN_TABLE),
            };
            let key = RouteKey { table, net };
            wanted.routes.insert(key, RouteTo::via(&self.name, *hop));
        }
    }

    /// Own IPv6 addresses, whose packets are answers when there is no other way out.
    pub(crate) fn v6(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(|(own, ..)| *own).filter(IpAddr::is_ipv6)
    }
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

/// A container's end of a network.
pub(crate) fn local_link(attachment: &Attachment, link: String) -> LocalLink {
    LocalLink {
        network: Some(attachment.network),
        link,
        v4: attachment.v4,
        v6: attachment.v6,
        hardware: task_hardware(attachment.v4, attachment.v6),
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

fn interface_name(number: usize) -> String {
    format!("eth{number}")
}

fn default_net(v4: bool) -> IpNet {
    if v4 { IpNet::V4(ipnet::Ipv4Net::default()) } else { IpNet::V6(ipnet::Ipv6Net::default()) }
}

/// Of a container's link to the mesh when there is no ingress network.
const UPLINK_MTU: u32 = 1500;
