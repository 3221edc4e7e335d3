//! Why a service's tasks do not keep running, in one sentence on the service.
//!
//! Owns: the orchestrator's reason. Invariant: it is written when its code changes, and otherwise
//! at most every five seconds.

use base::Millis;
use state::Author;
use types::{Reason, TaskState, UpdateState};

use crate::slots::SlotView;
use crate::turn::{Kept, Turn};

/// A restarted task that runs this long is no longer failing.
const SETTLED_RUN: Millis = Millis::from_secs(10);

pub(crate) fn decide_reason(turn: &mut Turn<'_>, kept: &Kept<'_>) {
    let wanted = failing(turn, kept).or_else(|| paused(turn));
    let decider = Author::Orchestrator.name();
    let known = turn.service.reasons.iter().find(|r| r.decider == decider);
    if turn.plan.rewrites_reason(turn.now, known, wanted.as_ref()) {
        turn.set_reason(wanted);
    }
}

fn failing(turn: &mut Turn<'_>, kept: &Kept<'_>) -> Option<Reason> {
    let failing: Vec<&&SlotView<'_>> = kept.iter().filter(|slot| is_failing(turn, slot)).collect();
    let slot = failing.first()?;
    let ended = |task: &&std::sync::Arc<types::Task>| {
        matches!(task.status.state, TaskState::Failed | TaskState::Rejected | TaskState::Complete)
    };
    let last = slot.tasks.iter().copied().rev().find(ended);
    let why = last.map_or_else(String::new, |task| {
        let error = task.status.error.as_deref().unwrap_or("the task has ended");
        format!(": {error}")
    });
    let verb =
        if exhausted(turn, slot) { "has ended and is not restarted" } else { "keeps ending" };
    Some(Reason {
        decider: Author::Orchestrator.name().to_owned(),
        code: "task-failing".into(),
        message: format!("task {}.{} {verb}{why}", turn.service.spec.name, slot_text(turn, slot)),
        count: failing.len() as u64,
        since: turn.now,
    })
}

fn paused(turn: &Turn<'_>) -> Option<Reason> {
    let status = turn.service.update.as_ref()?;
    (status.state == UpdateState::Paused).then(|| Reason {
        decider: Author::Orchestrator.name().to_owned(),
        code: "update-paused".into(),
        message: status.message.clone(),
        count: 1,
        since: turn.now,
    })
}

/// Ended in failure and waiting to restart, restarted a moment ago, or given up.
fn is_failing(turn: &mut Turn<'_>, slot: &SlotView<'_>) -> bool {
    if exhausted(turn, slot) {
        return true;
    }
    let Some(tally) = turn.view.tally(turn.service.id, slot.key) else { return false };
    let Some(current) = slot.current() else { return false };
    if tally.attempts == 0 || tally.revision != current.revision {
        return false;
    }
    if current.status.state != TaskState::Running {
        return true;
    }
    let settled = current.status.at + SETTLED_RUN;
    if settled > turn.now {
        turn.plan.wake(settled);
    }
    settled > turn.now
}

/// The current task has failed and stays so: the policy restarts it no more.
fn exhausted(turn: &Turn<'_>, slot: &SlotView<'_>) -> bool {
    let failed = |task: &std::sync::Arc<types::Task>| {
        matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
    };
    slot.current().is_some_and(|task| failed(task) && !turn.is_told(task.id))
}

fn slot_text(turn: &Turn<'_>, slot: &SlotView<'_>) -> String {
    match slot.key {
        types::SlotKey::Replica(number) => number.to_string(),
        types::SlotKey::Node(node) => {
            turn.view.node(node).map_or_else(|| node.to_string(), |n| n.hostname().to_owned())
        }
    }
}
