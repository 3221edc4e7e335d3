//! Keys and values of filter elements, as the kernel compares them.
//!
//! Owns: their bytes: each part padded to four bytes, in network order but for slots.
//! Does not know: what a set is for.
//! Invariant: equal meanings have equal bytes.

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;

use types::PortProtocol;

/// A key or value: the longest are pairs of an IPv6 address or a link's name. It stands where it
/// is used, as there are hundreds of thousands of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes {
    /// Behind the length all are zero.
    bytes: [u8; BYTES_MAX],
    length: u8,
}

impl Bytes {
    /// `None`: no key or value of ours is so long.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut all = Self { bytes: [0; BYTES_MAX], length: bytes.len() as u8 };
        all.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(all)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, formatter)
    }
}

/// Parts of a key, one after another.
#[derive(Debug)]
pub(crate) struct Key(Bytes);

impl Key {
    pub(crate) fn new() -> Self {
        Self(Bytes { bytes: [0; BYTES_MAX], length: 0 })
    }

    fn push(mut self, part: &[u8]) -> Self {
        let start = usize::from(self.0.length);
        let place = self.0.bytes.get_mut(start..start + part.len());
        debug_assert!(place.is_some(), "a key of too many parts");
        if let Some(place) = place {
            place.copy_from_slice(part);
            self.0.length += part.len() as u8;
        }
        self
    }

    pub(crate) fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.push(&address.octets()),
            IpAddr::V6(address) => self.push(&address.octets()),
        }
    }

    pub(crate) fn protocol(self, protocol: PortProtocol) -> Self {
        self.push(&[protocol as u8, 0, 0, 0])
    }

    pub(crate) fn port(self, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        self.push(&[high, low, 0, 0])
    }

    /// As the kernel's number generator makes it: in the machine's order.
    pub(crate) fn slot(self, slot: usize) -> Self {
        self.push(&(slot as u32).to_ne_bytes())
    }

    pub(crate) fn vni(self, vni: u32) -> Self {
        let [_, a, b, c] = vni.to_be_bytes();
        self.push(&[a, b, c, 0])
    }

    /// A link's name has sixteen bytes.
    pub(crate) fn link(self, name: &str) -> Self {
        let mut bytes = [0; 16];
        let length = name.len().min(15);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        self.push(&bytes)
    }

    pub(crate) fn done(self) -> Bytes {
        self.0
    }
}

const BYTES_MAX: usize = 32;
