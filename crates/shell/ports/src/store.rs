//! Port to the replicated state.
//!
//! Owns: proposing, reading, watching, leadership and membership.
//! Does not know: Raft. Invariant: what `propose` acknowledged is never lost.

use std::future::Future;
use std::path::PathBuf;

use state::{Member, Proposal, Refusal, Snapshot};
use tokio::sync::watch;

use crate::Cursor;

/// What became of a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Raft index of the entry.
    pub index: u64,
    /// One per atom, in order.
    pub results: Vec<Result<(), Refusal>>,
}

/// Who leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub term: u64,
    /// This manager leads and has applied everything that was committed before it did.
    pub is_leader: bool,
    /// Raft number and address of the leader, when there is one.
    pub leader: Option<(u64, String)>,
}

/// Why a proposal was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Ask the leader.
    #[error("this manager is not the leader")]
    NotLeader { leader: Option<String> },
    /// Too few managers answer.
    #[error("the managers have no quorum")]
    NoQuorum,
    #[error("proposal of {bytes} bytes is too large, at most {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
    #[error("no space left below {path}: {missing_bytes} bytes are missing")]
    NoSpace { path: PathBuf, missing_bytes: u64 },
    /// Whether it will be applied is unknown.
    #[error("no quorum of the managers answered in time: whether it was stored is not known")]
    TimedOut,
    /// The store has stopped; the daemon's log says why.
    #[error("the store has stopped: {reason}")]
    Stopped { reason: String },
}

/// The replicated state, as one manager sees it.
pub trait Store: Clone + Send + Sync + 'static {
    /// The last applied state.
    fn snapshot(&self) -> Snapshot;

    /// Replicates and applies; returns once this manager has applied it. On the leader only.
    fn propose(
        &self,
        proposal: Proposal,
    ) -> impl Future<Output = Result<Applied, ProposeError>> + Send;

    /// Waits until the snapshot holds everything acknowledged before the call. On the leader only.
    fn read_barrier(&self) -> impl Future<Output = Result<(), ProposeError>> + Send;

    fn leadership(&self) -> watch::Receiver<Leadership>;

    /// Events from now on.
    fn watch(&self) -> Cursor;

    /// This manager's own Raft number.
    fn raft_id(&self) -> u64;

    /// The members, as the leader sees them; empty on others.
    fn members(&self) -> Vec<Member>;

    fn add_learner(
        &self,
        raft_id: u64,
        node: types::NodeId,
        address: String,
    ) -> impl Future<Output = Result<(), ProposeError>> + Send;

    fn promote(&self, raft_id: u64) -> impl Future<Output = Result<(), ProposeError>> + Send;

    fn remove(&self, raft_id: u64) -> impl Future<Output = Result<(), ProposeError>> + Send;

    fn transfer_leadership(&self, to: u64)
    -> impl Future<Output = Result<(), ProposeError>> + Send;
}
