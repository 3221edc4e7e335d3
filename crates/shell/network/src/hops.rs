//! Next hops that very many routes share.
//!
//! Owns: their objects in the kernel, which spare it to look at the same hop with each route.
//! Does not know: who is behind a hop.
//! Invariant: a route by such an object is listed, compared and removed as any other one; where
//! there is no such object, routes name link and hop themselves.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use crate::netlink::{CREATE, EXCLUSIVE, Message, attribute};
use crate::route::{PROTOCOL, RTNH_F_ONLINK, RouteSocket, family_of, number, octets, parse_ip};

/// The objects by link and address.
#[derive(Debug, Default)]
pub(crate) struct Hops(BTreeMap<(u32, IpAddr), u32>);

impl Hops {
    /// Fewer do not pay for the object.
    pub(crate) const ROUTES_MIN: usize = 64;

    pub(crate) fn of(&self, link: u32, via: IpAddr) -> Option<u32> {
        self.0.get(&(link, via)).copied()
    }

    /// Makes those by which `least` of these routes go or more.
    pub(crate) fn prepare(
        &mut self,
        socket: &mut RouteSocket,
        routes: impl Iterator<Item = (u32, IpAddr)>,
        least: usize,
    ) -> io::Result<()> {
        let mut counts: BTreeMap<(u32, IpAddr), usize> = BTreeMap::new();
        for hop in routes {
            *counts.entry(hop).or_default() += 1;
        }
        counts.retain(|hop, count| *count >= least && !self.0.contains_key(hop));
        for (link, via) in counts.into_keys() {
            let id = id_of(via);
            let made = match socket.request(add(id, link, via)) {
                Ok(()) => true,
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    find(socket, id)? == Some((link, via))
                }
                // Before Linux 5.3 there are none.
                Err(_) => false,
            };
            if made {
                self.0.insert((link, via), id);
            }
        }
        Ok(())
    }
}

/// Our namespaces have one link by whose addresses others are reached; of those each node has one.
fn id_of(via: IpAddr) -> u32 {
    let bits = match via {
        IpAddr::V4(via) => via.to_bits(),
        IpAddr::V6(via) => via.to_bits() as u32,
    };
    bits.max(1)
}

fn add(id: u32, link: u32, via: IpAddr) -> Message {
    Message::new(RTM_NEWNEXTHOP, CREATE | EXCLUSIVE, &header(family_of(via), RTNH_F_ONLINK))
        .number(NHA_ID, id)
        .number(NHA_OIF, link)
        .bytes(NHA_GATEWAY, &octets(via))
}

fn find(socket: &mut RouteSocket, id: u32) -> io::Result<Option<(u32, IpAddr)>> {
    let message = Message::new(RTM_GETNEXTHOP, 0, &header(0, 0)).number(NHA_ID, id);
    let answer = match socket.0.ask(message) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        answer => answer?,
    };
    let rest = answer.get(HEADER_BYTES..).unwrap_or_default();
    let link = number(attribute(rest, NHA_OIF));
    Ok(link.zip(attribute(rest, NHA_GATEWAY).and_then(parse_ip)))
}

fn header(family: u8, flags: u32) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = flags.to_ne_bytes();
    let protocol = if family == 0 { 0 } else { PROTOCOL };
    [family, 0, protocol, 0, a, b, c, d]
}

const HEADER_BYTES: usize = 8;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
