//! The system's clocks.
//!
//! Owns: the daemon's implementation of the clock port. Invariant: as the port says.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base::{Millis, Timestamp};
use ports::Clock;

/// Wall time, and monotonic time since the daemon began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemClock {
    begun: Instant,
}

impl SystemClock {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(Millis::from_duration(since).0)
    }

    fn monotonic(&self) -> Millis {
        Millis::from_duration(self.begun.elapsed())
    }

    async fn sleep_until(&self, at: Millis) {
        // A wait without an end still wakes up once a day.
        let wait = at.0.saturating_sub(self.monotonic().0).min(86_400_000);
        // `monotonic` rounds down: one more millisecond, so that it has really come.
        tokio::time::sleep(Duration::from_millis(wait + 1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_a_clock() {
        testkit::conformance::clock::check(&SystemClock::new()).await;
    }
}
