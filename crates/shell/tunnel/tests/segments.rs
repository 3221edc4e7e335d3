//! Super-packets are cut and joined again: nothing is lost, nothing changes its order, and every
//! packet's sums hold.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use proptest::prelude::*;
use tunnel::{Coalescer, Offload, OffloadHeader, split};

const HEADER: usize = 24;
const NEEDS_CHECKSUM: u8 = 1;
const ECN: u8 = 0x80;

/// One connection or flow, as a generator of super-packets.
#[derive(Debug, Clone)]
struct Flow {
    v6: bool,
    tcp: bool,
    port: u16,
    /// Bytes of TCP options, in words of four.
    options: usize,
}

fn flows() -> impl Strategy<Value = Flow> {
    (any::<bool>(), any::<bool>(), 1..5_u16, 0..=10_usize)
        .prop_map(|(v6, tcp, port, options)| Flow { v6, tcp, port, options })
}

#[derive(Debug, Clone)]
struct Super {
    flow: Flow,
    size: u16,
    payload: usize,
    sequence: u32,
    flags: u8,
    id: u16,
    seed: u8,
}

fn supers() -> impl Strategy<Value = Super> {
    let flags = prop::sample::select(vec![0x10, 0x18, 0x11, 0x19, 0x50, 0xd8]);
    let size = prop_oneof![1_u16..40, 500..1500_u16];
    (flows(), size, 2..40_usize, 0..100_usize, any::<u32>(), flags, any::<u16>(), any::<u8>())
        .prop_map(|(flow, size, count, cut, sequence, flags, id, seed)| {
            let payload = usize::from(size) * count - cut * usize::from(size - 1) / 100;
            Super { flow, size, payload, sequence, flags, id, seed }
        })
}

impl Super {
    /// As a TUN device hands it out.
    fn build(&self) -> (OffloadHeader, Vec<u8>) {
        let Flow { v6, tcp, port, options } = self.flow;
        let transport = if v6 { 40 } else { 20 };
        let l4 = if tcp { 20 + 4 * options } else { 8 };
        let length = transport + l4 + self.payload;
        let mut packet = vec![0; length];
        if v6 {
            packet[..8].copy_from_slice(&[0x60, 0x12, 0x34, 0x56, 0, 0, 0, 64]);
            put(&mut packet, 4, length - 40);
            packet[6] = if tcp { 6 } else { 17 };
            packet[8..24].copy_from_slice(&[0xfd; 16]);
            packet[24..40].copy_from_slice(&[0xfc; 16]);
        } else {
            packet[..10].copy_from_slice(&[0x45, 0x02, 0, 0, 0, 0, 0x40, 0, 63, 17]);
            put(&mut packet, 2, length);
            put(&mut packet, 4, usize::from(self.id));
            if tcp {
                packet[9] = 6;
            }
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = !plain_sum(&packet[..20], 0);
            put(&mut packet, 10, usize::from(sum));
        }
        let pseudo = pseudo_sum(&packet, v6, length - transport);
        put(&mut packet, transport, 40_000 + usize::from(port));
        put(&mut packet, transport + 2, 80);
        let field = if tcp {
            packet[transport + 4..transport + 8].copy_from_slice(&self.sequence.to_be_bytes());
            packet[transport + 8..transport + 12].copy_from_slice(&[9, 8, 7, 6]);
            packet[transport + 12] = (5 + options as u8) << 4;
            packet[transport + 13] = self.flags;
            packet[transport + 14] = 0x20;
            packet[transport + 20..transport + l4].fill(1);
            16
        } else {
            put(&mut packet, transport + 4, length - transport);
            6
        };
        put(&mut packet, transport + field, usize::from(pseudo));
        for (at, byte) in packet[transport + l4..].iter_mut().enumerate() {
            *byte = (at as u8).wrapping_mul(31).wrapping_add(self.seed);
        }
        let kind = match (tcp, v6) {
            (true, false) => 1,
            (true, true) => 4,
            (false, _) => 5,
        };
        let congested = if tcp && self.flags & 0x80 != 0 { ECN } else { 0 };
        let header = OffloadHeader {
            flags: NEEDS_CHECKSUM,
            gso_type: kind | congested,
            header_length: (transport + l4) as u16,
            gso_size: self.size,
            checksum_start: transport as u16,
            checksum_offset: field as u16,
            ..OffloadHeader::default()
        };
        (header, packet)
    }

