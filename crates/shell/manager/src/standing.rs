//! Whether this manager may stand for election.
//!
//! Owns: following what the store says of this manager.
//! Does not know: how an election is stood for, how a clock is judged, or what becomes of a cluster
//! in which nobody stands: the store of each manager has patience with that.
//! Invariant: what was told last is what the state says, a membership period late at most.

use base::Millis;
use cluster::may_stand;
use ports::Clock;
use ports::store::Store;
use tokio::sync::watch;

use crate::options::Timing;

/// Tells whether this manager may stand, whenever that changes; returns on shutdown.
pub async fn run<S: Store, C: Clock>(
    store: S,
    clock: C,
    timing: Timing,
    tell: impl Fn(bool) + Send,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut told = true;
    loop {
        let stands = may_stand(&store.snapshot(), store.raft_id());
        if stands != told {
            tracing::warn!(stands, "whether this manager may lead has changed");
            tell(stands);
            told = stands;
        }
        let at = Millis(clock.monotonic().0 + timing.membership_period.0);
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => return,
            () = clock.sleep_until(at) => {}
        }
    }
}
