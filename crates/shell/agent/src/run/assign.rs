//! Assignments: recorded, then acted on.
//!
//! Owns: gathering the parts of a set, refusing old ones, telling the task loops.
//! Does not know: how a task is run. Invariant: nothing is acted on before it is on disk.

use lifecycle::{Observed, Wanted};
use ports::network::Network;
use ports::runtime::Runtime;
use ports::{Clock, SessionDialer};
use types::TaskId;
use wire::agent_v1::StoredTask;
use wire::v1::{self, ManagerMessage, NodeMessage};

use super::{Agent, Connection, wanted_of};
use crate::container::connected;
use crate::db::{Batch, DbError, FORMAT};
use crate::logs::LogUplink;

/// Revisions kept beyond those in use.
const REVISIONS_SPARE: usize = 1_000;

impl<R, N, C, D> Agent<R, N, C, D>
where
    R: Runtime,
    N: Network,
    C: Clock,
    D: SessionDialer<NodeMessage, ManagerMessage> + LogUplink,
{
    /// Gathers the parts of a set, then acts on it as a whole.
    pub(super) fn assign(&mut self, assignments: v1::Assignments) -> Result<(), DbError> {
        let Connection::Up(session) = &mut self.connection else { return Ok(()) };
        let more = assignments.more;
        session.partial.push(assignments);
        if more {
            return Ok(());
        }
        let parts = std::mem::take(&mut session.partial);
        let Some(last) = parts.last() else { return Ok(()) };
        let (epoch, index, full) = (last.epoch, last.index, last.full);
        if (epoch, index) < (self.stored.epoch, self.stored.index) {
            tracing::warn!(raft.index = index, "assignments older than the last ones, refused");
            return Ok(());
        }
        (self.stored.epoch, self.stored.index) = (epoch, index);
        let mut batch = Batch { node: Some(self.stored.clone()), ..Batch::default() };
        let (mut named, mut complete) = (Vec::new(), true);
        let mut removed: Vec<TaskId> = Vec::new();
        for part in parts {
            for revision in part.revisions {
                let key = (revision.service.to_vec(), revision.revision);
                self.revisions.insert(key, revision);
            }
            removed.extend(part.removed.iter().filter_map(|id| TaskId::from_bytes(id)));
            for task in part.tasks {
                let staged = self.stage(task, &mut batch);
                complete &= staged.is_some();
                named.extend(staged);
            }
        }
        if !complete {
            // A new session brings everything again, templates included.
            self.hang_up("an assignment came without its template");
            return Ok(());
        }
        if full {
            named.sort();
            let gone = |id: &&TaskId| named.binary_search(id).is_err();
            removed.extend(self.tasks.keys().filter(gone));
        }
        self.db.write(&batch)?;
        self.act(&batch, &removed);
        Ok(())
    }

    /// Records one assignment; what it means is done once it is on disk.
    fn stage(&self, assignment: v1::TaskAssignment, batch: &mut Batch) -> Option<TaskId> {
        let id = TaskId::from_bytes(&assignment.task)?;
        let stored = match self.tasks.get(&id) {
            Some(known) => StoredTask { assignment: Some(assignment), ..known.stored.clone() },
            None => {
                let key = (assignment.service.to_vec(), assignment.revision);
                let revision = self.revisions.get(&key).cloned();
                if revision.is_none() {
                    tracing::error!(task.id = %id, "assignment without its template passed over");
                    return None;
                }
                StoredTask { format: FORMAT, assignment: Some(assignment), revision, status: None }
            }
        };
        batch.put.push((id, stored));
        Some(id)
    }

    fn act(&mut self, batch: &Batch, removed: &[TaskId]) {
        for (id, stored) in &batch.put {
            let desired = stored.assignment.as_ref().map_or(0, |assignment| assignment.desired);
            match self.tasks.get_mut(id) {
                Some(task) => {
                    task.stored = stored.clone();
                    task.wanted.send_replace(wanted_of(desired));
                    let network = stored.assignment.as_ref().and_then(|a| a.network.as_ref());
                    let Some(now) = connected(network) else { continue };
                    let number = self.directories.max(1);
                    task.connected.send_if_modified(|known| {
                        let other = known.1 != now;
                        if other {
                            *known = (number, now);
                        }
                        other
                    });
                }
                None => self.start_task(*id, stored.clone(), Observed::Absent),
            }
        }
        for id in removed {
            if let Some(task) = self.tasks.get(id) {
                task.wanted.send_replace(Wanted::Gone);
            }
        }
        let used: std::collections::BTreeSet<(Vec<u8>, u64)> = self
            .tasks
            .values()
            .filter_map(|task| task.stored.assignment.as_ref())
            .map(|assignment| (assignment.service.to_vec(), assignment.revision))
            .collect();
        // A manager sends a revision once a session: those in use now are kept for it.
        if self.revisions.len() > used.len() + REVISIONS_SPARE {
            self.revisions.retain(|key, _| used.contains(key));
        }
    }
}