    fn segments(&self) -> Vec<Vec<u8>> {
        let (header, mut packet) = self.build();
        let mut all = Vec::new();
        split(&header, &mut packet, |segment| all.push(segment.to_vec())).unwrap();
        all
    }
}

/// Puts the packet into VXLAN, as tunnel offload shows it.
fn wrapped(header: &OffloadHeader, inner: &[u8]) -> (OffloadHeader, Vec<u8>) {
    let mut packet = vec![0; 20 + 8 + 8 + 14];
    let length = packet.len() + inner.len();
    packet[..10].copy_from_slice(&[0x45, 0, 0, 0, 1, 2, 0, 0, 64, 17]);
    put(&mut packet, 2, length);
    packet[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 1, 0, 2]);
    put(&mut packet, 20, 50_000);
    put(&mut packet, 22, 4789);
    put(&mut packet, 24, length - 20);
    let sum = !plain_sum(&packet[..20], 0);
    put(&mut packet, 10, usize::from(sum));
    packet[28] = 8;
    put(&mut packet, 48, if inner[0] >> 4 == 6 { 0x86dd } else { 0x0800 });
    packet.extend_from_slice(inner);
    let moved = OffloadHeader {
        gso_type: header.gso_type | 0x20,
        header_length: header.header_length + 50,
        checksum_start: header.checksum_start + 50,
        outer_transport: 20,
        inner_network: 50,
        ..*header
    };
    (moved, packet)
}

