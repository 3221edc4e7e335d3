//! Devices of the tunnel: one for each generation of keys.
//!
//! Owns: that the kernel's are there with their peers, and that those of user space are usable.
//! Does not know: which generation leads to whom.
//! Invariant: a device's datagrams come and go in the host's namespace, the device is in the
//! tunnel's and was never elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use netplan::{Scope, link};
use types::{EncryptionBackend, NetworkKey, encryption_port};
use zeroize::Zeroizing;

use super::wireguard::{self, Device, Peer, Set, WireGuard};
use super::{Encryption, seen};
use crate::encryption::{TunnelKey, TunnelPeer, TunnelSeen};
use crate::node::{Node, TUNNEL};
use crate::route::{self, Elsewhere, Link};
use crate::tables;

impl Node {
    /// The namespace with its table, and the devices in it.
    pub(crate) fn ensure_tunnel(&mut self) -> io::Result<()> {
        if !self.planner.is_tunnelled() {
            return Ok(());
        }
        if !self.sandbox_is_there(Scope::Tunnel) {
            self.encryption.kernel = None;
        }
        self.ensure_space(Scope::Tunnel)?;
        let port = self.vxlan_port();
        if let (Some(space), Some(port)) = (self.spaces.get_mut(&Scope::Tunnel), port) {
            space.set_tables(format!("{port}"), || vec![tables::tunnel::table(port)]);
        }
        self.encryption.mtu = self.tunnel_mtu()?;
        let backend = self.backend()?;
        if self.encryption.keys.is_none() {
            return Ok(());
        }
        self.sort_devices(backend)?;
        self.fill_devices()
    }

    /// What is left of the underlay's packets.
    fn tunnel_mtu(&mut self) -> io::Result<u32> {
        let Some(address) = self.address else { return Ok(UNDERLAY_MTU - OVER_V6) };
        let addresses = self.host.route.addresses()?;
        let own = addresses.iter().find(|(_, net)| net.addr() == address).map(|(link, _)| *link);
        let links = self.host.route.links()?;
        let mtu = links.iter().find(|link| Some(link.index) == own).map(|link| link.mtu);
        let over = if address.is_ipv4() { OVER_V4 } else { OVER_V6 };
        Ok(mtu.unwrap_or(UNDERLAY_MTU).clamp(MTU_LEAST + over, MTU_MOST + over) - over)
    }

    /// Removes what is no generation's or somebody else's, makes the kernel's own, and sets up what
    /// is there.
    fn sort_devices(&mut self, backend: EncryptionBackend) -> io::Result<()> {
        let kind = match backend {
            EncryptionBackend::Kernel => wireguard::KIND,
            EncryptionBackend::UserSpace => TUN,
        };
        let generations: Vec<u32> =
            self.encryption.keys.iter().flat_map(BTreeMap::keys).copied().collect();
        let Some(space) = self.spaces.get_mut(&Scope::Tunnel) else { return Ok(()) };
        let links = space.learn_links()?;
        for name in link::TUNNELS {
            let there = links.iter().find(|link| link.name == name);
            let wanted = generations.iter().any(|generation| link::tunnel(*generation) == name);
            let mut usable = there.filter(|link| wanted && link.kind == kind).cloned();
            if let (Some(link), None) = (there, &usable) {
                space.route.batch(vec![route::delete_link(link.index)], route::ABSENT)?;
            }
            if wanted && usable.is_none() && backend == EncryptionBackend::Kernel {
                let namespace = self.sandboxes.open_one(TUNNEL)?;
                let device = Elsewhere { name, mtu: self.encryption.mtu, namespace: &namespace };
                self.host.route.request(wireguard::add_device(&device))?;
                usable = space.learn_links()?.into_iter().find(|link| link.name == name);
                space.doubt();
            }
            let (mtu, alias) = (self.encryption.mtu, &self.names.alias);
            if let Some(link) = usable.filter(|link| !is_dressed(link, mtu)) {
                let messages = vec![
                    route::set_queue(link.index, QUEUE_PACKETS),
                    route::dress(link.index, alias, mtu),
                ];
                space.route.batch(messages, &[])?;
                space.doubt();
            }
        }
        Ok(())
    }

