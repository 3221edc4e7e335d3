//! What is said and told of this node's end of encrypted networks.
//!
//! Owns: the tunnels that user space should serve, and what is seen of those that are served.
//! Does not know: who serves them, who makes keys, what is in a private one.
//! Invariant: what is told here is the whole of it each time, never a difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ports::runtime::RuntimeError;
use tokio::sync::watch;
use types::{EncryptionBackend, NetworkId, NetworkKey, NodeId, TunnelCheck};

use crate::DataPath;

/// Who is to encrypt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EncryptionMode {
    /// The kernel's WireGuard where there is one.
    #[default]
    Auto,
    /// Never the kernel.
    UserSpace,
}

/// A device that user space should serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub generation: u32,
    /// Where the device is to be; the datagrams come and go in the daemon's own namespace.
    pub netns: PathBuf,
    /// The number of the file that was there: another one is another namespace at the same path,
    /// without the device.
    pub netns_inode: u64,
    pub device: String,
    /// Of UDP.
    pub port: u16,
    /// Of this node, inside the tunnel.
    pub address: Ipv4Addr,
    pub mtu: u32,
    pub peers: Vec<TunnelPeer>,
}

/// A node at the other end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelPeer {
    pub number: u32,
    pub key: NetworkKey,
    pub endpoint: Option<SocketAddr>,
    /// Its only address inside the tunnel.
    pub address: Ipv4Addr,
    /// The way to it closes unless it is used.
    pub keepalive: bool,
}

/// What is seen of a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelSeen {
    pub generation: u32,
    pub peers: Vec<PeerSeen>,
    /// Of all packets, also those that belong to no peer, by cause.
    pub drops: BTreeMap<String, u64>,
    /// Why nothing passes.
    pub failure: Option<String>,
}

/// What is seen of one of its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSeen {
    pub key: NetworkKey,
    pub endpoint: Option<SocketAddr>,
    /// `None`: there was none.
    pub handshake_age: Option<Duration>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub drops: BTreeMap<String, u64>,
}

/// What is seen of this node's end of encrypted networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptionSeen {
    /// `None` before it was ever needed.
    pub backend: Option<EncryptionBackend>,
    pub tunnels: Vec<TunnelSeen>,
}

/// What is known of this node's end of encrypted networks, as it was looked at last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptionStatus {
    /// `None` before it was ever needed.
    pub backend: Option<EncryptionBackend>,
    /// The newest generation that is used towards every peer; zero: there is no key.
    pub sends_with: u32,
    pub tunnels: Vec<TunnelStatus>,
    /// Packets of encrypted networks that came to this host unencrypted, or would have left it so,
    /// since the rules of this host were made.
    pub clear_in: u64,
    pub clear_out: u64,
    /// Packets that came through the tunnel for a network that their sender is not on.
    pub strange: u64,
}

/// Of one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelStatus {
    pub generation: u32,
    pub peers: Vec<PeerStatus>,
    /// Of all packets, also those that belong to no peer, by cause.
    pub drops: BTreeMap<String, u64>,
    pub works: bool,
}

/// One of its peers, which is a node that shares an encrypted network with this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub node: NodeId,
    pub name: String,
    /// It is sent to with the key of this generation.
    pub used: bool,
    /// The age of the handshake is that of now.
    pub seen: PeerSeen,
}

/// The tunnel from this node to another one of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelTo {
    pub node: NodeId,
    pub name: String,
    pub address: IpAddr,
    pub check: TunnelCheck,
}

/// A key of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelKey {
    pub public: NetworkKey,
    /// Where the private half is, in base64, for whoever encrypts.
    pub private: PathBuf,
}

/// How far a change of keys is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// The newest generation that is used towards every peer; zero: there is no key.
    pub sends_with: u32,
    /// Keys that nobody needs any more.
    pub droppable: BTreeSet<u32>,
}

impl DataPath {
    /// What user space should serve now; nothing where the kernel encrypts.
    #[must_use]
    pub fn tunnels(&self) -> watch::Receiver<Vec<Tunnel>> {
        self.inner.tunnels.subscribe()
    }

    /// Which generation is used towards all, and which keys may be dropped.
    #[must_use]
    pub fn rotation(&self) -> watch::Receiver<Rotation> {
        self.inner.rotation.subscribe()
    }

    /// The keys of this node by generation, all of them.
    pub async fn set_keys(&self, keys: BTreeMap<u32, TunnelKey>) -> Result<(), RuntimeError> {
        self.with("take the keys of encrypted networks", move |node| node.set_keys(keys)).await
    }

    /// What those who serve the tunnels see of them; to be told about once a second, and when the
    /// tunnels have changed. Of no account where the kernel encrypts.
    pub async fn set_tunnels_seen(&self, seen: Vec<TunnelSeen>) -> Result<(), RuntimeError> {
        self.with("look at the tunnels", move |node| node.set_tunnels_seen(seen)).await
    }

    /// What is seen of the tunnels, whoever serves them.
    #[must_use]
    pub fn encryption_seen(&self) -> EncryptionSeen {
        self.inner.node().encryption_seen()
    }

    /// What is known of all tunnels, without asking the kernel.
    pub async fn encryption_status(&self) -> Result<EncryptionStatus, RuntimeError> {
        self.with("look at the tunnels", |node| Ok(node.encryption_status())).await
    }

    /// The tunnels to the other nodes of a network; none of one that is not encrypted.
    pub async fn tunnels_to(&self, network: NetworkId) -> Result<Vec<TunnelTo>, RuntimeError> {
        let peers = self.peers_of(network);
        self.with("look at the tunnels", move |node| node.tunnels_to(network, peers)).await
    }
}
