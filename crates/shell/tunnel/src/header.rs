//! The header that stands before each packet of a TUN device: virtio-net's.
//!
//! Owns: its two forms, 10 bytes, and 24 where tunnels may be offloaded.
//! Does not know: packets. Invariant: what is written is read back the same.

/// What is left to do for a packet: segmentation and a checksum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OffloadHeader {
    pub flags: u8,
    pub gso_type: u8,
    /// A hint; nothing may rely on it.
    pub header_length: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    pub checksum_start: u16,
    pub checksum_offset: u16,
    /// Where the outer UDP header is, for a packet in a tunnel.
    pub outer_transport: u16,
    /// Where the inner IP header is, for a packet in a tunnel.
    pub inner_network: u16,
}

impl OffloadHeader {
    /// From the beginning of a frame, of which `size` bytes are the header; `None` when it is
    /// shorter than that, or no known size.
    #[must_use]
    pub fn parse(frame: &[u8], size: usize) -> Option<Self> {
        let bytes = frame.get(..size)?;
        if size != PLAIN && size != TUNNEL {
            return None;
        }
        let word = |at: usize| match bytes.get(at..at + 2) {
            Some(two) => u16::from_ne_bytes([two[0], two[1]]),
            None => 0,
        };
        Some(Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_length: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
            outer_transport: word(20),
            inner_network: word(22),
        })
    }

    /// For a packet before which so many bytes are put, or taken away; `None` when it points there.
    pub(crate) fn moved(self, by: i32) -> Option<Self> {
        // What is not set stays so.
        let moved = |field: u16, set: bool| {
            if set { u16::try_from(i32::from(field) + by).ok() } else { Some(field) }
        };
        let sum = self.flags & NEEDS_CHECKSUM != 0;
        let tunnel = self.gso_type & (GSO_TUNNEL4 | GSO_TUNNEL6) != 0;
        Some(Self {
            // A hint.
            header_length: moved(self.header_length, self.gso_type != GSO_NONE).unwrap_or(0),
            checksum_start: moved(self.checksum_start, sum)?,
            outer_transport: moved(self.outer_transport, tunnel)?,
            inner_network: moved(self.inner_network, tunnel)?,
            ..self
        })
    }

    /// Over the first bytes of a frame, all of which are the header.
    pub(crate) fn write(&self, into: &mut [u8]) {
        into.fill(0);
        into[0] = self.flags;
        into[1] = self.gso_type;
        let words = [self.header_length, self.gso_size, self.checksum_start, self.checksum_offset];
        for (at, word) in words.into_iter().enumerate() {
            into[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_ne_bytes());
        }
        if into.len() == TUNNEL {
            into[20..22].copy_from_slice(&self.outer_transport.to_ne_bytes());
            into[22..24].copy_from_slice(&self.inner_network.to_ne_bytes());
        }
    }
}

/// Bytes of the plain header.
pub(crate) const PLAIN: usize = 10;
/// Bytes of the header that knows tunnels.
pub(crate) const TUNNEL: usize = 24;

pub(crate) const NEEDS_CHECKSUM: u8 = 1;
pub(crate) const GSO_NONE: u8 = 0;
pub(crate) const GSO_TCP4: u8 = 1;
pub(crate) const GSO_TCP6: u8 = 4;
pub(crate) const GSO_UDP: u8 = 5;
/// In a UDP tunnel over IPv4.
pub(crate) const GSO_TUNNEL4: u8 = 0x20;
/// In a UDP tunnel over IPv6.
pub(crate) const GSO_TUNNEL6: u8 = 0x40;
/// The first segment carries CWR.
pub(crate) const GSO_ECN: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_as_written() {
        let header = OffloadHeader {
            flags: NEEDS_CHECKSUM,
            gso_type: GSO_TCP4 | GSO_TUNNEL4,
            header_length: 104,
            gso_size: 1338,
            checksum_start: 70,
            checksum_offset: 16,
            outer_transport: 20,
            inner_network: 50,
        };
        let mut bytes = [0xff; TUNNEL];
        header.write(&mut bytes);
        assert_eq!(OffloadHeader::parse(&bytes, TUNNEL), Some(header));
        header.write(&mut bytes[..PLAIN]);
        let plain = OffloadHeader { outer_transport: 0, inner_network: 0, ..header };
        assert_eq!(OffloadHeader::parse(&bytes, PLAIN), Some(plain));
        assert_eq!(OffloadHeader::parse(&bytes[..9], PLAIN), None);
        assert_eq!(OffloadHeader::parse(&bytes, 12), None);
    }
}
