//! The store of one manager: opened, asked, proposed to, closed.
//!
//! Owns: the wiring of log, snapshots, machine, network and openraft, and their order of life.
//! Does not know: what the state means.
//! Invariant: a reply is given only to what a majority has on disk; when that is not known, the
//! error says so.

#[cfg(test)]
mod crash;
#[cfg(test)]
mod recorded;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError,
};
use openraft::{Raft, ReadPolicy};
use pki::{Divert, Diverted};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use wire::raft_v1::raft_server::RaftServer;

use crate::apply::Applier;
use crate::disk::{Disk, RealDisk};
use crate::errors::{OpenError, ProposeError, ReadError};
use crate::halt::Halt;
use crate::identity;
use crate::leadership::{self, LeaderRef, Leadership};
use crate::limits::{CONNECTIONS_QUEUED, MESSAGE_BYTES_MAX, PROPOSAL_BYTES_MAX, PROPOSE_RETRY};
use crate::log_store::LogStore;
use crate::machine::Machine;
use crate::network::{Network, PROTOCOL};
use crate::options::{Options, Tuning};
use crate::raft_types::{Payload, Peer, Types};
use crate::server::Server;
use crate::snapshot::{SnapshotFile, Snapshots};
use crate::space::{Space, SpaceWatch};
use crate::state_machine::StateMachine;
use crate::thread::RaftThread;
use crate::wal::{Wal, WalOptions};

pub(crate) type RaftOf<M> = Raft<Types, StateMachine<M>>;

/// A running store; clones share it. [`RaftStore::shutdown`] ends it.
pub struct RaftStore<M: Machine> {
    pub(crate) inner: Arc<Inner<M>>,
}

impl<M: Machine> Clone for RaftStore<M> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

pub(crate) struct Inner<M: Machine> {
    pub(crate) raft: RaftOf<M>,
    pub(crate) raft_id: u64,
    pub(crate) peer: Peer,
    pub(crate) tuning: Tuning,
    pub(crate) halt: Halt,
    applier: Applier<M>,
    wal: Wal,
    snapshot: Arc<Mutex<Option<SnapshotFile>>>,
    leadership: watch::Receiver<Leadership>,
    space: watch::Receiver<Space>,
    stands: watch::Sender<bool>,
    taker: mpsc::Sender<Diverted>,
    thread: RaftThread,
}

impl<M: Machine> Inner<M> {
    /// Whether disk or memory hold anything of a cluster. Metrics would not do: openraft publishes
    /// the first ones after it has started.
    pub(crate) fn has_history(&self) -> bool {
        let snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, end) = self.wal.range();
        end > 0 || self.wal.vote().is_some() || snapshot.is_some()
    }
}

/// What an operator may want to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreMetrics {
    pub term: u64,
    pub last_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub snapshot_index: u64,
    pub snapshot_bytes: u64,
    pub log_entries: u64,
    pub log_bytes: u64,
    /// Synced writes of the log since it was opened.
    pub log_commits: u64,
}

/// The parts that are made before the raft thread takes them over.
struct Parts<M: Machine> {
    raft_id: u64,
    disk: Arc<dyn Disk>,
    wal: Wal,
    snapshots: Snapshots,
    machine: StateMachine<M>,
    network: Network,
    tuning: Tuning,
    halt: Halt,
    diverted: mpsc::Receiver<Diverted>,
    leadership: watch::Sender<Leadership>,
    space: watch::Sender<Space>,
    stands: watch::Receiver<bool>,
}

impl<M: Machine> RaftStore<M> {
    /// Opens the store in `options.dir`, or begins an empty one there, and starts it. An empty
    /// one waits for [`Self::bootstrap`], or for a leader that adds it as a learner.
    ///
    /// # Errors
    /// When the directory belongs to another manager, cannot be read, or is damaged.
    pub async fn open(options: Options<M>) -> Result<Self, OpenError> {
        let disk = RealDisk::open(&options.dir)
            .map_err(|source| OpenError::Dir { path: options.dir.clone(), source })?;
        let (dir, id, node) = (&options.dir, options.raft_id, options.node);
        identity::check_or_create(dir, id, node, options.tls.identity().cluster)?;
        Self::open_on(Arc::new(disk), WalOptions::default(), options).await
    }

