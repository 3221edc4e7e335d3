//! This node's end of encrypted networks.
//!
//! Owns: which keys lead to which peers, by what was seen; what those who encrypt are to do.
//! Does not know: private keys; who serves a tunnel in user space.
//! Invariant: what the kernel encrypts user space does not; until keys were told no device is
//! touched, as it may be an earlier daemon's at work.

mod device;
mod status;
mod trouble;
pub(crate) mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use base::Millis;
use netplan::rotation::{self, Judged, Said};
use netplan::{TunnelNode, link, tunnel_v4};
use types::{
    DirectoryUpdate, EncryptionBackend, NetworkKey, NodeEncryption, OwnEncryption, encryption_port,
};

use self::wireguard::{WireGuard, probe};
use crate::encryption::{
    EncryptionMode, EncryptionSeen, PeerSeen, Rotation, Tunnel, TunnelKey, TunnelPeer, TunnelSeen,
};
use crate::node::{Node, TUNNEL};

/// See the module.
#[derive(Debug)]
pub(crate) struct Encryption {
    pub(crate) mode: EncryptionMode,
    /// Who encrypts, once it was asked.
    backend: Option<EncryptionBackend>,
    /// `None`: they were not told yet.
    keys: Option<BTreeMap<u32, TunnelKey>>,
    nodes: BTreeMap<u32, TunnelNode>,
    rotation: rotation::Rotation,
    judged: Judged,
    seen: Vec<TunnelSeen>,
    /// When that was.
    seen_at: Instant,
    /// Where the kernel was told that peers are, by generation and key.
    told: BTreeMap<(u32, NetworkKey), SocketAddr>,
    /// In the namespace of the tunnel.
    kernel: Option<WireGuard>,
    /// Bytes of the largest packet that is encrypted.
    mtu: u32,
    begun: Instant,
    /// What was counted of packets that should not be, and when it last rose.
    counted: BTreeMap<&'static str, (u64, Option<Instant>)>,
}

impl Default for Encryption {
    fn default() -> Self {
        Self {
            mode: EncryptionMode::Auto,
            backend: None,
            keys: None,
            nodes: BTreeMap::new(),
            rotation: rotation::Rotation::default(),
            judged: Judged::default(),
            seen: Vec::new(),
            seen_at: Instant::now(),
            told: BTreeMap::new(),
            kernel: None,
            mtu: 0,
            begun: Instant::now(),
            counted: BTreeMap::new(),
        }
    }
}

impl Encryption {
    /// Takes what was seen just now.
    fn see(&mut self, seen: Vec<TunnelSeen>) {
        (self.seen, self.seen_at) = (seen, Instant::now());
    }

    fn now(&self) -> Millis {
        Millis::from_duration(self.begun.elapsed())
    }

    /// Takes the nodes as they are; a handshake with a key that a node has no longer counts not.
    fn set_nodes(&mut self, nodes: BTreeMap<u32, TunnelNode>) {
        for (number, before) in &self.nodes {
            for (generation, key) in &before.encryption.keys {
                let now = nodes.get(number).and_then(|node| node.encryption.keys.get(generation));
                if now != Some(key) {
                    self.rotation.forget_handshake(*generation, *number);
                }
            }
        }
        let said = |node: &TunnelNode| Said {
            keys: node.encryption.keys.keys().copied().collect(),
            sends_with: node.encryption.sends_with,
        };
        self.rotation.set_peers(nodes.iter().map(|(n, node)| (*n, said(node))).collect());
        self.nodes = nodes;
    }
}

impl Node {
    pub(crate) fn set_keys(&mut self, keys: BTreeMap<u32, TunnelKey>) -> io::Result<()> {
        if self.encryption.keys.as_ref() == Some(&keys) {
            return Ok(());
        }
        let generations: BTreeSet<u32> = keys.keys().copied().collect();
        let now = self.encryption.now();
        self.encryption.rotation.set_own(&generations, now);
        self.encryption.keys = Some(keys);
        self.follow_tunnel(true)
    }

