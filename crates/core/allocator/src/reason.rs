//! Why a service waits for something to be given, in one sentence on it.
//!
//! Owns: the allocator's reason. Invariant: it is written when its code changes, and otherwise at
//! most every five seconds.

use base::{Millis, Timestamp};
use state::{Author, Change, ChangeSet, Plan};
use types::{Reason, Service};

const REWRITE_PERIOD: Millis = Millis::from_secs(5);

pub(crate) fn set(
    plan: &mut Plan,
    now: Timestamp,
    service: &Service,
    count: usize,
    code: &'static str,
    message: &str,
) {
    let name = &service.spec.name;
    plan.note(code, Some(service.id), format!("{name} {count} tasks: {message}"));
    let count = count as u64;
    if let Some(known) = known(service) {
        if known.message == message && known.count == count {
            return;
        }
        let due = known.since + REWRITE_PERIOD;
        if known.code == code && due > now {
            plan.wake(due);
            return;
        }
    }
    let (code, message) = (code.to_owned(), message.to_owned());
    let decider = Author::Allocator.name().to_owned();
    let reason = Some(Reason { decider: decider.clone(), code, message, count, since: now });
    let change = Change::SetReason { service: service.id, decider, reason };
    plan.atoms.push(ChangeSet::one(Author::Allocator, change));
}

/// Nothing waits any more.
pub(crate) fn clear(plan: &mut Plan, service: &Service) {
    if known(service).is_some() {
        let decider = Author::Allocator.name().to_owned();
        let change = Change::SetReason { service: service.id, decider, reason: None };
        plan.atoms.push(ChangeSet::one(Author::Allocator, change));
    }
}

fn known(service: &Service) -> Option<&Reason> {
    service.reasons.iter().find(|reason| reason.decider == Author::Allocator.name())
}
