//! What tasks and nodes are given before anything can run: numbers now, addresses later.
//!
//! Owns: a node's number, and the step of a task from New to Pending.
//! Does not know: where tasks go. Invariant: a number is held by one node at a time, and they are
//! given out in a circle, so that a freed one rests.

use std::collections::BTreeSet;

use state::{Author, Change, ChangeSet, Ctx, Decider, Event, Plan, Snapshot};
use types::{NodeId, ServiceId, TaskId};

/// Tasks admitted by one plan.
const TASKS_PER_PLAN_MAX: usize = 20_000;
/// Node numbers fit 24 bits: they become part of addresses.
const NODE_NUMBER_MAX: u32 = (1 << 24) - 2;

/// The decider of what is given out.
#[derive(Debug)]
pub struct Allocator;

/// What may lack something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Node(NodeId),
    Service(ServiceId),
}

impl Decider for Allocator {
    type Key = Key;
    const NAME: &'static str = "allocator";

    fn mark_all(view: &Snapshot, dirty: &mut BTreeSet<Key>) {
        dirty.extend(view.nodes().filter(|node| node.number == 0).map(|node| Key::Node(node.id)));
        dirty.extend(view.fresh_services().map(Key::Service));
    }

    fn mark(view: &Snapshot, event: &Event, dirty: &mut BTreeSet<Key>) {
        match event {
            Event::Node(id) if view.node(*id).is_some_and(|node| node.number == 0) => {
                dirty.insert(Key::Node(*id));
            }
            Event::Task { service, .. } if view.fresh_tasks(*service).next().is_some() => {
                dirty.insert(Key::Service(*service));
            }
            _ => {}
        }
    }

    fn decide(ctx: &mut Ctx<'_>, key: Key) -> Plan {
        match key {
            Key::Node(id) => decide_number(ctx.view, id),
            Key::Service(id) => decide_admission(ctx.view, id),
        }
    }
}

fn decide_number(view: &Snapshot, id: NodeId) -> Plan {
    let mut plan = Plan::default();
    let wanting = view.node(id).is_some_and(|node| node.number == 0);
    let (true, Some(cluster)) = (wanting, view.cluster()) else { return plan };
    let taken: BTreeSet<u32> = view.nodes().map(|node| node.number).collect();
    let next = cluster.next_node_number.clamp(1, NODE_NUMBER_MAX);
    let circle = (next..=NODE_NUMBER_MAX).chain(1..next);
    let Some(number) = circle.into_iter().find(|number| !taken.contains(number)) else {
        plan.note("no-node-number", None, format!("node {id}: all numbers are taken"));
        return plan;
    };
    plan.atoms.push(ChangeSet::one(Author::Allocator, Change::SetNodeNumber { id, number }));
    plan
}

fn decide_admission(view: &Snapshot, service: ServiceId) -> Plan {
    let mut plan = Plan::default();
    let mut tasks: Vec<TaskId> = view.fresh_tasks(service).take(TASKS_PER_PLAN_MAX + 1).collect();
    plan.more = tasks.len() > TASKS_PER_PLAN_MAX;
    tasks.truncate(TASKS_PER_PLAN_MAX);
    if !tasks.is_empty() {
        plan.atoms.push(ChangeSet::one(Author::Allocator, Change::AdmitTasks(tasks)));
    }
    plan
}

#[cfg(test)]
mod tests {
    use base::IdSource;
    use testkit::{assert_text, fixture, print_plan};

    use super::*;

    fn check(text: &str, want: &str) {
        let fixture = fixture(text);
        let (mut ids, mut dirty, mut out) = (IdSource::new(1), BTreeSet::new(), String::new());
        Allocator::mark_all(&fixture.view, &mut dirty);
        for key in dirty {
            let mut ctx = Ctx { view: &fixture.view, now: fixture.now, ids: &mut ids };
            out += &print_plan(&fixture.view, &Allocator::decide(&mut ctx, key));
            out.push('\n');
        }
        assert_text(&out, want);
    }

    #[test]
    fn new_tasks_of_each_service_are_admitted() {
        check(
            "node a ready
             service web replicas=2
             task web.1 new
             task web.2 @a running
             service db replicas=1
             task db.1 new",
            "admit db.1
             admit web.1",
        );
    }
}
