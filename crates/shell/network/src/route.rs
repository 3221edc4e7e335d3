//! Links, addresses, routes, neighbours and forwarding entries, of both families.
//!
//! Owns: the messages for those kinds of them that a data path needs, and reading them back.
//! Does not know: which containers or networks there are.
//! Invariant: making what is there, and removing what is not, is no error.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use ipnet::IpNet;
use netplan::Hardware;

use crate::netlink::{Answer, CREATE, EXCLUSIVE, Message, REPLACE, Socket, attribute};

/// A link as the kernel lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Free text that we set; empty when there is none.
    pub(crate) alias: String,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) hardware: Hardware,
    /// The bridge that it is a port of; zero: none.
    pub(crate) master: u32,
    /// `veth`, `bridge`…; empty for what is no such device.
    pub(crate) kind: String,
    pub(crate) vxlan: Option<Vxlan>,
    /// The namespace that its packets come from and go to, by the number that the kernel has for
    /// it in the namespace of the link; `None`: the link's own.
    pub(crate) underlay: Option<i32>,
    /// How many packets may wait.
    pub(crate) queue: u32,
}

/// What a VXLAN device was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) local: Option<IpAddr>,
}

/// A route of any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) table: u32,
    pub(crate) net: IpNet,
    pub(crate) kind: u8,
    pub(crate) protocol: u8,
    /// Zero: none.
    pub(crate) link: u32,
    pub(crate) via: Option<IpAddr>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) mtu: u32,
}

/// A permanent neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) link: u32,
    pub(crate) address: IpAddr,
    pub(crate) hardware: Hardware,
}

/// Routing messages in one network namespace.
#[derive(Debug)]
pub(crate) struct RouteSocket(pub(crate) Socket);

