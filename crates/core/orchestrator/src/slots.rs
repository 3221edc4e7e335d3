//! The slots of one service, as they stand.
//!
//! Owns: grouping tasks by slot and sorting each slot's tasks into what they are.
//! Invariant: in a slot, tasks are ordered by creation, the newest last.

use std::collections::BTreeMap;
use std::sync::Arc;

use state::Snapshot;
use types::{ServiceId, SlotKey, Task, TaskState};

/// The tasks of one slot.
pub(crate) struct SlotView<'a> {
    pub key: SlotKey,
    pub tasks: Vec<&'a Arc<Task>>,
}

impl<'a> SlotView<'a> {
    /// The newest task that is not being stopped: what the slot is about.
    pub(crate) fn current(&self) -> Option<&'a Arc<Task>> {
        self.tasks.iter().rev().find(|task| task.desired <= TaskState::Running).copied()
    }

    /// Tasks that are not being stopped but are not the current one either.
    pub(crate) fn surplus(&self) -> impl Iterator<Item = &'a Arc<Task>> {
        let current = self.current().map(|task| task.id);
        self.tasks
            .iter()
            .copied()
            .filter(move |t| t.desired <= TaskState::Running && Some(t.id) != current)
    }

    /// Tasks that were told to stop and have not reported that they did.
    pub(crate) fn stopping(&self) -> impl Iterator<Item = &'a Arc<Task>> {
        self.tasks
            .iter()
            .copied()
            .filter(|t| t.desired > TaskState::Running && !t.status.state.is_terminal())
    }

    /// The current task's container runs.
    pub(crate) fn is_running(&self) -> bool {
        self.current().is_some_and(|task| task.status.state == TaskState::Running)
    }
}

/// Groups the tasks of a service by slot.
pub(crate) fn slots_of(view: &Snapshot, service: ServiceId) -> BTreeMap<SlotKey, SlotView<'_>> {
    let mut slots: BTreeMap<SlotKey, SlotView<'_>> = BTreeMap::new();
    for task in view.tasks_of_service(service) {
        if let Some(key) = task.slot_key() {
            let slot = slots.entry(key).or_insert_with(|| SlotView { key, tasks: Vec::new() });
            slot.tasks.push(task);
        }
    }
    for slot in slots.values_mut() {
        slot.tasks.sort_by_key(|task| (task.meta.spec_version, task.id));
    }
    slots
}
