//! Tasks that a node no longer has.
//!
//! Owns: comparing what the store knows that a node accepted with what the node says it has.
//! Does not know: how a node loses a task: a disk that was replaced, a record that is damaged.
//! Invariant: a task that the node has never confirmed is not lost: it may be on its way.

use std::collections::BTreeSet;

use base::Timestamp;
use state::Snapshot;
use types::{NodeId, Task, TaskId, TaskState, TaskStatus};

const LOST: &str = "the node no longer has this task: its record of it is gone";

/// What is to be stored of the tasks of `node` that it accepted and that are not among `has`, the
/// complete list of those it has anything of.
#[must_use]
pub fn lost_tasks(
    view: &Snapshot,
    node: NodeId,
    has: &BTreeSet<TaskId>,
    now: Timestamp,
) -> Vec<(TaskId, TaskStatus)> {
    let accepted =
        |task: &Task| task.status.state >= TaskState::Accepted && !task.status.state.is_terminal();
    view.tasks_on_node(node)
        .filter(|task| accepted(task) && !has.contains(&task.id))
        .map(|task| (task.id, ended(task, now)))
        .collect()
}

/// One that was to stop has stopped; any other has failed.
fn ended(task: &Task, now: Timestamp) -> TaskStatus {
    let state = match task.desired > TaskState::Running {
        true => TaskState::Shutdown,
        false => TaskState::Failed,
    };
    TaskStatus { state, at: now, error: Some(LOST.into()), ..TaskStatus::default() }
}

#[cfg(test)]
mod tests {
    use testkit::{fixture, node_id};

    use super::*;

    #[test]
    fn what_was_accepted_and_is_not_named_is_lost() {
        let fixture = fixture(
            "now 12:00:00
             node a ready
             service web replicas=7
             task web.1 @a running
             task web.2 @a running
             task web.3 @a running desired=shutdown
             task web.4 @a preparing
             task web.5 @a assigned
             task web.6 @a failed
             task web.7 @b running",
        );
        let named = |slots: &[u32]| -> BTreeSet<TaskId> {
            let tasks = fixture.view.tasks().filter(|task| match task.slot {
                types::Slot::Replica(number) => slots.contains(&number),
                types::Slot::Node => false,
            });
            tasks.map(|task| task.id).collect()
        };
        let lost = |has: &[u32]| -> Vec<(types::Slot, TaskState)> {
            let lost = lost_tasks(&fixture.view, node_id("a"), &named(has), fixture.now);
            lost.iter().map(|(id, s)| (fixture.view.task(*id).unwrap().slot, s.state)).collect()
        };
        let slot = types::Slot::Replica;
        assert_eq!(lost(&[1, 2, 3, 4]), []);
        assert_eq!(lost(&[1, 3, 4, 6]), [(slot(2), TaskState::Failed)]);
        let all = [
            (slot(1), TaskState::Failed),
            (slot(2), TaskState::Failed),
            (slot(3), TaskState::Shutdown),
            (slot(4), TaskState::Failed),
        ];
        assert_eq!(lost(&[]), all);
        let status = lost_tasks(&fixture.view, node_id("a"), &named(&[]), fixture.now);
        assert!(status.iter().all(|(_, status)| status.error.is_some()));
    }
}
