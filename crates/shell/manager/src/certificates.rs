//! Certificates for nodes, and joining the managers.
//!
//! Owns: the services `Bootstrap`, `Certificates` and `Membership`.
//! Does not know: keys of nodes; it signs requests. The CA's key is read from the store and is
//! never kept.
//! Invariant: a certificate's role is the one that the store gives the node, whatever is asked.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use base::{Id, IdSource, Millis};
use pki::{JoinToken, Roles, RootCa, Subject};
use ports::Clock;
use ports::store::Store;
use state::{Author, Change, ChangeSet, Proposal};
use tonic::{Request, Response, Status};
use types::{
    Availability, ErrorCode, Fault, ManagerStatus, Node, NodeDescription, NodeId, NodeRole,
    NodeSpec, NodeStatus,
};
use wire::status_of;
use wire::v1::bootstrap_server::Bootstrap;
use wire::v1::certificates_server::Certificates;
use wire::v1::membership_server::Membership;
use wire::v1::{self};

use crate::api::cluster_of;
use crate::authorize::{check_caller, removed};
use crate::dispatcher_addresses;
use crate::forward::{fault_of_proposal, not_leader};

/// Bytes of a host name that a joining node may bring.
const HOSTNAME_BYTES_MAX: usize = 255;
/// How long a leaving manager waits for the others to let it go.
const LEAVE_WAIT: Millis = Millis::from_secs(20);

/// The certificate services of one manager.
#[derive(Clone)]
pub struct CertificateApi<S, C> {
    store: S,
    clock: C,
    ids: Arc<Mutex<IdSource>>,
}

impl<S: Store, C: Clock> CertificateApi<S, C> {
    pub fn new(store: S, clock: C, ids: IdSource) -> Self {
        Self { store, clock, ids: Arc::new(Mutex::new(ids)) }
    }

    fn mint(&self) -> Id {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).mint()
    }

    fn check_leads(&self) -> Result<(), Fault> {
        let leadership = self.store.leadership().borrow().clone();
        match leadership.is_leader {
            true => Ok(()),
            false => Err(not_leader(leadership.leader.map(|(_, address)| address).as_deref())),
        }
    }

    async fn write(&self, author: Author, change: Change) -> Result<(), Fault> {
        let atoms = vec![ChangeSet::one(author, change)];
        let proposal = Proposal { time: self.clock.now(), atoms };
        let applied =
            self.store.propose(proposal).await.map_err(|error| fault_of_proposal(&error))?;
        match applied.results.into_iter().next() {
            Some(Err(refusal)) => Err(refusal.to_fault()),
            _ => Ok(()),
        }
    }

    /// Signs for a node with the role that it is to have.
    fn sign(&self, csr: &str, node: NodeId, role: NodeRole) -> Result<v1::IssueResponse, Fault> {
        let view = self.store.snapshot();
        let cluster = cluster_of(&view)?;
        let internal = |error: pki::CaError| Fault::new(ErrorCode::Internal, error.to_string());
        let root = RootCa::from_pem(&cluster.ca_certificate, &cluster.ca_key).map_err(internal)?;
        let pki_role = match role {
            NodeRole::Manager => pki::Role::Manager,
            NodeRole::Worker => pki::Role::Worker,
        };
        let subject = Subject { node: node.0, role: pki_role, cluster: cluster.id.0 };
        let now = self.clock.now();
        let issued = root
            .issue(csr, &subject, cluster.spec.certificate_expiry, now)
            .map_err(|error| Fault::invalid("csr", error.to_string()))?;
        Ok(v1::IssueResponse {
            node_id: wire::bytes_of(node.0),
            cluster_id: wire::bytes_of(cluster.id.0),
            certificate: issued.chain_pem,
            root: cluster.ca_certificate.clone(),
            role: role as i32,
            managers: dispatcher_addresses(&view),
        })
    }

    async fn issue_new(&self, request: v1::IssueRequest) -> Result<v1::IssueResponse, Fault> {
        let token = JoinToken::from_str(&request.token)
            .map_err(|error| Fault::invalid("--token", trim_field(&error.to_string())))?;
        self.check_leads()?;
        if request.hostname.len() > HOSTNAME_BYTES_MAX {
            let message = format!("must be at most {HOSTNAME_BYTES_MAX} bytes");
            return Err(Fault::invalid("hostname", message));
        }
        let availability = match request.availability {
            0 | 1 => Availability::Active,
            2 => Availability::Pause,
            3 => Availability::Drain,
            _ => return Err(Fault::invalid("--availability", "is unknown")),
        };
        let role = self.role_of(&token)?;
        let id = NodeId(self.mint());
        let issued = self.sign(&request.csr, id, role)?;
        let node = Node {
            id,
            meta: types::Meta::default(),
            spec: NodeSpec { role, availability, ..NodeSpec::default() },
            description: NodeDescription {
                hostname: request.hostname,
                ..NodeDescription::default()
            },
            status: NodeStatus::default(),
            role,
            manager: None,
            number: 0,
            certificate_expires: self.expiry()?,
        };
        self.write(Author::Api, Change::CreateNode(Box::new(node))).await?;
        tracing::info!(node.id = %id, role = role.name(), "node joined");
        Ok(issued)
    }

    fn expiry(&self) -> Result<base::Timestamp, Fault> {
        let view = self.store.snapshot();
        Ok(self.clock.now() + cluster_of(&view)?.spec.certificate_expiry)
    }

    /// Which role a token gives; the comparison takes the same time wherever it fails.
    fn role_of(&self, token: &JoinToken) -> Result<NodeRole, Fault> {
        let view = self.store.snapshot();
        let cluster = cluster_of(&view)?;
        let same = |text: &str| JoinToken::from_str(text).is_ok_and(|known| known == *token);
        match (same(&cluster.worker_token), same(&cluster.manager_token)) {
            (_, true) => Ok(NodeRole::Manager),
            (true, false) => Ok(NodeRole::Worker),
            (false, false) => Err(Fault {
                code: ErrorCode::PermissionDenied,
                ..Fault::invalid("--token", "A valid join token is necessary to join this cluster")
                    .hint("ask a manager: shoal swarm join-token worker")
            }),
        }
    }

    async fn renew_for(&self, node: NodeId, csr: &str) -> Result<v1::IssueResponse, Fault> {
        self.check_leads()?;
        let view = self.store.snapshot();
        let known = view.node(node).ok_or_else(|| removed(node))?;
        let issued = self.sign(csr, node, known.role)?;
        let expires = self.expiry()?;
        self.write(Author::Cluster, Change::SetNodeCertificate { id: node, expires }).await?;
        Ok(issued)
    }

    async fn join_managers(&self, node: NodeId, address: String) -> Result<u64, Fault> {
        self.check_leads()?;
        if address.parse::<std::net::SocketAddr>().is_err() {
            return Err(Fault::invalid("--advertise-addr", "must be an address and a port"));
        }
        let view = self.store.snapshot();
        let known = view.node(node).ok_or_else(|| removed(node))?;
        if known.spec.role != NodeRole::Manager {
            let message = "this node is not to be a manager: promote it first";
            return Err(Fault::new(ErrorCode::FailedPrecondition, message));
        }
        // 63 random bits: never used twice, and told from a node's id.
        let raft_id = (self.mint().as_u128() as u64 >> 1).max(1);
        let manager = Some(ManagerStatus { raft_id, address });
        self.write(Author::Cluster, Change::SetNodeManager { id: node, manager }).await?;
        Ok(raft_id)
    }

    async fn leave_managers(&self, node: NodeId) -> Result<(), Fault> {
        self.check_leads()?;
        let view = self.store.snapshot();
        let known = view.node(node).ok_or_else(|| removed(node))?;
        if known.spec.role == NodeRole::Manager {
            cluster::check_demotion(&view, known, &self.store.members())?;
            let spec = NodeSpec { role: NodeRole::Worker, ..known.spec.clone() };
            let change = Change::UpdateNode { id: node, expect: known.meta.spec_version, spec };
            self.write(Author::Api, change).await?;
        }
        let deadline = Millis(self.clock.monotonic().0 + LEAVE_WAIT.0);
        while self.clock.monotonic() < deadline {
            let view = self.store.snapshot();
            if view.node(node).is_none_or(|node| node.manager.is_none()) {
                return Ok(());
            }
            let at = Millis(self.clock.monotonic().0 + 50);
            self.clock.sleep_until(at).await;
        }
        Err(Fault::new(ErrorCode::TimedOut, "the managers have not let this node go yet"))
    }
}