fn join(offload: Offload, packets: &[Vec<u8>]) -> Vec<(OffloadHeader, Vec<u8>)> {
    let size = if offload == Offload::Tunnel { HEADER } else { 10 };
    let mut coalescer = Coalescer::new(offload);
    let mut frames = Vec::new();
    let mut out = |frame: &mut [u8]| {
        let header = OffloadHeader::parse(frame, size).unwrap();
        frames.push((header, frame[size..].to_vec()));
    };
    for packet in packets {
        let fill = |place: &mut [u8]| {
            // The tag that stands behind a decrypted packet.
            place[..packet.len()].copy_from_slice(packet);
            place[packet.len()..].fill(0xee);
            Some(packet.len())
        };
        coalescer.receive(packet.len() + 16, fill, &mut out);
    }
    coalescer.flush(&mut out);
    frames
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_was_cut_is_joined_to_the_same(one in supers()) {
        let segments = one.segments();
        let frames = join(Offload::Tunnel, &segments);
        prop_assert_eq!(frames, vec![one.build()]);
    }

    #[test]
    fn every_segment_sums_up_and_none_is_longer(one in supers()) {
        let (header, _) = one.build();
        let segments = one.segments();
        for (number, segment) in segments.iter().enumerate() {
            prop_assert!(holds(segment), "segment {number}");
            prop_assert!(segment.len() <= usize::from(header.header_length + header.gso_size));
        }
        let all: usize = segments.iter().map(|s| s.len() - usize::from(header.header_length)).sum();
        prop_assert_eq!(all, one.payload);
    }

    #[test]
    fn vxlan_is_cut_inside_and_out(one in supers()) {
        let (header, inner) = one.build();
        let (header, mut packet) = wrapped(&header, &inner);
        let mut inside = Vec::new();
        split(&header, &mut packet, |segment| {
            let length = segment.len();
            assert_eq!(plain_sum(&segment[..20], 0), 0xffff);
            assert_eq!(word(segment, 2), length);
            assert_eq!(word(segment, 24), length - 20);
            assert_eq!(word(segment, 26), 0);
            inside.push(segment[50..].to_vec());
        })
        .unwrap();
        prop_assert_eq!(inside, one.segments());
    }

    #[test]
    fn vxlan_is_joined_to_the_same(one in supers(), most in any::<bool>()) {
        let (header, inner) = one.build();
        let (header, mut packet) = wrapped(&header, &inner);
        let whole = packet.clone();
        let mut segments = Vec::new();
        split(&header, &mut packet, |segment| segments.push(segment.to_vec())).unwrap();
        let offload = if most { Offload::Tunnel } else { Offload::Udp };
        let frames = join(offload, &segments);
        if most && one.flow.tcp {
            prop_assert_eq!(frames, vec![(header, whole)]);
            return Ok(());
        }
        // The outside is joined as what it is, UDP.
        let mut again = Vec::new();
        for (header, mut frame) in frames {
            prop_assert_eq!(header.gso_type & !5, 0);
            split(&header, &mut frame, |segment| again.push(segment[28..].to_vec())).unwrap();
        }
        let before: Vec<Vec<u8>> = segments.iter().map(|segment| segment[28..].to_vec()).collect();
        prop_assert_eq!(again, before);
    }

    /// Two connections and a stranger in one VXLAN: each keeps its order.
    #[test]
    fn flows_inside_vxlan_keep_their_order(
        all in prop::collection::vec(supers(), 2..5),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 150),
    ) {
        let segments = |one: &Super| -> VecDeque<Vec<u8>> {
            let (header, inner) = one.build();
            let (header, mut packet) = wrapped(&header, &inner);
            let mut all = VecDeque::new();
            split(&header, &mut packet, |segment| all.push_back(segment.to_vec())).unwrap();
            all
        };
        let mut queues: Vec<VecDeque<Vec<u8>>> = all.iter().map(segments).collect();
        let mut packets = Vec::new();
        for pick in picks {
            packets.extend(pick.get_mut(&mut queues).pop_front());
        }
        let mut out = Vec::new();
        for (header, mut frame) in join(Offload::Tunnel, &packets) {
            split(&header, &mut frame, |segment| out.push(segment.to_vec())).unwrap();
        }
        prop_assert_eq!(out.len(), packets.len());
        for port in 1..5 {
            for tcp in [false, true] {
                for v6 in [false, true] {
                    let of = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
                        let inside = packets.iter().map(|packet| &packet[50..]);
                        inside.filter(|p| is_of(p, tcp, v6, port)).map(bare).collect()
                    };
                    prop_assert_eq!(of(&out), of(&packets));
                }
            }
        }
    }

    /// Packets of some flows come interleaved: each flow's bytes leave in their order.
    #[test]
    fn a_flow_keeps_its_order(
        all in prop::collection::vec(supers(), 1..6),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 200),
        corrupt in prop::option::of(any::<prop::sample::Index>()),
        offload in prop::sample::select(vec![Offload::Tcp, Offload::Udp, Offload::Tunnel]),
    ) {
        let mut queues: Vec<VecDeque<Vec<u8>>> =
            all.iter().map(|one| one.segments().into()).collect();
        let mut packets = Vec::new();
        for pick in picks {
            if let Some(packet) = pick.get_mut(&mut queues).pop_front() {
                packets.push(packet);
            }
        }
        if let Some(corrupt) = corrupt.filter(|_| !packets.is_empty()) {
            *corrupt.get_mut(&mut packets).last_mut().unwrap() ^= 0x55;
        }
        let frames = join(offload, &packets);
        let mut out = Vec::new();
        for (header, mut frame) in frames {
            let sound = header.gso_type == 0 || {
                let mut sound = true;
                split(&header, &mut frame.clone(), |segment| sound &= holds(segment)).unwrap();
                sound
            };
            prop_assert!(sound);
            split(&header, &mut frame, |segment| out.push(segment.to_vec())).unwrap();
        }
        for port in 1..5 {
            for tcp in [false, true] {
                for v6 in [false, true] {
                    let of = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
                        let own = packets.iter().filter(|p| is_of(p, tcp, v6, port));
                        own.map(|p| bare(p)).collect()
                    };
                    prop_assert_eq!(of(&out), of(&packets));
                }
            }
        }
        prop_assert_eq!(out.len(), packets.len());
    }

    #[test]
    fn lying_headers_never_panic(
        one in supers(),
        bytes in prop::collection::vec(any::<u8>(), HEADER),
        mix in prop::collection::vec(any::<bool>(), HEADER),
        cut in any::<prop::sample::Index>(),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (header, packet) = one.build();
        let (header, packet) = if mix[0] { wrapped(&header, &packet) } else { (header, packet) };
        let fields = [header.header_length, header.gso_size, header.checksum_start,
            header.checksum_offset, 0, 0, 0, 0, 0, header.outer_transport, header.inner_network];
        let mut true_bytes = vec![header.flags, header.gso_type];
        true_bytes.extend(fields.iter().flat_map(|field| field.to_ne_bytes()));
        let mixed: Vec<u8> = bytes.iter().zip(&true_bytes).zip(&mix)
            .map(|((lie, truth), take)| if *take { *lie } else { *truth }).collect();
        let lying = OffloadHeader::parse(&mixed, HEADER).unwrap();
        let end = cut.index(packet.len() + 1);
        let mut count = 0;
        let _ = split(&lying, &mut packet[..end].to_vec(), |segment| {
            assert!(!segment.is_empty());
            count += 1;
        });
        prop_assert!(count <= 2048);
        let _ = split(&lying, &mut garbage.clone(), |_| {});
        join(Offload::Tunnel, &[garbage, packet[..end].to_vec(), packet]);
    }
}

