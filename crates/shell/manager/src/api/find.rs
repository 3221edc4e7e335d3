//! Finding objects by what users type, and filtering lists.
//!
//! Owns: the order exact id, exact name, unique id prefix; and the words when that fails.
//! Invariant: an ambiguous reference is refused, never guessed.

use std::sync::Arc;

use state::Snapshot;
use types::{ErrorCode, Fault, Labels, Network, Node, Service, Slot, Task};

pub(crate) fn service<'a>(view: &'a Snapshot, text: &str) -> Result<&'a Arc<Service>, Fault> {
    if let Some(found) = text.parse().ok().and_then(|id| view.service(id)) {
        return Ok(found);
    }
    if let Some(found) = view.service_by_name(text) {
        return Ok(found);
    }
    let matches = view.services().filter(|service| has_prefix(&service.id, text));
    one("service", text, matches)
}

pub(crate) fn node<'a>(view: &'a Snapshot, text: &str) -> Result<&'a Arc<Node>, Fault> {
    if let Some(found) = text.parse().ok().and_then(|id| view.node(id)) {
        return Ok(found);
    }
    let named: Vec<_> = view.nodes().filter(|node| node.hostname() == text).collect();
    if !named.is_empty() {
        return one("node", text, named.into_iter());
    }
    one("node", text, view.nodes().filter(|node| has_prefix(&node.id, text)))
}

pub(crate) fn task<'a>(view: &'a Snapshot, text: &str) -> Result<&'a Arc<Task>, Fault> {
    if let Some(found) = text.parse().ok().and_then(|id| view.task(id)) {
        return Ok(found);
    }
    one("task", text, view.tasks().filter(|task| has_prefix(&task.id, text)))
}

pub(crate) fn network<'a>(view: &'a Snapshot, text: &str) -> Result<&'a Arc<Network>, Fault> {
    if let Some(found) = text.parse().ok().and_then(|id| view.network(id)) {
        return Ok(found);
    }
    if let Some(found) = view.network_by_name(text) {
        return Ok(found);
    }
    one("network", text, view.networks().filter(|network| has_prefix(&network.id, text)))
}

fn has_prefix(id: &impl std::fmt::Display, text: &str) -> bool {
    !text.is_empty() && id.to_string().starts_with(text)
}

fn one<T>(kind: &str, text: &str, mut matches: impl Iterator<Item = T>) -> Result<T, Fault> {
    let Some(first) = matches.next() else {
        return Err(Fault::new(ErrorCode::NotFound, format!("{kind} {text} not found")));
    };
    match matches.count() {
        0 => Ok(first),
        more => Err(Fault::new(
            ErrorCode::Invalid,
            format!("{kind} {text} is ambiguous ({} matches found)", more + 1),
        )),
    }
}

/// Whether `labels` hold every wanted pair; an empty value wants only the key.
pub(crate) fn has_labels(labels: &Labels, wanted: &Labels) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key).is_some_and(|found| value.is_empty() || found == value))
}

/// Whether a list of prefixes lets `text` through; an empty list lets everything.
pub(crate) fn any_prefix(prefixes: &[String], text: &str) -> bool {
    prefixes.is_empty() || prefixes.iter().any(|prefix| text.starts_with(prefix.as_str()))
}

/// The name of a task: service and slot, or service and node.
pub(crate) fn task_name(view: &Snapshot, task: &Task) -> String {
    let service = view.service(task.service);
    let service = service.map_or_else(|| task.service.to_string(), |s| s.spec.name.clone());
    match (task.slot, task.node) {
        (Slot::Replica(number), _) => format!("{service}.{number}"),
        (Slot::Node, Some(node)) => format!("{service}.{node}"),
        (Slot::Node, None) => service,
    }
}