    pub(crate) async fn open_on(
        disk: Arc<dyn Disk>,
        wal_options: WalOptions,
        options: Options<M>,
    ) -> Result<Self, OpenError> {
        let Options { key, raft_id, node, address, tls, machine, on_apply, tuning, .. } = options;
        if address.len() > crate::limits::ADDRESS_BYTES_MAX {
            return Err(OpenError::Address);
        }
        let halt = Halt::new();
        let poisoned = halt.clone();
        let on_poison = Box::new(move |reason| drop(poisoned.stop(reason)));
        let wal = Wal::open(Arc::clone(&disk), key.clone(), wal_options, on_poison)?;
        let snapshots = Snapshots::new(Arc::clone(&disk), key);
        let applier = Applier::start(machine, on_apply).map_err(OpenError::Thread)?;
        let machine = StateMachine::open(applier.clone(), snapshots.clone(), halt.clone())
            .await
            .map_err(OpenError::Snapshot)?;
        let snapshot = machine.current();
        check_no_gap(&wal, &snapshot)?;
        let (taker, diverted) = mpsc::channel(CONNECTIONS_QUEUED);
        let (leadership, leadership_seen) = watch::channel(Leadership::default());
        let (space, space_seen) = watch::channel(Space::Enough);
        let (stands, stands_seen) = watch::channel(true);
        let network =
            Network { own: raft_id, tls, timing: tuning.timing, snapshots: snapshots.clone() };
        let parts = Parts {
            raft_id,
            disk,
            wal: wal.clone(),
            snapshots,
            machine,
            network,
            tuning,
            halt: halt.clone(),
            diverted,
            leadership,
            space,
            stands: stands_seen,
        };
        let thread = RaftThread::start().map_err(OpenError::Thread)?;
        let raft = thread.run(parts.start()).await.ok_or(OpenError::Panicked)??;
        let peer = Peer { node: node.as_u128(), address };
        Ok(Self {
            inner: Arc::new(Inner {
                raft,
                raft_id,
                peer,
                tuning,
                halt,
                applier,
                wal,
                snapshot,
                leadership: leadership_seen,
                space: space_seen,
                stands,
                taker,
                thread,
            }),
        })
    }

    /// Where a listener hands over connections of other managers: see `pki::Incoming::divert`.
    #[must_use]
    pub fn divert(&self) -> Divert {
        Divert::new(PROTOCOL, self.inner.taker.clone())
    }

    /// This manager's raft number.
    #[must_use]
    pub fn raft_id(&self) -> u64 {
        self.inner.raft_id
    }

    /// The state after the last applied entry, on this manager; it may be behind the leader's.
    #[must_use]
    pub fn view(&self) -> M::View {
        self.inner.applier.view()
    }

