//! One tunnel at work.
//!
//! Owns: its engine, and which namespace its device is in.
//! Does not know: what to do when it fails.
//! Invariant: the resolvers' thread never waits for what takes longer than a message.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::rc::Rc;
use std::sync::Arc;

use tokio::task::spawn_blocking;
use tunnel::{Drops, Engine, EngineOptions, Lifetime, Offload, PeerConfig, PublicKey, Traffic};
use types::NetworkKey;

use super::device::{TunnelFault, open_device, open_socket, read_key};
use super::{Tunnel, TunnelPeer, TunnelPeerStatus, TunnelStatus, TunnelTraffic};
use crate::spaces::{SpaceId, Spaces, space_id};

/// A tunnel that packets pass through.
#[derive(Debug)]
pub(super) struct Serving {
    tunnel: Rc<Tunnel>,
    engine: Arc<Engine>,
    space: SpaceId,
    /// Peers that cannot be served.
    refused: Option<String>,
}

/// What can be looked at meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Sight {
    engine: Arc<Engine>,
    refused: Option<String>,
}

impl Serving {
    pub(super) async fn begin(spaces: &Spaces, tunnel: Rc<Tunnel>) -> Result<Self, TunnelFault> {
        let key_file = tunnel.key_file.clone();
        let key = aside(move || read_key(&key_file)).await??;
        let socket = open_socket(tunnel.port)?;
        // Should the path lead elsewhere now, that is seen as any later change.
        let space = space_id(&tunnel.netns).map_err(|source| TunnelFault::Device {
            device: tunnel.device.clone(),
            netns: tunnel.netns.clone(),
            source,
        })?;
        let tun = open_device(spaces, &tunnel.netns, &tunnel.device, tunnel.mtu).await?;
        let options = EngineOptions {
            address: tunnel.address,
            handshakes_per_second: handshakes(tunnel.peers.len()),
        };
        let engine = aside(move || Engine::start(&key, tun, socket, options)).await?;
        let engine = Arc::new(engine.map_err(TunnelFault::Engine)?);
        let mut serving = Self { tunnel: Rc::clone(&tunnel), engine, space, refused: None };
        serving.set_peers(&tunnel.peers).await?;
        Ok(serving)
    }

    /// Takes over what differs from before, when that is possible while it goes on.
    pub(super) async fn change(
        &mut self,
        spaces: &Spaces,
        tunnel: Rc<Tunnel>,
    ) -> Result<Changed, TunnelFault> {
        if !has_same_parts(&self.tunnel, &tunnel) || self.failure().is_some() {
            return Ok(Changed::TooMuch);
        }
        if self.tunnel.mtu != tunnel.mtu {
            let (engine, mtu) = (Arc::clone(&self.engine), tunnel.mtu);
            let set = spaces.run(&tunnel.netns, move || engine.tun().set_mtu(mtu));
            set.await.map_err(|source| TunnelFault::Device {
                device: tunnel.device.clone(),
                netns: tunnel.netns.clone(),
                source,
            })?;
        }
        if self.tunnel.peers != tunnel.peers {
            self.set_peers(&tunnel.peers).await?;
        }
        self.tunnel = tunnel;
        Ok(Changed::Taken)
    }

    async fn set_peers(&mut self, peers: &[TunnelPeer]) -> Result<(), TunnelFault> {
        let (fit, refused) = choose(peers, self.engine.key(), self.tunnel.address);
        let engine = Arc::clone(&self.engine);
        aside(move || engine.set_peers(&fit)).await?.map_err(TunnelFault::Engine)?;
        self.refused = refused;
        Ok(())
    }

    /// Why it does not work any more.
    pub(super) fn failure(&self) -> Option<String> {
        if let Some(failure) = self.engine.failure() {
            return Some(format!("the tunnel does not go on: {failure}"));
        }
        let Tunnel { netns, .. } = &*self.tunnel;
        match space_id(netns) {
            Ok(space) if space == self.space => None,
            Ok(_) => Some(format!("{} is another network namespace now", netns.display())),
            Err(error) => Some(format!("network namespace {}: {error}", netns.display())),
        }
    }