    /// The kernel's devices get their keys and peers; what they have seen is noted.
    pub(crate) fn fill_devices(&mut self) -> io::Result<()> {
        let kernel = self.encryption.backend == Some(EncryptionBackend::Kernel);
        let (true, Some(own)) = (kernel, self.own_encryption()) else { return Ok(()) };
        let Some(keys) = self.encryption.keys.clone() else { return Ok(()) };
        if self.encryption.kernel.is_none() {
            let opened = self.sandboxes.enter(TUNNEL, WireGuard::open)?;
            self.encryption.kernel = Some(opened);
        }
        let mut all = Vec::new();
        for (generation, key) in &keys {
            let peers = self.tunnel_peers(*generation, &own);
            let port = encryption_port(own.ports, *generation);
            let failure = match self.fill_device(*generation, key, port, &peers) {
                Ok(device) => {
                    let peers = device.peers.iter().map(|(key, peer)| seen(*key, peer)).collect();
                    let generation = *generation;
                    all.push(TunnelSeen { generation, peers, ..TunnelSeen::default() });
                    continue;
                }
                Err(error) => error,
            };
            tracing::warn!(generation, port, error = %failure, "an encrypting device is not ready");
            all.push(TunnelSeen {
                generation: *generation,
                failure: Some(failure.to_string()),
                ..TunnelSeen::default()
            });
        }
        self.encryption.told.retain(|(generation, _), _| keys.contains_key(generation));
        self.encryption.see(all);
        Ok(())
    }

