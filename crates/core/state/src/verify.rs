//! Derives every index afresh and compares.
//!
//! Owns: the check that tests and simulation run after each step; it costs time and memory in
//! proportion to the state. Invariant: it never changes anything.

use crate::{Restore, Snapshot};

/// `Err` names the first index or reference that is not what the tables say.
pub fn verify(view: &Snapshot) -> Result<(), String> {
    let mut restore = Restore::new(view.index, view.time);
    if let Some(cluster) = &view.cluster {
        restore.cluster((**cluster).clone());
    }
    view.nodes.values().for_each(|node| restore.node((**node).clone()));
    view.services.values().for_each(|service| restore.service((**service).clone()));
    view.revisions.values().for_each(|revision| restore.revision((**revision).clone()));
    view.tasks.values().for_each(|task| restore.task((**task).clone()));
    for ((service, slot), tally) in &view.tallies {
        restore.tally(*service, *slot, (**tally).clone());
    }
    view.net.networks.values().for_each(|network| restore.network((**network).clone()));
    view.net.resting.iter().for_each(|(what, until)| restore.resting(*what, *until));
    view.removed.iter().for_each(|(id, until)| restore.removed(*id, *until));
    let fresh = restore.finish().map_err(|error| error.to_string())?;
    let same = [
        ("names", fresh.names == view.names),
        ("by_service", fresh.by_service == view.by_service),
        ("by_node", fresh.by_node == view.by_node),
        ("fresh", fresh.fresh == view.fresh),
        ("pending", fresh.pending == view.pending),
        ("usage", fresh.usage == view.usage),
        ("placed", fresh.placed == view.placed),
        ("revision_users", fresh.revision_users == view.revision_users),
        ("network_keys", fresh.network_keys == view.network_keys),
        ("networks", fresh.net == view.net),
    ];
    match same.iter().find(|(_, same)| !same) {
        Some((index, _)) => Err(format!("index {index} differs from a fresh derivation")),
        None => Ok(()),
    }
}
