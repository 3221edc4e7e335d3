//! Links, addresses, routes and neighbours.
//!
//! Owns: the messages for the few of them that a task's network needs.
//! Does not know: which tasks there are.
//! Invariant: making what is there, and removing what is not, is no error.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use ipnet::Ipv4Net;

use crate::netlink::{CREATE, EXCLUSIVE, Message, REPLACE, Socket, attribute};

/// A link as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Free text that we set; empty when there is none.
    pub(crate) alias: String,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Ipv4Net,
    pub(crate) link: u32,
}

/// Routing messages in one network namespace.
#[derive(Debug)]
pub(crate) struct RouteSocket(Socket);

impl RouteSocket {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Socket::open(libc::NETLINK_ROUTE)?))
    }

    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.0.dump(Message::new(libc::RTM_GETLINK, 0, &link_header(0, 0)))?;
        Ok(answers.iter().filter_map(|answer| parse_link(answer)).collect())
    }

    /// IPv4 routes of all tables, also those to local addresses.
    pub(crate) fn routes(&mut self) -> io::Result<Vec<Route>> {
        let message = Message::new(libc::RTM_GETROUTE, 0, &route_header(0, 0, 0, 0));
        let answers = self.0.dump(message)?;
        Ok(answers.iter().filter_map(|answer| parse_route(answer)).collect())
    }

    /// Makes a pair: `name` here, `eth0` in `namespace`.
    pub(crate) fn add_pair(
        &mut self,
        name: &str,
        address: [u8; 6],
        namespace: &OwnedFd,
    ) -> io::Result<()> {
        let fd = namespace.as_raw_fd() as u32;
        let peer = |message: Message| {
            message
                .raw(&link_header(0, 0))
                .text(libc::IFLA_IFNAME, TASK_LINK)
                .number(libc::IFLA_NET_NS_FD, fd)
        };
        let message = Message::new(libc::RTM_NEWLINK, CREATE | EXCLUSIVE, &link_header(0, 0))
            .text(libc::IFLA_IFNAME, name)
            .bytes(libc::IFLA_ADDRESS, &address)
            .nested(libc::IFLA_LINKINFO, |info| {
                info.text(libc::IFLA_INFO_KIND, "veth")
                    .nested(libc::IFLA_INFO_DATA, |data| data.nested(VETH_INFO_PEER, peer))
            });
        self.0.request(message)
    }

    /// Sets the alias and brings the link up.
    pub(crate) fn dress(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let header = link_header(index, libc::IFF_UP as u32);
        self.0.request(Message::new(libc::RTM_NEWLINK, 0, &header).text(libc::IFLA_IFALIAS, alias))
    }

    pub(crate) fn set_up(&mut self, index: u32) -> io::Result<()> {
        let header = link_header(index, libc::IFF_UP as u32);
        self.0.request(Message::new(libc::RTM_NEWLINK, 0, &header))
    }

    pub(crate) fn delete_link(&mut self, index: u32) -> io::Result<()> {
        absent_is_fine(self.0.request(Message::new(libc::RTM_DELLINK, 0, &link_header(index, 0))))
    }

    /// Removes many in about the time of one. The links are moved into `group`, which nobody else
    /// uses, and that is removed as a whole.
    pub(crate) fn delete_links(&mut self, links: &[u32], group: u32) -> io::Result<()> {
        let number = IFLA_GROUP;
        for link in links {
            let message = Message::new(libc::RTM_NEWLINK, 0, &link_header(*link, 0));
            absent_is_fine(self.0.request(message.number(number, group)))?;
        }
        let message = Message::new(libc::RTM_DELLINK, 0, &link_header(0, 0));
        absent_is_fine(self.0.request(message.number(number, group)))
    }

    pub(crate) fn add_address(&mut self, link: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut header = [libc::AF_INET as u8, 32, 0, libc::RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&link.to_ne_bytes());
        let message = Message::new(libc::RTM_NEWADDR, CREATE | REPLACE, &header)
            .bytes(libc::IFA_LOCAL, &address.octets())
            .bytes(libc::IFA_ADDRESS, &address.octets());
        self.0.request(message)
    }

    /// `address` is reached directly through `link`.
    pub(crate) fn add_host_route(&mut self, link: u32, address: Ipv4Addr) -> io::Result<()> {
        let header = route_header(32, libc::RT_SCOPE_LINK, libc::RTN_UNICAST, libc::RTPROT_STATIC);
        let message = Message::new(libc::RTM_NEWROUTE, CREATE | REPLACE, &header)
            .bytes(libc::RTA_DST, &address.octets())
            .number(libc::RTA_OIF, link);
        self.0.request(message)
    }

    /// Everything else goes through `gateway`.
    pub(crate) fn add_default_route(&mut self, link: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let scope = libc::RT_SCOPE_UNIVERSE;
        let header = route_header(0, scope, libc::RTN_UNICAST, libc::RTPROT_STATIC);
        let message = Message::new(libc::RTM_NEWROUTE, CREATE | REPLACE, &header)
            .bytes(libc::RTA_GATEWAY, &gateway.octets())
            .number(libc::RTA_OIF, link);
        self.0.request(message)
    }

    /// `address` has this hardware address, for ever: nobody is asked.
    pub(crate) fn add_neighbour(
        &mut self,
        link: u32,
        address: Ipv4Addr,
        hardware: [u8; 6],
    ) -> io::Result<()> {
        let mut header = [0u8; 12];
        header[0] = libc::AF_INET as u8;
        header[4..8].copy_from_slice(&link.to_ne_bytes());
        header[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
        let message = Message::new(libc::RTM_NEWNEIGH, CREATE | REPLACE, &header)
            .bytes(libc::NDA_DST, &address.octets())
            .bytes(libc::NDA_LLADDR, &hardware);
        self.0.request(message)
    }
}

/// `ifinfomsg`; `flags` are both set and named in the change mask.
fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// `rtmsg` of the main table.
fn route_header(prefix: u8, scope: u8, kind: u8, protocol: u8) -> [u8; 12] {
    let family = libc::AF_INET as u8;
    // A dump names no table: the kernel would filter by it.
    let table = if kind == 0 { libc::RT_TABLE_UNSPEC } else { libc::RT_TABLE_MAIN };
    [family, prefix, 0, 0, table, protocol, scope, kind, 0, 0, 0, 0]
}

fn parse_link(answer: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(*answer.get(4..8)?.first_chunk()?);
    let rest = answer.get(16..)?;
    let text = |kind| {
        let bytes = attribute(rest, kind).unwrap_or_default();
        String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned()
    };
    Some(Link { index, name: text(libc::IFLA_IFNAME), alias: text(libc::IFLA_IFALIAS) })
}

fn parse_route(answer: &[u8]) -> Option<Route> {
    let prefix = *answer.get(1)?;
    let rest = answer.get(12..)?;
    let address = match attribute(rest, libc::RTA_DST) {
        Some(bytes) => Ipv4Addr::from(*bytes.first_chunk::<4>()?),
        None => Ipv4Addr::UNSPECIFIED,
    };
    let link = attribute(rest, libc::RTA_OIF)
        .and_then(|bytes| bytes.first_chunk().copied())
        .map_or(0, u32::from_ne_bytes);
    Some(Route { destination: Ipv4Net::new(address, prefix).ok()?, link })
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Name of the link inside a task.
pub(crate) const TASK_LINK: &str = "eth0";

const IFLA_GROUP: u16 = 27;
const VETH_INFO_PEER: u16 = 1;
