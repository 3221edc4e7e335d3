//! When layers are looked through for those that nobody needs.
//!
//! Owns: whose turn it is, and that no wish to look is lost.
//! Does not know: what is looked through, nor how it is deleted.
//! Invariant: whoever asks is followed by a whole look that begins after the question, once nobody
//! collects layers that no record names yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::Inner;

/// The turns of those who collect layers and of the one who looks.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// For reading: layers are collected. For writing: they are looked through. Taken for writing
    /// only when it is free, so that nobody who collects waits behind one who would look.
    lock: Arc<RwLock<()>>,
    /// Somebody asked and nobody has begun to look since.
    due: AtomicBool,
}

impl Turns {
    /// Whoever asks tries to look afterwards: nobody else may be at it.
    fn ask(&self) {
        self.due.store(true, Ordering::SeqCst);
    }

    /// Looks, unless that is somebody else's turn: then they look again after it. The holder's end
    /// and the next question cross without a gap: a question sets `due` before it tries the lock,
    /// and `due` is read again after each time the lock was given back.
    fn look_if_due(&self, mut look: impl FnMut()) {
        while self.due.load(Ordering::SeqCst)
            && let Ok(_alone) = self.lock.try_write()
        {
            if self.due.swap(false, Ordering::SeqCst) {
                look();
            }
        }
    }
}

/// While it is there no layer is swept; what was asked for meanwhile is done at its end.
#[derive(Debug)]
pub(crate) struct LayersKept {
    inner: Arc<Inner>,
    guard: Option<OwnedRwLockReadGuard<()>>,
}

/// Waits for a look under way, which is short.
pub(crate) async fn keep_layers(inner: &Arc<Inner>) -> LayersKept {
    let guard = Arc::clone(&inner.sweeping.lock).read_owned().await;
    LayersKept { inner: Arc::clone(inner), guard: Some(guard) }
}

impl Drop for LayersKept {
    fn drop(&mut self) {
        self.guard = None;
        if self.inner.sweeping.due.load(Ordering::SeqCst) {
            look_later(&self.inner);
        }
    }
}

/// Deletes layers and directories that nobody needs, at the latest when nobody adds any.
pub(crate) fn sweep_later(inner: &Arc<Inner>) {
    inner.sweeping.ask();
    look_later(inner);
}

/// Not when tokio has gone: a creation's thread may end after it.
fn look_later(inner: &Arc<Inner>) {
    let Ok(handle) = tokio::runtime::Handle::try_current() else { return };
    let inner = Arc::clone(inner);
    handle.spawn_blocking(move || {
        inner.sweeping.look_if_due(|| sweep(&inner));
        inner.store.empty_trash();
    });
}

fn sweep(inner: &Inner) {
    if let Err(error) = inner.store.sweep(&inner.held_layers()) {
        tracing::warn!(%error, "unused layers stay");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_during_a_look_is_followed_by_another() {
        let turns = Turns::default();
        let mut looks = 0;
        turns.ask();
        turns.look_if_due(|| {
            looks += 1;
            if looks == 1 {
                turns.ask();
                turns.look_if_due(|| unreachable!("it is another's turn"));
            }
        });
        assert_eq!(looks, 2);
    }

    #[test]
    fn who_asks_while_layers_are_collected_is_not_forgotten() {
        let turns = Turns::default();
        let kept = Arc::clone(&turns.lock).try_read_owned().unwrap();
        turns.ask();
        turns.look_if_due(|| unreachable!("layers are being collected"));
        drop(kept);
        let mut looks = 0;
        turns.look_if_due(|| looks += 1);
        turns.look_if_due(|| looks += 1);
        assert_eq!(looks, 1);
    }

    #[test]
    fn of_many_who_ask_at_once_none_is_lost() {
        for _ in 0..200 {
            let turns = Turns::default();
            let (asked, seen) = (std::sync::atomic::AtomicU64::new(0), AtomicBool::new(false));
            let seen_up_to = std::sync::atomic::AtomicU64::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        asked.fetch_add(1, Ordering::SeqCst);
                        turns.ask();
                        turns.look_if_due(|| {
                            seen.store(true, Ordering::SeqCst);
                            seen_up_to.fetch_max(asked.load(Ordering::SeqCst), Ordering::SeqCst);
                        });
                    });
                }
            });
            assert!(seen.into_inner());
            assert_eq!(seen_up_to.into_inner(), 4);
        }
    }
}
