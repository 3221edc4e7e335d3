//! WireGuard of one node in user space.
//!
//! Owns: a device of the kernel's, a UDP socket, the peers' sessions, and the threads between them.
//! Does not know: who makes keys, which nodes are peers, namespaces, routes.
//! Invariant: a packet goes only to the peer that has its address, and one that comes is let in
//! only with that peer's address as its source and ours as its destination.
//!
//! The protocol itself is boringtun's, unmodified, without its own device. What is here is the way
//! between: the kernel hands out packets of up to 64 KiB, which are cut, encrypted and sent many at
//! a time, and what comes is decrypted and joined again, so that the kernel's stacks are passed
//! through once for forty packets.

#![allow(unsafe_code)]

mod counters;
mod engine;
mod key;
mod peer;
mod table;

mod batch;
mod receive;
mod timers;
mod transmit;
mod turns;

mod checksum;
mod coalesce;
mod header;
mod parse;
mod split;

mod sys;
mod tun;
mod udp;

use std::io;
use std::net::Ipv4Addr;

pub use coalesce::Coalescer;
pub use counters::{DropCause, Drops, Traffic};
pub use engine::{Engine, EngineOptions, Observed};
pub use header::OffloadHeader;
pub use key::{PrivateKey, PublicKey};
pub use peer::{PeerConfig, PeerObserved};
pub use split::{Malformed, split};
pub use tun::{Lifetime, Offload, Tun};
pub use udp::Socket;

/// What keeps a tunnel from being made.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The system gives no random bytes.
    #[error("no entropy for a key")]
    Entropy,
    /// Not 32 bytes in base64.
    #[error("not a public key: 32 bytes in base64 are expected")]
    Key,
    /// The same of a private one, which is not shown.
    #[error("not a private key: 32 bytes in base64 are expected")]
    Private,
    /// The list of peers is longer than any cluster.
    #[error("more than {most} peers")]
    TooManyPeers { most: usize },
    /// Two peers, or a peer and this node, have one key.
    #[error("peer key {key}: another peer or this node has it too; each needs its own")]
    SameKey { key: PublicKey },
    /// Two peers, or a peer and this node, have one address.
    #[error("peer address {address}: another peer or this node has it too; each needs its own")]
    SameAddress { address: Ipv4Addr },
    /// No more threads or descriptors.
    #[error("the tunnel's threads cannot be started")]
    Start(#[source] io::Error),
}