impl RouteSocket {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Socket::open(libc::NETLINK_ROUTE)?))
    }

    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.0.dump(get_links())?;
        Ok(answers.iter().filter_map(|answer| parse_link(answer)).collect())
    }

    /// Number of a link; `None`: it is not there.
    pub(crate) fn index_of(&mut self, name: &str) -> io::Result<Option<u32>> {
        match self.0.ask(get_links().text(libc::IFLA_IFNAME, name)) {
            Ok(answer) => Ok(number(answer.get(4..8))),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Addresses with their prefixes, by link.
    pub(crate) fn addresses(&mut self) -> io::Result<Vec<(u32, IpNet)>> {
        let answers = self.0.dump(Message::new(libc::RTM_GETADDR, 0, &[0; 8]))?;
        Ok(answers.iter().filter_map(|answer| parse_address(answer)).collect())
    }

    /// Routes of all tables of one family, also those to local addresses.
    pub(crate) fn routes(&mut self, family: u8) -> io::Result<Vec<Route>> {
        let header = route_header(family, 0, 0, 0, 0);
        let answers = self.0.dump(Message::new(libc::RTM_GETROUTE, 0, &header))?;
        Ok(answers.iter().filter_map(|answer| parse_route(answer)).collect())
    }

    /// Whether packets to that address are for this namespace.
    pub(crate) fn is_local(&mut self, address: IpAddr) -> io::Result<bool> {
        let octets = octets(address);
        let header = route_header(family_of(address), octets.len() as u8 * 8, 0, 0, 0);
        let message = Message::new(libc::RTM_GETROUTE, 0, &header).bytes(libc::RTA_DST, &octets);
        match self.0.ask(message) {
            Ok(answer) => Ok(answer.get(7) == Some(&libc::RTN_LOCAL)),
            Err(error) if UNROUTED.contains(&error.raw_os_error().unwrap_or_default()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Permanent neighbours of one family.
    pub(crate) fn neighbours(&mut self, family: u8) -> io::Result<Vec<Neighbour>> {
        let header = neighbour_header(family, 0, 0, 0);
        let answers = self.0.dump(Message::new(libc::RTM_GETNEIGH, 0, &header))?;
        Ok(answers.iter().filter_map(|answer| parse_neighbour(answer)).collect())
    }

    /// Forwarding entries of one VXLAN device.
    pub(crate) fn forwarding(&mut self, link: u32) -> io::Result<Vec<(Hardware, IpAddr)>> {
        let header = neighbour_header(libc::AF_BRIDGE as u8, 0, 0, 0);
        let answers = match self.0.dump(Message::new(libc::RTM_GETNEIGH, 0, &header)) {
            // A kernel without bridges answers so where there is nothing.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
            answers => answers?,
        };
        let entries = answers.iter().filter_map(|answer| parse_forwarding(answer));
        Ok(entries.filter(|(index, ..)| *index == link).map(|(_, h, a)| (h, a)).collect())
    }

    /// Masks of marks that rules of one family lead to tables, as (mark, mask, table).
    pub(crate) fn rules(&mut self, family: u8) -> io::Result<Vec<(u32, u32, u32)>> {
        let header = rule_header(family, 0);
        let answers = self.0.dump(Message::new(libc::RTM_GETRULE, 0, &header))?;
        Ok(answers.iter().filter_map(|answer| parse_rule(answer)).collect())
    }

    /// The number that this namespace has for another one; `None`: it has none.
    pub(crate) fn number_of(&mut self, namespace: &OwnedFd) -> io::Result<Option<i32>> {
        let message = Message::new(libc::RTM_GETNSID, 0, &[0; 4]);
        let answer = self.0.ask(message.number(NETNSA_FD, namespace.as_raw_fd() as u32))?;
        let id = answer.get(4..).and_then(|rest| number(attribute(rest, NETNSA_NSID)));
        Ok(id.map(u32::cast_signed).filter(|id| *id >= 0))
    }

    pub(crate) fn dump(&mut self, message: Message) -> io::Result<Vec<Answer>> {
        self.0.dump(message)
    }

    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        self.0.request(message)
    }

    /// Carries out all; errors of those in `benign` are none. The first other one is the result.
    pub(crate) fn batch(&mut self, messages: Vec<Message>, benign: &[i32]) -> io::Result<()> {
        let mut messages = messages;
        let mut result = Ok(());
        while !messages.is_empty() {
            let rest = messages.split_off(messages.len().min(MESSAGES_PER_PACKET));
            for (_, error) in self.0.batch_each(messages)? {
                let code = error.raw_os_error().unwrap_or_default();
                if !benign.contains(&code) && result.is_ok() {
                    result = Err(error);
                }
            }
            messages = rest;
        }
        result
    }

    /// Removes many in about the time of one. The links are moved into `group`, which nobody else
    /// uses, and that is removed as a whole.
    pub(crate) fn delete_links(&mut self, links: &[u32], group: u32) -> io::Result<()> {
        if let [link] = links {
            return self.batch(vec![delete_link(*link)], ABSENT);
        }
        let into = |link: &u32| {
            Message::new(libc::RTM_NEWLINK, 0, &link_header(*link, 0)).number(IFLA_GROUP, group)
        };
        self.batch(links.iter().map(into).collect(), ABSENT)?;
        if links.is_empty() {
            return Ok(());
        }
        let message = Message::new(libc::RTM_DELLINK, 0, &link_header(0, 0));
        self.batch(vec![message.number(IFLA_GROUP, group)], ABSENT)
    }
}

/// Of all links, without what they have counted, which is most of an answer.
fn get_links() -> Message {
    let message = Message::new(libc::RTM_GETLINK, 0, &link_header(0, 0));
    message.number(libc::IFLA_EXT_MASK, WITHOUT_COUNTS)
}

/// A device in another namespace than where the request is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Elsewhere<'a> {
    pub(crate) name: &'a str,
    pub(crate) mtu: u32,
    pub(crate) namespace: &'a OwnedFd,
}

impl Elsewhere<'_> {
    pub(crate) fn message(&self) -> Message {
        Message::new(libc::RTM_NEWLINK, CREATE | EXCLUSIVE, &link_header(0, 0))
            .text(libc::IFLA_IFNAME, self.name)
            .number(libc::IFLA_MTU, self.mtu)
            .number(libc::IFLA_NET_NS_FD, self.namespace.as_raw_fd() as u32)
    }
}

/// Makes a VXLAN device whose socket stays where the request is made. Without `sums` packets have
/// no checksums of their own outside.
pub(crate) fn add_vxlan(
    device: &Elsewhere<'_>,
    vxlan: &Vxlan,
    hardware: Hardware,
    sums: bool,
) -> Message {
    device.message().bytes(libc::IFLA_ADDRESS, &hardware).nested(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_KIND, "vxlan").nested(libc::IFLA_INFO_DATA, |data| {
            let data = data
                .number(VXLAN_ID, vxlan.vni)
                .bytes(VXLAN_LEARNING, &[0])
                .bytes(VXLAN_PORT, &vxlan.port.to_be_bytes());
            let data = if sums { data } else { data.bytes(VXLAN_UDP_CSUM, &[0]) };
            match vxlan.local {
                Some(IpAddr::V4(local)) => data.bytes(VXLAN_LOCAL, &local.octets()),
                Some(IpAddr::V6(local)) => data.bytes(VXLAN_LOCAL6, &local.octets()),
                None => data,
            }
        })
    })
}

