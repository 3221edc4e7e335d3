//! Where pending tasks go.
//!
//! Owns: the filters, the order of nodes, spreading, and the reason why a task cannot be placed.
//! Does not know: why a task exists, or what becomes of it.
//! Invariant: a plan never places more on a node than it has room for, counting the plan itself.
//! Ask again: at once while a plan says there is more; else when a task or a node changes.

mod ahead;
mod filter;
mod nodes;
mod place;
mod reason;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use state::{Author, Change, ChangeSet, Ctx, Decider, Event, Plan, Snapshot};
use types::{NodeId, Revision, Service, ServiceId, ServiceMode, TaskId};

use ahead::Ahead;
use filter::{Filters, Misses};
use nodes::Nodes;

/// Tasks that one plan places at most: a log entry of some 600 KB.
pub const PLACEMENTS_PER_PLAN_MAX: usize = 20_000;

/// The decider of places. Its key is the whole queue.
#[derive(Debug)]
pub struct Scheduler;

impl Decider for Scheduler {
    type Key = ();
    const NAME: &'static str = "scheduler";

    fn mark_all(_: &Snapshot, dirty: &mut BTreeSet<()>) {
        dirty.insert(());
    }

    fn mark(view: &Snapshot, event: &Event, dirty: &mut BTreeSet<()>) {
        let concerns = match event {
            Event::Node(_) | Event::Service(_) => true,
            // The last one that waited may be gone: then its service's reason goes too.
            Event::Task { service, .. } => {
                view.pending_count() > 0
                    || view.service(*service).is_some_and(|service| reason::stands(service))
            }
            Event::Cluster | Event::Network(_) => false,
        };
        if concerns {
            dirty.insert(());
        }
    }

    fn decide(ctx: &mut Ctx<'_>, (): ()) -> Plan {
        decide_queue(ctx, PLACEMENTS_PER_PLAN_MAX)
    }
}

/// Tasks of one service and revision that wait.
pub(crate) struct Group<'a> {
    pub service: &'a Service,
    pub revision: &'a Revision,
    pub tasks: &'a [TaskId],
}

/// Works the queue off, at most `limit` placements.
#[must_use]
pub fn decide_queue(ctx: &mut Ctx<'_>, limit: usize) -> Plan {
    let mut plan = Plan::default();
    let view = ctx.view;
    let mut queue = view.pending_tasks().peekable();
    if queue.peek().is_none() {
        reason::clear_settled(view, &BTreeSet::new(), &mut plan);
        return plan;
    }
    let mut ahead = Ahead::new(view, view.pending_tasks());
    let mut nodes = Nodes::of(view);
    let mut filters = Filters::default();
    // Both are made once and large enough: growing them would cost more than the placing.
    let most = limit.min(view.pending_count());
    let mut pairs: Vec<(TaskId, NodeId)> = Vec::with_capacity(most);
    let mut tasks: Vec<TaskId> = Vec::with_capacity(most);
    let mut waiting: BTreeSet<ServiceId> = BTreeSet::new();
    while let Some(&(service, revision, _)) = queue.peek() {
        if pairs.len() >= limit {
            plan.more = true;
            break;
        }
        let mut of_group =
            || queue.next_if(|(s, r, _)| (*s, *r) == (service, revision)).map(|(_, _, task)| task);
        let Some((service, revision)) = ahead.get((service, revision)) else {
            while of_group().is_some() {}
            continue; // the service is gone: the orchestrator deletes its tasks
        };
        // Global tasks are decided one by one: those that have to wait must not hide the others.
        let global = service.spec.mode == ServiceMode::Global;
        let room = if global { usize::MAX } else { limit - pairs.len() };
        tasks.clear();
        tasks.extend(std::iter::from_fn(&mut of_group).take(room));
        let group = Group { service, revision, tasks: &tasks };
        if let Some((count, misses)) =
            decide_group(view, &group, &mut nodes, &mut filters, &mut pairs)
        {
            // What one replica lacks, the others lack too.
            let others = std::iter::from_fn(of_group).count();
            waiting.insert(service.id);
            reason::set_unplaced(&mut plan, ctx.now, service, count + others, &misses);
        }
    }
    if !plan.more {
        reason::clear_settled(view, &waiting, &mut plan);
    }
    if !pairs.is_empty() {
        plan.atoms.insert(0, ChangeSet::one(Author::Scheduler, Change::AssignTasks(pairs)));
    }
    plan
}

/// Places what it can; what it cannot is counted with the reasons.
fn decide_group(
    view: &Snapshot,
    group: &Group<'_>,
    nodes: &mut Nodes<'_>,
    filters: &mut Filters,
    pairs: &mut Vec<(TaskId, NodeId)>,
) -> Option<(usize, Misses)> {
    let allowed = filters.of(nodes, group.revision);
    if group.service.spec.mode == ServiceMode::Global {
        return place::confirm(view, group, nodes, &allowed, pairs);
    }
    place::spread(view, group, nodes, filters, &allowed, pairs)
}
