//! A service: the desired state, and how far it has come.
//!
//! Owns: the record, its revisions, update status and reasons.
//! Invariant: a revision is never changed; a changed template is a new one.

use std::sync::Arc;

use base::Timestamp;

use crate::{Meta, ServiceId, ServiceSpec, TaskSpec};

#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: Arc<ServiceSpec>,
    /// The spec before the last change by a user.
    pub previous: Option<Arc<ServiceSpec>>,
    /// Raft index of the change that made the current template.
    pub revision: u64,
    pub update: Option<UpdateStatus>,
    /// Why it is not as wanted; one per decider, sorted by its name.
    pub reasons: Vec<Reason>,
}

/// One version of a service's template, shared by all tasks that run it.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    pub service: ServiceId,
    pub number: u64,
    pub spec: Arc<TaskSpec>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateState {
    Updating = 1,
    Paused = 2,
    Completed = 3,
    RollbackStarted = 4,
    RollbackPaused = 5,
    RollbackCompleted = 6,
}

impl UpdateState {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollbackStarted => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RollbackCompleted => "rollback_completed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started: Timestamp,
    pub completed: Timestamp,
    pub message: String,
}

/// Why a service is not as wanted, in the words of one decider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub decider: String,
    /// From a closed list of that decider, e.g. `no-suitable-node`.
    pub code: String,
    pub message: String,
    /// How many tasks it concerns.
    pub count: u64,
    pub since: Timestamp,
}
