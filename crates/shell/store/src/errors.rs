//! What the store answers when it cannot do what it was asked.
//!
//! Owns: the errors of its interface. Does not know: statuses of a wire.
//! Invariant: an error that leaves the outcome open says so; all others changed nothing.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use pki::TlsError;

use crate::identity::IdentityError;
use crate::leadership::LeaderRef;
use crate::wal::WalError;

/// The store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Look at the path's permissions and at the disk.
    #[error("{path} cannot be used for the store")]
    Dir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The directory is not this manager's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The newest snapshot cannot be used.
    #[error("snapshot cannot be used")]
    Snapshot(#[source] io::Error),
    /// The address is too long to be kept.
    #[error("address must be at most {} bytes", crate::limits::ADDRESS_BYTES_MAX)]
    Address,
    /// The timings contradict each other.
    #[error("raft timing is not possible: {reason}")]
    Timing { reason: String },
    /// Log and snapshot contradict each other, or Raft refuses them.
    #[error("raft could not be started: {reason}")]
    Raft { reason: String },
    /// The system refused a thread.
    #[error("a thread of the store could not be started")]
    Thread(#[source] io::Error),
    /// The certificate cannot be used for connections.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A defect.
    #[error("the store panicked while it was started")]
    Panicked,
}

/// A proposal was not accepted, or its outcome is not known.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// Ask the leader; nothing was stored.
    #[error("this manager is not the leader")]
    NotLeader { leader: Option<LeaderRef> },
    /// Nothing was stored.
    #[error(
        "The swarm does not have a leader. It's possible that too few managers are online. \
         Make sure more than half of the managers are online."
    )]
    NoQuorum,
    /// Propose less at once; nothing was stored.
    #[error("proposal must be at most {max} bytes, not {bytes}")]
    TooLarge { bytes: usize, max: usize },
    /// Free the missing bytes; nothing was stored.
    #[error("{path} needs {missing_bytes} more bytes of disk space")]
    NoSpace { path: PathBuf, missing_bytes: u64 },
    /// The store has stopped; nothing is stored any more.
    #[error("the store has stopped: {0}")]
    Halted(Arc<str>),
    /// It may be stored or not: read, then decide.
    #[error("no answer to the proposal in time: it may have been stored or not")]
    Unknown,
}

impl ProposeError {
    pub(crate) fn into_read(self) -> ReadError {
        match self {
            Self::NotLeader { leader } => ReadError::NotLeader { leader },
            Self::Halted(reason) => ReadError::Halted(reason),
            _ => ReadError::NoQuorum,
        }
    }
}

/// The newest state could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// Ask the leader.
    #[error("this manager is not the leader")]
    NotLeader { leader: Option<LeaderRef> },
    /// A majority does not answer.
    #[error(
        "The swarm does not have a leader. It's possible that too few managers are online. \
         Make sure more than half of the managers are online."
    )]
    NoQuorum,
    /// The store has stopped.
    #[error("the store has stopped: {0}")]
    Halted(Arc<str>),
}

/// The members were not changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MembershipError {
    /// Ask the leader.
    #[error("this manager is not the leader")]
    NotLeader { leader: Option<LeaderRef> },
    /// A cluster without managers could not be managed.
    #[error("attempting to demote the last manager of the swarm")]
    LastManager,
    /// There is no such member.
    #[error("can't find manager in raft memberlist")]
    NotFound,
    /// The raft number belongs to another node: numbers are never used twice.
    #[error("raft number {0:x} belongs to another node")]
    Taken(u64),
    /// There are as many members as there may be.
    #[error("the cluster has {0} raft members, which is the most there may be")]
    TooMany(usize),
    /// So few managers would answer that nothing could be decided any more.
    #[error(
        "can't remove member from the raft: this would result in a loss of quorum \
         ({reachable} of {voters} managers would be reachable, {needed} are needed)"
    )]
    LossOfQuorum { reachable: usize, voters: usize, needed: usize },
    /// Wait, and look at the network between the two.
    #[error("manager is {behind} log entries behind and cannot vote yet")]
    Behind { behind: u64 },
    /// Another change is under way.
    #[error("another change of the members is under way")]
    InProgress,
    /// The cluster exists already.
    #[error("this manager is part of a cluster already")]
    Initialized,
    /// As for a proposal.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}
