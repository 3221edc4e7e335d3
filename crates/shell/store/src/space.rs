//! What the store does when it may not lead, as when its disk fills up, and when its log grows.
//!
//! Owns: the look at free space, giving up leadership before it ends, compaction by bytes; and
//! standing for election, which others may forbid as well.
//! Does not know: files.
//! Invariant: with too little space no proposal is taken and no leadership is sought; both come
//! back by themselves when there is room again, with a margin, so that it does not flap. For other
//! reasons not to lead, a cluster is never left without a leader for good.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Instant as _, Raft, ServerState};
use tokio::sync::watch;

use crate::disk::Disk;
use crate::limits::{SEGMENT_BYTES, SPACE_PERIOD, SPACE_TRANSFER_RETRY};
use crate::machine::Machine;
use crate::options::Tuning;
use crate::raft_types::Types;
use crate::state_machine::StateMachine;
use crate::wal::Wal;

/// Whether there is room to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Space {
    /// There is.
    Enough,
    /// So many bytes must be freed on the file system of `path` before proposals are taken again.
    Low { path: PathBuf, missing_bytes: u64 },
}

/// The task that keeps an eye on it.
pub(crate) struct SpaceWatch<M: Machine> {
    pub(crate) raft: Raft<Types, StateMachine<M>>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) wal: Wal,
    pub(crate) tuning: Tuning,
    pub(crate) told: watch::Sender<Space>,
    /// Whether this manager may lead, room or not.
    pub(crate) stands: watch::Receiver<bool>,
    /// When a member last led, or sought to.
    pub(crate) heard: Arc<Mutex<Option<Instant>>>,
}

impl<M: Machine> SpaceWatch<M> {
    /// Runs until it is dropped with the raft thread.
    pub(crate) async fn run(self) {
        let mut transferred: Option<Instant> = None;
        let mut asked = BTreeSet::new();
        let (begun, mut needed, mut elected) = (Instant::now(), false, true);
        loop {
            let before = self.told.borrow().clone();
            let now = self.look(&before);
            if now != before {
                match &now {
                    Space::Enough => tracing::info!("disk space is sufficient again"),
                    Space::Low { path, missing_bytes } => {
                        tracing::error!(path = %path.display(), missing_bytes, "disk space is low");
                    }
                }
                self.told.send_replace(now.clone());
            }
            needed = self.is_needed(begun, needed);
            let may_lead = now == Space::Enough && (*self.stands.borrow() || needed);
            if may_lead != elected {
                tracing::info!(may_lead, "standing for election has changed");
                self.raft.runtime_config().elect(may_lead);
                elected = may_lead;
            }
            let waited = transferred.is_none_or(|at| at.elapsed() > SPACE_TRANSFER_RETRY);
            if !may_lead && waited && give_up_leadership(&self.raft, self.tuning, &mut asked).await
            {
                transferred = Some(Instant::now());
            }
            self.compact().await;
            tokio::time::sleep(SPACE_PERIOD).await;
        }
    }

    /// Whether it is to lead though it should not: nobody else has for long, until somebody does.
    fn is_needed(&self, begun: Instant, before: bool) -> bool {
        if self.raft.metrics().borrow_watched().state == ServerState::Leader {
            return before;
        }
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.unwrap_or(begun).elapsed() >= self.tuning.leaderless_patience.as_duration()
    }

    fn look(&self, before: &Space) -> Space {
        let free = match self.disk.free_bytes() {
            Ok(free) => free,
            Err(error) => {
                tracing::warn!(%error, "free disk space is not known");
                return before.clone();
            }
        };
        let floor = self.tuning.free_bytes_floor;
        let needed = match before {
            Space::Enough => floor,
            Space::Low { .. } => floor.saturating_add(floor / 4),
        };
        let segment = if self.wal.spare_missing() { SEGMENT_BYTES } else { 0 };
        match needed.saturating_sub(free).max(segment) {
            0 => Space::Enough,
            missing_bytes => Space::Low { path: self.disk.path(""), missing_bytes },
        }
    }

    /// A log of few but large entries is compacted by its size.
    async fn compact(&self) {
        if (self.wal.live_bytes() as u64) < self.tuning.snapshot_bytes {
            return;
        }
        let (applied, snapshot, purged) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let index = |id: Option<crate::raft_types::LogId>| id.map_or(0, |id| id.index);
            (index(metrics.last_applied), index(metrics.snapshot), index(metrics.purged))
        };
        let asked = if snapshot > purged {
            self.raft.trigger().purge_log(snapshot).await
        } else if applied > snapshot {
            self.raft.trigger().snapshot().await
        } else {
            Ok(())
        };
        if let Err(error) = asked {
            tracing::debug!(%error, "log could not be compacted");
        }
    }
}

/// Asks the voter that has most of the log, and was heard lately, to lead; one that was `asked`
/// before only after all others. `false` when this manager does not lead.
pub(crate) async fn give_up_leadership<M: Machine>(
    raft: &Raft<Types, StateMachine<M>>,
    tuning: Tuning,
    asked: &mut BTreeSet<u64>,
) -> bool {
    let target = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader {
            return false;
        }
        let next = best_successor(&metrics, tuning, asked).or_else(|| {
            asked.clear();
            best_successor(&metrics, tuning, asked)
        });
        asked.extend(next);
        next
    };
    match target {
        Some(target) => {
            tracing::info!(raft.peer = target, "leadership is handed over");
            if let Err(error) = raft.trigger().transfer_leader(target).await {
                tracing::warn!(%error, "leadership could not be handed over");
            }
        }
        None => tracing::debug!("there is nobody to lead instead"),
    }
    true
}

pub(crate) fn best_successor(
    metrics: &openraft::RaftMetrics<Types>,
    tuning: Tuning,
    without: &BTreeSet<u64>,
) -> Option<u64> {
    let lease = tuning.timing.election_max() * 2;
    let other = |id: &u64| *id != metrics.id && !without.contains(id);
    let voters = metrics.membership_config.voter_ids().filter(other);
    let heard = |id: &u64| {
        let acked = metrics.heartbeat.as_ref().and_then(|acked| acked.get(id).copied().flatten());
        acked.is_some_and(|at| at.elapsed() < lease)
    };
    let matched = |id: &u64| {
        let progress = metrics.replication.as_ref()?;
        progress.get(id).copied().flatten().map(|id| id.index)
    };
    voters.filter(heard).max_by_key(matched)
}
