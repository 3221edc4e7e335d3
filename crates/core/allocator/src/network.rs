//! What a network is given: its identifier, its subnets, its MTU.
//!
//! Owns: choosing them. Does not know: who is attached.
//! Invariant: no subnet overlaps with that of another network, or with a route that a node reports.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base::Timestamp;
use ipnet::{IpNet, Ipv4Net};
use state::{Author, Change, ChangeSet, Plan, Resting, Snapshot};
use types::{
    Cluster, Family, Network, NetworkDriver, NetworkId, POOL_DEFAULT, POOL_MASK, Subnet, limits,
};

/// Every link of its own (RFC 4291, section 2.5.4).
const PREFIX_V6: u8 = 64;
/// Of Ethernet, where no node has said another.
const MTU_DEFAULT: u32 = 1_500;

/// Gives a network what it lacks.
pub(crate) fn decide(view: &Snapshot, now: Timestamp, id: NetworkId) -> Plan {
    let mut plan = Plan::default();
    let (Some(network), Some(cluster)) = (view.network(id), view.cluster()) else { return plan };
    if network.is_allocated() || network.spec.driver != NetworkDriver::Overlay {
        return plan;
    }
    let name = &network.spec.name;
    let Some(vni) = network.spec.vni().or_else(|| free_vni(view, now, cluster)) else {
        plan.note("no-vni", None, format!("{name}: every network identifier is taken"));
        plan.wake_at = view.next_rested(now);
        return plan;
    };
    let mut subnets = Vec::new();
    for family in Family::ALL.into_iter().filter(|family| network.spec.wants(*family)) {
        let asked = network.spec.pools_of(family);
        let asked = asked.filter_map(|p| Some(Subnet::new(p.subnet?, p.range, p.gateway)));
        let before = subnets.len();
        subnets.extend(asked);
        if subnets.len() > before {
            continue;
        }
        match further(view, network, family, &subnets) {
            Some(subnet) => subnets.push(subnet),
            None => {
                let text = format!("{name}: no {} subnet is left in the pools", family.name());
                plan.note("no-subnet", None, text);
                return plan;
            }
        }
    }
    let change = Change::AllocateNetwork { id, vni, mtu: mtu(view, network), subnets };
    plan.atoms.push(ChangeSet::one(Author::Allocator, change));
    plan
}

/// The change that gives a full network one subnet more; `None` when there is none to be had, or
/// when its subnets are a user's choice.
pub(crate) fn extend(view: &Snapshot, network: &Network, family: Family) -> Option<ChangeSet> {
    let chosen = network.spec.pools_of(family).next().is_some();
    if chosen || network.subnets.len() >= limits::SUBNETS_PER_NETWORK_MAX {
        return None;
    }
    let mut subnets = network.subnets.clone();
    subnets.push(further(view, network, family, &[])?);
    let Network { id, vni, mtu, .. } = *network;
    let change = Change::AllocateNetwork { id, vni, mtu, subnets };
    Some(ChangeSet::one(Author::Allocator, change))
}

fn free_vni(view: &Snapshot, now: Timestamp, cluster: &Cluster) -> Option<u32> {
    let (min, max) = (limits::VNI_MIN, limits::VNI_MAX);
    let next = cluster.next_vni.clamp(min, max);
    let free = |vni: &u32| {
        let rests = view.rests(Resting::Vni(*vni), now);
        let asked = || view.networks().any(|network| network.spec.vni() == Some(*vni));
        view.network_of_vni(*vni).is_none() && !rests && !asked()
    };
    (next..=max).chain(min..next).find(free)
}

fn mtu(view: &Snapshot, network: &Network) -> u32 {
    if let Some(asked) = network.spec.mtu() {
        return asked;
    }
    let known = view.nodes().map(|node| node.description.data_path.mtu).filter(|mtu| *mtu != 0);
    let is_v6 = view
        .nodes()
        .any(|node| node.description.data_path.address.is_some_and(|address| address.is_ipv6()));
    let overhead = network.spec.overhead(if is_v6 { Family::V6 } else { Family::V4 });
    known.min().unwrap_or(MTU_DEFAULT).saturating_sub(overhead)
}

/// The first subnet of the cluster's pools that nobody has and no node has a route to.
fn further(
    view: &Snapshot,
    network: &Network,
    family: Family,
    chosen: &[Subnet],
) -> Option<Subnet> {
    let cluster = view.cluster()?;
    let taken = Taken::of(view, network, chosen);
    let net = match family {
        Family::V4 => pools(cluster).find_map(|(pool, length)| taken.free(pool.into(), length)),
        Family::V6 => taken.free(cluster.ula_prefix?.into(), PREFIX_V6),
    };
    net.map(|net| Subnet::new(net, None, None))
}

