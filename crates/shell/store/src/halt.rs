//! Why a store has stopped.
//!
//! Owns: the one reason, told to everybody who watches. Does not know: who gives it.
//! Invariant: the first reason stays; what follows from it does not hide it.

use std::io;
use std::sync::Arc;

use tokio::sync::watch;

/// Set once; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Halt(Arc<watch::Sender<Option<Arc<str>>>>);

impl Halt {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::channel(None).0))
    }

    /// Records the reason and gives it back as an error for openraft.
    pub(crate) fn stop(&self, reason: impl Into<Arc<str>>) -> io::Error {
        let reason = reason.into();
        let error = io::Error::other(reason.to_string());
        let is_first = self.0.send_if_modified(|current| {
            let is_first = current.is_none();
            current.get_or_insert_with(|| Arc::clone(&reason));
            is_first
        });
        if is_first {
            tracing::error!(%reason, "store stopped");
        }
        error
    }

    pub(crate) fn reason(&self) -> Option<Arc<str>> {
        self.0.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.0.subscribe()
    }
}
