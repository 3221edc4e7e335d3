//! The virtual clock.
//!
//! Owns: time as tokio's paused clock tells it. Invariant: it moves only when nothing else can.

use base::{Millis, Timestamp};
use ports::Clock;
use tokio::time::{Duration, Instant};

/// 2026-01-01T00:00:00Z: where every run begins.
const START: Timestamp = Timestamp(1_767_225_600_000);

#[derive(Clone, Copy, Debug)]
pub(crate) struct SimClock {
    begun: Instant,
}

impl SimClock {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now() }
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        START + self.monotonic()
    }

    fn monotonic(&self) -> Millis {
        Millis::from_duration(self.begun.elapsed())
    }

    async fn sleep_until(&self, at: Millis) {
        let wait = at.0.saturating_sub(self.monotonic().0).min(86_400_000);
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
}
