//! Prints a plan as a person would write it down.
//!
//! Owns: one line per change. Invariant: lists are printed in the order of the plan, one line each.

use std::fmt::Write as _;

use base::Timestamp;
use state::{Change, Plan, Snapshot};
use types::{NodeId, ServiceId, Slot, SlotKey, TaskId};

/// One line per change, the next wake-up, and the notes.
#[must_use]
pub fn print_plan(view: &Snapshot, plan: &Plan) -> String {
    let mut out = String::new();
    for change in plan.atoms.iter().flat_map(|atom| &atom.changes) {
        print_change(&mut out, view, change);
    }
    if let Some(at) = plan.wake_at {
        let _ = writeln!(out, "wake {}", clock(at));
    }
    if plan.more {
        out.push_str("more\n");
    }
    for note in &plan.notes {
        let _ = writeln!(out, "note {} {}", note.code, note.text);
    }
    name_tasks(view, &out)
}

/// Puts the names of tasks in place of their identities.
fn name_tasks(view: &Snapshot, text: &str) -> String {
    let word = |word: &str| word.parse().map_or_else(|_| word.to_owned(), |id| task_name(view, id));
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn print_change(out: &mut String, view: &Snapshot, change: &Change) {
    let line = match change {
        Change::CreateTasks { service, desired, slots, nodes, .. } => {
            let name = service_name(view, *service);
            let slots = slots.iter().map(|(a, b)| match a == b {
                true => format!("{name}.{a}"),
                false => format!("{name}.{a}..{b}"),
            });
            let nodes = nodes.iter().map(|n| format!("{name}.{}", node_name(view, *n)));
            let list: Vec<String> = slots.chain(nodes).collect();
            format!("create {} {}", list.join(" "), desired.name())
        }
        Change::AdmitTasks(ids) => format!("admit {}", tasks(view, ids)),
        Change::AssignTasks(list) => {
            let one = |(task, node): &(TaskId, NodeId)| {
                format!("{}@{}", task_name(view, *task), node_name(view, *node))
            };
            format!("assign {}", list.iter().map(one).collect::<Vec<_>>().join(" "))
        }
        Change::DesireTasks { desired, tasks: ids } => {
            format!("{} {}", desired.name(), tasks(view, ids))
        }
        Change::RemoveTasks(ids) => format!("delete {}", tasks(view, ids)),
        Change::ReportTasks(list) => {
            let one = |(task, status): &(TaskId, types::TaskStatus)| {
                format!("{}={}", task_name(view, *task), status.state.name())
            };
            format!("report {}", list.iter().map(one).collect::<Vec<_>>().join(" "))
        }
        Change::SetNodeNumber { id, number } => format!("number {} {number}", node_name(view, *id)),
        Change::SetNodeStatus { id, status } => {
            format!("status {} {} {}", node_name(view, *id), status.state.name(), status.message)
        }
        Change::SetNodeRole { id, role } => {
            format!("role {} {}", node_name(view, *id), role.name())
        }
        other => print_of_service(view, other),
    };
    out.push_str(line.trim_end());
    out.push('\n');
}

/// Changes that remember something of a service.
fn print_of_service(view: &Snapshot, change: &Change) -> String {
    match change {
        Change::SetTally { service, slot, tally } => {
            let slot = match slot {
                SlotKey::Replica(number) => number.to_string(),
                SlotKey::Node(node) => node_name(view, *node),
            };
            let name = service_name(view, *service);
            match tally {
                Some(t) => {
                    format!(
                        "tally {name}.{slot} attempts={} resume={}",
                        t.attempts,
                        clock(t.resume_at)
                    )
                }
                None => format!("tally {name}.{slot} cleared"),
            }
        }
        Change::SetUpdateStatus { id, status } => match status {
            Some(s) => {
                format!("update {} {} {}", service_name(view, *id), s.state.name(), s.message)
            }
            None => format!("update {} cleared", service_name(view, *id)),
        },
        Change::SetReason { service, reason, .. } => match reason {
            Some(r) => {
                format!(
                    "reason {} {} x{} {}",
                    service_name(view, *service),
                    r.code,
                    r.count,
                    r.message
                )
            }
            None => format!("reason {} cleared", service_name(view, *service)),
        },
        other => format!("{other:?}"),
    }
}

fn tasks(view: &Snapshot, ids: &[TaskId]) -> String {
    ids.iter().map(|id| task_name(view, *id)).collect::<Vec<_>>().join(" ")
}

fn task_name(view: &Snapshot, id: TaskId) -> String {
    let Some(task) = view.task(id) else { return format!("?{id}") };
    let service = service_name(view, task.service);
    match (task.slot, task.node) {
        (Slot::Replica(number), _) => format!("{service}.{number}"),
        (Slot::Node, Some(node)) => format!("{service}.{}", node_name(view, node)),
        (Slot::Node, None) => format!("{service}.?"),
    }
}

fn service_name(view: &Snapshot, id: ServiceId) -> String {
    view.service(id).map_or_else(|| decode(id.0.as_u128()), |s| s.spec.name.clone())
}

fn node_name(view: &Snapshot, id: NodeId) -> String {
    view.node(id).map_or_else(|| decode(id.0.as_u128()), |n| n.hostname().to_owned())
}

/// The name that a fixture's identity was made of.
fn decode(number: u128) -> String {
    let bytes = number.to_be_bytes();
    bytes[2..].iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect()
}

fn clock(at: Timestamp) -> String {
    let (_, _, _, h, m, s, ms) = at.civil();
    match ms {
        0 => format!("{h:02}:{m:02}:{s:02}"),
        ms => format!("{h:02}:{m:02}:{s:02}.{ms:03}"),
    }
}
