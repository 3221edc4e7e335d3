//! Keys and values of filter elements, as the kernel compares them.
//!
//! Owns: their bytes: each part padded to four bytes, in network order but for slots.
//! Does not know: what a set is for.
//! Invariant: equal meanings have equal bytes.

use std::net::IpAddr;

use types::PortProtocol;

use crate::numbers::octets;

/// Parts of a key, one after another.
#[derive(Debug, Default)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(24))
    }

    pub(crate) fn address(mut self, address: IpAddr) -> Self {
        self.0.extend(octets(address));
        self
    }

    pub(crate) fn protocol(mut self, protocol: PortProtocol) -> Self {
        self.0.extend([protocol as u8, 0, 0, 0]);
        self
    }

    pub(crate) fn port(mut self, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        self.0.extend([high, low, 0, 0]);
        self
    }

    /// As the kernel's number generator makes it: in the machine's order.
    pub(crate) fn slot(mut self, slot: usize) -> Self {
        self.0.extend((slot as u32).to_ne_bytes());
        self
    }

    pub(crate) fn vni(mut self, vni: u32) -> Self {
        let [_, a, b, c] = vni.to_be_bytes();
        self.0.extend([a, b, c, 0]);
        self
    }

    /// A link's name has sixteen bytes.
    pub(crate) fn link(mut self, name: &str) -> Self {
        let mut bytes = [0; 16];
        let length = name.len().min(15);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        self.0.extend(bytes);
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}
