//! The stream of applied changes, shared by all who watch.
//!
//! Owns: a bounded ring of the last batches of events, and cursors into it.
//! Does not know: what the events mean.
//! Invariant: a watcher either sees every event behind its cursor, or is told to look at
//! everything.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use state::Event;
use tokio::sync::watch;

/// Batches kept for slow watchers; one that is further behind looks at the whole snapshot.
const BATCHES_MAX: usize = 4_096;

/// The writing end: one per store.
#[derive(Clone, Debug)]
pub struct ChangeLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    /// Number of batches ever published.
    published: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Number of the first batch in `batches`.
    first: u64,
    batches: VecDeque<Arc<[Event]>>,
}

/// The reading end of one watcher.
#[derive(Debug)]
pub struct Cursor {
    shared: Arc<Shared>,
    next: u64,
    published: watch::Receiver<u64>,
}

/// What a watcher gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch {
    Events(Vec<Arc<[Event]>>),
    /// Some were missed: look at everything.
    Resync,
    /// The store has stopped.
    Closed,
}

impl Default for ChangeLog {
    fn default() -> Self {
        let published = watch::Sender::new(0);
        Self { shared: Arc::new(Shared { ring: Mutex::default(), published }) }
    }
}

impl ChangeLog {
    /// Publishes the events of one applied entry.
    pub fn publish(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.batches.push_back(events.into());
        if ring.batches.len() > BATCHES_MAX {
            ring.batches.pop_front();
            ring.first += 1;
        }
        let published = ring.first + ring.batches.len() as u64;
        drop(ring);
        self.shared.published.send_replace(published);
    }

    /// Makes every watcher look at everything: the state was replaced by a snapshot.
    pub fn reset(&self) {
        let mut ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        // One number is skipped, so that no cursor stands exactly behind the gap.
        ring.first += ring.batches.len() as u64 + 1;
        ring.batches.clear();
        let published = ring.first;
        drop(ring);
        self.shared.published.send_replace(published);
    }

    /// A watcher of what is published from now on.
    #[must_use]
    pub fn watch(&self) -> Cursor {
        let published = self.shared.published.subscribe();
        let next = *published.borrow();
        Cursor { shared: Arc::clone(&self.shared), next, published }
    }
}

impl Cursor {
    /// Waits for the next batches. May be cancelled without losing any.
    pub async fn next(&mut self) -> Batch {
        loop {
            if let Some(batch) = self.take() {
                return batch;
            }
            if self.published.changed().await.is_err() {
                return Batch::Closed;
            }
        }
    }

    /// What is there already.
    pub fn take(&mut self) -> Option<Batch> {
        self.published.borrow_and_update();
        let ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let end = ring.first + ring.batches.len() as u64;
        if self.next == end {
            return None;
        }
        let batch = match self.next.checked_sub(ring.first) {
            Some(skip) => {
                let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                Batch::Events(ring.batches.iter().skip(skip).cloned().collect())
            }
            None => Batch::Resync,
        };
        self.next = end;
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_seen_once() {
        let log = ChangeLog::default();
        log.publish(vec![Event::Cluster]);
        let mut cursor = log.watch();
        assert_eq!(cursor.take(), None);
        log.publish(vec![Event::Cluster]);
        log.publish(Vec::new());
        let one: Arc<[Event]> = vec![Event::Cluster].into();
        assert_eq!(cursor.take(), Some(Batch::Events(vec![one])));
        assert_eq!(cursor.take(), None);
    }

    #[test]
    fn a_watcher_too_far_behind_looks_at_everything() {
        let log = ChangeLog::default();
        let mut cursor = log.watch();
        for _ in 0..=BATCHES_MAX {
            log.publish(vec![Event::Cluster]);
        }
        assert_eq!(cursor.take(), Some(Batch::Resync));
        assert_eq!(cursor.take(), None);
        log.reset();
        assert_eq!(cursor.take(), Some(Batch::Resync));
    }
}
