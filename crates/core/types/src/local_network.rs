//! A network that one node has for itself: a bridge, or a part of what a link of the host is on.
//!
//! Owns: its record, the words of its options, which address somebody may have.
//! Does not know: the cluster; which containers are on it.
//! Invariant: its identity is no cluster's network's, unless it is this node's part of one; the
//! three predefined ones have theirs on every node.

use std::net::IpAddr;

use base::Timestamp;
use ipnet::IpNet;

use crate::{Family, NetworkDriver, NetworkId, NetworkSpec, Subnet};

/// A network of this node alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNetwork {
    pub id: NetworkId,
    pub created: Timestamp,
    pub spec: NetworkSpec,
    /// One at most of each family; chosen when the network was made, where nobody said which.
    pub subnets: Vec<Subnet>,
    /// It is a network of the cluster, of which this node has made its part.
    pub swarm: bool,
}

/// Docker's words for the options of networks that are one node's.
pub mod local_option {
    pub const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
    pub const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
    pub const BETWEEN: &str = "com.docker.network.bridge.enable_icc";
    pub const PARENT: &str = "parent";
    pub const MACVLAN_MODE: &str = "macvlan_mode";
    pub const IPVLAN_MODE: &str = "ipvlan_mode";
    pub const IPVLAN_FLAG: &str = "ipvlan_flag";
    pub const MACVLAN_MODES: [&str; 4] = ["bridge", "private", "vepa", "passthru"];
    pub const IPVLAN_MODES: [&str; 3] = ["l2", "l3", "l3s"];
    pub const IPVLAN_FLAGS: [&str; 3] = ["bridge", "private", "vepa"];
}

impl LocalNetwork {
    /// The network `bridge` that every node has, before it has a subnet.
    #[must_use]
    pub fn predefined_bridge() -> Self {
        let spec = NetworkSpec {
            name: "bridge".into(),
            driver: NetworkDriver::Bridge,
            ipv4: true,
            ..NetworkSpec::default()
        };
        Self {
            id: NetworkId::BRIDGE,
            created: Timestamp(0),
            spec,
            subnets: Vec::new(),
            swarm: false,
        }
    }

    fn option(&self, key: &str) -> Option<&str> {
        self.spec.options.get(key).map(String::as_str)
    }

    /// A switch that stands unless somebody turned it off.
    fn stands(&self, key: &str) -> bool {
        self.option(key) != Some("false")
    }

    /// Name that the bridge is to have in the host's namespace.
    #[must_use]
    pub fn bridge_name(&self) -> Option<&str> {
        self.option(local_option::BRIDGE_NAME)
    }

    /// What leaves by the host has the host's address.
    #[must_use]
    pub fn masquerades(&self) -> bool {
        !self.spec.internal && self.stands(local_option::MASQUERADE)
    }

    /// Its containers reach each other.
    #[must_use]
    pub fn connects_containers(&self) -> bool {
        self.stands(local_option::BETWEEN)
    }

    /// The host's link that it is a part of.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        self.option(local_option::PARENT)
    }

    /// The mode of its driver; docker's defaults.
    #[must_use]
    pub fn mode(&self) -> &str {
        match self.spec.driver {
            NetworkDriver::Macvlan => self.option(local_option::MACVLAN_MODE).unwrap_or("bridge"),
            NetworkDriver::Ipvlan => self.option(local_option::IPVLAN_MODE).unwrap_or("l2"),
            _ => "",
        }
    }

    #[must_use]
    pub fn flag(&self) -> &str {
        self.option(local_option::IPVLAN_FLAG).unwrap_or("bridge")
    }

    /// The subnet that an address lies in.
    #[must_use]
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.net.contains(&address))
    }

    #[must_use]
    pub fn subnet(&self, family: Family) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.family() == family)
    }

    /// Addresses that are somebody else's: `--aux-address`.
    pub fn reserved(&self) -> impl Iterator<Item = IpAddr> {
        self.spec.ipam.iter().flat_map(|pool| pool.aux.values().copied())
    }

    /// Whether a container may have an address, if no other has it.
    #[must_use]
    pub fn may_hold(&self, address: IpAddr) -> bool {
        self.subnet_of(address).is_some_and(|subnet| subnet.may_hold(address))
            && self.reserved().all(|other| other != address)
    }

    /// The first address of a family that is not `taken`.
    pub fn free(&self, family: Family, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let subnet = self.subnet(family)?;
        (0..subnet.size().min(SEARCHED_MAX))
            .map(|offset| subnet.address_at(offset))
            .find(|address| self.may_hold(*address) && !taken(*address))
    }

    /// Where a packet for elsewhere goes: nowhere on an internal network, and not by the first hop
    /// where the link itself is the way (ipvlan in mode l3).
    #[must_use]
    pub fn gateway(&self, family: Family) -> Option<IpAddr> {
        let routed = self.spec.driver == NetworkDriver::Ipvlan && self.mode() != "l2";
        let subnet = self.subnet(family).filter(|_| !self.spec.internal && !routed)?;
        Some(subnet.gateway)
    }

    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        self.subnets.iter().map(|subnet| subnet.net)
    }
}

/// More containers than a node can have.
const SEARCHED_MAX: u64 = 1 << 17;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IpamPool;

    #[test]
    fn addresses_are_the_first_free_ones() {
        let mut network = LocalNetwork::predefined_bridge();
        network.subnets = vec![Subnet::new("10.1.0.0/29".parse().unwrap(), None, None)];
        let aux = [("router".to_owned(), "10.1.0.3".parse().unwrap())].into();
        network.spec.ipam = vec![IpamPool { aux, ..IpamPool::default() }];
        let mut taken: Vec<IpAddr> = Vec::new();
        while let Some(next) = network.free(Family::V4, |address| taken.contains(&address)) {
            taken.push(next);
        }
        let texts: Vec<String> = taken.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.1.0.2", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
        assert_eq!(network.free(Family::V6, |_| false), None);
        assert_eq!(network.gateway(Family::V4), "10.1.0.1".parse().ok());
        network.spec.internal = true;
        assert_eq!((network.gateway(Family::V4), network.masquerades()), (None, false));
    }
}
