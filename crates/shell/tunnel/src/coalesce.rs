//! Joins packets of one flow into a super-packet for a TUN device.
//!
//! Owns: up to eight flows that are being joined. Does not know: devices, peers, encryption.
//! Invariant: packets of one flow leave in the order in which they came; a packet joins only when
//! its checksum holds, so that a corrupt one is never given a good sum.
//!
//! A packet is decrypted where it will stay if it continues the flow that was last added to: behind
//! that flow's payload, its headers over the payload's last bytes, which are put back afterwards.

use crate::checksum;
use crate::header::{
    GSO_ECN, GSO_TCP4, GSO_TCP6, GSO_TUNNEL4, GSO_UDP, NEEDS_CHECKSUM, OffloadHeader,
};
use crate::parse::Parsed;
use crate::split::{
    IP4_HEADER, IP6_HEADER, TCP, TCP_CWR, TCP_FIN, TCP_PSH, UDP, VXLAN, fix_ip4_length, put,
};
use crate::tun::Offload;

/// Joins packets; frames go to the function that is given along, each with its virtio header.
#[derive(Debug)]
pub struct Coalescer {
    /// Bytes of the virtio header.
    header: usize,
    /// What the device takes joined.
    offload: Offload,
    slots: Vec<Slot>,
    /// The one last added to.
    current: usize,
    /// The one to give up when all are taken.
    oldest: usize,
    /// A frame that is in no slot.
    scratch: Vec<u8>,
}

/// A super-packet in the making, or an empty place for one.
#[derive(Debug)]
struct Slot {
    /// Virtio header, packet, and room for one more packet.
    buffer: Vec<u8>,
    /// The first packet; `None` when the slot is empty.
    first: Option<Parsed>,
    /// The first packet's headers.
    headers: [u8; HEADERS_MAX],
    /// End of the packet in the buffer.
    tail: usize,
    count: usize,
    next_sequence: u32,
    /// FIN and PSH of the last packet.
    closing: u8,
}

impl Coalescer {
    /// For a device that takes so much.
    #[must_use]
    pub fn new(offload: Offload) -> Self {
        let header = offload.header_size();
        let slot = || Slot {
            buffer: vec![0; header + PACKET_MAX + ROOM_MAX],
            first: None,
            headers: [0; HEADERS_MAX],
            tail: header,
            count: 0,
            next_sequence: 0,
            closing: 0,
        };
        Self {
            header,
            offload,
            slots: (0..SLOTS).map(|_| slot()).collect(),
            current: 0,
            oldest: 0,
            scratch: vec![0; header + ROOM_MAX],
        }
    }

    /// Takes one packet in: `open` writes it to the beginning of the bytes that it is given, as
    /// many as `room` says, and answers its length; `None` when there is none after all.
    ///
    /// A room of more than 64 KiB is that of no packet: nothing is asked for.
    pub fn receive(
        &mut self,
        room: usize,
        open: impl FnOnce(&mut [u8]) -> Option<usize>,
        out: &mut impl FnMut(&mut [u8]),
    ) {
        if room > ROOM_MAX {
            return;
        }
        let (header, inside) = (self.header, self.offload == Offload::Tunnel);
        let Some(first) = self.slots[self.current].first else {
            let place = &mut self.scratch[header..header + room];
            if let Some(length) = open(place).filter(|length| (1..=room).contains(length)) {
                self.sort(length, out);
            }
            return;
        };
        let slot = &mut self.slots[self.current];
        let at = slot.tail - first.length;
        let mut saved = [0; HEADERS_MAX];
        let saved = &mut saved[..first.length];
        saved.copy_from_slice(&slot.buffer[at..slot.tail]);
        let length = open(&mut slot.buffer[at..at + room]);
        let length = length.filter(|length| (1..=room).contains(length));
        let packet = &slot.buffer[at..at + length.unwrap_or(0)];
        let next = Parsed::of(packet, inside);
        let next = next.filter(|next| slot.continues(&first, header, next, packet));
        if let Some(next) = next {
            let (flags, sequence) = (next.flags(packet), next.sequence(packet));
            slot.buffer[at..slot.tail].copy_from_slice(saved);
            slot.extend(&next, flags, sequence);
            if slot.is_closed(&first, &next) {
                slot.flush(header, out);
            }
            return;
        }
        self.scratch[header..header + packet.len()].copy_from_slice(packet);
        slot.buffer[at..slot.tail].copy_from_slice(saved);
        if let Some(length) = length {
            self.sort(length, out);
        }
    }

