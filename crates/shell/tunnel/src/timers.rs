//! The thread that minds the time.
//!
//! Owns: the protocol's timers of all peers, initiations to new ones, the handshakes' limit.
//! Does not know: data. Invariant: new peers are not spoken to all at once.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;

use crate::counters::DropCause;
use crate::engine::Shared;
use crate::peer::{Peer, State};

/// Peers that are to be spoken to first.
#[derive(Default)]
pub(crate) struct Newcomers {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    peers: VecDeque<Arc<Peer>>,
    stopped: bool,
}

impl Newcomers {
    pub(crate) fn add(&self, peers: impl IntoIterator<Item = Arc<Peer>>) {
        self.queue().peers.extend(peers);
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.queue().stopped = true;
        self.changed.notify_all();
    }

    /// Some of them, at once or when there are any; none at the end of the time; `None` to stop.
    fn wait(&self, limit: Duration) -> Option<Vec<Arc<Peer>>> {
        let (mut queue, _) = self
            .changed
            .wait_timeout_while(self.queue(), limit, |queue| {
                queue.peers.is_empty() && !queue.stopped
            })
            .unwrap_or_else(PoisonError::into_inner);
        let count = queue.peers.len().min(PACE);
        (!queue.stopped).then(|| queue.peers.drain(..count).collect())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until the newcomers' stop.
pub(crate) fn run(shared: &Shared) {
    let mut buffer = [0; MESSAGE_MAX];
    let mut due = Instant::now() + PERIOD;
    let mut reset = Instant::now() + LIMIT_PERIOD;
    loop {
        let wait = due.saturating_duration_since(Instant::now());
        let Some(peers) = shared.newcomers.wait(wait) else { return };
        let paced = peers.len() == PACE;
        for peer in peers {
            let mut state = peer.state();
            if let Some(message) = state.initiate(&mut buffer).map(|message| message.len()) {
                send(shared, &peer, &state, &buffer[..message]);
            }
        }
        if paced {
            std::thread::sleep(PAUSE);
        }
        let now = Instant::now();
        if now >= reset {
            shared.limiter.reset_count();
            reset = now + LIMIT_PERIOD;
        }
        if now >= due {
            for peer in &shared.tables.newest().peers {
                update(shared, peer, &mut buffer);
            }
            due = now + PERIOD;
        }
    }
}

fn update(shared: &Shared, peer: &Peer, buffer: &mut [u8]) {
    let mut state = peer.state();
    let Some(tunn) = state.tunn() else { return };
    let length = match tunn.update_timers(buffer) {
        TunnResult::WriteToNetwork(message) => Some(message.len()),
        TunnResult::Err(WireGuardError::ConnectionExpired) => {
            // What waited is gone too.
            state.unpark(&shared.parking);
            None
        }
        _ => state.initiate_early(peer.age(), buffer).map(|message| message.len()),
    };
    if let Some(length) = length {
        send(shared, peer, &state, &buffer[..length]);
    }
}

fn send(shared: &Shared, peer: &Peer, state: &State, message: &[u8]) {
    let Some(to) = state.endpoint else { return };
    if shared.socket.send(message, to).is_err() {
        shared.counters.drop(DropCause::SendFailed);
        peer.counters.drop(DropCause::SendFailed);
    }
}

/// The protocol counts time from the last of these; they cost 0.1 us a peer.
const PERIOD: Duration = Duration::from_millis(250);
const LIMIT_PERIOD: Duration = Duration::from_secs(1);
/// Initiations in a row, and the pause after them: 1,000 peers in less than a second, and the
/// processor stays with those who have sessions.
const PACE: usize = 20;
const PAUSE: Duration = Duration::from_millis(8);
/// An initiation, or an empty packet.
const MESSAGE_MAX: usize = 148;
