//! Cuts a super-packet, as a TUN device hands it out, into packets of the path's size.
//!
//! Owns: TCP and UDP segmentation, plain or inside VXLAN, and checksums left to be done.
//! Does not know: devices, peers, encryption.
//! Invariant: nothing of the virtio header is believed: every offset is checked against the packet
//! before anything is written, and what does not agree is refused whole.

use crate::checksum;
use crate::header::{
    GSO_ECN, GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_TUNNEL4, GSO_TUNNEL6, GSO_UDP, NEEDS_CHECKSUM,
    OffloadHeader,
};

/// The header and the packet do not agree, or name what is not done here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the super-packet and its header do not agree")]
pub struct Malformed;

/// Calls `each` with every packet, in order; answers how many there were.
///
/// Segments are made in place: the headers of one are written over the end of the one before, which
/// `each` has seen by then. So the packet is used up, and `each` keeps nothing.
pub fn split(
    header: &OffloadHeader,
    packet: &mut [u8],
    mut each: impl FnMut(&[u8]),
) -> Result<usize, Malformed> {
    let kind = header.gso_type & !(GSO_ECN | GSO_TUNNEL4 | GSO_TUNNEL6);
    if kind == GSO_NONE {
        finish_checksum(header, packet)?;
        each(packet);
        return Ok(1);
    }
    let layout = Layout::of(header, kind, packet)?;
    let size = usize::from(header.gso_size);
    let payload = packet.len() - layout.length;
    let count = payload.div_ceil(size).max(1);
    if count > SEGMENTS_MAX {
        return Err(Malformed);
    }
    let mut template = [0; HEADERS_MAX];
    let template = &mut template[..layout.length];
    template.copy_from_slice(&packet[..layout.length]);
    for number in 0..count {
        let begin = number * size;
        let end = packet.len().min(layout.length + begin + size);
        let segment = &mut packet[begin..end];
        segment[..layout.length].copy_from_slice(template);
        layout.fix(segment, number, begin, number + 1 == count);
        each(segment);
    }
    Ok(count)
}

/// A checksum that the kernel left to whoever sends the packet.
fn finish_checksum(header: &OffloadHeader, packet: &mut [u8]) -> Result<(), Malformed> {
    if packet.is_empty() {
        return Err(Malformed);
    }
    if header.flags & NEEDS_CHECKSUM == 0 {
        return Ok(());
    }
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    if at + 2 > packet.len() {
        return Err(Malformed);
    }
    // The field holds the pseudo header's sum and is part of what is summed.
    let total = checksum::sum(&packet[start..]);
    let udp = usize::from(header.checksum_offset) == UDP_CHECKSUM;
    let field = if udp { checksum::udp_field(total) } else { checksum::field(total) };
    packet[at..at + 2].copy_from_slice(&field);
    Ok(())
}

/// Where everything is.
#[derive(Debug, Clone, Copy)]
struct Layout {
    protocol: u8,
    /// Outer UDP header, for a packet in a tunnel.
    outer: Option<usize>,
    /// The IP header of the segments' own packet.
    network: usize,
    v6: bool,
    transport: usize,
    /// All headers together.
    length: usize,
}

impl Layout {
    fn of(header: &OffloadHeader, kind: u8, packet: &[u8]) -> Result<Self, Malformed> {
        if header.flags & NEEDS_CHECKSUM == 0 || header.gso_size == 0 {
            return Err(Malformed);
        }
        let transport = usize::from(header.checksum_start);
        let (protocol, field) = match kind {
            GSO_TCP4 | GSO_TCP6 => (TCP, TCP_CHECKSUM),
            GSO_UDP => (UDP, UDP_CHECKSUM),
            _ => return Err(Malformed),
        };
        if usize::from(header.checksum_offset) != field {
            return Err(Malformed);
        }
        let (outer, network) = Self::tunnel(header, packet)?;
        let v6 = Self::inner(packet, network, transport, protocol)?;
        if (kind == GSO_TCP4 && v6) || (kind == GSO_TCP6 && !v6) {
            return Err(Malformed);
        }
        let of_transport = match protocol {
            TCP => usize::from(packet.get(transport + 12).ok_or(Malformed)? >> 4) * 4,
            _ => UDP_HEADER,
        };
        let length = transport + of_transport;
        let short = protocol == TCP && of_transport < TCP_HEADER;
        if short || length > packet.len() || length > HEADERS_MAX {
            return Err(Malformed);
        }
        Ok(Self { protocol, outer, network, v6, transport, length })
    }

    /// Outer UDP header and inner IP header of a packet in a tunnel over IPv4.
    fn tunnel(header: &OffloadHeader, packet: &[u8]) -> Result<(Option<usize>, usize), Malformed> {
        match header.gso_type & (GSO_TUNNEL4 | GSO_TUNNEL6) {
            0 => Ok((None, 0)),
            GSO_TUNNEL4 => {
                let outer = usize::from(header.outer_transport);
                let network = usize::from(header.inner_network);
                Self::inner(packet, 0, outer, UDP)?;
                if Self::is_v6(packet, 0)? || network < outer + UDP_HEADER {
                    return Err(Malformed);
                }
                Ok((Some(outer), network))
            }
            // Addresses inside the tunnel are IPv4.
            _ => Err(Malformed),
        }
    }

