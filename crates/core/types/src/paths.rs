//! Paths between nodes: what is wrong with them, and what a look at them finds.
//!
//! Owns: the words in which nodes tell the managers. Does not know: how a path is looked at.
//! Invariant: a path is one direction's view, of a node to a peer of one network.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base::Millis;

use crate::{EncryptionBackend, NetworkId, NodeId};

/// What is wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathTrouble {
    /// Nothing comes back.
    Silent,
    /// Packets of so many bytes do not come back, smaller ones do.
    TooLarge(u32),
}

/// A path that something is wrong with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BadPath {
    pub network: NetworkId,
    /// The peer.
    pub node: NodeId,
    pub trouble: PathTrouble,
}

/// What a node found when it looked at one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkCheck {
    pub network: NetworkId,
    /// What in its own kernel is not as wanted, in words.
    pub problems: Vec<String>,
    /// To each peer that it knows.
    pub paths: Vec<PathCheck>,
    /// Addresses of hosts that are no peers, and sent packets of this network here all the same.
    pub strangers: Vec<IpAddr>,
}

/// What a node found of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathCheck {
    pub node: NodeId,
    /// Small packets, and how many of them were answered.
    pub sent: u32,
    pub answered: u32,
    /// The mean of the answered ones.
    pub round_trip_us: u64,
    /// Bytes of the largest packet that should pass.
    pub wanted: u32,
    /// Of the largest that does; zero: none.
    pub passes: u32,
    /// On an encrypted network.
    pub tunnel: Option<TunnelCheck>,
}

/// What a node sees of its tunnel to a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelCheck {
    /// Who encrypts at the node.
    pub backend: EncryptionBackend,
    /// Of the key with which it sends to the peer.
    pub generation: u32,
    /// Since the last handshake; `None`: there was none, or none that still counts.
    pub handshake_age: Option<Millis>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Packets of and to this peer, by cause.
    pub drops: BTreeMap<String, u64>,
    /// What the node says is wrong with it; empty: nothing that it knows of.
    pub trouble: String,
}

impl PathCheck {
    /// Of a hundred.
    #[must_use]
    pub fn loss_percent(&self) -> u32 {
        let lost = self.sent.saturating_sub(self.answered);
        lost.saturating_mul(100).checked_div(self.sent).unwrap_or_default()
    }
}
