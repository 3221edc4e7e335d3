//! A virtual clock, as each node sees it.
//!
//! Owns: time as tokio's paused clock tells it, how far a node's wall clock is off, and whether the
//! node's processes stand still.
//! Does not know: nodes. Invariant: true time moves only when nothing else can; nobody who stands
//! still gets past [`Gate::pass`].

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use base::{Millis, Timestamp};
use ports::Clock;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

/// 2026-01-01T00:00:00Z: where every run begins.
const START: Timestamp = Timestamp(1_767_225_600_000);

/// Stops a node's processes where they stand, as SIGSTOP does: what they wait for happens, but they
/// learn of it only when they go on.
#[derive(Clone, Debug)]
pub struct Gate {
    stopped: watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { stopped: watch::Sender::new(false) }
    }
}

impl Gate {
    pub fn set_stopped(&self, stopped: bool) {
        self.stopped.send_replace(stopped);
    }

    #[must_use]
    pub fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Returns at once, or when the node goes on.
    pub async fn pass(&self) {
        // The sender lives as long as `self`.
        let _ = self.stopped.subscribe().wait_for(|stopped| !*stopped).await;
    }
}

/// Time of one node under tokio's paused clock.
#[derive(Clone, Debug)]
pub struct SimClock {
    begun: Instant,
    /// Milliseconds that the wall clock is ahead of true time.
    skew: Arc<AtomicI64>,
    gate: Gate,
}

/// True time.
impl Default for SimClock {
    fn default() -> Self {
        Self { begun: Instant::now(), skew: Arc::default(), gate: Gate::default() }
    }
}

impl SimClock {
    /// The clock of a node whose processes `gate` may stop.
    #[must_use]
    pub fn of_node(&self, gate: &Gate) -> Self {
        Self { begun: self.begun, skew: Arc::default(), gate: gate.clone() }
    }

    /// The wall clock jumps; monotonic time does not.
    pub fn set_skew(&self, skew_ms: i64) {
        self.skew.store(skew_ms, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let true_now = START + self.monotonic();
        Timestamp(true_now.0.saturating_add_signed(self.skew.load(Ordering::Relaxed)))
    }

    fn monotonic(&self) -> Millis {
        Millis::from_duration(self.begun.elapsed())
    }

    async fn sleep_until(&self, at: Millis) {
        let wait = at.0.saturating_sub(self.monotonic().0).min(86_400_000);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        self.gate.pass().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_a_clock() {
        let clock = SimClock::default();
        clock.set_skew(-20_000);
        crate::conformance::clock::check(&clock).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_node_learns_of_its_timers_when_it_goes_on() {
        let (gate, truth) = (Gate::default(), SimClock::default());
        let clock = truth.of_node(&gate);
        clock.set_skew(-5_000);
        assert_eq!(clock.now().0 + 5_000, truth.now().0);
        gate.set_stopped(true);
        let sleeper = clock.clone();
        let slept = tokio::spawn(async move {
            sleeper.sleep_until(Millis(100)).await;
            sleeper.monotonic()
        });
        truth.sleep_until(Millis(30_000)).await;
        assert!(!slept.is_finished() && gate.is_stopped());
        gate.set_stopped(false);
        assert_eq!(slept.await.unwrap(), Millis(30_000));
    }
}
