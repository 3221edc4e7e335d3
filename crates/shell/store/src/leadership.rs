//! Who leads, for everybody outside.
//!
//! Owns: the reading of openraft's metrics into one small value, and the watch of it.
//! Does not know: what leaders do.
//! Invariant: a leader that has not heard from a majority for two leases is none.

use base::Id;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Instant as _, Raft, ServerState};
use tokio::sync::watch;

use crate::halt::Halt;
use crate::machine::Machine;
use crate::options::Timing;
use crate::raft_types::{Peer, Types};
use crate::state_machine::StateMachine;

/// Who leads, as far as this manager knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Counts elections; never goes back.
    pub term: u64,
    /// `None` while there is none, or none is known.
    pub leader: Option<LeaderRef>,
    /// Whether it is this manager.
    pub is_me: bool,
    /// Whether this manager leads and its state has everything that leaders before it committed.
    /// Duties of the leader begin now, not before.
    pub ready: bool,
}

/// The leader, and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderRef {
    pub raft_id: u64,
    pub node: Id,
    /// `host:port`.
    pub address: String,
}

impl LeaderRef {
    pub(crate) fn new(raft_id: u64, peer: &Peer) -> Option<Self> {
        let node = Id::from_u128(peer.node)?;
        Some(Self { raft_id, node, address: peer.address.clone() })
    }
}

/// Follows the metrics until openraft is gone.
pub(crate) async fn follow<M: Machine>(
    raft: Raft<Types, StateMachine<M>>,
    timing: Timing,
    halt: Halt,
    told: watch::Sender<Leadership>,
) {
    let mut metrics = raft.metrics();
    let mut halted = halt.watch();
    loop {
        let now = match halt.reason() {
            Some(_) => Leadership { term: told.borrow().term, ..Leadership::default() },
            None => read(&metrics.borrow_and_update(), timing),
        };
        told.send_if_modified(|before| {
            let changed = *before != now;
            if changed {
                tracing::info!(
                    term = now.term,
                    leader = ?now.leader.as_ref().map(|leader| leader.node),
                    is_me = now.is_me,
                    ready = now.ready,
                    "leadership changed"
                );
                *before = now;
            }
            changed
        });
        if halt.reason().is_some() {
            return;
        }
        let pause = tokio::time::sleep(timing.heartbeat());
        tokio::select! {
            biased;
            _ = halted.changed() => {}
            changed = metrics.changed() => if changed.is_err() { return },
            () = pause => {}
        }
    }
}

fn read(metrics: &openraft::RaftMetrics<Types>, timing: Timing) -> Leadership {
    let term = metrics.current_term;
    let leads = metrics.state == ServerState::Leader && metrics.current_leader == Some(metrics.id);
    let voters = metrics.membership_config.voter_ids().count();
    let heard =
        metrics.last_quorum_acked.is_some_and(|acked| acked.elapsed() < timing.election_max() * 2);
    let is_me = leads && (voters == 1 || heard);
    let leader = match metrics.current_leader {
        Some(id) if id == metrics.id && !is_me => None,
        Some(id) => metrics
            .membership_config
            .membership()
            .get_node(&id)
            .and_then(|peer| LeaderRef::new(id, peer)),
        None => None,
    };
    let ready = is_me && metrics.last_applied.is_some_and(|id| id.leader_id.term == term);
    Leadership { term, leader, is_me, ready }
}
