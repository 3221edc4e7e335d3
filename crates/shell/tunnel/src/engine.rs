//! The tunnel of one node with one key.
//!
//! Owns: the threads, the set of peers. Does not know: who decides on peers.
//! Invariant: once the engine is stopped or dropped, no thread of it runs and no packet passes.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;

use crate::counters::{Counters, DropCause, Drops, Traffic};
use crate::key::{PrivateKey, PublicKey};
use crate::peer::{Parking, Peer, PeerConfig, PeerObserved};
use crate::sys::Wake;
use crate::table::{Table, Tables, check_peers};
use crate::timers::Newcomers;
use crate::transmit::Outbound;
use crate::tun::{Offload, Tun};
use crate::turns::Turns;
use crate::udp::Socket;
use crate::{TunnelError, timers, turns};

/// What an engine is told at its start.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// This node's only address inside the tunnel.
    pub address: Ipv4Addr,
    /// Handshakes of others answered each second before they have to prove their address; twice the
    /// number of nodes lets all of them start at once.
    pub handshakes_per_second: u32,
}

/// A tunnel at work.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    next_index: AtomicU32,
    changing: Mutex<()>,
}

/// What is seen of an engine.
#[derive(Debug, Clone)]
pub struct Observed {
    pub key: PublicKey,
    pub peers: Vec<PeerObserved>,
    pub traffic: Traffic,
    /// Of all packets, also those that belong to no peer.
    pub drops: Drops,
    pub offload: Offload,
    /// Why packets do not pass any more; the device or the socket is gone.
    pub failure: Option<String>,
}

/// What threads share.
pub(crate) struct Shared {
    pub(crate) tun: Tun,
    pub(crate) socket: Socket,
    pub(crate) address: Ipv4Addr,
    key: PrivateKey,
    pub(crate) secret: x25519::StaticSecret,
    pub(crate) public: x25519::PublicKey,
    pub(crate) limiter: Arc<RateLimiter>,
    pub(crate) tables: Tables,
    pub(crate) counters: Counters,
    pub(crate) parking: Parking,
    pub(crate) newcomers: Newcomers,
    pub(crate) turns: Turns,
    pub(crate) wake: Wake,
    outbound: Mutex<Outbound>,
    stopped: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("tun", &self.tun).finish_non_exhaustive()
    }
}

