//! A network: what tasks are attached to, and what is given out on it.
//!
//! Owns: the record of a network, its subnets, the addresses that a task or a service holds.
//! Does not know: how packets travel, or who gives addresses out.
//! Invariant: an address is held by one object at a time, inside a subnet of its network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::{Labels, Meta, NetworkId, PortSpec};

/// What a user wants of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    pub name: String,
    pub labels: Labels,
    pub driver: NetworkDriver,
    /// Containers that no service made may join.
    pub attachable: bool,
    /// The one network of the routing mesh.
    pub ingress: bool,
    /// No way out, and nothing published.
    pub internal: bool,
    pub ipv4: bool,
    pub ipv6: bool,
    /// Subnets asked for; what is missing for a family comes from the cluster's pools.
    pub ipam: Vec<IpamPool>,
    /// Docker's driver options, such as `com.docker.network.driver.mtu` and `encrypted`.
    pub options: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkDriver {
    #[default]
    Overlay = 1,
    Bridge = 2,
    Host = 3,
    None = 4,
    Macvlan = 5,
    Ipvlan = 6,
}

impl NetworkDriver {
    pub const ALL: [Self; 6] =
        [Self::Overlay, Self::Bridge, Self::Host, Self::None, Self::Macvlan, Self::Ipvlan];

    /// Docker's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Bridge => "bridge",
            Self::Host => "host",
            // Docker's driver of the network `none`.
            Self::None => "null",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|driver| driver.name() == name)
    }

    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|driver| *driver as i32 == number)
    }
}

/// One subnet that a user asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpamPool {
    pub subnet: Option<IpNet>,
    /// Addresses are given out of this part only.
    pub range: Option<IpNet>,
    /// `None`: the first address of the subnet.
    pub gateway: Option<IpAddr>,
}

/// One subnet of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    pub net: IpNet,
    pub range: Option<IpNet>,
    /// The same on every node: the next hop of containers, and nobody's else.
    pub gateway: IpAddr,
    /// Where the search for the next free address begins, as an offset in `range` or `net`.
    pub cursor: u64,
}

/// A network of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: Arc<NetworkSpec>,
    /// VXLAN network identifier, 24 bits; zero until given.
    pub vni: u32,
    /// Bytes of the largest packet inside; zero until derived.
    pub mtu: u32,
    /// Empty until given; a network that is full gets a further one.
    pub subnets: Vec<Subnet>,
}

impl Network {
    /// The VNI and subnets are given: tasks may be attached.
    #[must_use]
    pub fn is_allocated(&self) -> bool {
        self.vni != 0 && !self.subnets.is_empty()
    }

    /// The subnet that an address lies in.
    #[must_use]
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.net.contains(&address))
    }
}

/// What a task holds on one network; its order among the task's is the order of interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    pub network: NetworkId,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Attachment {
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// How the name of a service is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointMode {
    /// By one virtual address, balanced.
    #[default]
    Vip = 1,
    /// By the addresses of its tasks.
    Dnsrr = 2,
}

impl EndpointMode {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vip => "vip",
            Self::Dnsrr => "dnsrr",
        }
    }

    /// The empty word is docker's default.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "" | "vip" => Some(Self::Vip),
            "dnsrr" => Some(Self::Dnsrr),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortProtocol {
    /// Numbered as IP does (RFC 5237 registry).
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl PortProtocol {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The empty word is docker's default, tcp.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "" => Some(Self::Tcp),
            name => Self::ALL.into_iter().find(|protocol| protocol.name() == name),
        }
    }

    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| *protocol as i32 == number)
    }
}

/// A port of a node, as it must be kept from the node's own programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortBinding {
    pub protocol: PortProtocol,
    pub port: u16,
    /// `None`: on all addresses of the node, of both families.
    pub address: Option<IpAddr>,
}

/// The virtual addresses of a service on one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtualAddress {
    pub network: NetworkId,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

/// What a service was given: its virtual addresses, and its ports with the dynamic ones filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    pub vips: Vec<VirtualAddress>,
    pub ports: Vec<PortSpec>,
}
