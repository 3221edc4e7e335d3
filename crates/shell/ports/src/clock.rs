//! Port to time.
//!
//! Owns: wall time, which may jump, and monotonic time, which deadlines are made of.
//! Invariant: `monotonic` never goes back, and `sleep_until` never returns early by it.

use std::future::Future;

use base::{Millis, Timestamp};

/// The time of one node.
pub trait Clock: Clone + Send + Sync + 'static {
    /// Wall time: for what people read and for what is stored.
    fn now(&self) -> Timestamp;

    /// Time since an arbitrary start: for waiting and for liveness.
    fn monotonic(&self) -> Millis;

    /// Waits until `monotonic` is at least `at`.
    fn sleep_until(&self, at: Millis) -> impl Future<Output = ()> + Send;
}
