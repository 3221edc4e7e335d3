//! One task on one node: what to do next.
//!
//! Owns: the order of a task's steps, and what an observation means for its status.
//! Does not know: the cluster's state, containers, clocks; it is told what was observed and when.
//! Invariant: the observed state never goes back, and one call asks for exactly one thing.
//! Ask again: after every operation, observation or changed assignment.

use std::sync::Arc;

use base::Timestamp;
use types::{TaskState, TaskStatus};

/// What is known of a task's container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Nothing of it exists.
    Absent,
    /// Prepared, not started.
    Created,
    Running {
        pid: u32,
    },
    Exited {
        code: i32,
        oom: bool,
    },
    /// It was started and nothing is left that could tell how it ended.
    Lost,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Store and report this status, then ask again.
    Report(TaskStatus),
    /// Make image, network and container ready.
    Prepare,
    Start,
    /// Stop it within its grace.
    Stop,
    /// Remove every trace of it.
    Remove,
    /// It is gone from this node: forget it.
    Forget,
    /// Nothing to do until something changes.
    Wait,
}

/// What the manager wants of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Desired(TaskState),
    /// The manager has deleted the task.
    Gone,
}

/// The next step of a task.
#[must_use]
pub fn decide_step(
    wanted: Wanted,
    status: &TaskStatus,
    observed: &Observed,
    now: Timestamp,
) -> Step {
    let desired = match wanted {
        Wanted::Gone if *observed == Observed::Absent => return Step::Forget,
        Wanted::Gone => return Step::Remove,
        Wanted::Desired(desired) => desired,
    };
    if status.state.is_terminal() {
        // The container stays for its logs until the manager deletes the task.
        return match observed {
            Observed::Running { .. } => Step::Stop,
            _ => Step::Wait,
        };
    }
    if desired > TaskState::Running {
        return match observed {
            Observed::Running { .. } => Step::Stop,
            Observed::Exited { code, oom } => {
                let ended = TaskStatus {
                    exit_code: Some(*code),
                    oom: *oom,
                    ..at(TaskState::Shutdown, now, "shutdown")
                };
                Step::Report(ended)
            }
            Observed::Absent | Observed::Created | Observed::Lost => {
                Step::Report(at(TaskState::Shutdown, now, "shutdown"))
            }
        };
    }
    forward(desired, status, observed, now)
}

/// One step towards running.
fn forward(desired: TaskState, status: &TaskStatus, observed: &Observed, now: Timestamp) -> Step {
    if status.state >= TaskState::Starting || started(observed) {
        return run(status, observed, now);
    }
    match (status.state, observed) {
        (TaskState::New | TaskState::Pending | TaskState::Assigned, _) => {
            Step::Report(at(TaskState::Accepted, now, "accepted"))
        }
        (TaskState::Accepted, _) => Step::Report(at(TaskState::Preparing, now, "preparing")),
        (TaskState::Preparing, Observed::Created) => {
            Step::Report(at(TaskState::Ready, now, "prepared"))
        }
        (TaskState::Preparing, _) => Step::Prepare,
        (_, Observed::Absent) => Step::Prepare,
        _ if desired == TaskState::Running => {
            Step::Report(at(TaskState::Starting, now, "starting"))
        }
        _ => Step::Wait,
    }
}

fn started(observed: &Observed) -> bool {
    matches!(observed, Observed::Running { .. } | Observed::Exited { .. } | Observed::Lost)
}

fn run(status: &TaskStatus, observed: &Observed, now: Timestamp) -> Step {
    match observed {
        Observed::Absent if status.state == TaskState::Starting => Step::Prepare,
        Observed::Created => Step::Start,
        Observed::Running { pid } if status.state < TaskState::Running => {
            Step::Report(TaskStatus { pid: *pid, ..at(TaskState::Running, now, "started") })
        }
        Observed::Running { .. } => Step::Wait,
        Observed::Exited { code, oom } => Step::Report(ended(*code, *oom, now)),
        Observed::Absent | Observed::Lost => {
            let error = "the container is lost: its end was not seen";
            Step::Report(failed(TaskState::Failed, error, None, now))
        }
    }
}

