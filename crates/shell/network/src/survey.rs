//! What this node tells the managers of its data path.
//!
//! Owns: the size of packets on the link that has an address, and the networks that the host has
//! routes to. Does not know: what the managers make of it.
//! Invariant: links and routes of our own are not among them.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use types::limits::REPORTED_ROUTES_MAX;

use crate::node::Node;
use crate::route::{V4, V6};

impl Node {
    pub(crate) fn survey(&mut self, address: Option<IpAddr>) -> io::Result<types::DataPath> {
        let addresses = self.host.route.addresses()?;
        let own = |(_, net): &&(u32, IpNet)| Some(net.addr()) == address;
        let link = addresses.iter().find(own).map(|(link, _)| *link);
        let links = self.host.route.links()?;
        let mtu = links.iter().find(|one| Some(one.index) == link).map_or(0, |one| one.mtu);
        let gateway = links.iter().find(|one| one.name == self.names.gateway).map(|one| one.index);
        let mut routes: Vec<IpNet> = Vec::new();
        for family in [V4, V6] {
            let all = self.host.route.routes(family)?.into_iter();
            let others =
                all.filter(|route| Some(route.link) != gateway && route.kind == libc::RTN_UNICAST);
            routes.extend(others.map(|route| route.net).filter(|net| leads_somewhere(*net)));
        }
        routes.sort_unstable();
        routes.dedup();
        routes.truncate(REPORTED_ROUTES_MAX);
        let encryption = self.survey_encryption(link)?;
        Ok(types::DataPath { address, mtu, routes, encryption })
    }
}

/// Neither a default route nor one to the neighbours of a single link.
fn leads_somewhere(net: IpNet) -> bool {
    let link_local = match net.addr() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast(),
    };
    net.prefix_len() > 0 && !link_local && !net.addr().is_loopback()
}