/// Sets alias and size, and brings the link up.
pub(crate) fn dress(link: u32, alias: &str, mtu: u32) -> Message {
    Message::new(libc::RTM_NEWLINK, 0, &link_header(link, libc::IFF_UP as u32))
        .text(libc::IFLA_IFALIAS, alias)
        .number(libc::IFLA_MTU, mtu)
}

/// How many packets may wait to be sent.
pub(crate) fn set_queue(link: u32, packets: u32) -> Message {
    let message = Message::new(libc::RTM_NEWLINK, 0, &link_header(link, 0));
    message.number(libc::IFLA_TXQLEN, packets)
}

pub(crate) fn set_up(link: u32) -> Message {
    Message::new(libc::RTM_NEWLINK, 0, &link_header(link, libc::IFF_UP as u32))
}

pub(crate) fn set_down(link: u32) -> Message {
    let mut header = link_header(link, 0);
    header[12..].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    Message::new(libc::RTM_NEWLINK, 0, &header)
}

/// No address of the kernel's own making, and packets only from where they may come from.
pub(crate) fn quiet(link: u32, strict_source: bool) -> Message {
    let message = Message::new(libc::RTM_NEWLINK, 0, &link_header(link, 0));
    message.nested(libc::IFLA_AF_SPEC, |families| {
        families
            .nested(libc::AF_INET6 as u16, |v6| v6.bytes(INET6_ADDR_GEN_MODE, &[GENERATE_NONE]))
            .nested(libc::AF_INET as u16, |v4| {
                v4.nested(INET_CONF, |conf| conf.number(CONF_RP_FILTER, strict_source.into()))
            })
    })
}

pub(crate) fn delete_link(link: u32) -> Message {
    Message::new(libc::RTM_DELLINK, 0, &link_header(link, 0))
}

/// Adds an address without a route of its own when the prefix says more than itself.
pub(crate) fn add_address(link: u32, net: IpNet) -> Message {
    address_message(libc::RTM_NEWADDR, CREATE | REPLACE, link, net, true)
}

/// Adds an address with the route of its prefix.
pub(crate) fn add_connected_address(link: u32, net: IpNet) -> Message {
    address_message(libc::RTM_NEWADDR, CREATE | REPLACE, link, net, false)
}

pub(crate) fn delete_address(link: u32, net: IpNet) -> Message {
    address_message(libc::RTM_DELADDR, 0, link, net, true)
}

fn address_message(kind: u16, flags: u16, link: u32, net: IpNet, alone: bool) -> Message {
    let mut header = [0; 8];
    header[0] = family_of(net.addr());
    header[1] = net.prefix_len();
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    let mut marks = libc::IFA_F_NODAD;
    if alone {
        marks |= IFA_F_NOPREFIXROUTE;
    }
    let octets = octets(net.addr());
    Message::new(kind, flags, &header)
        .bytes(libc::IFA_LOCAL, &octets)
        .bytes(libc::IFA_ADDRESS, &octets)
        .number(libc::IFA_FLAGS, marks)
}

