//! Bringing Raft's members in line with the nodes' roles.
//!
//! Owns: asking the core for the next step, and performing it.
//! Does not know: which step is safe; the core does. Invariant: one step at a time.

use base::Millis;
use cluster::{Step, decide_membership};
use ports::Clock;
use ports::store::{ProposeError, Store};
use state::Proposal;
use tokio::sync::watch;

use crate::options::Timing;

/// Runs while the manager does; acts while it leads.
pub async fn run<S: Store, C: Clock>(
    store: S,
    clock: C,
    timing: Timing,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut leadership = store.leadership();
    loop {
        let at = Millis(clock.monotonic().0 + timing.membership_period.0);
        let leads = leadership.borrow_and_update().is_leader;
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => return,
            _ = leadership.changed() => {}
            () = clock.sleep_until(at) => {}
        }
        if leads {
            step(&store, &clock).await;
        }
    }
}

async fn step<S: Store, C: Clock>(store: &S, clock: &C) {
    let Some(step) = decide_membership(&store.snapshot(), &store.members(), store.raft_id()) else {
        return;
    };
    tracing::info!(?step, "changing the managers");
    if let Err(error) = perform(store, clock, step).await {
        tracing::warn!(%error, "could not change the managers, trying again");
    }
}

async fn perform<S: Store, C: Clock>(store: &S, clock: &C, step: Step) -> Result<(), ProposeError> {
    match step {
        Step::AddLearner { raft_id, node, address } => {
            store.add_learner(raft_id, node, address).await
        }
        Step::Promote { raft_id } => store.promote(raft_id).await,
        Step::Remove { raft_id } => store.remove(raft_id).await,
        Step::TransferLeadership { to } => store.transfer_leadership(to).await,
        Step::Write(atom) => {
            let proposal = Proposal { time: clock.now(), atoms: vec![atom] };
            store.propose(proposal).await.map(drop)
        }
    }
}