    /// Hands out everything that is still held.
    pub fn flush(&mut self, out: &mut impl FnMut(&mut [u8])) {
        for slot in &mut self.slots {
            slot.flush(self.header, out);
        }
    }

    /// A packet of that length stands in the scratch buffer: to the flow it belongs to, to a new
    /// slot, or straight out.
    fn sort(&mut self, length: usize, out: &mut impl FnMut(&mut [u8])) {
        let (header, inside) = (self.header, self.offload == Offload::Tunnel);
        let Some(next) = Parsed::of(&self.scratch[header..header + length], inside) else {
            // It may belong to any flow.
            self.flush(out);
            return self.pass(length, out);
        };
        let packet = &self.scratch[header..header + length];
        let mut free = None;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(first) = slot.first else {
                free = free.or(Some(index));
                continue;
            };
            if !first.is_same_flow(&slot.headers, &next, packet) {
                continue;
            }
            if slot.continues(&first, header, &next, packet) {
                let tail = slot.tail;
                slot.buffer[tail..tail + next.payload].copy_from_slice(&packet[next.length..]);
                slot.extend(&next, next.flags(packet), next.sequence(packet));
                if slot.is_closed(&first, &next) {
                    slot.flush(header, out);
                }
                self.current = index;
                return;
            }
            slot.flush(header, out);
            free = Some(index);
        }
        let wanted = self.offload >= Offload::Udp || next.protocol != UDP;
        if !wanted || !next.is_first(packet) || !next.is_intact(packet) {
            return self.pass(length, out);
        }
        let index = free.unwrap_or_else(|| {
            self.oldest = (self.oldest + 1) % SLOTS;
            self.oldest
        });
        let slot = &mut self.slots[index];
        slot.flush(header, out);
        slot.begin(header, next, packet);
        self.current = index;
    }

    /// The packet in the scratch buffer goes as it came.
    fn pass(&mut self, length: usize, out: &mut impl FnMut(&mut [u8])) {
        self.scratch[..self.header].fill(0);
        out(&mut self.scratch[..self.header + length]);
    }
}

impl Slot {
    fn begin(&mut self, header: usize, first: Parsed, packet: &[u8]) {
        self.tail = header + packet.len();
        self.buffer[header..self.tail].copy_from_slice(packet);
        self.headers[..first.length].copy_from_slice(&packet[..first.length]);
        self.next_sequence = first.sequence(packet).wrapping_add(first.payload as u32);
        (self.count, self.closing) = (1, 0);
        self.first = Some(first);
    }

    /// Whether a packet is the next one of this flow and differs in nothing that would be lost.
    fn continues(&self, first: &Parsed, header: usize, next: &Parsed, packet: &[u8]) -> bool {
        let most = if first.protocol == UDP { UDP_SEGMENTS_MAX } else { TCP_SEGMENTS_MAX };
        next.base == first.base
            && next.v6 == first.v6
            && next.protocol == first.protocol
            && next.length == first.length
            && (1..=first.payload).contains(&next.payload)
            && self.tail - header + next.payload <= PACKET_MAX
            && self.count < most
            && self.is_alike(first, packet)
            && next.is_intact(packet)
    }