/// Pools with the length of their subnets; what cannot be one was refused when it was set.
fn pools(cluster: &Cluster) -> impl Iterator<Item = (Ipv4Net, u8)> {
    let length = u8::try_from(cluster.address_pool_mask).ok().filter(|length| *length != 0);
    let length = length.unwrap_or(POOL_MASK as u8);
    let own = cluster.address_pools.iter().map(String::as_str);
    let default = cluster.address_pools.is_empty().then_some(POOL_DEFAULT);
    own.chain(default).filter_map(move |text| Some((text.parse().ok()?, length)))
}

/// Ranges of addresses that are somebody's, by their first one.
struct Taken(BTreeMap<u128, u128>);

impl Taken {
    fn of(view: &Snapshot, own: &Network, chosen: &[Subnet]) -> Self {
        let mut ranges: Vec<(u128, u128)> = Vec::new();
        let mut take = |net: IpNet| ranges.push((number(net.network()), number(net.broadcast())));
        for network in view.networks() {
            network.subnets.iter().for_each(|subnet| take(subnet.net));
            network.spec.ipam.iter().filter_map(|pool| pool.subnet).for_each(&mut take);
        }
        own.subnets.iter().chain(chosen).for_each(|subnet| take(subnet.net));
        for node in view.nodes() {
            // A default route leads everywhere and says nothing.
            let routes = node.description.data_path.routes.iter();
            routes.filter(|net| net.prefix_len() > 0).copied().for_each(&mut take);
        }
        ranges.sort_unstable();
        let mut joined: BTreeMap<u128, u128> = BTreeMap::new();
        for (first, last) in ranges {
            match joined.last_entry() {
                Some(mut before) if *before.get() >= first => {
                    *before.get_mut() = last.max(*before.get());
                }
                _ => drop(joined.insert(first, last)),
            }
        }
        Self(joined)
    }

    /// The first subnet of that length that overlaps with nothing. Looks at each range once.
    fn free(&self, pool: IpNet, length: u8) -> Option<IpNet> {
        if length < pool.prefix_len() {
            return None;
        }
        let size = 1_u128.checked_shl(u32::from(pool.max_prefix_len() - length))?;
        let end = number(pool.broadcast());
        let mut first = number(pool.network());
        while first <= end && end - first >= size - 1 {
            let last = first + (size - 1);
            let other = self.0.range(..=last).next_back().filter(|(_, other)| **other >= first);
            match other {
                None => return IpNet::new(address(pool, first), length).ok(),
                Some((_, other)) => first = (*other / size + 1).checked_mul(size)?,
            }
        }
        None
    }
}

/// IPv4 as its mapped form, so that the two families never meet.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) | MAPPED,
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(pool: IpNet, number: u128) -> IpAddr {
    match pool {
        IpNet::V4(_) => Ipv4Addr::from((number & u128::from(u32::MAX)) as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// `::ffff:0:0/96` (RFC 4291, section 2.5.5.2).
const MAPPED: u128 = 0xffff << 32;

#[cfg(test)]
mod tests {
    use ipnet::Ipv6Net;

    use super::*;

    fn taken(nets: &[&str]) -> Taken {
        let mut map = BTreeMap::new();
        for net in nets {
            let net: IpNet = net.parse().unwrap();
            map.insert(number(net.network()), number(net.broadcast()));
        }
        Taken(map)
    }

    #[test]
    fn the_first_gap_is_taken() {
        for (nets, pool, length, want) in [
            (&[][..], "10.0.0.0/8", 24, Some("10.0.0.0/24")),
            (&["10.0.0.0/24"], "10.0.0.0/8", 24, Some("10.0.1.0/24")),
            (&["10.0.0.0/24", "10.0.1.128/25"], "10.0.0.0/8", 24, Some("10.0.2.0/24")),
            (&["10.0.0.0/16"], "10.0.0.0/8", 24, Some("10.1.0.0/24")),
            (&["10.0.0.0/8"], "10.0.0.0/8", 24, None),
            (&["10.0.0.0/25"], "10.0.0.0/24", 25, Some("10.0.0.128/25")),
            (&["fd00::/64"], "fd00::/48", 64, Some("fd00:0:0:1::/64")),
            (&[], "10.0.0.0/24", 8, None),
        ] {
            let free = taken(nets).free(pool.parse().unwrap(), length);
            assert_eq!(free, want.map(|net| net.parse().unwrap()), "{nets:?} {pool}");
        }
    }

    #[test]
    fn a_prefix_of_one_family_does_not_meet_the_other() {
        let pool: Ipv6Net = "fd00::/48".parse().unwrap();
        assert!(taken(&["0.0.0.0/1"]).free(pool.into(), 64).is_some());
    }
}
