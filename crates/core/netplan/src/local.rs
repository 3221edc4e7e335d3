//! Networks that the node has for itself: their subnets, and what the host lets pass.
//!
//! Owns: the choice of subnets, and the elements of the host's table that are about bridges.
//! Does not know: links, and who is on a network.
//! Invariant: two networks of the node have no address in common, and what is chosen for one
//! overlaps with nothing that the host has a route to.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv6Net};
use types::{
    ErrorCode, Family, Fault, LocalNetwork, NetworkDriver, NetworkSpec, Subnet, nets_overlap,
};

use crate::keys::Key;
use crate::plan::{All, Planner, Scope};
use crate::set;
use crate::state::{Changes, Elements, Value, Wanted};

/// A bridge in the host's namespace, as its table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// What leaves by the host gets the host's address.
    pub masquerades: bool,
    /// Nothing leaves, and nothing comes in.
    pub internal: bool,
}

/// What a new network must keep clear of.
#[derive(Clone, Debug, Default)]
pub struct Surroundings<'a> {
    pub networks: Vec<&'a LocalNetwork>,
    /// Routes of the host and of overlays, with what they are called.
    pub routes: Vec<(IpNet, String)>,
    /// Where IPv6 subnets are cut of: /48.
    pub v6: Ipv6Net,
}

/// The subnets of a new network: those asked for, and chosen ones where nobody said.
///
/// # Errors
/// When one overlaps with another network or a route, or none is free.
pub fn choose_subnets(spec: &NetworkSpec, around: &Surroundings<'_>) -> Result<Vec<Subnet>, Fault> {
    let mut all = Vec::new();
    for family in Family::ALL.into_iter().filter(|family| spec.wants(*family)) {
        let pool = spec.pools_of(family).next();
        let subnet = match pool.and_then(|pool| Some((pool, pool.subnet?))) {
            Some((pool, net)) => {
                check_asked(spec, net, around)?;
                Subnet::new(net, pool.range, pool.gateway)
            }
            None => {
                let free = candidates(family, around.v6).find(|net| is_free(*net, around));
                let net = free.ok_or_else(|| {
                    let message = format!("no {} subnet is free on this node", family.name());
                    Fault::new(ErrorCode::FailedPrecondition, message).hint("name one: --subnet")
                })?;
                Subnet::new(net, None, None)
            }
        };
        all.push(subnet);
    }
    Ok(all)
}

fn check_asked(spec: &NetworkSpec, net: IpNet, around: &Surroundings<'_>) -> Result<(), Fault> {
    let bad =
        |message| Err(Fault { code: ErrorCode::Conflict, ..Fault::invalid("--subnet", message) });
    for other in &around.networks {
        if let Some(theirs) = other.nets().find(|theirs| nets_overlap(*theirs, net)) {
            let name = &other.spec.name;
            return bad(format!("subnet {net} overlaps with subnet {theirs} of network {name}"));
        }
    }
    // What is a part of a link of the host has the addresses that the link is among.
    if spec.driver != NetworkDriver::Bridge {
        return Ok(());
    }
    match around.routes.iter().find(|(route, _)| nets_overlap(*route, net)) {
        Some((route, what)) => bad(format!("subnet {net} overlaps with {what} {route}")),
        None => Ok(()),
    }
}

fn is_free(net: IpNet, around: &Surroundings<'_>) -> bool {
    !around.networks.iter().flat_map(|other| other.nets()).any(|other| nets_overlap(other, net))
        && !around.routes.iter().any(|(route, _)| nets_overlap(*route, net))
}

/// Docker's default pools.
fn candidates(family: Family, v6: Ipv6Net) -> Box<dyn Iterator<Item = IpNet>> {
    let v4 = |a, b, c, length| {
        let net = ipnet::Ipv4Net::new([a, b, c, 0].into(), length);
        net.ok().map(IpNet::V4)
    };
    match family {
        Family::V4 => {
            let wide = (17..32).filter_map(move |second| v4(172, second, 0, 16));
            let narrow = (0..16).filter_map(move |part| v4(192, 168, part * 16, 20));
            Box::new(wide.chain(narrow))
        }
        Family::V6 => Box::new(v6.subnets(64).into_iter().flatten().take(V6_MAX).map(IpNet::V6)),
    }
}

/// More than networks of a node.
const V6_MAX: usize = 4_096;

impl Planner {
    /// What containers of the mesh must not reach, those of bridges must not either.
    pub(crate) fn guard_bridges(&mut self, all: &mut All) {
        let changes = all.entry(Scope::Host).or_default();
        for set in GUARDING {
            let elements = match self.bridges.is_empty() {
                true => Elements::new(),
                false => self.mesh.fabric.wanted.elements.get(set).cloned().unwrap_or_default(),
            };
            self.host.wanted.sync(set, elements, &mut changes.edits);
        }
    }