#[test]
fn a_reader_that_finds_nothing_leaves_the_flow_as_it_was() {
    let one = Super {
        flow: Flow { v6: false, tcp: true, port: 1, options: 3 },
        size: 30,
        payload: 300,
        sequence: 7,
        flags: 0x10,
        id: 1,
        seed: 3,
    };
    let mut coalescer = Coalescer::new(Offload::Tunnel);
    let mut frames = Vec::new();
    for segment in one.segments() {
        let mut out = |frame: &mut [u8]| frames.push(frame[HEADER..].to_vec());
        let take = |place: &mut [u8]| {
            place[..segment.len()].copy_from_slice(&segment);
            Some(segment.len())
        };
        coalescer.receive(segment.len(), take, &mut out);
        let spoil = |place: &mut [u8]| {
            place.fill(0xaa);
            None
        };
        coalescer.receive(500, spoil, &mut out);
        coalescer.receive(70_000, |_| panic!("no packet is so long"), &mut out);
    }
    coalescer.flush(&mut |frame: &mut [u8]| frames.push(frame[HEADER..].to_vec()));
    assert_eq!(frames, [one.build().1]);
}

fn is_of(packet: &[u8], tcp: bool, v6: bool, port: usize) -> bool {
    let (protocol, at) = if packet[0] >> 4 == 6 { (packet[6], 40) } else { (packet[9], 20) };
    (packet[0] >> 4 == 6) == v6 && (protocol == 6) == tcp && word(packet, at) == 40_000 + port
}

/// Without the identification, which is made anew, and the header's sum, in which it is.
fn bare(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn holds(packet: &[u8]) -> bool {
    let v6 = packet[0] >> 4 == 6;
    let at = if v6 { 40 } else { 20 };
    let length = if v6 { word(packet, 4) + 40 } else { word(packet, 2) };
    let ip = v6 || plain_sum(&packet[..20], 0) == 0xffff;
    let pseudo = pseudo_sum(packet, v6, packet.len() - at);
    length == packet.len() && ip && plain_sum(&packet[at..], u32::from(pseudo)) == 0xffff
}

fn pseudo_sum(packet: &[u8], v6: bool, length: usize) -> u16 {
    let (addresses, protocol) =
        if v6 { (&packet[8..40], packet[6]) } else { (&packet[12..20], packet[9]) };
    plain_sum(addresses, u32::from(protocol) + length as u32)
}

fn plain_sum(bytes: &[u8], first: u32) -> u16 {
    let mut total = first;
    for pair in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

fn put(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}
