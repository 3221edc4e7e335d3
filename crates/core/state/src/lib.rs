//! The replicated state: tables, snapshots, change sets, and the shape of a decision.
//!
//! Owns: every table and index, the changes that may be made to them, and `apply`.
//! Does not know: Raft, protobuf, tokio, or who decides what.
//! Invariant: `apply` is a function of (state, stamp, change set): it asks for no time, no identity
//! and no randomness, so every manager that applies the same changes has the same state.

mod apply;
mod apply_connection;
mod apply_encryption;
mod apply_network;
mod apply_service;
mod change;
mod decide;
mod event;
mod index;
mod index_network;
mod member;
mod networks;
mod restore;
mod snapshot;
mod verify;

pub use apply::{Refusal, Stamp};
pub use change::{Author, Change, ChangeSet, Proposal};
pub use decide::{Ctx, Decider, Note, Plan};
pub use event::Event;
pub use index::Usage;
pub use member::Member;
pub use networks::{Holder, Resting};
pub use restore::{Restore, RestoreError};
pub use snapshot::Snapshot;
pub use verify::verify;