/// What one route message says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteTo {
    /// `None`: unreachable.
    pub(crate) link: Option<u32>,
    pub(crate) via: Option<IpAddr>,
    /// The object that stands for link and next hop.
    pub(crate) hop: Option<u32>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) mtu: u32,
}

pub(crate) fn add_route(table: u32, net: IpNet, to: RouteTo) -> Message {
    let family = family_of(net.addr());
    let scope = match (to.link, to.via) {
        (Some(_), None) if family == V4 => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    let kind = if to.link.is_some() { libc::RTN_UNICAST } else { libc::RTN_UNREACHABLE };
    let mut header = route_header(family, net.prefix_len(), scope, kind, PROTOCOL);
    if to.via.is_some() && to.hop.is_none() {
        header[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let mut message = Message::new(libc::RTM_NEWROUTE, CREATE | REPLACE, &header)
        .bytes(libc::RTA_DST, &octets(net.network()))
        .number(libc::RTA_TABLE, table);
    if let Some(link) = to.link.filter(|_| to.hop.is_none()) {
        message = message.number(libc::RTA_OIF, link);
    }
    message = match to.via {
        Some(_) if let Some(hop) = to.hop => message.number(RTA_NH_ID, hop),
        Some(via) if family_of(via) == family => message.bytes(libc::RTA_GATEWAY, &octets(via)),
        Some(via) => {
            let family = u16::from(family_of(via)).to_ne_bytes();
            message.bytes(RTA_VIA, &[&family, &octets(via)[..]].concat())
        }
        None => message,
    };
    if let Some(source) = to.source {
        message = message.bytes(libc::RTA_PREFSRC, &octets(source));
    }
    match to.mtu {
        0 => message,
        mtu => message.nested(libc::RTA_METRICS, |metrics| metrics.number(RTAX_MTU, mtu)),
    }
}

pub(crate) fn delete_route(table: u32, net: IpNet) -> Message {
    let header = route_header(family_of(net.addr()), net.prefix_len(), SCOPE_ANY, 0, 0);
    Message::new(libc::RTM_DELROUTE, 0, &header)
        .bytes(libc::RTA_DST, &octets(net.network()))
        .number(libc::RTA_TABLE, table)
}

/// `address` has this hardware address, for ever: nobody is asked.
pub(crate) fn add_neighbour(link: u32, address: IpAddr, hardware: Hardware) -> Message {
    let header = neighbour_header(family_of(address), link, libc::NUD_PERMANENT, 0);
    Message::new(libc::RTM_NEWNEIGH, CREATE | REPLACE, &header)
        .bytes(libc::NDA_DST, &octets(address))
        .bytes(libc::NDA_LLADDR, &hardware)
}

pub(crate) fn delete_neighbour(link: u32, address: IpAddr) -> Message {
    let header = neighbour_header(family_of(address), link, 0, 0);
    Message::new(libc::RTM_DELNEIGH, 0, &header).bytes(libc::NDA_DST, &octets(address))
}

pub(crate) fn add_forwarding(link: u32, hardware: Hardware, at: IpAddr) -> Message {
    let state = libc::NUD_PERMANENT | libc::NUD_NOARP;
    let header = neighbour_header(libc::AF_BRIDGE as u8, link, state, libc::NTF_SELF);
    Message::new(libc::RTM_NEWNEIGH, CREATE | REPLACE, &header)
        .bytes(libc::NDA_LLADDR, &hardware)
        .bytes(libc::NDA_DST, &octets(at))
}

pub(crate) fn delete_forwarding(link: u32, hardware: Hardware) -> Message {
    let header = neighbour_header(libc::AF_BRIDGE as u8, link, 0, libc::NTF_SELF);
    Message::new(libc::RTM_DELNEIGH, 0, &header).bytes(libc::NDA_LLADDR, &hardware)
}

/// Packets whose mark matches are routed by a table of their own.
pub(crate) fn add_rule(family: u8, mark: u32, mask: u32, table: u32) -> Message {
    let header = rule_header(family, FR_ACT_TO_TABLE);
    Message::new(libc::RTM_NEWRULE, CREATE | EXCLUSIVE, &header)
        .number(FRA_FWMARK, mark)
        .number(FRA_FWMASK, mask)
        .number(FRA_TABLE, table)
        .number(FRA_PRIORITY, RULE_PRIORITY)
}

/// `ifinfomsg`; flags are set and named in the change mask.
pub(crate) fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// `rtmsg`; the table is an attribute.
fn route_header(family: u8, prefix: u8, scope: u8, kind: u8, protocol: u8) -> [u8; 12] {
    [family, prefix, 0, 0, libc::RT_TABLE_UNSPEC, protocol, scope, kind, 0, 0, 0, 0]
}

fn neighbour_header(family: u8, link: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0u8; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// `fib_rule_hdr`.
pub(crate) fn rule_header(family: u8, action: u8) -> [u8; 12] {
    let mut header = [0u8; 12];
    header[0] = family;
    header[7] = action;
    header
}

fn parse_link(answer: &[u8]) -> Option<Link> {
    let index = number(answer.get(4..8))?;
    let flags = number(answer.get(8..12))?;
    let rest = answer.get(16..)?;
    let text = |kind| {
        let bytes = attribute(rest, kind).unwrap_or_default();
        String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned()
    };
    let info = attribute(rest, libc::IFLA_LINKINFO).unwrap_or_default();
    let kind = attribute(info, libc::IFLA_INFO_KIND).unwrap_or_default();
    let data = attribute(info, libc::IFLA_INFO_DATA).unwrap_or_default();
    let vxlan = kind.starts_with(b"vxlan").then(|| Vxlan {
        vni: number(attribute(data, VXLAN_ID)).unwrap_or_default(),
        port: attribute(data, VXLAN_PORT)
            .and_then(|bytes| bytes.first_chunk().copied())
            .map_or(0, u16::from_be_bytes),
        local: attribute(data, VXLAN_LOCAL)
            .or_else(|| attribute(data, VXLAN_LOCAL6))
            .and_then(parse_ip),
    });
    Some(Link {
        index,
        name: text(libc::IFLA_IFNAME),
        alias: text(libc::IFLA_IFALIAS),
        up: flags & libc::IFF_UP as u32 != 0,
        mtu: number(attribute(rest, libc::IFLA_MTU)).unwrap_or_default(),
        hardware: attribute(rest, libc::IFLA_ADDRESS)
            .and_then(|bytes| bytes.first_chunk().copied())
            .unwrap_or_default(),
        master: number(attribute(rest, libc::IFLA_MASTER)).unwrap_or_default(),
        kind: String::from_utf8_lossy(kind.strip_suffix(b"\0").unwrap_or(kind)).into_owned(),
        vxlan,
        underlay: number(attribute(rest, IFLA_LINK_NETNSID)).map(u32::cast_signed),
        queue: number(attribute(rest, libc::IFLA_TXQLEN)).unwrap_or_default(),
    })
}

fn parse_address(answer: &[u8]) -> Option<(u32, IpNet)> {
    let rest = answer.get(8..)?;
    let address =
        attribute(rest, libc::IFA_LOCAL).or_else(|| attribute(rest, libc::IFA_ADDRESS))?;
    Some((number(answer.get(4..8))?, IpNet::new(parse_ip(address)?, *answer.get(1)?).ok()?))
}

fn parse_route(answer: &[u8]) -> Option<Route> {
    let (family, prefix) = (*answer.first()?, *answer.get(1)?);
    let rest = answer.get(12..)?;
    let destination = match attribute(rest, libc::RTA_DST) {
        Some(bytes) => parse_ip(bytes)?,
        None if family == V4 => Ipv4Addr::UNSPECIFIED.into(),
        None => Ipv6Addr::UNSPECIFIED.into(),
    };
    let gateway = attribute(rest, libc::RTA_GATEWAY);
    let via = gateway.or_else(|| attribute(rest, RTA_VIA).and_then(|bytes| bytes.get(2..)));
    let metrics = attribute(rest, libc::RTA_METRICS).unwrap_or_default();
    Some(Route {
        table: number(attribute(rest, libc::RTA_TABLE)).unwrap_or(u32::from(*answer.get(4)?)),
        net: IpNet::new(destination, prefix).ok()?,
        kind: *answer.get(7)?,
        protocol: *answer.get(5)?,
        link: number(attribute(rest, libc::RTA_OIF)).unwrap_or_default(),
        via: via.and_then(parse_ip),
        source: attribute(rest, libc::RTA_PREFSRC).and_then(parse_ip),
        mtu: number(attribute(metrics, RTAX_MTU)).unwrap_or_default(),
    })
}

fn parse_neighbour(answer: &[u8]) -> Option<Neighbour> {
    let state = u16::from_ne_bytes(*answer.get(8..10)?.first_chunk()?);
    if state & libc::NUD_PERMANENT == 0 {
        return None;
    }
    let rest = answer.get(12..)?;
    Some(Neighbour {
        link: number(answer.get(4..8))?,
        address: parse_ip(attribute(rest, libc::NDA_DST)?)?,
        hardware: *attribute(rest, libc::NDA_LLADDR)?.first_chunk()?,
    })
}

fn parse_forwarding(answer: &[u8]) -> Option<(u32, Hardware, IpAddr)> {
    let rest = answer.get(12..)?;
    let hardware = *attribute(rest, libc::NDA_LLADDR)?.first_chunk()?;
    let at = parse_ip(attribute(rest, libc::NDA_DST)?)?;
    Some((number(answer.get(4..8))?, hardware, at))
}

fn parse_rule(answer: &[u8]) -> Option<(u32, u32, u32)> {
    let rest = answer.get(12..)?;
    let part = |kind| number(attribute(rest, kind));
    Some((part(FRA_FWMARK)?, part(FRA_FWMASK)?, part(FRA_TABLE)?))
}

pub(crate) fn number(bytes: Option<&[u8]>) -> Option<u32> {
    bytes?.first_chunk().copied().map(u32::from_ne_bytes)
}

pub(crate) fn parse_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| IpAddr::from(*b)),
        16 => bytes.first_chunk::<16>().map(|b| IpAddr::from(*b)),
        _ => None,
    }
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(crate) fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { V4 } else { V6 }
}

pub(crate) const V4: u8 = libc::AF_INET as u8;
pub(crate) const V6: u8 = libc::AF_INET6 as u8;

/// Everything of ours in a namespace says that it was set by an administrator.
pub(crate) const PROTOCOL: u8 = libc::RTPROT_STATIC;

/// Removing what is not there is no error.
pub(crate) const ABSENT: &[i32] =
    &[libc::ENODEV, libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL, libc::EINVAL];

/// No way leads to an address.
const UNROUTED: &[i32] = &[libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES];

/// Making what is there is no error.
pub(crate) const PRESENT: &[i32] = &[libc::EEXIST];

/// A packet stays far below the send buffer.
const MESSAGES_PER_PACKET: usize = 10_000;

const SCOPE_ANY: u8 = libc::RT_SCOPE_NOWHERE;
const WITHOUT_COUNTS: u32 = 1 << 3;
const IFLA_GROUP: u16 = 27;
const VXLAN_ID: u16 = 1;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
const VXLAN_UDP_CSUM: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const INET6_ADDR_GEN_MODE: u16 = 8;
const GENERATE_NONE: u8 = 1;
const INET_CONF: u16 = 1;
const CONF_RP_FILTER: u16 = 8;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const RTA_NH_ID: u16 = 30;
pub(crate) const RTNH_F_ONLINK: u32 = 4;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
pub(crate) const FR_ACT_TO_TABLE: u8 = 1;
pub(crate) const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
pub(crate) const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;

/// Before the main table's.
const RULE_PRIORITY: u32 = 100;