    /// Who leads, and whether it is this manager.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Index of the last applied entry; whoever sees an index finds it in the view.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.inner.applier.applied()
    }

    /// Set once, with the reason, when the store has stopped and only a restart helps.
    #[must_use]
    pub fn halted(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.inner.halt.watch()
    }

    /// Whether there is room on the disk.
    #[must_use]
    pub fn space(&self) -> watch::Receiver<Space> {
        self.inner.space.clone()
    }

    /// Whether this manager may lead: one that may not gives up leadership, and stands in no
    /// election until it may again, or nobody else does for long. It goes on to vote and to
    /// replicate.
    pub fn set_stands(&self, stands: bool) {
        self.inner.stands.send_if_modified(|known| std::mem::replace(known, stands) != stands);
    }

    /// Figures for operators.
    #[must_use]
    pub fn metrics(&self) -> StoreMetrics {
        let raft = self.inner.raft.metrics();
        let raft = raft.borrow_watched();
        let index = |id: Option<crate::raft_types::LogId>| id.map_or(0, |id| id.index);
        let (first, end) = self.inner.wal.range();
        let snapshot = self.inner.snapshot.lock();
        let snapshot = snapshot.unwrap_or_else(PoisonError::into_inner);
        StoreMetrics {
            term: raft.current_term,
            last_index: raft.last_log_index.unwrap_or(0),
            committed_index: index(raft.cluster_committed),
            applied_index: index(raft.last_applied),
            snapshot_index: index(raft.snapshot),
            snapshot_bytes: snapshot.as_ref().map_or(0, |file| file.bytes),
            log_entries: end - first,
            log_bytes: self.inner.wal.live_bytes() as u64,
            log_commits: self.inner.wal.commits(),
        }
    }

    /// Proposes an entry and waits until it is applied here. Proposals are ordered as their
    /// futures are first polled, and many may be under way.
    ///
    /// # Errors
    /// See [`ProposeError`]; only [`ProposeError::Unknown`] leaves the outcome open.
    pub async fn propose(&self, payload: Vec<u8>) -> Result<M::Reply, ProposeError> {
        let (bytes, max) = (payload.len(), PROPOSAL_BYTES_MAX);
        if bytes > max {
            return Err(ProposeError::TooLarge { bytes, max });
        }
        let payload = Bytes::from(payload);
        let begun = Instant::now();
        let deadline = begun + self.inner.tuning.proposal_timeout.as_duration();
        let mut pause = PROPOSE_RETRY;
        loop {
            self.check_writable()?;
            // Unconstrained: it is handed over at the first poll, whatever else the task polls.
            let write = self.inner.raft.client_write(Payload(payload.clone()));
            let write = tokio::task::unconstrained(write);
            let forward = match tokio::time::timeout_at(deadline, write).await {
                Err(_) => return Err(ProposeError::Unknown),
                Ok(Ok(response)) => {
                    return response.data.take().ok_or(ProposeError::Unknown);
                }
                Ok(Err(RaftError::Fatal(_))) => return Err(self.stopped()),
                Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => forward,
                Ok(Err(RaftError::APIError(_))) => return Err(ProposeError::Unknown),
            };
            // Nothing was stored: a leader is sure of itself only once a majority has answered.
            if forward.reason != ForwardReason::LeaseExpired {
                return Err(ProposeError::NotLeader { leader: leader_of(&forward) });
            }
            if begun.elapsed() > self.patience() {
                return Err(ProposeError::NoQuorum);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.inner.tuning.timing.heartbeat());
        }
    }

    /// Waits until the view here has everything that was answered anywhere before the call.
    ///
    /// # Errors
    /// When this manager does not lead, or a majority cannot be reached.
    pub async fn read_barrier(&self) -> Result<(), ReadError> {
        let begun = Instant::now();
        loop {
            let read = self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex);
            let forward = match tokio::time::timeout(self.patience(), read).await {
                Ok(Ok(_)) => return Ok(()),
                Err(_) => return Err(ReadError::NoQuorum),
                Ok(Err(RaftError::Fatal(_))) => return Err(self.stopped().into_read()),
                Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => None,
                Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                    Some(forward)
                }
            };
            if let Some(forward) = forward
                && forward.reason != ForwardReason::LeaseExpired
            {
                return Err(ReadError::NotLeader { leader: leader_of(&forward) });
            }
            if begun.elapsed() > self.patience() {
                return Err(ReadError::NoQuorum);
            }
            tokio::time::sleep(self.inner.tuning.timing.heartbeat()).await;
        }
    }

    /// Ends openraft, the network, the log and their threads. Other clones answer with errors.
    pub async fn shutdown(&self) {
        drop(self.inner.raft.shutdown().await);
        let inner = Arc::clone(&self.inner);
        drop(inner.halt.stop("the store was closed"));
        if tokio::task::spawn_blocking(move || inner.thread.stop()).await.is_err() {
            tracing::error!("raft thread could not be joined");
        }
    }

    /// How long a majority may take to confirm a leader.
    pub(crate) fn patience(&self) -> Duration {
        self.inner.tuning.timing.election_max() * 4
    }

    pub(crate) fn stopped(&self) -> ProposeError {
        let reason = self.inner.halt.reason().unwrap_or_else(|| {
            let metrics = self.inner.raft.metrics();
            let state = metrics.borrow_watched().running_state.clone();
            state.err().map_or_else(|| "raft stopped".into(), |fatal| fatal.to_string().into())
        });
        ProposeError::Halted(reason)
    }

    fn check_writable(&self) -> Result<(), ProposeError> {
        if self.inner.halt.reason().is_some() {
            return Err(self.stopped());
        }
        match &*self.inner.space.borrow() {
            Space::Enough => Ok(()),
            Space::Low { path, missing_bytes } => {
                Err(ProposeError::NoSpace { path: path.clone(), missing_bytes: *missing_bytes })
            }
        }
    }
}