    fn fill_device(
        &mut self,
        generation: u32,
        key: &TunnelKey,
        port: u16,
        peers: &[TunnelPeer],
    ) -> io::Result<Device> {
        let name = link::tunnel(generation);
        let Encryption { kernel, told, .. } = &mut self.encryption;
        let Some(kernel) = kernel else { return Ok(Device::default()) };
        let mut device = kernel.device(name)?;
        if device.public != Some(key.public) {
            kernel.set_key(name, &*read_key(&key.private)?, port)?;
            device = kernel.device(name)?;
            if device.public != Some(key.public) {
                let problem = format!("{} is not the key of this node", key.private.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
        } else if device.port != port {
            kernel.set_port(name, port)?;
        }
        let mut changes: Vec<(NetworkKey, Set)> = Vec::new();
        let wanted: BTreeSet<NetworkKey> = peers.iter().map(|peer| peer.key).collect();
        for there in device.peers.keys().filter(|there| !wanted.contains(there)) {
            told.remove(&(generation, *there));
            changes.push((*there, Set::Remove));
        }
        for peer in peers {
            let there = device.peers.get(&peer.key);
            let before = told.get(&(generation, peer.key)).copied();
            if let Some(set) = difference(peer, there, before) {
                changes.push((peer.key, set));
            }
            if let Some(endpoint) = peer.endpoint {
                told.insert((generation, peer.key), endpoint);
            }
        }
        if changes.is_empty() {
            return Ok(device);
        }
        kernel.set_peers(name, &changes)?;
        kernel.device(name)
    }
}

/// How a peer of the kernel's differs from what it should be. Where it was heard last is no
/// difference, unless it was told to be elsewhere since, or nothing is heard of it.
fn difference(peer: &TunnelPeer, there: Option<&Peer>, told: Option<SocketAddr>) -> Option<Set> {
    // Something to send is what makes the kernel begin a handshake.
    let awaited = there.is_none_or(|there| there.handshake.is_zero());
    let keepalive = if peer.keepalive || awaited { KEEPALIVE_SECONDS } else { 0 };
    let Some(there) = there else {
        let (address, endpoint) = (Some(peer.address), peer.endpoint);
        return Some(Set::Put { address, endpoint, keepalive: Some(keepalive) });
    };
    let alone = [(peer.address.into(), 32)];
    let address = (there.allowed != alone).then_some(peer.address);
    let silent = there.handshake_age().is_none_or(|age| age > SESSION_LIFE);
    let moved = told.is_some_and(|told| Some(told) != peer.endpoint);
    let endpoint = peer
        .endpoint
        .filter(|endpoint| there.endpoint != Some(*endpoint))
        .filter(|_| there.endpoint.is_none() || moved || silent);
    let keepalive = (there.keepalive != keepalive).then_some(keepalive);
    let same = address.is_none() && endpoint.is_none() && keepalive.is_none();
    (!same).then_some(Set::Put { address, endpoint, keepalive })
}

/// The private half, as it is stored.
fn read_key(path: &Path) -> io::Result<Zeroizing<[u8; 32]>> {
    let text = Zeroizing::new(fs::read(path)?);
    let mut bytes = Zeroizing::new([0; DECODED_MAX]);
    let decoded = STANDARD.decode_slice(text.trim_ascii(), bytes.as_mut());
    let mut key = Zeroizing::new([0; 32]);
    if decoded != Ok(key.len()) {
        let problem = format!("{}: 32 bytes in base64 are expected", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    key.copy_from_slice(&bytes[..32]);
    Ok(key)
}

fn is_dressed(link: &Link, mtu: u32) -> bool {
    link.up && link.mtu == mtu && link.queue == QUEUE_PACKETS
}

const TUN: &str = "tun";

/// The kernel's own number of packets is full within a millisecond.
const QUEUE_PACKETS: u32 = 10_000;

/// Header of IP and of UDP, and what WireGuard adds.
const OVER_V4: u32 = 20 + 8 + 32;
const OVER_V6: u32 = 40 + 8 + 32;
const UNDERLAY_MTU: u32 = 1_500;
const MTU_LEAST: u32 = 576;
const MTU_MOST: u32 = 65_000;

/// Most ways through address translation stay open for longer.
const KEEPALIVE_SECONDS: u16 = 25;

/// No session lives longer.
const SESSION_LIFE: Duration = Duration::from_secs(180);

/// What the text of a key is thought to need before it is looked at.
const DECODED_MAX: usize = 36;

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn what_the_kernel_has_learned_stays_and_what_is_told_anew_is_set() {
        let at = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        let wanted = TunnelPeer {
            number: 7,
            key: NetworkKey([7; 32]),
            endpoint: at("192.0.2.7:4793"),
            address: [10, 0, 0, 7].into(),
            keepalive: false,
        };
        let whole = difference(&wanted, None, None);
        let put = |address, endpoint, keepalive| Some(Set::Put { address, endpoint, keepalive });
        assert_eq!(whole, put(Some(wanted.address), wanted.endpoint, Some(25)));
        let mut there = Peer {
            endpoint: at("198.51.100.1:9"),
            allowed: vec![(wanted.address.into(), 32)],
            handshake: SystemTime::now().duration_since(UNIX_EPOCH).unwrap(),
            ..Peer::default()
        };
        assert_eq!(difference(&wanted, Some(&there), wanted.endpoint), None);
        assert_eq!(difference(&wanted, Some(&there), None), None, "a new daemon");
        assert_eq!(
            difference(&wanted, Some(&there), at("192.0.2.6:4793")),
            put(None, wanted.endpoint, None)
        );
        there.allowed.push(([10, 0, 0, 8].into(), 32));
        let more = difference(&wanted, Some(&there), wanted.endpoint);
        assert_eq!(more, put(Some(wanted.address), None, None));
        there.allowed.pop();
        there.handshake = Duration::from_secs(1);
        let silent = difference(&wanted, Some(&there), wanted.endpoint);
        assert_eq!(silent, put(None, wanted.endpoint, None));
    }
}
