//! A task: one slot's one attempt at running a container.
//!
//! Owns: the states and their order, the slim record, the restart tally of a slot.
//! Does not know: who moves a task from state to state.
//! Invariant: an observed state never goes back, so a comparison of numbers is enough.

use std::sync::Arc;

use base::Timestamp;

use crate::{Attachment, HostPort, Meta, NodeId, ServiceId, TaskId, TaskNetwork};

/// Numbered as Swarm's, so that a comparison tells what came first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum TaskState {
    #[default]
    New = 1,
    Pending = 64,
    Assigned = 192,
    Accepted = 256,
    Preparing = 320,
    Ready = 384,
    Starting = 448,
    Running = 512,
    Complete = 576,
    Shutdown = 640,
    Failed = 704,
    Rejected = 768,
    /// Desired only: delete when stopped.
    Remove = 800,
    Orphaned = 832,
}

impl TaskState {
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// The container has ended or never will be.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// Docker's lower-case word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }

    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as i32 == number)
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Which of its service's places a task fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// Of a replicated service, from 1.
    Replica(u32),
    /// Of a global service: its node is the slot.
    Node,
}

impl Slot {
    /// As it travels and is stored: zero for a task that is known by its node.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Replica(number) => number,
            Self::Node => 0,
        }
    }

    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Node,
            number => Self::Replica(number),
        }
    }
}

/// A slot, told apart from every other of the same service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SlotKey {
    Replica(u32),
    Node(NodeId),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskStatus {
    pub state: TaskState,
    /// When it was reached, by the clock of whoever reported it.
    pub at: Timestamp,
    pub message: Option<Arc<str>>,
    pub error: Option<Arc<str>>,
    /// Zero: no process.
    pub pid: u32,
    pub exit_code: Option<i32>,
    /// Ended by the kernel for want of memory.
    pub oom: bool,
    /// Ports of its node that lead to it, the chosen ones filled in; `None`: no port.
    pub ports: Option<Arc<Vec<HostPort>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    pub service: ServiceId,
    /// The revision of its service's template that it runs.
    pub revision: u64,
    pub slot: Slot,
    pub node: Option<NodeId>,
    pub desired: TaskState,
    pub status: TaskStatus,
    /// What it was given of the network when it was admitted; most tasks of large services have
    /// nothing.
    pub network: Option<Box<TaskNetwork>>,
}

impl Task {
    /// What it holds on networks: nothing any more once it has ended.
    pub fn held(&self) -> impl Iterator<Item = &Attachment> {
        let network = self.network.as_deref().filter(|_| !self.status.state.is_terminal());
        network.into_iter().flat_map(TaskNetwork::all)
    }

    /// `None` for a global task without a node, which cannot be.
    #[must_use]
    pub fn slot_key(&self) -> Option<SlotKey> {
        match self.slot {
            Slot::Replica(number) => Some(SlotKey::Replica(number)),
            Slot::Node => self.node.map(SlotKey::Node),
        }
    }

    /// It is wanted to run and has not ended.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.desired <= TaskState::Running && !self.status.state.is_terminal()
    }

    /// It uses, or will use, its node's resources. A global task, which is born with its node, does
    /// so from when it is found to fit.
    #[must_use]
    pub fn holds_resources(&self) -> bool {
        let state = self.status.state;
        self.node.is_some() && state >= TaskState::Assigned && !state.is_terminal()
    }
}

/// What a slot's restarts leave behind: stored, so that a new leader goes on where the old stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The service's revision that is counted; another one starts anew.
    pub revision: u64,
    /// Restarts in a row without a stable run: sets the back-off.
    pub attempts: u32,
    /// When the last restarts were decided, oldest first, at most `limits::TALLY_TIMES_MAX`.
    pub times: Vec<Timestamp>,
    /// The replacement may start from then on.
    pub resume_at: Timestamp,
}
