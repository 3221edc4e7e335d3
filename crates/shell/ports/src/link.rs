//! Port to the other end of a session.
//!
//! Owns: a pair of bounded queues, and how a node gets one to a manager.
//! Does not know: gRPC, TLS, what the messages say.
//! Invariant: a closed queue means that the session is over; nobody waits for it longer.

use std::future::Future;

use tokio::sync::mpsc;

/// One end of a session.
#[derive(Debug)]
pub struct Link<Tx, Rx> {
    pub tx: mpsc::Sender<Tx>,
    pub rx: mpsc::Receiver<Rx>,
}

impl<Tx, Rx> Link<Tx, Rx> {
    /// Two connected ends, with room for `capacity` messages in each direction.
    #[must_use]
    pub fn pair(capacity: usize) -> (Self, Link<Rx, Tx>) {
        let (tx, far_rx) = mpsc::channel(capacity);
        let (far_tx, rx) = mpsc::channel(capacity);
        (Self { tx, rx }, Link { tx: far_tx, rx: far_rx })
    }
}

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nobody answers at this address: try another manager.
    #[error("cannot reach {address}: {problem}")]
    Unreachable { address: String, problem: String },
    /// The manager refuses this node, for good.
    #[error("refused by {address}: {problem}")]
    Refused { address: String, problem: String },
}

/// How a node opens a session with a manager.
pub trait SessionDialer<Tx, Rx>: Send + Sync + 'static {
    fn dial(&self, address: &str) -> impl Future<Output = Result<Link<Tx, Rx>, LinkError>> + Send;
}