impl Engine {
    /// Begins, without peers.
    pub fn start(
        key: &PrivateKey,
        tun: Tun,
        socket: Socket,
        options: EngineOptions,
    ) -> Result<Self, TunnelError> {
        let public = key.public().point();
        // Each is counted twice: when its sender is looked for, and when it is answered.
        let limit = 2 * u64::from(options.handshakes_per_second.max(1));
        let tables = Tables::default();
        let shared = Arc::new(Shared {
            tun,
            socket,
            address: options.address,
            secret: key.secret(),
            key: key.clone(),
            public,
            limiter: Arc::new(RateLimiter::new(&public, limit)),
            outbound: Mutex::new(Outbound::new(&tables)),
            tables,
            counters: Counters::default(),
            parking: Parking::default(),
            newcomers: Newcomers::default(),
            turns: Turns::default(),
            wake: Wake::new().map_err(TunnelError::Start)?,
            stopped: AtomicBool::new(false),
            failure: Mutex::new(None),
        });
        let mut engine = Self {
            shared,
            threads: Vec::new(),
            next_index: AtomicU32::new(1),
            changing: Mutex::new(()),
        };
        engine.spawn("tunnel-both", turns::mind_both)?;
        engine.spawn("tunnel-device", turns::mind_device)?;
        engine.spawn("tunnel-time", |shared| {
            timers::run(shared);
            Ok(())
        })?;
        Ok(engine)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: fn(&Shared) -> std::io::Result<()>,
    ) -> Result<(), TunnelError> {
        let shared = Arc::clone(&self.shared);
        let body = move || {
            // The protocol's library logs what is counted here, and calls quiet peers errors.
            let silence = tracing::subscriber::NoSubscriber::default();
            let ended = tracing::subscriber::with_default(silence, || work(&shared));
            if let Err(error) = ended {
                let mut failure = shared.failure.lock().unwrap_or_else(PoisonError::into_inner);
                *failure = Some(error.to_string());
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(body);
        self.threads.push(thread.map_err(TunnelError::Start)?);
        Ok(())
    }

    /// Makes these the peers, all of them. Those that are there already keep their sessions, unless
    /// their address or keepalive differs; a new endpoint is taken over, and one that was only
    /// learned is kept while the told one stays the same. New ones are spoken to at once.
    pub fn set_peers(&self, wanted: &[PeerConfig]) -> Result<(), TunnelError> {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &self.shared;
        check_peers(wanted, shared.key.public(), shared.address)?;
        let old = shared.tables.newest();
        let mut leaving: HashMap<PublicKey, &Arc<Peer>> =
            old.peers.iter().map(|peer| (peer.config.key, peer)).collect();
        let (mut peers, mut new) = (Vec::with_capacity(wanted.len()), Vec::new());
        for config in wanted {
            match leaving.get(&config.key) {
                Some(peer) if peer.is_as(config) => {
                    peers.push(Arc::clone(peer));
                    leaving.remove(&config.key);
                }
                _ => {
                    let peer = Arc::new(self.make(*config, &old, &peers));
                    peers.push(Arc::clone(&peer));
                    new.push(peer);
                }
            }
        }
        for (peer, config) in peers.iter().zip(wanted) {
            peer.lead_to(config.endpoint);
        }
        shared.tables.exchange(Table::new(peers));
        for peer in leaving.into_values() {
            peer.remove(&shared.parking);
        }
        shared.newcomers.add(new);
        Ok(())
    }

    /// With a number that no peer of the old set or the new one has.
    fn make(&self, config: PeerConfig, old: &Table, new: &[Arc<Peer>]) -> Peer {
        let shared = &self.shared;
        loop {
            let index = self.next_index.fetch_add(1, Ordering::Relaxed) % INDEX_END;
            let taken = old.by_receiver(index << 8).is_some()
                || (index < new.len() as u32 && new.iter().any(|peer| peer.index == index));
            if !taken {
                let yields = shared.public.as_bytes() < config.key.as_bytes();
                return Peer::new(config, index, &shared.key, yields, &shared.limiter);
            }
        }
    }

    #[must_use]
    pub fn observe(&self) -> Observed {
        let shared = &self.shared;
        Observed {
            key: self.key(),
            peers: shared.tables.newest().peers.iter().map(|peer| peer.observe()).collect(),
            traffic: shared.counters.traffic(),
            drops: shared.counters.drops(),
            offload: shared.tun.offload(),
            failure: self.failure(),
        }
    }

    /// Why packets do not pass any more, without the rest of what is seen.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key by which peers know this node.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.shared.key.public()
    }

    /// The device, whose descriptor may be handed to a successor.
    #[must_use]
    pub fn tun(&self) -> &Tun {
        &self.shared.tun
    }

    /// The socket, likewise.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.shared.socket
    }

    /// Ends all threads; dropping the engine does the same.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.shared.wake.wake();
        self.shared.newcomers.stop();
        self.shared.turns.stop();
        for thread in self.threads.drain(..) {
            // One that panicked has ended too.
            let _ = thread.join();
        }
        for peer in &self.shared.tables.newest().peers {
            peer.remove(&self.shared.parking);
        }
    }
}

impl Shared {
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Whoever minds the device has it meanwhile.
    pub(crate) fn outbound(&self) -> MutexGuard<'_, Outbound> {
        self.outbound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A frame for the device.
    pub(crate) fn deliver(&self, frame: &[u8]) {
        if self.tun.write(frame).is_err() {
            self.counters.drop(DropCause::WriteFailed);
        }
    }
}

/// Numbers of peers have 24 bits.
const INDEX_END: u32 = 1 << 24;
