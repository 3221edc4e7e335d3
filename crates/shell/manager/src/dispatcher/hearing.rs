//! What nodes say: heartbeats with their clocks and conditions, and what tasks they have.
//!
//! Owns: turning messages of a session into statuses that wait to be stored.
//! Does not know: when they are stored. Invariant: nothing here reads the store: a heartbeat is
//! judged by the dispatcher's own copy of the state, which each batch of changes renews.

use std::collections::BTreeSet;

use dispatch::{Reading, Verdict, lost_tasks};
use ports::Clock;
use ports::store::Store;
use types::limits::{BEHIND_AFTER, CONDITION_PORTS_MAX};
use types::{Condition, ConditionCode, NodeId, NodeState, NodeStatus, TaskId, TaskStatus};
use wire::v1;
use wire::v1::manager_message::Message as Out;

use super::run::Dispatcher;
use crate::options::CONDITION_BYTES_MAX;

impl<S: Store, C: Clock> Dispatcher<S, C> {
    pub(super) fn take_heartbeat(&mut self, node: NodeId, beat: v1::Heartbeat) {
        if let Some(ahead) = beat.clock_ahead_ms {
            self.clocks.read(node, Reading::new(ahead, beat.clock_error_ms));
        }
        if let Some(session) = self.sessions.get_mut(&node) {
            session.conditions = Some(reported(beat.conditions));
            session.bad_paths = wire::bad_paths(beat.paths);
        }
        self.set_status(node, NodeState::Ready, "");
        if self.managers.contains(&node) {
            // Its clock counts for the others: what was thought of them may be wrong.
            for other in self.connected_managers() {
                self.set_status(other, NodeState::Ready, "");
            }
        }
        let time = self.clock.now().0;
        self.send(node, Out::Heartbeat(v1::HeartbeatAck { time }));
    }

    pub(super) fn set_status(&mut self, node: NodeId, state: NodeState, message: &str) {
        let Some(known) = self.view.node(node).cloned() else { return };
        let known = &known.status;
        let address = self.sessions.get(&node).map(|session| session.address.clone());
        let status = NodeStatus {
            state,
            message: message.to_owned(),
            address: address.unwrap_or_else(|| known.address.clone()),
            conditions: self.conditions_of(node, known),
            since: known.since,
        };
        if *known != status {
            self.statuses.insert(node, status);
            self.flush_soon();
        } else {
            self.statuses.remove(&node);
        }
    }

    fn connected_managers(&self) -> BTreeSet<NodeId> {
        let greeted = |id: &&NodeId| self.sessions.get(id).is_some_and(|session| session.greeted);
        self.managers.iter().filter(greeted).copied().collect()
    }

    /// What is known now; what is not known now stays as it is known.
    fn conditions_of(&mut self, node: NodeId, known: &NodeStatus) -> Vec<Condition> {
        let kept = |clock: bool| {
            let of_clock = move |c: &&Condition| (c.code == ConditionCode::ClockOff) == clock;
            known.conditions.iter().filter(of_clock).cloned()
        };
        let told = self.sessions.get(&node).and_then(|session| session.conditions.clone());
        let paths = told.is_some().then(|| self.path_condition(node)).flatten();
        let mut conditions = told.unwrap_or_else(|| kept(false).collect());
        conditions.retain(|condition| condition.code != ConditionCode::DataPathBehind);
        let behind = self.sessions.get(&node).and_then(|s| s.is_behind(self.clock.monotonic()));
        if behind.unwrap_or_else(|| known.has(ConditionCode::DataPathBehind)) {
            conditions.push(data_path_behind());
        }
        conditions.extend(paths);
        let managers = self.connected_managers();
        match self.clocks.judge(node, &managers) {
            Verdict::Unknown => conditions.extend(kept(true)),
            Verdict::Right => {}
            Verdict::Off(condition) => conditions.push(condition),
        }
        conditions.sort();
        conditions
    }

    pub(super) fn take_report(&mut self, node: NodeId, report: v1::StatusReport) {
        let mut named = BTreeSet::new();
        for task in report.tasks {
            let id = wire::id::<TaskId>(&task.task, "task");
            let status = task.status.unwrap_or_default().try_into();
            match (id, status) {
                (Ok(id), Ok(status)) => {
                    named.insert(id);
                    self.gather(id, status);
                }
                (Err(fault), _) | (_, Err(fault)) => {
                    tracing::warn!(node.id = %node, %fault, "report passed over");
                }
            }
        }
        if report.complete {
            self.take_inventory(node, &named);
        }
        self.flush_soon();
    }

    /// What a node once accepted and no longer has, it will never report about again.
    fn take_inventory(&mut self, node: NodeId, named: &BTreeSet<TaskId>) {
        let lost = lost_tasks(&self.view, node, named, self.clock.now());
        let is_whole = lost.is_empty();
        for (task, status) in lost {
            tracing::warn!(node.id = %node, task.id = %task, "node has lost a task");
            self.gather(task, status);
        }
        if let Some(session) = self.sessions.get_mut(&node) {
            session.inventory = match is_whole {
                true => super::session::Inventory::Settled,
                // Its tasks are told once nobody wants the lost ones to run.
                false => super::session::Inventory::Storing,
            };
        }
        self.dirty.insert(node);
    }

    fn gather(&mut self, id: TaskId, status: TaskStatus) {
        let newer = self.reports.get(&id).is_none_or(|known| known.state <= status.state);
        if newer {
            self.reports.insert(id, status);
        }
    }
}

fn data_path_behind() -> Condition {
    let seconds = BEHIND_AFTER.0 / 1_000;
    let message = format!(
        "networks are not as the managers said for over {seconds} s: see the log of its daemon"
    );
    Condition::new(ConditionCode::DataPathBehind, message)
}

/// What the managers judge.
const OF_MANAGERS: [ConditionCode; 3] =
    [ConditionCode::ClockOff, ConditionCode::DataPathBehind, ConditionCode::PeerPath];

/// What a node may say of itself, bounded; its clock, its paths and how far it is, the managers
/// judge.
fn reported(conditions: Vec<v1::Condition>) -> Vec<Condition> {
    let mut known: Vec<Condition> = Vec::new();
    for condition in conditions.into_iter().take(ConditionCode::ALL.len()) {
        let Ok(mut condition) = Condition::try_from(condition) else { continue };
        if OF_MANAGERS.contains(&condition.code) {
            continue;
        }
        let end = condition.message.floor_char_boundary(CONDITION_BYTES_MAX);
        condition.message.truncate(end);
        condition.ports.truncate(CONDITION_PORTS_MAX);
        if known.iter().all(|other| other.code != condition.code) {
            known.push(condition);
        }
    }
    known.sort();
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_of_itself_is_bounded_and_not_about_its_clock() {
        let port = v1::PortBinding { protocol: 6, port: 80, address: String::new() };
        let of = |code: i32, message: &str| v1::Condition {
            code,
            message: message.into(),
            ports: vec![port.clone(); 2 * CONDITION_PORTS_MAX],
        };
        let long = "ü".repeat(CONDITION_BYTES_MAX);
        let told = reported(vec![of(3, &long), of(1, "clock 5 s ahead"), of(3, "again")]);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].code, ConditionCode::StoreStopped);
        assert_eq!(told[0].message.len(), CONDITION_BYTES_MAX / 2 * 2);
        assert_eq!(told[0].ports.len(), CONDITION_PORTS_MAX);
        assert_eq!(
            reported(vec![of(99, "of a later version"), of(8, "b: silent"), of(2, "full")]).len(),
            1
        );
    }
}