impl<M: Machine> Parts<M> {
    /// Runs on the raft thread: everything that is spawned here stays there.
    async fn start(self) -> Result<RaftOf<M>, OpenError> {
        let config = Arc::new(
            self.tuning
                .config()
                .map_err(|error| OpenError::Timing { reason: error.to_string() })?,
        );
        let tls = Arc::clone(&self.network.tls);
        let log = LogStore::new(self.wal.clone());
        let raft = Raft::new(self.raft_id, config, self.network, log, self.machine)
            .await
            .map_err(|fatal| OpenError::Raft { reason: fatal.to_string() })?;
        // The first metrics are published after the start: members are known from the first moment.
        if raft.is_initialized().await.unwrap_or(false) {
            let known = |metrics: &openraft::RaftMetrics<Types>| {
                metrics.membership_config.membership().nodes().next().is_some()
            };
            let limit = Some(self.tuning.timing.election_max());
            drop(raft.wait(limit).metrics(known, "members known").await);
        }
        let heard = Arc::default();
        let server = Server {
            own: self.raft_id,
            raft: raft.clone(),
            snapshots: self.snapshots,
            receptions: AtomicU64::new(0),
            heard: Arc::clone(&heard),
            lease: self.tuning.timing.election_max() * 2,
        };
        let server = RaftServer::new(server)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let incoming = pki::diverted_stream(self.diverted, &tls, PROTOCOL)?;
        let keep_alive = self.tuning.timing.keep_alive();
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(keep_alive))
            .http2_keepalive_timeout(Some(keep_alive))
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .add_service(server)
            .serve_with_incoming(incoming);
        // The thread owns these tasks: they end with it.
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(error = %base::chain(&error), "raft server stopped");
            }
        });
        tokio::spawn(leadership::follow(
            raft.clone(),
            self.tuning.timing,
            self.halt,
            self.leadership,
        ));
        let space = SpaceWatch {
            raft: raft.clone(),
            disk: self.disk,
            wal: self.wal,
            tuning: self.tuning,
            told: self.space,
            stands: self.stands,
            heard,
        };
        tokio::spawn(space.run());
        Ok(raft)
    }
}

/// What the log has dropped must be in the snapshot: otherwise one of the files is gone.
fn check_no_gap(wal: &Wal, snapshot: &Mutex<Option<SnapshotFile>>) -> Result<(), OpenError> {
    let Some((purged, _)) = wal.purged() else { return Ok(()) };
    let snapshot = snapshot.lock().unwrap_or_else(PoisonError::into_inner);
    let covered = snapshot.as_ref().and_then(|file| file.meta.last_log_id).map(|id| id.index);
    if covered.is_some_and(|covered| covered >= purged) {
        return Ok(());
    }
    let reason = match covered {
        Some(covered) => format!("entries {} to {purged} are in no file", covered + 1),
        None => format!("the snapshot with the entries up to {purged} is missing"),
    };
    Err(OpenError::Raft { reason })
}

pub(crate) fn leader_of(forward: &ForwardToLeader<Types>) -> Option<LeaderRef> {
    LeaderRef::new(forward.leader_id?, forward.leader_node.as_ref()?)
}

const WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const FRAME_BYTES: u32 = 256 * 1024;
