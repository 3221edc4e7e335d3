//! A network: what tasks are attached to, and what is given out on it.
//!
//! Owns: the record of a network, its subnets, the addresses that a task or a service holds.
//! Does not know: how packets travel, or who gives addresses out.
//! Invariant: an address is held by one object at a time, inside a subnet of its network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::{Labels, Meta, NetworkId, PortSpec, limits};

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
    /// It is no network, but what networks of its node may be made of.
    pub config_only: bool,
    /// Name of such a one on each node that makes the network; empty: it is made of this alone.
    pub config_from: String,
}

impl NetworkSpec {
    /// Option of the largest packet inside.
    pub const MTU: &str = "com.docker.network.driver.mtu";
    /// Option of the VXLAN network identifier.
    pub const VNI: &str = "com.docker.network.driver.overlay.vxlanid_list";
    /// Option of an encrypted data path.
    pub const ENCRYPTED: &str = "encrypted";
    /// Docker's option of answers that do not pass the balancer again; here none ever does.
    pub const DIRECT: &str = "dsr";
    /// Option of a network whose subnets may be those of others that have it, too.
    pub const OVERLAP: &str = "overlap";

    /// The ingress network that a cluster begins with: of both families.
    #[must_use]
    pub fn ingress() -> Self {
        Self { name: "ingress".into(), ingress: true, ipv4: true, ipv6: true, ..Self::default() }
    }

    /// The MTU asked for.
    #[must_use]
    pub fn mtu(&self) -> Option<u32> {
        self.options.get(Self::MTU)?.parse().ok()
    }

    /// The VXLAN network identifier asked for.
    #[must_use]
    pub fn vni(&self) -> Option<u32> {
        self.options.get(Self::VNI)?.parse().ok()
    }

    /// Whether what it carries between nodes is encrypted: asked for by name, as docker does, or
    /// with a value that means yes.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.says(Self::ENCRYPTED)
    }

    /// Whether the subnets that are asked for may be those of another network for which the same
    /// was said: no container is on both.
    #[must_use]
    pub fn may_overlap(&self) -> bool {
        self.says(Self::OVERLAP)
    }

    fn says(&self, option: &str) -> bool {
        self.options.get(option).is_some_and(|value| ["", "true", "1"].contains(&&**value))
    }

    /// Bytes that it adds to a packet between nodes whose addresses are of a family.
    #[must_use]
    pub fn overhead(&self, underlay: Family) -> u32 {
        match (self.is_encrypted(), underlay) {
            (true, _) => limits::ENCRYPTED_OVERHEAD,
            (false, Family::V4) => limits::VXLAN_OVERHEAD_V4,
            (false, Family::V6) => limits::VXLAN_OVERHEAD_V6,
        }
    }

    /// Whether subnets of this family are to be had.
    #[must_use]
    pub fn wants(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6 || self.ingress,
        }
    }

    /// The subnets asked for of one family.
    pub fn pools_of(&self, family: Family) -> impl Iterator<Item = &IpamPool> {
        let of =
            move |pool: &&IpamPool| pool.subnet.is_some_and(|net| Family::of_net(net) == family);
        self.ipam.iter().filter(of)
    }
}

/// One of the two kinds of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4 = 4,
    V6 = 6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    #[must_use]
    pub const fn of_net(net: IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
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

    /// Each node makes such a network for itself, with subnets and addresses of its own.
    #[must_use]
    pub const fn is_of_nodes(self) -> bool {
        matches!(self, Self::Bridge | Self::Macvlan | Self::Ipvlan)
    }

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
    /// Addresses that are somebody else's, by any name; of networks of one node only.
    pub aux: BTreeMap<String, IpAddr>,
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

impl Subnet {
    /// One without anything given out of it yet. Without a gateway it is the first address.
    #[must_use]
    pub fn new(net: IpNet, range: Option<IpNet>, gateway: Option<IpAddr>) -> Self {
        let first = address_at(net, 1);
        Self { net: net.trunc(), range, gateway: gateway.unwrap_or(first), cursor: 0 }
    }

    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of_net(self.net)
    }

    /// What addresses are given out of.
    #[must_use]
    pub fn pool(&self) -> IpNet {
        self.range.unwrap_or(self.net)
    }

    /// Addresses of the pool, also those that nobody may hold.
    #[must_use]
    pub fn size(&self) -> u64 {
        let pool = self.pool();
        1_u64.checked_shl(u32::from(pool.max_prefix_len() - pool.prefix_len())).unwrap_or(u64::MAX)
    }

    /// The address at an offset in the pool; what is past its end begins anew.
    #[must_use]
    pub fn address_at(&self, offset: u64) -> IpAddr {
        address_at(self.pool(), offset % self.size())
    }

    /// Where in the pool an address is; `None`: outside.
    #[must_use]
    pub fn offset_of(&self, address: IpAddr) -> Option<u64> {
        let pool = self.pool();
        if !pool.contains(&address) {
            return None;
        }
        u64::try_from(number_of(address) - number_of(pool.network())).ok()
    }

    /// Whether somebody may hold the address: it is inside, and neither the gateway nor one of the
    /// ends. The first address of an IPv6 subnet is its routers' (RFC 4291, 2.6.1), the last one of
    /// an IPv4 subnet its broadcast.
    #[must_use]
    pub fn may_hold(&self, address: IpAddr) -> bool {
        self.net.contains(&address)
            && address != self.gateway
            && address != self.net.network()
            && (self.family() == Family::V6 || address != self.net.broadcast())
    }
}