    /// Ends it; what is `Temporary` is then gone from the kernel.
    pub(super) async fn end(self, device: Lifetime) {
        if device == Lifetime::Temporary {
            // Whoever removes its namespace has removed it.
            let _ = self.engine.tun().set_lifetime(Lifetime::Temporary);
        }
        // Its threads may be in the middle of something.
        let _ = aside(move || drop(self.engine)).await;
    }

    pub(super) fn sight(&self) -> Sight {
        Sight { engine: Arc::clone(&self.engine), refused: self.refused.clone() }
    }
}

impl Sight {
    pub(super) fn status(&self) -> TunnelStatus {
        let observed = self.engine.observe();
        let peers = observed.peers.iter().map(|peer| TunnelPeerStatus {
            key: NetworkKey(*peer.key.as_bytes()),
            endpoint: peer.endpoint,
            handshake_age: peer.handshake_age,
            has_session: peer.has_session,
            traffic: traffic(peer.traffic),
            drops: drops(&peer.drops),
        });
        TunnelStatus {
            key: Some(NetworkKey(*observed.key.as_bytes())),
            offload: offload(observed.offload).to_owned(),
            failure: observed.failure.or_else(|| self.refused.clone()),
            traffic: traffic(observed.traffic),
            drops: drops(&observed.drops),
            peers: peers.collect(),
            ..TunnelStatus::default()
        }
    }
}

/// What became of a change.
pub(super) enum Changed {
    Taken,
    /// It must begin anew.
    TooMuch,
}

/// Whether the two are the same but for MTU and peers.
fn has_same_parts(one: &Tunnel, other: &Tunnel) -> bool {
    let parts = |tunnel: &Tunnel| {
        let Tunnel { netns, device, port, address, key_file, .. } = tunnel;
        (netns.clone(), device.clone(), *port, *address, key_file.clone())
    };
    parts(one) == parts(other)
}

/// Those that can be told apart; the others are left out and named, so that all the rest is served
/// and whoever was removed is.
fn choose(
    peers: &[TunnelPeer],
    own: PublicKey,
    address: std::net::Ipv4Addr,
) -> (Vec<PeerConfig>, Option<String>) {
    let (mut keys, mut addresses) = (BTreeSet::from([own]), BTreeSet::from([address]));
    let (mut fit, mut refused) = (Vec::with_capacity(peers.len()), Vec::new());
    for peer in peers {
        let key = PublicKey::from_bytes(peer.key.0);
        if keys.contains(&key) || addresses.contains(&peer.address) {
            refused.push(peer.number.to_string());
            continue;
        }
        keys.insert(key);
        addresses.insert(peer.address);
        fit.push(PeerConfig {
            key,
            endpoint: peer.endpoint,
            address: peer.address,
            keepalive: if peer.keepalive { KEEPALIVE } else { None },
        });
    }
    let refused = (!refused.is_empty()).then(|| {
        refused.truncate(NAMED_MAX);
        let numbers = refused.join(", ");
        format!("not served, with a key or an address that this or another node has: {numbers}")
    });
    (fit, refused)
}

/// Where whatever takes longer is done.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TunnelFault> {
    spawn_blocking(work).await.map_err(|_| TunnelFault::Thread)
}

/// All peers may begin at one time, twice. Peers that come later are not worth another beginning:
/// whoever is over it proves its address first.
fn handshakes(peers: usize) -> u32 {
    u32::try_from(peers.saturating_mul(2)).unwrap_or(u32::MAX).max(HANDSHAKES_MIN)
}

fn offload(offload: Offload) -> &'static str {
    match offload {
        Offload::None => "none",
        Offload::Tcp => "tcp",
        Offload::Udp => "udp",
        Offload::Tunnel => "tunnel",
    }
}

fn traffic(traffic: Traffic) -> TunnelTraffic {
    let Traffic { sent_bytes, sent_packets, received_bytes, received_packets } = traffic;
    TunnelTraffic { sent_bytes, sent_packets, received_bytes, received_packets }
}

fn drops(drops: &Drops) -> BTreeMap<String, u64> {
    drops.iter().map(|(cause, count)| (cause.name().to_owned(), count)).collect()
}

/// Translators forget after half a minute.
const KEEPALIVE: Option<NonZeroU16> = NonZeroU16::new(25);
/// An answer takes a tenth of a millisecond.
const HANDSHAKES_MIN: u32 = 500;
const NAMED_MAX: usize = 10;
