//! The machine as openraft wants it, and the building of its snapshots.
//!
//! Owns: the applied position and membership, and which snapshot is current.
//! Does not know: how the machine works, how a snapshot file looks.
//! Invariant: an entry is applied once and in order; a snapshot covers exactly what its head says.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, TryStreamExt};
use openraft::EntryPayload as Kind;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};

use crate::apply::Applier;
use crate::disk::is_full;
use crate::halt::Halt;
use crate::limits::{APPLY_BATCH_MAX, SNAPSHOT_RETRY};
use crate::machine::Machine;
use crate::raft_types::{Entry, LogId, SnapshotMeta, StoredMembership, Types};
use crate::snapshot::{SnapshotFile, Snapshots};

type Snapshot = openraft::alias::SnapshotOf<Types, SnapshotFile>;

/// The adapter between openraft and the machine's thread.
pub(crate) struct StateMachine<M: Machine> {
    applier: Applier<M>,
    snapshots: Snapshots,
    current: Arc<Mutex<Option<SnapshotFile>>>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    halt: Halt,
}

impl<M: Machine> StateMachine<M> {
    /// Restores the newest snapshot, when there is one.
    pub(crate) async fn open(
        applier: Applier<M>,
        snapshots: Snapshots,
        halt: Halt,
    ) -> io::Result<Self> {
        let found = snapshots.open_current()?;
        let mut machine = Self {
            applier,
            snapshots,
            current: Arc::default(),
            last_applied: None,
            membership: StoredMembership::default(),
            halt,
        };
        if let Some(snapshot) = found {
            machine.restore(&snapshot).await?;
            machine.set_current(snapshot);
        }
        Ok(machine)
    }

    pub(crate) fn current(&self) -> Arc<Mutex<Option<SnapshotFile>>> {
        Arc::clone(&self.current)
    }

    async fn restore(&mut self, snapshot: &SnapshotFile) -> io::Result<()> {
        let source = Box::new(self.snapshots.read(snapshot)?);
        let index = snapshot.meta.last_log_id.as_ref().map_or(0, |id| id.index);
        self.applier.restore(index, source).await.map_err(|reason| self.halt.stop(reason))?;
        self.last_applied = snapshot.meta.last_log_id;
        self.membership = snapshot.meta.last_membership.clone();
        Ok(())
    }

    fn set_current(&self, snapshot: SnapshotFile) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
    }
}

impl<M: Machine> RaftStateMachine<Types> for StateMachine<M> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder<M>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + Send,
    {
        let mut batches = entries.try_ready_chunks(APPLY_BATCH_MAX);
        while let Some(batch) = batches.try_next().await.map_err(|error| error.1)? {
            let (mut work, mut responders) = (Vec::new(), Vec::new());
            for (Entry { log_id, payload }, responder) in batch {
                let bytes = match payload {
                    Kind::Blank => None,
                    Kind::Normal(payload) => Some(payload.0),
                    Kind::Membership(membership) => {
                        self.membership = StoredMembership::new(Some(log_id), membership);
                        None
                    }
                };
                work.push((log_id.index, bytes));
                responders.push(responder);
                self.last_applied = Some(log_id);
            }
            let replies =
                self.applier.apply(work).await.map_err(|reason| self.halt.stop(reason))?;
            for (responder, reply) in responders.into_iter().zip(replies) {
                if let Some(responder) = responder {
                    responder.send(reply);
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder<M> {
        let meta = SnapshotMeta {
            last_log_id: self.last_applied,
            last_membership: self.membership.clone(),
        };
        Builder {
            view: self.applier.view(),
            meta,
            snapshots: self.snapshots.clone(),
            current: self.current(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        let snapshot = SnapshotFile { meta: meta.clone(), ..snapshot };
        self.restore(&snapshot).await?;
        let installed = self.snapshots.install(&snapshot)?;
        self.set_current(installed);
        tracing::info!(raft.index = ?meta.last_log_id.map(|id| id.index), "snapshot installed");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(current.map(|file| Snapshot { meta: file.meta.clone(), snapshot: file }))
    }
}

/// Writes one view as a snapshot, beside everything else.
pub(crate) struct Builder<M: Machine> {
    view: M::View,
    meta: SnapshotMeta,
    snapshots: Snapshots,
    current: Arc<Mutex<Option<SnapshotFile>>>,
}

impl<M: Machine> RaftSnapshotBuilder<Types> for Builder<M> {
    type SnapshotData = SnapshotFile;

    /// A full disk delays the snapshot and fails nothing: the log is kept meanwhile.
    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        loop {
            let (view, meta) = (self.view.clone(), self.meta.clone());
            let snapshots = self.snapshots.clone();
            let written = tokio::task::spawn_blocking(move || {
                let mut writer = snapshots.create("build", &meta)?;
                M::encode_snapshot(&view, &mut |bytes| writer.write(bytes))?;
                snapshots.install(&writer.finish()?)
            });
            match written.await.map_err(io::Error::other)? {
                Ok(file) => {
                    tracing::info!(
                        raft.index = ?self.meta.last_log_id.map(|id| id.index),
                        bytes = file.bytes,
                        "snapshot written"
                    );
                    *self.current.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(file.clone());
                    return Ok(Snapshot { meta: self.meta.clone(), snapshot: file });
                }
                Err(error) if is_full(&error) => {
                    tracing::warn!(%error, "no room for a snapshot");
                    tokio::time::sleep(SNAPSHOT_RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