    /// Compares all header fields but lengths, sums and identification, which are made anew.
    fn is_alike(&self, first: &Parsed, packet: &[u8]) -> bool {
        let (old, new) = (&self.headers[..first.length], &packet[..first.length]);
        let same = |from: usize, to: usize| old[from..to] == new[from..to];
        let is_ip4 =
            |at: usize| same(at, at + 2) && same(at + 6, at + 10) && same(at + 12, at + IP4_HEADER);
        let (base, at) = (first.base, first.transport());
        // Outside: ports, and from the identifier on; a checksum there is none.
        let outside = base == 0
            || (is_ip4(0) && same(IP4_HEADER, IP4_HEADER + 4) && same(IP4_HEADER + 6, VXLAN));
        let network =
            if first.v6 { same(base, base + 4) && same(base + 6, at) } else { is_ip4(base) };
        if !outside || !network || !same(at, at + 4) {
            return false;
        }
        if first.protocol == UDP {
            return first.has_checksum(old) == first.has_checksum(new);
        }
        let flags = first.flags(new);
        let differ = (flags ^ first.flags(old)) & !(TCP_FIN | TCP_PSH | TCP_CWR);
        differ == 0
            && flags & TCP_CWR == 0
            && first.sequence(new) == self.next_sequence
            && same(at + 8, at + 13)
            && same(at + 14, at + 16)
            && same(at + 18, first.length)
    }

    /// The payload stands behind the tail already.
    fn extend(&mut self, next: &Parsed, flags: u8, sequence: u32) {
        self.tail += next.payload;
        self.count += 1;
        self.closing = flags & (TCP_FIN | TCP_PSH);
        self.next_sequence = sequence.wrapping_add(next.payload as u32);
    }

    /// Nothing may follow a shorter packet, or one that pushes or ends.
    fn is_closed(&self, first: &Parsed, last: &Parsed) -> bool {
        last.payload < first.payload || self.closing != 0
    }

    fn flush(&mut self, header: usize, out: &mut impl FnMut(&mut [u8])) {
        let Some(first) = self.first.take() else { return };
        let frame = &mut self.buffer[..self.tail];
        let mut offload = OffloadHeader::default();
        if self.count > 1 {
            offload = finish(&first, &mut frame[header..], self.closing);
        }
        offload.write(&mut frame[..header]);
        out(frame);
    }
}

/// Makes the first packet's headers those of the super-packet; answers what is left to the kernel.
fn finish(first: &Parsed, packet: &mut [u8], closing: u8) -> OffloadHeader {
    let (base, transport, whole) = (first.base, first.transport(), packet.len());
    let length = whole - transport;
    if base > 0 {
        fix_ip4_length(&mut packet[..IP4_HEADER], whole);
        put(packet, IP4_HEADER + 4, (whole - IP4_HEADER) as u16);
    }
    if first.v6 {
        put(packet, base + 4, length as u16);
    } else {
        fix_ip4_length(&mut packet[base..base + IP4_HEADER], whole - base);
    }
    let pseudo = checksum::fold(first.pseudo(packet, length));
    let at = first.checksum_at();
    packet[at..at + 2].copy_from_slice(&pseudo.to_ne_bytes());
    let mut gso_type = GSO_UDP;
    if first.protocol == TCP {
        packet[transport + 13] |= closing;
        gso_type = if first.v6 { GSO_TCP6 } else { GSO_TCP4 };
        if first.flags(packet) & TCP_CWR != 0 {
            gso_type |= GSO_ECN;
        }
    } else {
        put(packet, transport + 4, length as u16);
    }
    let tunnel = base > 0;
    if tunnel {
        gso_type |= GSO_TUNNEL4;
    }
    OffloadHeader {
        flags: NEEDS_CHECKSUM,
        gso_type,
        header_length: first.length as u16,
        gso_size: first.payload as u16,
        checksum_start: transport as u16,
        checksum_offset: (at - transport) as u16,
        outer_transport: if tunnel { IP4_HEADER as u16 } else { 0 },
        inner_network: base as u16,
    }
}

const SLOTS: usize = 8;
/// The longest IPv4 packet; of IPv6 a little more would be possible.
const PACKET_MAX: usize = 65_535;
/// A datagram, of which a packet is a part.
const ROOM_MAX: usize = 65_536;
/// VXLAN, IPv6 and the longest TCP header.
const HEADERS_MAX: usize = VXLAN + IP6_HEADER + 60;
/// Kernels before 6.9 refuse more.
const UDP_SEGMENTS_MAX: usize = 64;
/// The kernel counts segments in 16 bits; few are so small that they get there.
const TCP_SEGMENTS_MAX: usize = 1024;
