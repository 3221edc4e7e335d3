//! Why tasks wait, in one sentence on their service.
//!
//! Owns: the scheduler's reason. Invariant: it is written when its code changes, and otherwise at
//! most every five seconds.

use std::collections::BTreeSet;

use base::Timestamp;
use state::{Author, Change, ChangeSet, Plan, Snapshot};
use types::{Reason, Service, ServiceId};

use crate::filter::Misses;

pub(crate) fn set_unplaced(
    plan: &mut Plan,
    now: Timestamp,
    service: &Service,
    count: usize,
    misses: &Misses,
) {
    let message = misses.text();
    let name = &service.spec.name;
    plan.note("unplaced", Some(service.id), format!("{name} {count} tasks: {message}"));
    let decider = Author::Scheduler.name().to_owned();
    let (code, count) = ("no-suitable-node".to_owned(), count as u64);
    let reason = Some(Reason { decider: decider.clone(), code, message, count, since: now });
    if plan.rewrites_reason(now, known(service), reason.as_ref()) {
        let change = Change::SetReason { service: service.id, decider, reason };
        plan.atoms.push(ChangeSet::one(Author::Scheduler, change));
    }
}

/// Takes the reason from services of which nothing waits any more.
pub(crate) fn clear_settled(view: &Snapshot, waiting: &BTreeSet<ServiceId>, plan: &mut Plan) {
    for service in view.services().filter(|s| known(s).is_some() && !waiting.contains(&s.id)) {
        let decider = Author::Scheduler.name().to_owned();
        let change = Change::SetReason { service: service.id, decider, reason: None };
        plan.atoms.push(ChangeSet::one(Author::Scheduler, change));
    }
}

/// Whether a reason of the scheduler's stands on the service.
pub(crate) fn stands(service: &Service) -> bool {
    known(service).is_some()
}

fn known(service: &Service) -> Option<&Reason> {
    service.reasons.iter().find(|reason| reason.decider == Author::Scheduler.name())
}
