//! Which of two threads minds which direction.
//!
//! Owns: both threads' loops, and the decision. Does not know: what is done for a direction.
//! Invariant: each direction is minded by one thread at a time, and none is left out.
//!
//! As long as one direction is light, as the acknowledgements of a stream are, one thread minds
//! both: to wake another costs more than to do the work itself, above all where a processor has to
//! be fetched out of its sleep. When both are heavy, the second thread takes the device over.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::Shared;
use crate::receive::Inbound;
use crate::sys::go_first;

/// Whether the directions are apart, as both threads see it.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    apart: AtomicBool,
    lock: Mutex<bool>,
    changed: Condvar,
}

impl Turns {
    fn are_apart(&self) -> bool {
        self.apart.load(Ordering::Acquire)
    }

    fn set_apart(&self, apart: bool) {
        let _stopped = self.stopped();
        self.apart.store(apart, Ordering::Release);
        self.changed.notify_all();
    }

    /// Ends the waiting for good.
    pub(crate) fn stop(&self) {
        *self.stopped() = true;
        self.changed.notify_all();
    }

    /// Until they are; answers whether that is why it ends.
    fn await_apart(&self) -> bool {
        let idle = |stopped: &mut bool| !*stopped && !self.are_apart();
        let waited = self.changed.wait_while(self.stopped(), idle);
        !*waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> MutexGuard<'_, bool> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that minds the socket, and mostly the device too.
pub(crate) fn mind_both(shared: &Shared) -> io::Result<()> {
    go_first();
    let mut inbound = Inbound::new(shared);
    let mut load = Load::new(Instant::now());
    // Whether there may be something.
    let mut of_socket = true;
    while !shared.is_stopped() {
        let apart = shared.turns.are_apart();
        let mut more = of_socket && inbound.step()?;
        of_socket = true;
        // Always: what comes in makes the kernel send, above all acknowledgements do.
        if !apart {
            more |= shared.outbound().step(shared)?;
        }
        let sent = shared.counters.traffic().sent_packets;
        let wanted = load.wants_apart(Instant::now(), inbound.messages(), sent, apart);
        let (socket, device) = (shared.socket.as_fd(), shared.tun.as_fd());
        if wanted != apart {
            shared.turns.set_apart(wanted);
        } else if !more && apart {
            shared.wake.wait([socket])?;
        } else if !more {
            [of_socket, _] = shared.wake.wait([socket, device])?;
        }
    }
    Ok(())
}

/// The thread that minds the device while both directions are heavy.
pub(crate) fn mind_device(shared: &Shared) -> io::Result<()> {
    go_first();
    while shared.turns.await_apart() {
        let more = shared.outbound().step(shared)?;
        if !more {
            shared.wake.wait([shared.tun.as_fd()])?;
        }
    }
    Ok(())
}

/// How much there is to do for each direction.
#[derive(Debug)]
struct Load {
    since: Instant,
    received: u64,
    sent: u64,
}

impl Load {
    fn new(now: Instant) -> Self {
        Self { since: now, received: 0, sent: 0 }
    }

    /// By the rates since the last decision, when that was long enough ago.
    fn wants_apart(&mut self, now: Instant, received: u64, sent: u64, apart: bool) -> bool {
        let time = now.saturating_duration_since(self.since);
        if time < DECISION {
            return apart;
        }
        let lighter = (received - self.received).min(sent.saturating_sub(self.sent));
        *self = Self { since: now, received, sent };
        let limit = if apart { LIGHT } else { HEAVY };
        lighter as f64 >= limit * time.as_secs_f64()
    }
}

const DECISION: Duration = Duration::from_millis(5);
/// Packets a second, of which each costs about a microsecond: a twentieth of a processor.
const HEAVY: f64 = 50_000.0;
/// Far enough below for them not to change all the time.
const LIGHT: f64 = 20_000.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_part_when_both_are_heavy_and_join_when_one_is_light() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut load = Load::new(begun);
        // A stream: many packets, few acknowledgements.
        assert!(!load.wants_apart(at(10), 4_000, 100, false));
        assert!(!load.wants_apart(at(20), 4_100, 4_100, false));
        // Both, but it is too early to tell.
        assert!(!load.wants_apart(at(21), 5_000, 5_000, false));
        assert!(load.wants_apart(at(30), 8_000, 8_000, false));
        // What would not part them does not join them either.
        assert!(load.wants_apart(at(40), 8_300, 12_000, true));
        assert!(!load.wants_apart(at(50), 8_400, 16_000, true));
        // After a pause a burst is nothing.
        assert!(!load.wants_apart(at(10_050), 9_400, 17_000, false));
    }

    #[test]
    fn who_waits_for_them_to_part_is_told_and_stopped() {
        let turns = Turns::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turns.await_apart());
            turns.set_apart(true);
            assert!(waiting.join().unwrap());
            turns.set_apart(false);
            let waiting = scope.spawn(|| turns.await_apart());
            turns.stop();
            assert!(!waiting.join().unwrap());
        });
    }
}