    #[must_use]
    pub fn bridges(&self) -> &BTreeMap<String, Bridge> {
        &self.bridges
    }

    /// The bridges of the node's own networks.
    pub fn set_bridges(&mut self, bridges: BTreeMap<String, Bridge>) -> All {
        let mut all = All::new();
        if self.bridges != bridges {
            let changes = all.entry(Scope::Host).or_default();
            sync_bridges(&bridges, &mut self.host.wanted, changes);
            self.bridges = bridges;
            self.guard_bridges(&mut all);
        }
        self.settle(all)
    }
}

/// Sets of what no container may reach.
const GUARDING: [&str; 5] =
    [set::GUARDED, set::MANAGERS4, set::MANAGERS6, set::NODES4, set::NODES6];

/// What the host's table holds of the bridges.
fn sync_bridges(bridges: &BTreeMap<String, Bridge>, wanted: &mut Wanted, changes: &mut Changes) {
    let members = |keep: &dyn Fn(&Bridge) -> bool| -> Elements {
        let kept = bridges.iter().filter(|(_, bridge)| keep(bridge));
        kept.map(|(link, _)| (Key::new().link(link).done(), Value::Member)).collect()
    };
    let within: Elements = bridges
        .keys()
        .map(|link| (Key::new().link(link).link(link).done(), Value::Member))
        .collect();
    for (set, elements) in [
        (set::BRIDGES, members(&|_| true)),
        (set::CLOSED, members(&|bridge| bridge.internal)),
        (set::MASKED, members(&|bridge| bridge.masquerades)),
        (set::WITHIN, within),
    ] {
        wanted.sync(set, elements, &mut changes.edits);
    }
}

#[cfg(test)]
mod tests {
    use types::IpamPool;

    use super::*;

    fn around<'a>(networks: &[&'a LocalNetwork], routes: &[&str]) -> Surroundings<'a> {
        let route = |text: &&str| (text.parse().unwrap(), "route".to_owned());
        Surroundings {
            networks: networks.to_vec(),
            routes: routes.iter().map(route).collect(),
            v6: "fd00:1:2::/48".parse().unwrap(),
        }
    }

    fn bridge(subnet: &str) -> NetworkSpec {
        let ipam = subnet
            .parse()
            .map_or(Vec::new(), |net| vec![IpamPool { subnet: Some(net), ..IpamPool::default() }]);
        let spec = LocalNetwork::predefined_bridge().spec;
        NetworkSpec { ipam, ..spec }
    }

    fn chosen(spec: &NetworkSpec, around: &Surroundings<'_>) -> Result<Vec<String>, String> {
        let subnets = choose_subnets(spec, around).map_err(|fault| fault.message)?;
        Ok(subnets.iter().map(|s| format!("{} {}", s.net, s.gateway)).collect())
    }

    #[test]
    fn subnets_keep_clear_of_what_there_is() {
        let mut first = LocalNetwork::predefined_bridge();
        assert_eq!(
            chosen(&bridge(""), &around(&[], &["172.16.0.0/15"])).unwrap(),
            ["172.18.0.0/16 172.18.0.1"]
        );
        first.subnets = choose_subnets(&bridge(""), &around(&[], &[])).unwrap();
        let both = NetworkSpec { ipv6: true, ..bridge("") };
        assert_eq!(
            chosen(&both, &around(&[&first], &["172.18.4.0/24", "172.19.0.9/32"])).unwrap(),
            ["172.20.0.0/16 172.20.0.1", "fd00:1:2::/64 fd00:1:2::1"]
        );
        let full = chosen(&bridge(""), &around(&[], &["172.0.0.0/8", "192.168.0.0/16"]));
        assert!(full.unwrap_err().contains("no IPv4 subnet is free"));
    }

    #[test]
    fn a_subnet_asked_for_is_refused_with_what_is_in_its_way() {
        let mut other = LocalNetwork::predefined_bridge();
        other.subnets = vec![Subnet::new("10.1.0.0/16".parse().unwrap(), None, None)];
        let around = around(&[&other], &["10.9.0.0/16"]);
        let refused = |spec: &NetworkSpec| chosen(spec, &around).unwrap_err();
        assert_eq!(
            refused(&bridge("10.1.2.0/24")),
            "subnet 10.1.2.0/24 overlaps with subnet 10.1.0.0/16 of network bridge"
        );
        assert_eq!(
            refused(&bridge("10.0.0.0/8")),
            "subnet 10.0.0.0/8 overlaps with subnet 10.1.0.0/16 of network bridge"
        );
        assert_eq!(
            refused(&bridge("10.9.1.0/24")),
            "subnet 10.9.1.0/24 overlaps with route 10.9.0.0/16"
        );
        let lan = NetworkSpec { driver: NetworkDriver::Macvlan, ..bridge("10.9.1.0/24") };
        assert_eq!(chosen(&lan, &around).unwrap(), ["10.9.1.0/24 10.9.1.1"]);
    }
}
