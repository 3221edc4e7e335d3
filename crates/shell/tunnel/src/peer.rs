//! One peer: its session, where it is, what passed.
//!
//! Owns: the protocol's state of this peer, behind a lock; its endpoint.
//! Does not know: sockets and devices. Invariant: a peer that was removed has no session any more,
//! whoever still holds it.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use crate::counters::{Counters, Drops, Traffic};
use crate::key::{PrivateKey, PublicKey};

/// What a node is told of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerConfig {
    pub key: PublicKey,
    /// Where it listens; `None` when that is learned from what it sends.
    pub endpoint: Option<SocketAddr>,
    /// Its only address inside the tunnel.
    pub address: Ipv4Addr,
    /// Seconds between packets that keep a way through address translation open.
    pub keepalive: Option<NonZeroU16>,
}

/// What is seen of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerObserved {
    pub key: PublicKey,
    pub address: Ipv4Addr,
    /// Where it was last heard, or is said to be.
    pub endpoint: Option<SocketAddr>,
    /// Since the last handshake; `None` when there was none.
    pub handshake_age: Option<Duration>,
    /// Whether packets can be sent at once.
    pub has_session: bool,
    pub traffic: Traffic,
    pub drops: Drops,
}

pub(crate) struct Peer {
    pub(crate) config: PeerConfig,
    /// The protocol's number of it, 24 bits.
    pub(crate) index: u32,
    pub(crate) counters: Counters,
    /// Whether it is for the peer to try again first.
    yields: bool,
    /// When segments may be tried again, in milliseconds after `begun`; 0 when they may.
    plain_until: AtomicU64,
    begun: Instant,
    state: Mutex<State>,
}

/// What threads change.
pub(crate) struct State {
    /// `None` once the peer is removed. Boxed: it is 11 KiB.
    tunn: Option<Box<Tunn>>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// What was last told, as opposed to learned.
    told: Option<SocketAddr>,
    handshake: Option<Instant>,
    /// Packets that wait for a session.
    parked: usize,
    /// When this peer's initiation with an old time was last answered with one of ours.
    answered: Option<Instant>,
    /// Initiations beyond the protocol's own.
    early: u8,
}

/// Packets that wait for sessions, of all peers.
#[derive(Debug, Default)]
pub(crate) struct Parking(AtomicUsize);

