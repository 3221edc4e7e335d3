//! What is deleted: history beyond the limit, and what belongs to nothing any more.
//!
//! Owns: the deletion of tasks. Does not know: containers; a task that may still have one is kept
//! until its node has reported its end.
//! Invariant: no task is deleted that its node might still run, unless that node is gone.

use std::collections::BTreeMap;

use state::{Author, Change, ChangeSet, Plan, Snapshot};
use types::{ServiceId, SlotKey, Task, TaskId, TaskState};

use crate::slots::SlotView;
use crate::turn::{TASKS_PER_PLAN_MAX, Turn};

/// The service is gone: its tasks are told to go, and are deleted once they did.
pub(crate) fn decide_gone(view: &Snapshot, service: ServiceId) -> Plan {
    let mut plan = Plan::default();
    let (mut stop, mut delete): (Vec<TaskId>, Vec<TaskId>) = (Vec::new(), Vec::new());
    for task in view.tasks_of_service(service) {
        if stop.len() + delete.len() == TASKS_PER_PLAN_MAX {
            plan.more = true;
            break;
        }
        if may_delete(view, task) {
            delete.push(task.id);
        } else if task.desired < TaskState::Remove {
            stop.push(task.id);
        }
    }
    let mut changes = Vec::new();
    if !stop.is_empty() {
        changes.push(Change::DesireTasks { desired: TaskState::Remove, tasks: stop });
    }
    if !delete.is_empty() {
        changes.push(Change::RemoveTasks(delete));
    }
    if !changes.is_empty() {
        plan.atoms.push(ChangeSet { author: Author::Orchestrator, changes });
    }
    plan
}

/// Deletes ended tasks beyond the history limit, and those that are to be removed.
pub(crate) fn decide_history(turn: &mut Turn<'_>, slots: &BTreeMap<SlotKey, SlotView<'_>>) {
    for slot in slots.values() {
        let mut ended: Vec<&Task> = Vec::new();
        for task in slot.tasks.iter().filter(|task| task.desired > TaskState::Running) {
            if !may_delete(turn.view, task) {
                continue;
            }
            if task.desired == TaskState::Remove || !was_accepted(task) {
                turn.delete(task.id);
            } else {
                ended.push(task);
            }
        }
        let Ok(limit) = usize::try_from(turn.history_limit) else { continue };
        for task in ended.iter().take(ended.len().saturating_sub(limit)) {
            turn.delete(task.id);
        }
    }
}

/// Its node does not run it: it has ended, never had a node, or its node is gone.
fn may_delete(view: &Snapshot, task: &Task) -> bool {
    let node_gone = task.node.is_none_or(|node| view.node(node).is_none());
    task.status.state.is_terminal() || node_gone
}

fn was_accepted(task: &Task) -> bool {
    task.status.state >= TaskState::Accepted
}
