//! Connections that the kernel tracks in a namespace: those to one address.
//!
//! Owns: the messages that list and delete them.
//! Does not know: whose the address is.
//! Invariant: a TCP connection is never deleted: it ends by itself, or with its limit.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use crate::netlink::{Message, Socket, attribute};
use crate::route::{family_of, octets, parse_ip};

/// One tracked connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    /// Where answers come from: the address that it was led to.
    pub(crate) server: IpAddr,
    /// Of TCP, as the kernel numbers them.
    pub(crate) state: Option<u8>,
    /// Seconds until it is forgotten.
    pub(crate) seconds: u32,
    /// Its first direction, as the kernel says it.
    original: Vec<u8>,
    zone: Option<Vec<u8>>,
}

impl Connection {
    /// Somebody may still send on it.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.state, Some(LAST_ACK | TIME_WAIT | CLOSE) | None)
    }
}

/// Whether nothing at all is tracked here: cheap, while every listing walks the whole table.
pub(crate) fn is_empty(socket: &mut Socket) -> io::Result<bool> {
    let answer = socket.ask(message(GET_STATISTICS, 0))?;
    let entries = answer.get(4..).and_then(|rest| attribute(rest, GLOBAL_ENTRIES));
    Ok(entries.is_some_and(|entries| entries == [0; 4]))
}

/// TCP connections that were led to the addresses.
pub(crate) fn tcp_to(
    socket: &mut Socket,
    addresses: &BTreeSet<IpAddr>,
) -> io::Result<Vec<Connection>> {
    led_to(socket, TCP, addresses)
}

/// Forgets UDP flows that were led to these addresses: their next datagram is a new flow's. They
/// are listed and then deleted one by one: kernels before 6.9 delete nothing by a filter.
pub(crate) fn forget_udp(socket: &mut Socket, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
    for flow in led_to(socket, UDP, addresses)? {
        let one = message(DELETE, family_of(flow.server))
            .nested(TUPLE_ORIGINAL, |tuple| tuple.raw(&flow.original));
        absent_is_fine(socket.request(match &flow.zone {
            Some(zone) => one.bytes(ZONE, zone),
            None => one,
        }))?;
    }
    Ok(())
}

fn led_to(
    socket: &mut Socket,
    protocol: u8,
    addresses: &BTreeSet<IpAddr>,
) -> io::Result<Vec<Connection>> {
    let mut answers = Vec::new();
    if addresses.len() <= FILTERED_MAX {
        for address in addresses {
            let message = message(GET, family_of(*address));
            answers.extend(socket.dump(filtered(message, protocol, Some(*address)))?);
        }
    } else {
        let families: BTreeSet<u8> = addresses.iter().map(|address| family_of(*address)).collect();
        for family in families {
            answers.extend(socket.dump(filtered(message(GET, family), protocol, None))?);
        }
    }
    let all = answers.iter().filter_map(|answer| parse(answer));
    Ok(all.filter(|connection| addresses.contains(&connection.server)).collect())
}

/// About connections of one protocol, and to one address.
fn filtered(message: Message, protocol: u8, address: Option<IpAddr>) -> Message {
    let flags = if address.is_some() { BY_SOURCE | BY_PROTOCOL } else { BY_PROTOCOL };
    let message = message.nested(TUPLE_REPLY, |tuple| {
        let tuple = match address {
            Some(address) => {
                let kind = if address.is_ipv4() { SOURCE_V4 } else { SOURCE_V6 };
                tuple.nested(TUPLE_IP, |ip| ip.bytes(kind, &octets(address)))
            }
            None => tuple,
        };
        tuple.nested(TUPLE_PROTOCOL, |data| data.bytes(1, &[protocol]))
    });
    message.nested(FILTER, |filter| {
        filter.bytes(FILTER_ORIGINAL, &0u32.to_ne_bytes()).bytes(FILTER_REPLY, &flags.to_ne_bytes())
    })
}

/// The version says that the family is meant.
fn message(kind: u16, family: u8) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, 0, &[family, 1, 0, 0])
}

fn parse(answer: &[u8]) -> Option<Connection> {
    let rest = answer.get(4..)?;
    let ip = attribute(attribute(rest, TUPLE_REPLY)?, TUPLE_IP)?;
    let server = attribute(ip, SOURCE_V4).or_else(|| attribute(ip, SOURCE_V6))?;
    let tcp = attribute(rest, PROTOCOL_INFO).and_then(|info| attribute(info, 1));
    let seconds = attribute(rest, TIME_OUT).and_then(|bytes| bytes.first_chunk().copied());
    Some(Connection {
        server: parse_ip(server)?,
        state: tcp.and_then(|tcp| attribute(tcp, 1)).and_then(|bytes| bytes.first().copied()),
        seconds: seconds.map_or(0, u32::from_be_bytes),
        original: attribute(rest, TUPLE_ORIGINAL)?.to_vec(),
        zone: attribute(rest, ZONE).map(<[u8]>::to_vec),
    })
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// One filtered listing looks at the whole table; beyond so many one of all flows is cheaper.
const FILTERED_MAX: usize = 8;

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const GET_STATISTICS: u16 = 5;
const GLOBAL_ENTRIES: u16 = 1;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const PROTOCOL_INFO: u16 = 4;
const TIME_OUT: u16 = 7;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const SOURCE_V4: u16 = 1;
const SOURCE_V6: u16 = 3;
const BY_SOURCE: u32 = 1;
const BY_PROTOCOL: u32 = 1 << 3;
const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;
const LAST_ACK: u8 = 6;
const TIME_WAIT: u8 = 7;
const CLOSE: u8 = 8;
