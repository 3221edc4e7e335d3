//! Whether the peer of a request has the role that the call needs.
//!
//! Owns: the reading of the peer from a request, and the refusal texts.
//! Does not know: the store; whether a node was removed is asked there, by the caller.
//! Invariant: no certificate answers Unauthenticated, a wrong one PermissionDenied.

use base::Timestamp;
use tonic::{Request, Status};

use crate::accept::PeerInfo;
use crate::identity::{Identity, Role};

/// Which roles a call is open to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roles {
    /// Managers only.
    Manager,
    /// Workers only.
    Worker,
    /// Every node of the cluster.
    AnyNode,
}

impl Roles {
    const fn include(self, role: Role) -> bool {
        match self {
            Self::Manager => matches!(role, Role::Manager),
            Self::Worker => matches!(role, Role::Worker),
            Self::AnyNode => true,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Manager => "a manager",
            Self::Worker => "a worker",
            Self::AnyNode => "a node of the cluster",
        }
    }
}

/// The connection a request came over; `None` when it was not one of [`crate::accept_stream`].
#[must_use]
pub fn peer_info<T>(request: &Request<T>) -> Option<&PeerInfo> {
    request.extensions().get()
}

/// The identity shown on the connection; `None` without certificate. It may have expired since.
#[must_use]
pub fn peer_identity<T>(request: &Request<T>) -> Option<&Identity> {
    peer_info(request)?.identity.as_deref()
}

/// The peer, when its role is among `roles` and its certificate is valid at `now`: a connection
/// may be older than its certificate's end.
///
/// # Errors
/// Unauthenticated without certificate, PermissionDenied with one that does not suffice.
pub fn require<T>(request: &Request<T>, roles: Roles, now: Timestamp) -> Result<&Identity, Status> {
    let Some(identity) = peer_identity(request) else {
        return Err(Status::unauthenticated(format!(
            "this call needs the certificate of {}",
            roles.text()
        )));
    };
    if identity.is_expired(now) {
        return Err(Status::unauthenticated(format!(
            "certificate of node {} is not valid now: it ends at {}",
            identity.node, identity.not_after
        )));
    }
    if !roles.include(identity.role) {
        return Err(Status::permission_denied(format!(
            "this call needs the certificate of {}, node {} is a {}",
            roles.text(),
            identity.node,
            identity.role
        )));
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base::{Id, Millis};
    use tonic::Code;

    use super::*;

    fn request(role: Option<Role>) -> Request<()> {
        let identity = role.map(|role| {
            Arc::new(Identity {
                node: Id::from_u128(1).unwrap(),
                role,
                cluster: Id::from_u128(2).unwrap(),
                serial: "01".to_owned(),
                not_before: Timestamp(1_000),
                not_after: Timestamp(9_000),
            })
        });
        let mut request = Request::new(());
        request.extensions_mut().insert(PeerInfo { identity, addr: ([127, 0, 0, 1], 1).into() });
        request
    }

    #[test]
    fn role_and_expiry_decide() {
        let (manager, worker) = (Some(Role::Manager), Some(Role::Worker));
        for (peer, roles, now, code) in [
            (None, Roles::AnyNode, 5_000, Some(Code::Unauthenticated)),
            (None, Roles::Manager, 5_000, Some(Code::Unauthenticated)),
            (worker, Roles::Manager, 5_000, Some(Code::PermissionDenied)),
            (manager, Roles::Worker, 5_000, Some(Code::PermissionDenied)),
            (worker, Roles::Worker, 5_000, None),
            (manager, Roles::Manager, 5_000, None),
            (worker, Roles::AnyNode, 5_000, None),
            (manager, Roles::Manager, 500, Some(Code::Unauthenticated)),
            (manager, Roles::Manager, 9_999, None),
            (manager, Roles::Manager, 10_000, Some(Code::Unauthenticated)),
        ] {
            let request = request(peer);
            let answer = require(&request, roles, Timestamp(0) + Millis(now));
            assert_eq!(answer.err().map(|s| s.code()), code, "{peer:?} {roles:?} {now}");
        }
    }

    #[test]
    fn a_request_of_another_transport_has_no_identity() {
        let request = Request::new(());
        let status = require(&request, Roles::AnyNode, Timestamp(1)).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("a node of the cluster"), "{status}");
    }
}
