//! Nothing goes backwards: index, time, and the states of tasks.

use std::collections::BTreeMap;

use base::Timestamp;
use state::Snapshot;
use types::{TaskId, TaskState};

/// What was seen before.
#[derive(Default)]
pub(crate) struct Backwards {
    index: u64,
    time: Timestamp,
    tasks: BTreeMap<TaskId, (TaskState, TaskState)>,
}

impl Backwards {
    pub(crate) fn check(&mut self, view: &Snapshot) -> Result<(), String> {
        if view.index() < self.index || view.time() < self.time {
            return Err(format!("index or time went back to {} {}", view.index(), view.time()));
        }
        (self.index, self.time) = (view.index(), view.time());
        for task in view.tasks() {
            let now = (task.desired, task.status.state);
            let before = self.tasks.insert(task.id, now);
            if before.is_some_and(|(desired, state)| now.0 < desired || now.1 < state) {
                return Err(format!("task {} went back from {before:?} to {now:?}", task.id));
            }
        }
        Ok(())
    }
}
