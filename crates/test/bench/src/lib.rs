//! Measurements, as functions that the runner calls and prints.
//!
//! Owns: the set-ups that are measured. Does not know: how results are shown.
//! Invariant: what is measured is the product's own code with its own defaults; nothing is
//! switched off to be faster.

pub mod create;
pub mod dns;
mod docker;
pub mod etcd;
mod figure;
pub mod network;
pub mod raft;
pub mod reach;
pub mod scheduler;
pub mod takeover;
pub mod tunnel;

pub use figure::Figure;
