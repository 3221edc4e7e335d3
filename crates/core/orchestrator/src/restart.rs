//! What happens when a slot's task has ended, or cannot stay where it is.
//!
//! Owns: the restart policy, its back-off and tally, moving tasks off lost nodes, and letting a
//! replacement start when its predecessor has stopped.
//! Does not know: whether the service is being updated.
//! Invariant: one ended task makes one replacement, in the atom that marks it as replaced.

use base::{Millis, Timestamp};
use types::{
    RestartCondition, RestartPolicy, ServiceMode, SlotKey, Tally, Task, TaskState, limits,
};

use crate::slots::SlotView;
use crate::turn::Turn;
use crate::wanted::is_displaced;

/// A run this long ends a series of failures.
const STABLE_RUN: Millis = Millis::from_secs(60);
/// Restarts in a row at the plain delay, before it doubles with each.
const PLAIN_RESTARTS: u32 = 3;
/// How long a replacement waits at most for its predecessor to stop, beyond its grace.
const STOP_WAIT_MAX: Millis = Millis::from_secs(60);

pub(crate) fn decide_slot(turn: &mut Turn<'_>, slot: &SlotView<'_>) {
    for task in slot.surplus() {
        turn.desire(task, TaskState::Shutdown);
    }
    let Some(current) = slot.current() else { return };
    let revision = turn.view.revision(current.service, current.revision);
    let revision = revision.map_or(turn.revision, |revision| revision);
    let replicated = matches!(turn.service.spec.mode, ServiceMode::Replicated(_));
    if current.status.state.is_terminal() {
        decide_ended(turn, slot.key, current);
    } else if replicated && is_displaced(turn.view, current.node, revision) {
        let name = &turn.service.spec.name;
        let text = format!("{name} task {} leaves its node", current.id);
        if turn.replace(slot.key, current, TaskState::Ready) {
            turn.note("displaced", text);
        }
    } else if current.desired == TaskState::Ready {
        decide_release(turn, slot, current);
    }
}

fn decide_ended(turn: &mut Turn<'_>, slot: SlotKey, ended: &Task) {
    // A node that took the task away, or was removed with it, is no failure of the task.
    if ended.status.state == TaskState::Orphaned {
        if !waits_for_node(turn, slot) {
            turn.replace(slot, ended, TaskState::Ready);
        }
        return;
    }
    let policy = &turn.revision.spec.restart;
    let tally = turn.view.tally(turn.service.id, slot);
    let fresh = Tally { revision: turn.revision.number, ..Tally::default() };
    let tally = match tally {
        Some(tally) if tally.revision == turn.revision.number => (**tally).clone(),
        _ => fresh,
    };
    if !is_restarted(policy, ended) || is_exhausted(policy, &tally, turn.now) {
        return;
    }
    let tally = count_restart(policy, tally, ended, turn.now);
    let desired = if tally.resume_at > turn.now { TaskState::Ready } else { TaskState::Running };
    if turn.replace(slot, ended, desired) {
        turn.plan.wake(tally.resume_at);
        turn.set_tally(slot, Some(tally));
    }
}

/// The slot is a node that is down: nothing can run there before it is back.
fn waits_for_node(turn: &Turn<'_>, slot: SlotKey) -> bool {
    let SlotKey::Node(id) = slot else { return false };
    turn.view.node(id).is_some_and(|node| node.status.state == types::NodeState::Down)
}

fn is_restarted(policy: &RestartPolicy, ended: &Task) -> bool {
    match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => ended.status.state > TaskState::Complete,
        RestartCondition::Any => true,
    }
}

fn is_exhausted(policy: &RestartPolicy, tally: &Tally, now: Timestamp) -> bool {
    if policy.max_attempts == 0 {
        return false;
    }
    let counts =
        |at: &&Timestamp| policy.window == Millis::ZERO || now.since(**at) <= policy.window;
    let used = tally.times.iter().filter(counts).count() as u64;
    used >= policy.max_attempts.min(limits::TALLY_TIMES_MAX as u64)
}

/// The tally after one more restart, which is decided now.
fn count_restart(policy: &RestartPolicy, mut tally: Tally, ended: &Task, now: Timestamp) -> Tally {
    if now.since(ended.meta.created) >= STABLE_RUN {
        tally.attempts = 0;
    }
    tally.attempts = tally.attempts.saturating_add(1);
    tally.times.push(now);
    let past = tally.times.len().saturating_sub(limits::TALLY_TIMES_MAX);
    tally.times.drain(..past);
    tally.resume_at = now + backoff(policy.delay, tally.attempts);
    tally
}

/// The delay before the n-th restart in a row.
fn backoff(delay: Millis, attempts: u32) -> Millis {
    let doublings = attempts.saturating_sub(PLAIN_RESTARTS).min(16);
    let longest = delay.max(limits::RESTART_BACKOFF_MAX);
    delay.saturating_mul(1 << doublings).min(longest)
}

/// Lets a waiting replacement run when its time has come and its predecessor has stopped.
fn decide_release(turn: &mut Turn<'_>, slot: &SlotView<'_>, current: &Task) {
    let tally = turn.view.tally(turn.service.id, slot.key);
    let resume_at = tally
        .filter(|tally| tally.revision == current.revision)
        .map_or(Timestamp::ZERO, |tally| tally.resume_at);
    if resume_at > turn.now {
        turn.plan.wake(resume_at);
        return;
    }
    let grace = turn.revision.spec.container.stop_grace();
    let deadline = current.meta.created.max(resume_at) + grace + STOP_WAIT_MAX;
    if deadline > turn.now && slot.stopping().any(|task| still_runs(turn, task)) {
        turn.plan.wake(deadline);
        return;
    }
    turn.desire(current, TaskState::Running);
}

/// A task on a lost node will not report that it stopped; nothing waits for it.
fn still_runs(turn: &Turn<'_>, task: &Task) -> bool {
    let node = task.node.and_then(|id| turn.view.node(id));
    node.is_some_and(|node| node.status.state != types::NodeState::Down)
}
