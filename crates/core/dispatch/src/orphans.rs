//! Tasks whose node was removed from the cluster.
//!
//! Owns: marking them Orphaned. Does not know: replacing them; the orchestrator does.
//! Invariant: only tasks of nodes that do not exist are touched: nobody else reports for them.

use std::collections::BTreeSet;
use std::sync::Arc;

use state::{Author, Change, ChangeSet, Ctx, Decider, Event, Plan, Snapshot};
use types::{NodeId, TaskState, TaskStatus};

/// Tasks marked by one plan.
const TASKS_PER_PLAN_MAX: usize = 5_000;

/// The decider of orphaned tasks, by the node they name.
#[derive(Debug)]
pub struct Orphans;

impl Decider for Orphans {
    type Key = NodeId;
    const NAME: &'static str = "orphans";

    fn mark_all(view: &Snapshot, dirty: &mut BTreeSet<NodeId>) {
        let mut next = view.next_node_with_tasks(None);
        while let Some(node) = next {
            if view.node(node).is_none() {
                dirty.insert(node);
            }
            next = view.next_node_with_tasks(Some(node));
        }
    }

    fn mark(view: &Snapshot, event: &Event, dirty: &mut BTreeSet<NodeId>) {
        let node = match event {
            Event::Node(node) => Some(*node),
            Event::Task { node, .. } => *node,
            Event::Service(_) | Event::Cluster => None,
        };
        dirty.extend(node.filter(|node| view.node(*node).is_none()));
    }

    fn decide(ctx: &mut Ctx<'_>, key: NodeId) -> Plan {
        let mut plan = Plan::default();
        if ctx.view.node(key).is_some() {
            return plan;
        }
        let error: Arc<str> = "Task belonged to a node that has been deleted".into();
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

#[cfg(test)]
mod tests {
    use base::IdSource;
    use testkit::{assert_text, fixture, node_id, print_plan};

    use super::*;

    #[test]
    fn tasks_of_a_removed_node_are_orphaned() {
        let fixture = fixture(
            "now 12:00:00
             node a ready
             service web replicas=3
             task web.1 @a running
             task web.2 @lost running
             task web.3 @lost failed",
        );
        let mut dirty = BTreeSet::new();
        Orphans::mark_all(&fixture.view, &mut dirty);
        assert_eq!(dirty, [node_id("lost")].into());
        let mut ids = IdSource::new(1);
        let mut ctx = Ctx { view: &fixture.view, now: fixture.now, ids: &mut ids };
        let plan = Orphans::decide(&mut ctx, node_id("lost"));
        assert_text(&print_plan(&fixture.view, &plan), "report web.2=orphaned");
    }
}
