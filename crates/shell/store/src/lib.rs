//! Durable, replicated state of the managers: Raft, its log, its snapshots, its network.
//!
//! Owns: everything about openraft, the only crate that knows it; the files in the raft directory.
//! Does not know: what the state means ([`Machine`] does), who decides, what callers may do.
//! Invariant: a proposal that was answered is on the disks of a majority, and is applied in the
//! same order everywhere.

mod disk;
pub mod limits;
mod seal;
mod wal;

pub use wal::WalError;
