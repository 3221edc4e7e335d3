//! What nodes, networks, services and tasks are given before anything can run.
//!
//! Owns: a node's number; a network's identifier, subnets and MTU; virtual addresses and ports of
//! services; addresses of tasks, and with them their step from New to Pending.
//! Does not know: where tasks go. Invariant: what is given is held by one object at a time, and
//! given out in a circle, so that what was freed rests.

mod connect;
mod give;
mod network;
mod reason;
mod service;

use std::collections::BTreeSet;

use state::{Author, Change, ChangeSet, Ctx, Decider, Event, Plan, Snapshot};
use types::{NetworkDriver, NetworkId, NodeId, Service, ServiceId};

pub use connect::{Connecting, connect};

/// Node numbers fit 24 bits: they become part of addresses.
const NODE_NUMBER_MAX: u32 = (1 << 24) - 2;

/// The decider of what is given out.
#[derive(Debug)]
pub struct Allocator;

/// What may lack something, in the order in which the one needs the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Node(NodeId),
    Network(NetworkId),
    Service(ServiceId),
}

impl Decider for Allocator {
    type Key = Key;
    const NAME: &'static str = "allocator";

    fn mark_all(view: &Snapshot, dirty: &mut BTreeSet<Key>) {
        dirty.extend(view.nodes().filter(|node| node.number == 0).map(|node| Key::Node(node.id)));
        dirty.extend(view.networks().map(|network| Key::Network(network.id)));
        dirty.extend(view.fresh_services().map(Key::Service));
        let networked = view.services().filter(|service| is_networked(service));
        dirty.extend(networked.map(|service| Key::Service(service.id)));
    }

    fn mark(view: &Snapshot, event: &Event, dirty: &mut BTreeSet<Key>) {
        match event {
            Event::Node(id) if view.node(*id).is_some_and(|node| node.number == 0) => {
                dirty.insert(Key::Node(*id));
            }
            Event::Network(id) => {
                dirty.insert(Key::Network(*id));
                if view.network(*id).is_none() {
                    dirty.extend(waiting_networks(view));
                }
                let users = view.services_on_network(*id);
                dirty.extend(users.map(|service| Key::Service(service.id)));
            }
            Event::Service(id) => match view.service(*id) {
                Some(service) if is_networked(service) => {
                    dirty.insert(Key::Service(*id));
                }
                Some(_) => {}
                // What it had is free: somebody may have waited for it.
                None => dirty.extend(waiting_services(view)),
            },
            Event::Task { task, service, .. } => {
                if view.fresh_tasks(*service).next().is_some() {
                    dirty.insert(Key::Service(*service));
                }
                if view.task(*task).is_none_or(|task| task.status.state.is_terminal()) {
                    dirty.extend(waiting_services(view));
                }
            }
            // There may be further pools.
            Event::Cluster => {
                dirty.extend(waiting_networks(view));
                dirty.extend(waiting_services(view));
            }
            Event::Node(_) => {}
        }
    }

    fn decide(ctx: &mut Ctx<'_>, key: Key) -> Plan {
        match key {
            Key::Node(id) => decide_number(ctx.view, id),
            Key::Network(id) => network::decide(ctx.view, ctx.now, id),
            Key::Service(id) => service::decide(ctx.view, ctx.now, id),
        }
    }
}

/// It has, or should have, something of a network.
fn is_networked(service: &Service) -> bool {
    service.endpoint.is_some()
        || !service.spec.ports().is_empty()
        || !service.spec.task.networks.is_empty()
}

/// Services with tasks that wait to be given something. Seldom any: new tasks stay so only for want
/// of something.
fn waiting_services(view: &Snapshot) -> impl Iterator<Item = Key> {
    view.fresh_services().map(Key::Service)
}

/// Networks that have no subnet or identifier yet: only the end of another network frees one.
fn waiting_networks(view: &Snapshot) -> impl Iterator<Item = Key> {
    let waits = |network: &&std::sync::Arc<types::Network>| {
        network.spec.driver == NetworkDriver::Overlay && !network.is_allocated()
    };
    view.networks().filter(waits).map(|network| Key::Network(network.id))
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
