//! Replacing tasks whose template is no longer the service's: one slot at a time, stop first.
//!
//! Owns: which slot is replaced next, and the service's update status.
//! Does not know: how a task is started. Invariant: at most one slot is mid-replacement.
//! Ask again: when a task of the service changes.

use types::{Revision, Task, TaskState, UpdateState, UpdateStatus};

use crate::slots::SlotView;
use crate::turn::{Kept, Turn};

pub(crate) fn decide_update(turn: &mut Turn<'_>, kept: &Kept<'_>) {
    let dirty: Vec<&&SlotView<'_>> = kept.iter().filter(|slot| is_dirty(turn, slot)).collect();
    let status = turn.service.update.clone();
    let paused = status.as_ref().is_some_and(|s| s.state == UpdateState::Paused);
    if paused {
        return;
    }
    let updating = status.as_ref().filter(|s| s.state == UpdateState::Updating).cloned();
    if dirty.is_empty() {
        if let Some(status) = updating {
            decide_end(turn, kept, status);
        }
        return;
    }
    let status = updating.unwrap_or_else(|| UpdateStatus {
        state: UpdateState::Updating,
        started: turn.now,
        completed: base::Timestamp::ZERO,
        message: "update in progress".into(),
    });
    if let Some(failed) = failed_task(turn, kept) {
        pause(turn, status, failed);
        return;
    }
    turn.set_update(Some(status));
    if kept.iter().any(|slot| is_mid_replacement(turn, slot)) {
        return;
    }
    // What does not run goes first: nothing is lost with it.
    let next = dirty.iter().find(|slot| !slot.is_running()).or(dirty.first());
    if let Some((slot, current)) = next.and_then(|slot| Some((slot.key, slot.current()?)))
        && !turn.is_told(current.id)
        && !turn.is_created(slot)
    {
        turn.replace(slot, current, TaskState::Ready);
        let name = &turn.service.spec.name;
        turn.note("updating", format!("{name} {} slots left", dirty.len()));
    }
}

fn decide_end(turn: &mut Turn<'_>, kept: &Kept<'_>, mut status: UpdateStatus) {
    if let Some(failed) = failed_task(turn, kept) {
        pause(turn, status, failed);
    } else if kept.iter().all(|slot| slot.is_running()) {
        status.state = UpdateState::Completed;
        status.completed = turn.now;
        status.message = "update completed".into();
        turn.set_update(Some(status));
    }
}

fn pause(turn: &mut Turn<'_>, mut status: UpdateStatus, failed: types::TaskId) {
    status.state = UpdateState::Paused;
    status.message = format!("update paused due to failure or early termination of task {failed}");
    turn.set_update(Some(status));
}

/// A task that this update made and that has failed.
fn failed_task(turn: &Turn<'_>, kept: &Kept<'_>) -> Option<types::TaskId> {
    let current = turn.revision.number;
    let failed = |task: &&&std::sync::Arc<Task>| {
        task.revision == current
            && matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
    };
    kept.iter().find_map(|slot| slot.tasks.iter().find(failed)).map(|task| task.id)
}

/// The slot's task runs another template than the service's, in a way that matters.
fn is_dirty(turn: &Turn<'_>, slot: &SlotView<'_>) -> bool {
    let Some(task) = slot.current() else { return false };
    if task.revision == turn.revision.number {
        return false;
    }
    match turn.view.revision(task.service, task.revision) {
        Some(old) => must_replace(turn, task, old),
        None => true,
    }
}

/// A changed placement alone replaces only tasks that it moves.
fn must_replace(turn: &Turn<'_>, task: &Task, old: &Revision) -> bool {
    let new = &*turn.revision.spec;
    let mut same_place = (*old.spec).clone();
    same_place.placement = new.placement.clone();
    // Restart rules concern the manager only.
    same_place.restart = new.restart.clone();
    // Names and virtual addresses of the service are not the task's.
    for (old, new) in same_place.networks.iter_mut().zip(&new.networks) {
        if old.target == new.target {
            (old.aliases, old.vips) = (new.aliases.clone(), new.vips.clone());
        }
    }
    let node = task.node.and_then(|id| turn.view.node(id));
    !old.publishes_as(turn.revision)
        || same_place != *new
        || node.is_none_or(|node| !turn.revision.allows(node))
}

/// A task of the current template that does not run yet, or one that is being stopped.
fn is_mid_replacement(turn: &Turn<'_>, slot: &SlotView<'_>) -> bool {
    let starting = slot.current().is_some_and(|task| {
        task.revision == turn.revision.number
            && task.status.state < TaskState::Running
            && !task.status.state.is_terminal()
    });
    starting || turn.is_created(slot.key)
}
