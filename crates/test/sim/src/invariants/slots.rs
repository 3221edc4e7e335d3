//! Never more running tasks of a slot than allowed, on nodes that can be reached.

use std::collections::BTreeMap;

use state::Snapshot;
use types::{ServiceId, SlotKey, TaskId, TaskState};

/// In the store, a slot has at most one task that is wanted to run.
pub(crate) fn check_slots(view: &Snapshot) -> Result<(), String> {
    let mut wanted: BTreeMap<(ServiceId, SlotKey), TaskId> = BTreeMap::new();
    for task in view.tasks().filter(|task| task.desired <= TaskState::Running) {
        let Some(slot) = task.slot_key() else {
            return Err(format!("task {} has no slot", task.id));
        };
        if let Some(other) = wanted.insert((task.service, slot), task.id) {
            return Err(format!("slot {slot:?} wants two tasks: {other} and {}", task.id));
        }
    }
    Ok(())
}

/// On hosts that have been in touch for a while, no container runs that is not wanted.
pub(crate) fn check_running(
    view: &Snapshot,
    running: &[(usize, String)],
    settled: &[bool],
) -> Result<(), String> {
    let mut slots: BTreeMap<(ServiceId, SlotKey), String> = BTreeMap::new();
    for (_, id) in running.iter().filter(|(host, _)| settled[*host]) {
        let Some(task) = id.parse().ok().and_then(|id| view.task(id)) else { continue };
        // One that is being stopped may run beside its successor only until it is stopped.
        if task.desired != TaskState::Running {
            continue;
        }
        let Some(slot) = task.slot_key() else { continue };
        if let Some(other) = slots.insert((task.service, slot), id.clone()) {
            return Err(format!("slot {slot:?} runs twice: {other} and {id}"));
        }
    }
    Ok(())
}
