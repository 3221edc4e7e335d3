//! No acknowledged service is lost.

use std::collections::BTreeMap;

use state::Snapshot;
use types::ServiceId;

/// `known`: acknowledged services and their replicas.
pub(crate) fn check_services(
    view: &Snapshot,
    known: &BTreeMap<ServiceId, u64>,
) -> Result<(), String> {
    match known.keys().find(|id| view.service(**id).is_none()) {
        Some(id) => Err(format!("service {id} was acknowledged and is gone")),
        None => Ok(()),
    }
}
