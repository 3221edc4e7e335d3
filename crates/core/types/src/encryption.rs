//! Encrypted networks: what nodes and managers know of a node's end of the tunnel.
//!
//! Owns: public keys and their generations, which of two ports a generation has.
//! Does not know: private keys; who encrypts, and how.
//! Invariant: generations that are in use at one time differ by one, so that each has a port.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};

use crate::limits;

/// The public half of a node's key for encrypted networks: a point of Curve25519 (RFC 7748).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkKey(pub [u8; Self::LENGTH]);

impl NetworkKey {
    pub const LENGTH: usize = 32;
}

/// Its first bytes: enough to tell two of them apart.
impl Debug for NetworkKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "NetworkKey({:08x}…)",
            u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
        )
    }
}

/// Keys by generation. There are two while they are changed.
pub type NetworkKeys = BTreeMap<u32, NetworkKey>;

/// Who encrypts on a node; the bytes between nodes are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EncryptionBackend {
    /// The kernel's WireGuard.
    Kernel = 1,
    /// A process of ours: the kernel has none, or is not to be used.
    #[default]
    UserSpace = 2,
}

impl EncryptionBackend {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::UserSpace => "user-space",
        }
    }

    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::Kernel, Self::UserSpace].into_iter().find(|one| *one as i32 == number)
    }
}

/// What a node says of its end of encrypted networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeEncryption {
    pub backend: EncryptionBackend,
    /// Those that it listens with.
    pub keys: NetworkKeys,
    /// The newest generation that it sends with to every peer; zero: it has none.
    pub sends_with: u32,
    /// The link of its data path cuts UDP by itself, which makes sending cheaper.
    pub udp_segmentation: bool,
}

/// What a node is told of its own end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnEncryption {
    /// The one that it should have a key of, and send with as soon as its peers have.
    pub generation: u32,
    /// UDP ports of the whole cluster.
    pub ports: [u16; 2],
    /// Addresses are translated between this node and the others.
    pub keepalive: bool,
}

impl Default for OwnEncryption {
    fn default() -> Self {
        Self { generation: 1, ports: limits::ENCRYPTION_PORTS_DEFAULT, keepalive: false }
    }
}

/// What a node is told of a peer's end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerEncryption {
    pub keys: NetworkKeys,
    pub sends_with: u32,
}

/// The port of a generation.
#[must_use]
pub const fn encryption_port(ports: [u16; 2], generation: u32) -> u16 {
    ports[(generation % 2) as usize]
}