    /// Checks that an IP header begins at `network` and ends at `transport`; answers whether it is
    /// of version 6.
    fn inner(
        packet: &[u8],
        network: usize,
        transport: usize,
        protocol: u8,
    ) -> Result<bool, Malformed> {
        let v6 = Self::is_v6(packet, network)?;
        let ip = packet.get(network..transport).ok_or(Malformed)?;
        let good = if v6 {
            ip.len() >= IP6_HEADER
        } else {
            let length = usize::from(packet[network] & 0xf) * 4;
            length >= IP4_HEADER && length == ip.len() && ip[9] == protocol
        };
        if good { Ok(v6) } else { Err(Malformed) }
    }

    fn is_v6(packet: &[u8], network: usize) -> Result<bool, Malformed> {
        match packet.get(network).ok_or(Malformed)? >> 4 {
            4 => Ok(false),
            6 => Ok(true),
            _ => Err(Malformed),
        }
    }

    /// Makes copied headers those of segment `number`, whose payload begins at `offset`.
    fn fix(&self, segment: &mut [u8], number: usize, offset: usize, last: bool) {
        let number = number as u16;
        if let Some(outer) = self.outer {
            fix_ip4(&mut segment[..outer], number, 0);
            let length = segment.len();
            fix_ip4_length(&mut segment[..outer], length);
            // None is needed over IPv4; the tunnel's authentication covers it.
            put(segment, outer + 4, (length - outer) as u16);
            put(segment, outer + UDP_CHECKSUM, 0);
        }
        let after = segment.len() - self.network;
        if self.v6 {
            put(segment, self.network + 4, (after - IP6_HEADER) as u16);
        } else {
            fix_ip4(&mut segment[self.network..self.transport], number, after);
        }
        self.fix_transport(segment, number, offset, last);
    }

    fn fix_transport(&self, segment: &mut [u8], number: u16, offset: usize, last: bool) {
        let addresses = if self.v6 { 8..IP6_HEADER } else { 12..IP4_HEADER };
        let addresses = self.network + addresses.start..self.network + addresses.end;
        let length = segment.len() - self.transport;
        let pseudo = checksum::pseudo(&segment[addresses], self.protocol, length);
        let l4 = &mut segment[self.transport..];
        if self.protocol == TCP {
            let first = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
            l4[4..8].copy_from_slice(&first.wrapping_add(offset as u32).to_be_bytes());
            if !last {
                l4[13] &= !(TCP_FIN | TCP_PSH);
            }
            if number > 0 {
                l4[13] &= !TCP_CWR;
            }
            put(l4, TCP_CHECKSUM, 0);
            let field = checksum::field(pseudo + checksum::sum(l4));
            l4[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&field);
        } else {
            put(l4, 4, length as u16);
            put(l4, UDP_CHECKSUM, 0);
            let field = checksum::udp_field(pseudo + checksum::sum(l4));
            l4[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&field);
        }
    }
}

/// The identification counts on, and the checksum follows; a length of 0 is filled in later.
fn fix_ip4(ip: &mut [u8], number: u16, length: usize) {
    let first = u16::from_be_bytes([ip[4], ip[5]]);
    put(ip, 4, first.wrapping_add(number));
    fix_ip4_length(ip, length);
}

pub(crate) fn fix_ip4_length(ip: &mut [u8], length: usize) {
    put(ip, 2, length as u16);
    put(ip, 10, 0);
    let field = checksum::field(checksum::sum(ip));
    ip[10..12].copy_from_slice(&field);
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const TCP_HEADER: usize = 20;
pub(crate) const UDP_HEADER: usize = 8;
pub(crate) const IP4_HEADER: usize = 20;
pub(crate) const IP6_HEADER: usize = 40;
/// All headers of VXLAN: IPv4, UDP, its own, Ethernet.
pub(crate) const VXLAN: usize = IP4_HEADER + UDP_HEADER + 8 + 14;
pub(crate) const TCP_CHECKSUM: usize = 16;
pub(crate) const UDP_CHECKSUM: usize = 6;
pub(crate) const TCP_FIN: u8 = 0x01;
pub(crate) const TCP_PSH: u8 = 0x08;
pub(crate) const TCP_ACK: u8 = 0x10;
pub(crate) const TCP_CWR: u8 = 0x80;

/// Two IP headers of the longest form, UDP, VXLAN, Ethernet with a tag, and the longest TCP header.
const HEADERS_MAX: usize = 60 + 8 + 8 + 18 + 60 + 60;
/// 65,535 bytes at 32 a segment: no kernel makes smaller ones, and one packet is no flood.
const SEGMENTS_MAX: usize = 2048;
