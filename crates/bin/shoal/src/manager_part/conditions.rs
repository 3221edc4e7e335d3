//! What is wrong with this manager, as it knows itself.
//!
//! Owns: the words for a full disk and a store that has stopped.
//! Does not know: who is told; the agent and the control API watch.
//! Invariant: a text says nothing that changes from moment to moment: it travels through the log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use store::{Replicated, Space};
use tokio::sync::watch;
use types::{Condition, ConditionCode};

use crate::networks::set_conditions;

/// What is said here.
const OF_MANAGER: &[ConditionCode] = &[ConditionCode::DiskFull, ConditionCode::StoreStopped];

/// Keeps `told` true until the manager stops; then nothing is wrong with it any more.
pub(super) async fn keep(
    store: Replicated,
    data_dir: PathBuf,
    told: watch::Sender<Vec<Condition>>,
    mut stopped: watch::Receiver<bool>,
) {
    let (mut space, mut halted) = (store.raft().space(), store.raft().halted());
    loop {
        let reason = halted.borrow_and_update().clone();
        let found = found(&space.borrow_and_update(), reason.as_ref(), &data_dir);
        told.send_if_modified(|known| set_conditions(known, OF_MANAGER, found));
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => break,
            Ok(()) = space.changed() => {}
            Ok(()) = halted.changed() => {}
            else => break,
        }
    }
    told.send_if_modified(|known| set_conditions(known, OF_MANAGER, Vec::new()));
}

fn found(space: &Space, halted: Option<&Arc<str>>, data_dir: &Path) -> Vec<Condition> {
    let full = matches!(space, Space::Low { .. }).then(|| {
        let message = format!("disk full below {}", data_dir.display());
        Condition::new(ConditionCode::DiskFull, message)
    });
    let stopped = halted.map(|reason| {
        Condition::new(ConditionCode::StoreStopped, format!("store stopped: {reason}"))
    });
    full.into_iter().chain(stopped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_has_its_words() {
        let low = Space::Low { path: "/x/swarm/raft".into(), missing_bytes: 7 };
        let texts = |space: &Space, halted: Option<&str>| {
            let halted = halted.map(Arc::from);
            let found = found(space, halted.as_ref(), Path::new("/x"));
            found.into_iter().map(|condition| condition.message).collect::<Vec<_>>()
        };
        assert_eq!(texts(&Space::Enough, None), Vec::<String>::new());
        assert_eq!(
            texts(&low, Some("i/o error")),
            ["disk full below /x", "store stopped: i/o error"]
        );
    }
}
