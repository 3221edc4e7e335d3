//! Which tasks should exist.
//!
//! Owns: creating, replacing, stopping and deleting the tasks of one service: its mode, restarts,
//! updates, drained and lost nodes, and history.
//! Does not know: where tasks go (the scheduler), whether nodes live (dispatch), clocks.
//! Invariant: a slot never has two tasks that are wanted to run at once, save one that is being
//! stopped.
//! Ask again: at `Plan::wake_at`, or when the service, one of its tasks or a node of theirs
//! changes.

mod reap;
mod reason;
mod restart;
mod slots;
mod turn;
mod update;
mod wanted;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use state::{Ctx, Decider, Event, Plan, Snapshot};
use types::{ServiceId, ServiceMode};

/// The decider of services' tasks.
#[derive(Debug)]
pub struct Orchestrator;

impl Decider for Orchestrator {
    type Key = ServiceId;
    const NAME: &'static str = "orchestrator";

    fn mark_all(view: &Snapshot, dirty: &mut BTreeSet<ServiceId>) {
        dirty.extend(view.services().map(|service| service.id));
        // Tasks outlive their service until they are stopped.
        let mut next = view.next_service_with_tasks(None);
        while let Some(service) = next {
            dirty.insert(service);
            next = view.next_service_with_tasks(Some(service));
        }
    }

    fn mark(view: &Snapshot, event: &Event, dirty: &mut BTreeSet<ServiceId>) {
        match event {
            Event::Service(service) | Event::Task { service, .. } => drop(dirty.insert(*service)),
            Event::Node(node) => {
                dirty.extend(view.tasks_on_node(*node).map(|task| task.service));
                let global =
                    |s: &&std::sync::Arc<types::Service>| s.spec.mode == ServiceMode::Global;
                dirty.extend(view.services().filter(global).map(|service| service.id));
            }
            Event::Cluster => Self::mark_all(view, dirty),
            Event::Network(_) => {}
        }
    }

    fn decide(ctx: &mut Ctx<'_>, key: ServiceId) -> Plan {
        match ctx.view.service(key).cloned() {
            None => reap::decide_gone(ctx.view, key),
            Some(service) => turn::decide_service(ctx, &service),
        }
    }
}
