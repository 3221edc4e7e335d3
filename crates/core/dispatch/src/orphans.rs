//! Tasks whose node was removed from the cluster, or is down for a day.
//!
//! Owns: marking them Orphaned. Does not know: replacing them; the orchestrator does.
//! Invariant: only tasks of nodes that do not report are touched; since when a node is down stands
//! in the store, so that a new leader counts on.
//! Ask again: when the node's day is over, or when it or one of its tasks changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use base::Timestamp;
use state::{Author, Change, ChangeSet, Ctx, Decider, Event, Plan, Snapshot};
use types::limits::NODE_ORPHAN_PERIOD;
use types::{NodeId, NodeState, TaskState, TaskStatus};

/// Tasks marked by one plan.
const TASKS_PER_PLAN_MAX: usize = 5_000;
/// Swarm's words.
const REMOVED: &str = "Task belonged to a node that has been deleted";
const DOWN: &str = "Task belonged to a node that has been down for more than 24 hours";

/// The decider of orphaned tasks, by the node they name.
#[derive(Debug)]
pub struct Orphans;

impl Decider for Orphans {
    type Key = NodeId;
    const NAME: &'static str = "orphans";

    fn mark_all(view: &Snapshot, dirty: &mut BTreeSet<NodeId>) {
        let mut next = view.next_node_with_tasks(None);
        while let Some(node) = next {
            if is_silent(view, node) {
                dirty.insert(node);
            }
            next = view.next_node_with_tasks(Some(node));
        }
    }

    fn mark(view: &Snapshot, event: &Event, dirty: &mut BTreeSet<NodeId>) {
        let node = match event {
            Event::Node(node) => Some(*node),
            Event::Task { node, .. } => *node,
            Event::Service(_) | Event::Network(_) | Event::Cluster => None,
        };
        dirty.extend(node.filter(|node| is_silent(view, *node)));
    }

    fn decide(ctx: &mut Ctx<'_>, key: NodeId) -> Plan {
        let mut plan = Plan::default();
        let error: Arc<str> = match silence(ctx.view, key) {
            Silence::None => return plan,
            Silence::Removed => REMOVED.into(),
            Silence::Down(since) => {
                let due = since + NODE_ORPHAN_PERIOD;
                if due > ctx.now {
                    if ctx.view.tasks_on_node(key).any(|task| !task.status.state.is_terminal()) {
                        plan.wake(due);
                    }
                    return plan;
                }
                DOWN.into()
            }
        };
        let status = TaskStatus {
            state: TaskState::Orphaned,
            at: ctx.now,
            error: Some(error),
            ..TaskStatus::default()
        };
        let left = ctx.view.tasks_on_node(key).filter(|task| !task.status.state.is_terminal());
        let mut reports: Vec<_> =
            left.take(TASKS_PER_PLAN_MAX + 1).map(|task| (task.id, status.clone())).collect();
        plan.more = reports.len() > TASKS_PER_PLAN_MAX;
        reports.truncate(TASKS_PER_PLAN_MAX);
        if !reports.is_empty() {
            plan.atoms.push(ChangeSet::one(Author::Dispatch, Change::ReportTasks(reports)));
        }
        plan
    }
}

/// Whether anybody is there to report for a node's tasks.
enum Silence {
    None,
    Down(Timestamp),
    Removed,
}

fn silence(view: &Snapshot, node: NodeId) -> Silence {
    match view.node(node).map(|node| &node.status) {
        None => Silence::Removed,
        Some(status) if status.state == NodeState::Down => Silence::Down(status.since),
        Some(_) => Silence::None,
    }
}

fn is_silent(view: &Snapshot, node: NodeId) -> bool {
    !matches!(silence(view, node), Silence::None)
}

#[cfg(test)]
mod tests {
    use base::IdSource;
    use testkit::{assert_text, fixture, print_plan};

    use super::*;

    fn check(text: &str, want: &str) {
        let fixture = fixture(text);
        let (mut dirty, mut ids, mut out) = (BTreeSet::new(), IdSource::new(1), String::new());
        Orphans::mark_all(&fixture.view, &mut dirty);
        for key in dirty {
            let mut ctx = Ctx { view: &fixture.view, now: fixture.now, ids: &mut ids };
            out += &print_plan(&fixture.view, &Orphans::decide(&mut ctx, key));
            out.push('\n');
        }
        assert_text(&out, want);
    }

    #[test]
    fn tasks_of_a_removed_node_are_orphaned() {
        check(
            "now 12:00:00
             node a ready
             service web replicas=3
             task web.1 @a running
             task web.2 @lost running
             task web.3 @lost failed",
            "report web.2=orphaned",
        );
    }

    #[test]
    fn tasks_of_a_node_that_is_down_are_orphaned_after_a_day() {
        for (since, want) in [("86399s", "wake 12:00:01"), ("86400s", "report web.1=orphaned")] {
            let text = format!(
                "now 12:00:00
                 node a down since={since}
                 service web replicas=2
                 task web.1 @a running desired=shutdown
                 task web.2 @a complete desired=shutdown"
            );
            check(&text, want);
        }
    }

    #[test]
    fn a_node_without_living_tasks_is_not_asked_about_again() {
        check(
            "now 12:00:00
             node a down since=10s
             node b ready
             service web replicas=2
             task web.1 @a failed
             task web.2 @b running",
            "",
        );
    }
}
