//! Why a service waits for something to be given, in one sentence on it.
//!
//! Owns: the allocator's reason. Invariant: it is written when its code changes, and otherwise at
//! most every five seconds.

use base::Timestamp;
use state::{Author, Change, ChangeSet, Plan};
use types::{Reason, Service};

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
    let decider = Author::Allocator.name().to_owned();
    let (code, message, count) = (code.to_owned(), message.to_owned(), count as u64);
    let reason = Some(Reason { decider: decider.clone(), code, message, count, since: now });
    if plan.rewrites_reason(now, known(service), reason.as_ref()) {
        let change = Change::SetReason { service: service.id, decider, reason };
        plan.atoms.push(ChangeSet::one(Author::Allocator, change));
    }
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
