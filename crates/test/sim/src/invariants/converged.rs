//! When faults stop, what runs is what is wanted, and nothing else is left.

use std::collections::{BTreeMap, BTreeSet};

use state::Snapshot;
use types::{ServiceId, TaskState};

/// `running` and `left`: what the hosts really have.
pub(crate) fn check_converged(
    view: &Snapshot,
    known: &BTreeMap<ServiceId, u64>,
    running: &[(usize, String)],
    left: &[String],
) -> Result<(), String> {
    let mut wanted = BTreeSet::new();
    for (id, replicas) in known {
        let tasks: Vec<_> = view
            .tasks_of_service(*id)
            .filter(|task| task.desired == TaskState::Running)
            .filter(|task| task.status.state == TaskState::Running)
            .collect();
        if tasks.len() as u64 != *replicas {
            return Err(format!("service {id} runs {} of {replicas}", tasks.len()));
        }
        wanted.extend(tasks.iter().map(|task| task.id.to_string()));
    }
    let runs: BTreeSet<String> = running.iter().map(|(_, id)| id.clone()).collect();
    if let Some(id) = runs.symmetric_difference(&wanted).next() {
        return Err(format!("container {id} runs without being wanted, or the other way round"));
    }
    let gone = |id: &&String| id.parse().is_ok_and(|id| view.task(id).is_none());
    match left.iter().find(gone) {
        Some(id) => Err(format!("something of task {id} is left though it is deleted")),
        None => Ok(()),
    }
}
