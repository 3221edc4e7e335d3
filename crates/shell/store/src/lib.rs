//! Durable, replicated state of the managers: Raft, its log, its snapshots, its network.
//!
//! Owns: everything about openraft, the only crate that knows it; the files in the raft directory.
//! Does not know: what the state means ([`Machine`] does), who decides, what callers may do.
//! Invariant: a proposal that was answered is on the disks of a majority, and is applied in the
//! same order everywhere.

mod apply;
mod codec;
mod convert;
mod disk;
mod errors;
#[doc(hidden)]
pub mod fuzzing;
mod halt;
mod identity;
mod leadership;
pub mod limits;
mod log_store;
mod machine;
mod membership;
mod network;
mod options;
mod raft_types;
mod replicated;
mod seal;
mod server;
mod snapshot;
mod space;
mod state_machine;
mod store;
mod thread;
mod wal;

pub use errors::{MembershipError, OpenError, ProposeError, ReadError};
pub use identity::{IdentityError, fresh_raft_id, stored_raft_id};
pub use leadership::{LeaderRef, Leadership};
pub use machine::{Applied, ApplyHalt, Machine, OnApply};
pub use membership::Member;
pub use options::{Options, Timing, Tuning};
pub use replicated::{Replicated, Reply, StateMachine};
pub use space::Space;
pub use store::{RaftStore, StoreMetrics};
pub use wal::WalError;
