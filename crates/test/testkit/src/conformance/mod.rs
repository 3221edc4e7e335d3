//! What every implementation of a port must do, as functions that panic where it does not.
//!
//! Owns: one suite a port, run against its fake here and against the real one beside it, so that
//! what is found with the fake holds for the real one.
//! Does not know: any implementation. Invariant: a suite leaves nothing behind.

pub mod clock;
pub mod network;
pub mod runtime;