    pub(crate) fn set_tunnels_seen(&mut self, seen: Vec<TunnelSeen>) -> io::Result<()> {
        if self.encryption.backend == Some(EncryptionBackend::Kernel) {
            return Ok(());
        }
        self.encryption.see(seen);
        // A device that has just been made has no routes yet.
        if let Some(space) = self.spaces.get_mut(&netplan::Scope::Tunnel)
            && space.is_doubtful()
        {
            self.repair_scope(netplan::Scope::Tunnel)?;
        }
        self.note_handshakes()
    }

    /// What is seen of the tunnels.
    pub(crate) fn encryption_seen(&self) -> EncryptionSeen {
        let Encryption { backend, seen, .. } = &self.encryption;
        EncryptionSeen { backend: *backend, tunnels: seen.clone() }
    }

    /// What the managers are told of this node's end.
    pub(crate) fn survey_encryption(
        &mut self,
        link: Option<u32>,
    ) -> io::Result<Option<NodeEncryption>> {
        let backend = match self.backend() {
            Ok(backend) => backend,
            Err(error) => {
                tracing::warn!(%error, "whether the kernel has WireGuard cannot be found out");
                return Ok(None);
            }
        };
        let Some(keys) = &self.encryption.keys else { return Ok(None) };
        let keys = keys.iter().map(|(generation, key)| (*generation, key.public)).collect();
        let segments =
            |link| crate::namespace::enter(&self.namespace, move || wireguard::segments_udp(link));
        let udp_segmentation = link.is_some_and(|link| segments(link).unwrap_or_default());
        let sends_with = self.encryption.judged.sends_with;
        Ok(Some(NodeEncryption { backend, keys, sends_with, udp_segmentation }))
    }

    pub(crate) fn backend(&mut self) -> io::Result<EncryptionBackend> {
        if let Some(known) = self.encryption.backend {
            return Ok(known);
        }
        let kernel = self.encryption.mode == EncryptionMode::Auto && probe()?;
        let backend = if kernel { EncryptionBackend::Kernel } else { EncryptionBackend::UserSpace };
        tracing::debug!(backend = backend.name(), "encrypted networks");
        self.encryption.backend = Some(backend);
        Ok(backend)
    }

    fn own_encryption(&self) -> Option<OwnEncryption> {
        self.planner.own().map(|own| own.encryption.clone())
    }

    /// After the managers said something: who is at the other ends.
    pub(crate) fn note_tunnel_nodes(&mut self, update: &DirectoryUpdate) -> io::Result<()> {
        let touched = update.full
            || update.own.is_some()
            || !(update.networks.is_empty()
                && update.removed_networks.is_empty()
                && update.peers.is_empty()
                && update.removed_peers.is_empty());
        if !touched {
            return Ok(());
        }
        let nodes = self.planner.tunnel_nodes();
        let same = nodes == self.encryption.nodes;
        if !same {
            self.encryption.set_nodes(nodes);
        }
        if same && update.own.is_none() && self.planner.is_tunnelled() == self.has_tunnel() {
            return Ok(());
        }
        self.follow_tunnel(false)
    }

    /// Its namespace is one that this daemon works with.
    fn has_tunnel(&self) -> bool {
        self.spaces.contains_key(&netplan::Scope::Tunnel)
    }

    /// Makes devices and peers as they should be, and judges anew. `anew`: keys are others.
    pub(crate) fn follow_tunnel(&mut self, anew: bool) -> io::Result<()> {
        if self.planner.is_tunnelled() {
            if anew {
                // What leads to a peer already goes on to do so.
                self.judge()?;
                self.repair_scope(netplan::Scope::Tunnel)?;
            } else {
                self.fill_devices()?;
            }
        } else {
            self.encryption.seen.clear();
            self.encryption.told.clear();
            self.encryption.kernel = None;
        }
        self.judge()
    }

    /// Counts the handshakes that are seen.
    fn note_handshakes(&mut self) -> io::Result<()> {
        let Encryption { seen, nodes, rotation, .. } = &mut self.encryption;
        let mut keys: BTreeMap<(u32, NetworkKey), u32> = BTreeMap::new();
        for (number, node) in nodes.iter() {
            let all = node.encryption.keys.iter();
            keys.extend(all.map(|(generation, key)| ((*generation, *key), *number)));
        }
        for tunnel in seen.iter() {
            let shaken = tunnel.peers.iter().filter(|peer| peer.handshake_age.is_some());
            for peer in shaken {
                if let Some(number) = keys.get(&(tunnel.generation, peer.key)) {
                    rotation.saw_handshake(tunnel.generation, *number);
                }
            }
        }
        self.judge()
    }