/// The error of a token names the field itself.
fn trim_field(text: &str) -> String {
    text.trim_start_matches("--token: ").to_owned()
}

fn answer<T>(result: Result<T, Fault>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|fault| status_of(&fault))
}

#[tonic::async_trait]
impl<S: Store, C: Clock> Bootstrap for CertificateApi<S, C> {
    async fn get_root(
        &self,
        _: Request<v1::GetRootRequest>,
    ) -> Result<Response<v1::GetRootResponse>, Status> {
        let view = self.store.snapshot();
        answer(cluster_of(&view).map(|cluster| {
            let path = match cluster.data_path_port {
                0 => u32::from(types::limits::DATA_PATH_PORT_DEFAULT),
                port => port,
            };
            let encryption = cluster.encryption_ports.map(u32::from);
            let udp_ports = std::iter::once(path).chain(encryption).collect();
            v1::GetRootResponse { certificate: cluster.ca_certificate.clone(), udp_ports }
        }))
    }

    async fn issue(
        &self,
        request: Request<v1::IssueRequest>,
    ) -> Result<Response<v1::IssueResponse>, Status> {
        answer(self.issue_new(request.into_inner()).await)
    }
}

#[tonic::async_trait]
impl<S: Store, C: Clock> Certificates for CertificateApi<S, C> {
    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::IssueResponse>, Status> {
        let node = check_caller(&self.store, &request, Roles::AnyNode, self.clock.now())?;
        answer(self.renew_for(node, &request.into_inner().csr).await)
    }
}

#[tonic::async_trait]
impl<S: Store, C: Clock> Membership for CertificateApi<S, C> {
    async fn join(
        &self,
        request: Request<v1::MembershipJoinRequest>,
    ) -> Result<Response<v1::MembershipJoinResponse>, Status> {
        let node = check_caller(&self.store, &request, Roles::Manager, self.clock.now())?;
        let raft_id = self.join_managers(node, request.into_inner().address).await;
        answer(raft_id.map(|raft_id| v1::MembershipJoinResponse { raft_id }))
    }

    async fn leave(
        &self,
        request: Request<v1::MembershipLeaveRequest>,
    ) -> Result<Response<v1::MembershipLeaveResponse>, Status> {
        let node = check_caller(&self.store, &request, Roles::Manager, self.clock.now())?;
        answer(self.leave_managers(node).await.map(|()| v1::MembershipLeaveResponse {}))
    }
}
