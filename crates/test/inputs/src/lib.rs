//! Everything that reads bytes or texts from outside, each as a function of any bytes.
//!
//! Owns: the list of targets, and inputs to begin from. Does not know: how new inputs are found:
//! `tests/corpus.rs` bends the seeds, `fuzz/` lets a fuzzer look for more.
//! Invariant: a target returns, whatever it is given; a panic is a defect of what it calls.

mod seeds;
mod targets;

pub use seeds::seeds;
pub use targets::{TARGETS, Target, target};