    fn judge(&mut self) -> io::Result<()> {
        let now = self.encryption.now();
        let judged = self.encryption.rotation.judge(now);
        let switched = judged.uses != self.encryption.judged.uses;
        self.encryption.judged = judged;
        if switched {
            let uses = self.encryption.judged.uses.clone();
            let changes = self.planner.set_generations(uses);
            self.carry_out(changes, &BTreeSet::new())?;
        }
        Ok(())
    }

    /// To be called now and then: what time brings, and what the kernel has seen.
    pub(crate) fn look_at_tunnel(&mut self, thoroughly: bool) -> io::Result<()> {
        if !self.planner.is_tunnelled() {
            return self.judge();
        }
        let kernel = self.encryption.backend == Some(EncryptionBackend::Kernel);
        if kernel && (thoroughly || self.encryption.rotation.awaits_any()) {
            self.fill_devices()?;
        }
        self.note_handshakes()
    }

    /// Which devices and routes of an earlier daemon's are not wanted is known.
    pub(crate) fn has_keys(&self) -> bool {
        self.encryption.keys.is_some()
    }

    /// How far a change of keys is. Before everybody is known nothing is dropped.
    pub(crate) fn rotation(&self) -> Rotation {
        let Judged { sends_with, droppable, .. } = &self.encryption.judged;
        let droppable = if self.has_heard() { droppable.clone() } else { BTreeSet::new() };
        Rotation { sends_with: *sends_with, droppable }
    }

    /// What user space should serve.
    pub(crate) fn tunnels(&self) -> Vec<Tunnel> {
        let serves = self.encryption.backend == Some(EncryptionBackend::UserSpace);
        let (true, true, Some(own)) = (serves, self.has_tunnel(), self.planner.own()) else {
            return Vec::new();
        };
        if !self.planner.is_tunnelled() {
            return Vec::new();
        }
        let netns = self.sandboxes.path(TUNNEL);
        let Ok(inode) = std::fs::metadata(&netns).map(|data| data.ino()) else {
            return Vec::new();
        };
        let generations = self.encryption.keys.iter().flat_map(BTreeMap::keys);
        let tunnel = |generation: &u32| Tunnel {
            generation: *generation,
            netns: netns.clone(),
            netns_inode: inode,
            device: link::tunnel(*generation).to_owned(),
            port: encryption_port(own.encryption.ports, *generation),
            address: tunnel_v4(own.number),
            mtu: self.encryption.mtu,
            peers: self.tunnel_peers(*generation, &own.encryption),
        };
        generations.map(tunnel).collect()
    }

    /// The peers that have a key of a generation.
    fn tunnel_peers(&self, generation: u32, own: &OwnEncryption) -> Vec<TunnelPeer> {
        let public = self.encryption.keys.iter().filter_map(|keys| keys.get(&generation));
        let public: Vec<NetworkKey> = public.map(|key| key.public).collect();
        let port = encryption_port(own.ports, generation);
        let peer = |(number, node): (&u32, &TunnelNode)| {
            let key = *node.encryption.keys.get(&generation)?;
            (!public.contains(&key)).then_some(TunnelPeer {
                number: *number,
                key,
                endpoint: Some(SocketAddr::new(node.address, port)),
                address: tunnel_v4(*number),
                keepalive: own.keepalive,
            })
        };
        self.encryption.nodes.iter().filter_map(peer).collect()
    }
}

/// What the kernel says of a peer.
fn seen(key: NetworkKey, peer: &wireguard::Peer) -> PeerSeen {
    PeerSeen {
        key,
        endpoint: peer.endpoint,
        handshake_age: peer.handshake_age(),
        sent_bytes: peer.sent_bytes,
        received_bytes: peer.received_bytes,
        drops: BTreeMap::new(),
    }
}