/// Whether two networks have an address in common.
#[must_use]
pub fn nets_overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address_at(net: IpNet, offset: u64) -> IpAddr {
    match net.network() {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().wrapping_add(offset as u32).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().wrapping_add(u128::from(offset)).into()),
    }
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
    /// Tasks may be attached: the VNI and subnets are given, or its nodes choose them.
    #[must_use]
    pub fn is_allocated(&self) -> bool {
        self.spec.driver.is_of_nodes() || (self.vni != 0 && !self.subnets.is_empty())
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
    /// Without an address: nothing is given out on the predefined networks.
    #[must_use]
    pub const fn bare(network: NetworkId) -> Self {
        Self { network, v4: None, v6: None }
    }

    /// Puts an address in its place.
    pub fn set(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.v4 = Some(v4),
            IpAddr::V6(v6) => self.v6 = Some(v6),
        }
    }

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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortProtocol {
    /// Numbered as IP does (RFC 5237 registry).
    #[default]
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PublishMode {
    /// On every node, by the mesh.
    #[default]
    Ingress = 1,
    /// On the nodes of its tasks, by each task for itself.
    Host = 2,
}

impl PublishMode {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Host => "host",
        }
    }

    /// The empty word is docker's default.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "" | "ingress" => Some(Self::Ingress),
            "host" => Some(Self::Host),
            _ => None,
        }
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

impl PortBinding {
    /// Not both can be had.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        (self.protocol, self.port) == (other.protocol, other.port)
            && (self.address.is_none() || other.address.is_none() || self.address == other.address)
    }
}

/// The virtual addresses of a service on one network.
pub type VirtualAddress = Attachment;

/// What a service was given: its virtual addresses, and its ports with the dynamic ones filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// In the order of the service's networks.
    pub vips: Vec<VirtualAddress>,
    /// In the order of the spec; a dynamic port of mode host stays zero, for each node chooses one.
    pub ports: Vec<PortSpec>,
}

impl Endpoint {
    /// Its virtual addresses on one network.
    #[must_use]
    pub fn vip(&self, network: NetworkId) -> Option<&VirtualAddress> {
        self.vips.iter().find(|vip| vip.network == network)
    }

    /// Ports of the mesh, as every node publishes them.
    pub fn mesh_ports(&self) -> impl Iterator<Item = &PortSpec> {
        self.ports.iter().filter(|port| port.mode == PublishMode::Ingress)
    }
}

/// What a task was given of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskNetwork {
    /// One for each network of its service, in that order: eth0, eth1…
    pub attachments: Vec<Attachment>,
    /// Its address on the ingress network, when its service publishes a port by the mesh.
    pub mesh: Option<Attachment>,
    /// What somebody connected it to while it ran, in that order.
    pub connected: Vec<Connection>,
}

impl TaskNetwork {
    /// All that it holds: of its service, of the ingress network, of what it was connected to.
    pub fn all(&self) -> impl Iterator<Item = &Attachment> {
        let connected = self.connected.iter().map(|connection| &connection.attachment);
        self.attachments.iter().chain(&self.mesh).chain(connected)
    }

    /// How somebody connected it to a network.
    #[must_use]
    pub fn connection(&self, network: NetworkId) -> Option<&Connection> {
        self.connected.iter().find(|connection| connection.attachment.network == network)
    }
}

/// A running task on a network that its service does not name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub attachment: Attachment,
    /// Further names of the task there.
    pub aliases: Vec<String>,
}

/// A port of a node that leads to one task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: PortProtocol,
    pub target: u16,
    /// Zero: a free one, chosen when the container is attached.
    pub published: u16,
    /// Address or interface that it is bound to; empty: all.
    pub host: String,
}