/// The status of a container that ended by itself.
fn ended(code: i32, oom: bool, now: Timestamp) -> TaskStatus {
    if code == 0 && !oom {
        return TaskStatus { exit_code: Some(0), ..at(TaskState::Complete, now, "finished") };
    }
    let error = match oom {
        true => format!("task: non-zero exit ({code}): killed for want of memory"),
        false => format!("task: non-zero exit ({code})"),
    };
    TaskStatus { oom, ..failed(TaskState::Failed, &error, Some(code), now) }
}

/// The status after an operation failed for good: rejected before the start, failed after.
#[must_use]
pub fn decide_failure(
    status: &TaskStatus,
    error: &str,
    code: Option<i32>,
    now: Timestamp,
) -> TaskStatus {
    let state = match status.state < TaskState::Starting {
        true => TaskState::Rejected,
        false => TaskState::Failed,
    };
    failed(state, error, code, now)
}

fn failed(state: TaskState, error: &str, exit_code: Option<i32>, now: Timestamp) -> TaskStatus {
    let mut end = error.len().min(types::limits::STATUS_TEXT_BYTES_MAX);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    TaskStatus { error: Some(Arc::from(&error[..end])), exit_code, ..at(state, now, state.name()) }
}

fn at(state: TaskState, at: Timestamp, message: &str) -> TaskStatus {
    TaskStatus { state, at, message: Some(Arc::from(message)), ..TaskStatus::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(desired: TaskState, state: TaskState, observed: Observed) -> String {
        let status = TaskStatus { state, ..TaskStatus::default() };
        match decide_step(Wanted::Desired(desired), &status, &observed, Timestamp(9)) {
            Step::Report(status) => match &status.error {
                Some(error) => format!("{}: {error}", status.state.name()),
                None => status.state.name().to_owned(),
            },
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn one_step_after_the_other() {
        use TaskState::*;
        let exited = |code, oom| Observed::Exited { code, oom };
        let running = Observed::Running { pid: 7 };
        for (desired, state, observed, want) in [
            (Running, Assigned, Observed::Absent, "accepted"),
            (Running, Accepted, Observed::Absent, "preparing"),
            (Running, Preparing, Observed::Absent, "Prepare"),
            (Running, Preparing, Observed::Created, "ready"),
            (Ready, Ready, Observed::Created, "Wait"),
            (Running, Ready, Observed::Created, "starting"),
            (Running, Ready, Observed::Absent, "Prepare"),
            (Running, Starting, Observed::Created, "Start"),
            (Running, Starting, running.clone(), "running"),
            (Running, Preparing, running.clone(), "running"),
            (Running, Running, running.clone(), "Wait"),
            (Running, Running, exited(0, false), "complete"),
            (Running, Running, exited(3, false), "failed: task: non-zero exit (3)"),
            (
                Running,
                Running,
                exited(137, true),
                "failed: task: non-zero exit (137): killed for want of memory",
            ),
            (
                Running,
                Running,
                Observed::Lost,
                "failed: the container is lost: its end was not seen",
            ),
            (
                Running,
                Running,
                Observed::Absent,
                "failed: the container is lost: its end was not seen",
            ),
            (Shutdown, Running, running.clone(), "Stop"),
            (Shutdown, Running, exited(143, false), "shutdown"),
            (Shutdown, Assigned, Observed::Absent, "shutdown"),
            (Remove, Starting, Observed::Created, "shutdown"),
            (Running, Failed, exited(1, false), "Wait"),
            (Running, Failed, running, "Stop"),
        ] {
            assert_eq!(
                step(desired, state, observed.clone()),
                want,
                "{desired:?} {state:?} {observed:?}"
            );
        }
    }

    #[test]
    fn a_deleted_task_leaves_nothing() {
        let status = TaskStatus::default();
        let step = |observed| decide_step(Wanted::Gone, &status, &observed, Timestamp(9));
        assert_eq!(step(Observed::Running { pid: 1 }), Step::Remove);
        assert_eq!(step(Observed::Absent), Step::Forget);
    }

    #[test]
    fn a_failure_is_a_rejection_only_before_the_start() {
        let of = |state| {
            let status = TaskStatus { state, ..TaskStatus::default() };
            decide_failure(&status, "no such image", None, Timestamp(9)).state
        };
        assert_eq!(of(TaskState::Preparing), TaskState::Rejected);
        assert_eq!(of(TaskState::Starting), TaskState::Failed);
    }
}
