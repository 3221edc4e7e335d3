//! What is replicated, as the store sees it.
//!
//! Owns: the trait that the state implements, and how its changes are told.
//! Does not know: what the bytes mean.
//! Invariant: `apply` gives the same result for the same entries on every manager.

use std::io::{self, Read};

/// A state that changes by applying entries, in order, on a thread of its own.
pub trait Machine: Send + 'static {
    /// What applying an entry answers to its proposer.
    type Reply: Clone + Send + 'static;
    /// A cheap, consistent copy to read from.
    type View: Clone + Send + Sync + 'static;

    /// Applies the entry at `index`.
    ///
    /// # Errors
    /// When this version does not know what the entry says. The manager then stops with the
    /// reason; an entry is never skipped.
    fn apply(&mut self, index: u64, payload: &[u8]) -> Result<Self::Reply, ApplyHalt>;

    /// The state as it is now.
    fn view(&self) -> Self::View;

    /// Writes `view` piece by piece to `sink`; pieces may have any size.
    ///
    /// # Errors
    /// Those of `sink`, to be passed on.
    fn encode_snapshot(
        view: &Self::View,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()>;

    /// Reads back what [`Self::encode_snapshot`] wrote.
    ///
    /// # Errors
    /// When the bytes are damaged, or of a version that this one does not know.
    fn restore(source: &mut dyn Read) -> io::Result<Self>
    where
        Self: Sized;
}

/// An entry that this version cannot apply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ApplyHalt {
    /// What is not known, for the operator: run the newer version.
    pub reason: String,
}

/// One change of the state, told in order on the machine's thread, after the view shows it.
#[derive(Debug)]
pub enum Applied<'a, R> {
    /// The entry at `index` was applied. Entries since the last snapshot are told again after a
    /// restart.
    Entry { index: u64, reply: &'a R },
    /// The whole state was replaced by a snapshot that ends with entry `index`.
    Restored { index: u64 },
}

/// Told of every change; it must not block.
pub type OnApply<R> = Box<dyn FnMut(Applied<'_, R>) + Send>;