impl Peer {
    pub(crate) fn new(
        config: PeerConfig,
        index: u32,
        own: &PrivateKey,
        yields: bool,
        limiter: &Arc<RateLimiter>,
    ) -> Self {
        let keepalive = config.keepalive.map(NonZeroU16::get);
        let limiter = Some(Arc::clone(limiter));
        let tunn = Tunn::new(own.secret(), config.key.point(), None, keepalive, index, limiter);
        let state = State {
            tunn: Some(Box::new(tunn)),
            endpoint: config.endpoint,
            told: config.endpoint,
            handshake: None,
            parked: 0,
            answered: None,
            early: 0,
        };
        Self {
            config,
            index,
            counters: Counters::default(),
            yields,
            plain_until: AtomicU64::new(0),
            begun: Instant::now(),
            state: Mutex::new(state),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it may stay as it is, but for the endpoint.
    pub(crate) fn is_as(&self, config: &PeerConfig) -> bool {
        let PeerConfig { key, endpoint: _, address, keepalive } = self.config;
        (key, address, keepalive) == (config.key, config.address, config.keepalive)
    }

    /// Takes over where it is told to be, when that is something else than before.
    pub(crate) fn lead_to(&self, endpoint: Option<SocketAddr>) {
        let mut state = self.state();
        if state.told != endpoint {
            state.told = endpoint;
            state.endpoint = endpoint.or(state.endpoint);
        }
    }

    /// How long it has had time to answer.
    pub(crate) fn age(&self) -> Duration {
        let head_start = if self.yields { HEAD_START } else { Duration::ZERO };
        self.begun.elapsed().saturating_sub(head_start)
    }

    /// Ends its session at once.
    pub(crate) fn remove(&self, parking: &Parking) {
        let mut state = self.state();
        state.unpark(parking);
        state.tunn = None;
    }

    /// Whether its datagrams go one by one for now.
    pub(crate) fn is_plain(&self) -> bool {
        let until = self.plain_until.load(Ordering::Relaxed);
        until != 0 && (self.begun.elapsed().as_millis() as u64) < until
    }

    pub(crate) fn set_plain(&self) {
        let until = self.begun.elapsed() + PLAIN_TIME;
        self.plain_until.store(until.as_millis() as u64, Ordering::Relaxed);
    }

    pub(crate) fn observe(&self) -> PeerObserved {
        let state = self.state();
        PeerObserved {
            key: self.config.key,
            address: self.config.address,
            endpoint: state.endpoint,
            handshake_age: state.handshake.map(|at| at.elapsed()),
            has_session: state.has_session(),
            traffic: self.counters.traffic(),
            drops: self.counters.drops(),
        }
    }
}

impl State {
    pub(crate) fn tunn(&mut self) -> Option<&mut Tunn> {
        self.tunn.as_deref_mut()
    }

    pub(crate) fn has_session(&self) -> bool {
        self.tunn.as_ref().is_some_and(|tunn| tunn.time_since_last_handshake().is_some())
    }

    /// An authentic packet came from there.
    pub(crate) fn heard_from(&mut self, from: SocketAddr) {
        if self.endpoint != Some(from) {
            self.endpoint = Some(from);
        }
    }

    pub(crate) fn note_handshake(&mut self) {
        self.handshake = Some(Instant::now());
    }

    /// Whether one more packet may wait for the session.
    pub(crate) fn may_park(&self, parking: &Parking) -> bool {
        self.parked < PARKED_MAX && parking.0.load(Ordering::Relaxed) < PARKED_TOTAL_MAX
    }

    pub(crate) fn park(&mut self, parking: &Parking) {
        self.parked += 1;
        parking.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn has_parked(&self) -> bool {
        self.parked > 0
    }

    /// None wait any more.
    pub(crate) fn unpark(&mut self, parking: &Parking) {
        parking.0.fetch_sub(self.parked, Ordering::Relaxed);
        self.parked = 0;
    }

    /// Whether an initiation with an old time is to be answered with one of ours: the peer's clock
    /// may have been set back, and it takes ours. Or somebody repeats what he has recorded, so not
    /// too often.
    pub(crate) fn may_answer_old(&mut self) -> bool {
        let due = self.answered.is_none_or(|at| at.elapsed() >= ANSWER_PERIOD);
        if due {
            self.answered = Some(Instant::now());
        }
        due
    }

    /// Initiations soon after the first, while there is no session: for a peer that is told of us a
    /// little later, and for two whose initiations crossed, as each forgets its own when it answers
    /// twice. The protocol's own come after five seconds, and not in the second case.
    pub(crate) fn initiate_early<'a>(
        &mut self,
        age: Duration,
        into: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        let due = usize::from(self.early) < EARLY.len() && age >= EARLY[usize::from(self.early)];
        if !due || self.has_session() {
            return None;
        }
        self.early += 1;
        self.initiate(into)
    }

    /// An initiation, when it is known where to send one.
    pub(crate) fn initiate<'a>(&mut self, into: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.endpoint?;
        match self.tunn()?.format_handshake_initiation(into, true) {
            TunnResult::WriteToNetwork(message) => Some(message),
            _ => None,
        }
    }
}

/// How long single datagrams are sent after the system refused joined ones.
const PLAIN_TIME: Duration = Duration::from_secs(10);
const ANSWER_PERIOD: Duration = Duration::from_secs(1);
const EARLY: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(1000),
    Duration::from_millis(3000),
    Duration::from_millis(7000),
];
/// So that two do not try again at the same time.
const HEAD_START: Duration = Duration::from_millis(300);
/// A burst of a connection's begin; what is more is sent again by whoever sent it.
const PARKED_MAX: usize = 64;
/// About 1.5 MB.
const PARKED_TOTAL_MAX: usize = 1024;
