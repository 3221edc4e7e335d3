//! What can be joined: TCP and UDP without IP options, extension headers or fragments, and TCP
//! inside VXLAN over IPv4 without a checksum of the outside.
//!
//! Owns: reading headers of one packet. Does not know: other packets.
//! Invariant: of a packet that is accepted, every offset lies inside it, and every length that it
//! names is its true one.

use crate::checksum;
use crate::split::{
    IP4_HEADER, IP6_HEADER, TCP, TCP_ACK, TCP_CHECKSUM, TCP_FIN, TCP_HEADER, TCP_PSH, UDP,
    UDP_CHECKSUM, UDP_HEADER, VXLAN,
};

/// Where things are in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// Where the IP header is whose payload is meant: 0, or behind the headers of VXLAN.
    pub(crate) base: usize,
    pub(crate) v6: bool,
    pub(crate) protocol: u8,
    /// All headers together.
    pub(crate) length: usize,
    pub(crate) payload: usize,
}

impl Parsed {
    /// Looks into VXLAN where `inside` says so.
    pub(crate) fn of(packet: &[u8], inside: bool) -> Option<Self> {
        let outer = Self::plain(packet)?;
        let inner = if inside && outer.is_vxlan(packet) {
            Self::plain(&packet[VXLAN..]).filter(|inner| inner.is_inside(packet))
        } else {
            None
        };
        Some(inner.map_or(outer, |inner| Self {
            base: VXLAN,
            length: VXLAN + inner.length,
            ..inner
        }))
    }

    fn plain(packet: &[u8]) -> Option<Self> {
        let (v6, protocol) = match packet.first()? >> 4 {
            4 => (false, ip4_protocol(packet)?),
            6 => (true, ip6_protocol(packet)?),
            _ => return None,
        };
        let transport = if v6 { IP6_HEADER } else { IP4_HEADER };
        let l4 = &packet[transport..];
        let header = match protocol {
            TCP if l4.len() >= TCP_HEADER => usize::from(l4[12] >> 4) * 4,
            UDP if l4.len() >= UDP_HEADER && word(l4, 4) == l4.len() => UDP_HEADER,
            _ => return None,
        };
        if (protocol == TCP && header < TCP_HEADER) || header > l4.len() {
            return None;
        }
        let length = transport + header;
        Some(Self { base: 0, v6, protocol, length, payload: packet.len() - length })
    }

    /// Of the outside.
    fn is_vxlan(&self, packet: &[u8]) -> bool {
        !self.v6
            && self.protocol == UDP
            && self.payload > VXLAN - self.length
            && word(packet, IP4_HEADER + 2) == VXLAN_PORT
            && !self.has_checksum(packet)
            && packet[28] == VXLAN_FLAGS
    }

    /// Whether the link header of the inside names what it is.
    fn is_inside(&self, packet: &[u8]) -> bool {
        self.protocol == TCP && word(packet, VXLAN - 2) == if self.v6 { ETH_IP6 } else { ETH_IP4 }
    }

    pub(crate) fn transport(&self) -> usize {
        self.base + if self.v6 { IP6_HEADER } else { IP4_HEADER }
    }

    fn addresses(&self) -> std::ops::Range<usize> {
        let (begin, end) = if self.v6 { (8, IP6_HEADER) } else { (12, IP4_HEADER) };
        self.base + begin..self.base + end
    }

    /// Where the field is, in the packet.
    pub(crate) fn checksum_at(&self) -> usize {
        self.transport() + if self.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM }
    }

    /// The pseudo header's sum for a packet whose part after the IP header is so long.
    pub(crate) fn pseudo(&self, headers: &[u8], length: usize) -> u64 {
        checksum::pseudo(&headers[self.addresses()], self.protocol, length)
    }

    /// Same protocol, addresses and ports; or one inside VXLAN, and one of which it is not known
    /// what is inside, but in the same VXLAN.
    pub(crate) fn is_same_flow(&self, headers: &[u8], other: &Self, others: &[u8]) -> bool {
        // Addresses and ports of the outside, which is IPv4.
        let outside = || headers[12..IP4_HEADER + 4] == others[12..IP4_HEADER + 4];
        if self.base != other.base {
            let plain = if self.base == 0 { self } else { other };
            return !plain.v6 && plain.protocol == UDP && outside();
        }
        let at = self.transport();
        self.v6 == other.v6
            && self.protocol == other.protocol
            && headers[self.addresses()] == others[self.addresses()]
            && headers[at..at + 4] == others[at..at + 4]
            && (self.base == 0 || outside())
    }

    /// Whether more may follow: payload, and nothing that ends or begins a connection.
    pub(crate) fn is_first(&self, headers: &[u8]) -> bool {
        self.payload > 0
            && (self.protocol == UDP || {
                let flags = self.flags(headers);
                flags & (TCP_SYN | TCP_RST | TCP_URG | TCP_ACK) == TCP_ACK
                    && flags & (TCP_FIN | TCP_PSH) == 0
            })
    }

    /// Flags of TCP; none for UDP.
    pub(crate) fn flags(&self, headers: &[u8]) -> u8 {
        if self.protocol == TCP { headers[self.transport() + 13] } else { 0 }
    }

    /// Sequence number of TCP; none for UDP.
    pub(crate) fn sequence(&self, headers: &[u8]) -> u32 {
        if self.protocol != TCP {
            return 0;
        }
        let at = self.transport() + 4;
        u32::from_be_bytes([headers[at], headers[at + 1], headers[at + 2], headers[at + 3]])
    }

    /// UDP over IPv4 may go without a checksum.
    pub(crate) fn has_checksum(&self, headers: &[u8]) -> bool {
        self.v6 || self.protocol == TCP || word(headers, self.checksum_at()) != 0
    }

    /// Whether the sums of the whole packet hold.
    pub(crate) fn is_intact(&self, packet: &[u8]) -> bool {
        let (headers, l4) = packet.split_at(self.transport());
        let sound = |begin: usize| checksum::holds(0, &packet[begin..begin + IP4_HEADER]);
        (self.base == 0 || sound(0))
            && (self.v6 || sound(self.base))
            && (!self.has_checksum(packet) || checksum::holds(self.pseudo(headers, l4.len()), l4))
    }
}

fn ip4_protocol(packet: &[u8]) -> Option<u8> {
    let whole = packet.len() >= IP4_HEADER && packet[0] == 0x45 && word(packet, 2) == packet.len();
    let fragment = whole && word(packet, 6) & 0x3fff != 0;
    (whole && !fragment).then(|| packet[9])
}

fn ip6_protocol(packet: &[u8]) -> Option<u8> {
    let whole = packet.len() >= IP6_HEADER && word(packet, 4) + IP6_HEADER == packet.len();
    whole.then(|| packet[6])
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

const VXLAN_PORT: usize = 4789;
/// With an identifier, and nothing else.
const VXLAN_FLAGS: u8 = 0x08;
const ETH_IP4: usize = 0x0800;
const ETH_IP6: usize = 0x86dd;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_URG: u8 = 0x20;
