//! Who may call: what the caller's certificate says, and what the store says of its node.
//!
//! Owns: the check that every service of the managers' port makes before it does anything.
//! Does not know: what a call does.
//! Invariant: a certificate outlives the role it was issued for, so a manager's certificate counts
//! only while the store has its node as a manager.

use base::Timestamp;
use pki::{Roles, require};
use ports::store::Store;
use state::Snapshot;
use tonic::{Request, Status};
use types::{ErrorCode, Fault, NodeId, NodeRole};
use wire::status_of;

/// The caller's node: its certificate has one of `roles`, and it was not removed. A manager that
/// leads also wants the store to agree; another may not have heard of a new manager yet, and
/// answers such calls with nothing but the leader's address.
pub(crate) fn check_caller<S: Store, T>(
    store: &S,
    request: &Request<T>,
    roles: Roles,
    now: Timestamp,
) -> Result<NodeId, Status> {
    let node = NodeId(require(request, roles, now)?.node);
    let view = store.snapshot();
    check_present(&view, node)?;
    if roles == Roles::Manager && store.leadership().borrow().is_leader {
        check_manages(&view, node)?;
    }
    Ok(node)
}

/// The same for calls that read or change the cluster, which a manager that does not lead may
/// answer from its own copy: the store must agree wherever the call arrives.
pub(crate) fn check_manager<S: Store, T>(
    store: &S,
    request: &Request<T>,
    now: Timestamp,
) -> Result<NodeId, Status> {
    let node = NodeId(require(request, Roles::Manager, now)?.node);
    let view = store.snapshot();
    check_present(&view, node)?;
    check_manages(&view, node)?;
    Ok(node)
}

fn check_present(view: &Snapshot, node: NodeId) -> Result<(), Status> {
    match view.is_removed(node) {
        true => Err(status_of(&removed(node))),
        false => Ok(()),
    }
}

fn check_manages(view: &Snapshot, node: NodeId) -> Result<(), Status> {
    match view.node(node).map(|node| node.role) {
        Some(NodeRole::Manager) => Ok(()),
        Some(NodeRole::Worker) | None => {
            let message = format!("Permission denied: node {node} is not a manager any more");
            Err(status_of(&Fault::new(ErrorCode::PermissionDenied, message)))
        }
    }
}

/// A node's certificate outlives its removal; its calls are refused with these words.
pub(crate) fn removed(node: NodeId) -> Fault {
    let message = format!("Permission denied: node {node} was removed from swarm");
    Fault::new(ErrorCode::PermissionDenied, message)
}
