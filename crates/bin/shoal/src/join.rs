//! Asking managers for what only their leader gives: certificates, a place among the managers.
//!
//! Owns: finding the leader by asking, and the calls of joining and renewing.
//! Does not know: what is done with the answers.
//! Invariant: every call is bounded, and a refusal is told from a manager that is away.

use std::sync::Arc;
use std::time::Duration;

use pki::{JoinToken, NodeKey, NodeTls, Pinned};
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;
use types::{ErrorCode, Fault};
use wire::fault_of;
use wire::v1::bootstrap_client::BootstrapClient;
use wire::v1::certificates_client::CertificatesClient;
use wire::v1::dispatcher_client::DispatcherClient;
use wire::v1::membership_client::MembershipClient;
use wire::v1::{self, IssueResponse};

/// How long a call is repeated at all managers, and waits between rounds.
const PATIENCE: Duration = Duration::from_secs(20);
const ROUND_PAUSE: Duration = Duration::from_millis(250);
/// One call at one manager.
const CALL_MAX: Duration = Duration::from_secs(10);

/// Calls one manager after the other until the leader has answered.
pub(crate) async fn ask_leader<T, F>(
    addresses: &[String],
    call: impl Fn(String) -> F,
) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Status>>,
{
    let deadline = Instant::now() + PATIENCE;
    let mut last = Fault::new(ErrorCode::Unavailable, "no manager is known");
    loop {
        for address in addresses {
            let mut next = Some(address.clone());
            // Follow the managers' word on who leads, but not for ever.
            for _ in 0..3 {
                let Some(address) = next.take() else { break };
                match tokio::time::timeout(CALL_MAX, call(address.clone())).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(status)) => {
                        let fault = fault_of(&status);
                        if fault.field == "leader" && !fault.hint.is_empty() {
                            next = Some(fault.hint.clone());
                        } else if !is_passing(&fault) {
                            return Err(fault);
                        }
                        last = unreachable(&address, &fault);
                    }
                    Err(_) => {
                        let message = format!("manager {address} does not answer");
                        last = Fault::new(ErrorCode::TimedOut, message);
                    }
                }
            }
        }
        if Instant::now() >= deadline {
            return Err(last);
        }
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

fn unreachable(address: &str, fault: &Fault) -> Fault {
    match fault.code {
        ErrorCode::NoQuorum => fault.clone(),
        code => Fault::new(code, format!("manager {address}: {fault}")),
    }
}

fn is_passing(fault: &Fault) -> bool {
    let lost = fault.code == ErrorCode::Internal && fault.message.contains("transport");
    lost || matches!(fault.code, ErrorCode::Unavailable | ErrorCode::NoQuorum | ErrorCode::TimedOut)
}

/// A certificate for a new node, against a token, and the root that the token names.
pub(crate) async fn issue(
    token: &JoinToken,
    remotes: &[String],
    key: &NodeKey,
    availability: i32,
    hostname: &str,
) -> Result<IssueResponse, Fault> {
    let csr = key.request().map_err(|error| internal(error.to_string()))?;
    let request = v1::IssueRequest {
        csr,
        token: token.text().to_string(),
        availability,
        hostname: hostname.to_owned(),
    };
    let (issued, root) = ask_pinned(token, remotes, |channel| {
        let request = request.clone();
        async move { BootstrapClient::new(channel).issue(request).await }
    })
    .await?;
    let mut issued = IssueResponse { root, ..issued };
    if issued.managers.is_empty() {
        issued.managers = remotes.to_vec();
    }
    Ok(issued)
}

/// UDP ports that every node of the token's cluster must have free.
pub(crate) async fn udp_ports(token: &JoinToken, remotes: &[String]) -> Result<Vec<u16>, Fault> {
    let (answer, _) = ask_pinned(token, remotes, |channel| async move {
        BootstrapClient::new(channel).get_root(v1::GetRootRequest {}).await
    })
    .await?;
    let ports = answer.udp_ports.iter().map(|port| u16::try_from(*port));
    ports.collect::<Result<_, _>>().map_err(|_| internal("the manager names no ports".to_owned()))
}

/// Asks managers that show the root that the token names; gives it with the answer.
async fn ask_pinned<T, F>(
    token: &JoinToken,
    remotes: &[String],
    call: impl Fn(Channel) -> F,
) -> Result<(T, String), Fault>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let pinned = Pinned::new(token.digest).map_err(|error| internal(error.to_string()))?;
    let result = ask_leader(remotes, |address| {
        let called = dial(&address, pinned.connector()).map(&call);
        async move { called?.await.map(tonic::Response::into_inner) }
    })
    .await;
    match (result, pinned.root_pem()) {
        (Ok(answer), Ok(root)) => Ok((answer, root)),
        (Err(_), Err(pki::PinError::Refused(mismatch))) => {
            let message = format!("the manager's cluster is not the token's: {mismatch}");
            Err(Fault::invalid("--token", message)
                .hint("ask a manager of the right cluster: shoal swarm join-token worker"))
        }
        (Err(fault), _) => Err(fault),
        (Ok(_), Err(error)) => Err(internal(error.to_string())),
    }
}

fn internal(error: String) -> Fault {
    Fault::new(ErrorCode::Internal, error)
}

fn dial(address: &str, connector: pki::Connector) -> Result<Channel, Status> {
    pki::channel(address, connector)
        .map_err(|error| wire::status_of(&Fault::invalid("HOST:PORT", error.to_string())))
}

fn own_channel(address: &str, tls: &Arc<NodeTls>) -> Result<Channel, Status> {
    let connector = pki::connector(tls, pki::Expected::default())
        .map_err(|error| Status::internal(error.to_string()))?;
    dial(address, connector)
}

/// A new certificate for this node, with the role that the cluster wants it to have.
pub(crate) async fn renew(
    tls: &Arc<NodeTls>,
    managers: &[String],
    key: &NodeKey,
) -> Result<IssueResponse, Fault> {
    let csr = key.request().map_err(|error| Fault::new(ErrorCode::Internal, error.to_string()))?;
    ask_leader(managers, |address| {
        let (request, tls) = (v1::RenewRequest { csr: csr.clone() }, Arc::clone(tls));
        async move {
            let channel = own_channel(&address, &tls)?;
            CertificatesClient::new(channel).renew(request).await.map(tonic::Response::into_inner)
        }
    })
    .await
}

/// A Raft number for this node, which joins the managers.
pub(crate) async fn join_managers(
    tls: &Arc<NodeTls>,
    managers: &[String],
    own_address: &str,
) -> Result<u64, Fault> {
    ask_leader(managers, |address| {
        let request = v1::MembershipJoinRequest { address: own_address.to_owned() };
        let tls = Arc::clone(tls);
        async move {
            let channel = own_channel(&address, &tls)?;
            let joined = MembershipClient::new(channel).join(request).await?;
            Ok(joined.into_inner().raft_id)
        }
    })
    .await
}

/// Leaves the managers; returns once they have let this node go.
pub(crate) async fn leave_managers(tls: &Arc<NodeTls>, managers: &[String]) -> Result<(), Fault> {
    ask_leader(managers, |address| {
        let tls = Arc::clone(tls);
        async move {
            let channel = own_channel(&address, &tls)?;
            MembershipClient::new(channel).leave(v1::MembershipLeaveRequest {}).await.map(drop)
        }
    })
    .await
}

/// Asks the leader about a network that a user names on this node.
pub(crate) async fn find_network(
    tls: &Arc<NodeTls>,
    managers: &[String],
    text: &str,
) -> Result<v1::FoundNetwork, Fault> {
    ask_leader(managers, |address| {
        let (request, tls) = (v1::FindNetworkRequest { r#ref: text.to_owned() }, Arc::clone(tls));
        async move {
            let channel = own_channel(&address, &tls)?;
            let found = DispatcherClient::new(channel).find_network(request).await;
            found.map(tonic::Response::into_inner)
        }
    })
    .await
}

/// Has a task of this node connected to a network of the cluster.
pub(crate) async fn connect_task(
    tls: &Arc<NodeTls>,
    managers: &[String],
    request: &v1::ConnectTaskRequest,
) -> Result<v1::ConnectTaskResponse, Fault> {
    ask_leader(managers, |address| {
        let (request, tls) = (request.clone(), Arc::clone(tls));
        async move {
            let channel = own_channel(&address, &tls)?;
            let connected = DispatcherClient::new(channel).connect_task(request).await;
            connected.map(tonic::Response::into_inner)
        }
    })
    .await
}

/// The way back.
pub(crate) async fn disconnect_task(
    tls: &Arc<NodeTls>,
    managers: &[String],
    request: &v1::DisconnectTaskRequest,
) -> Result<(), Fault> {
    ask_leader(managers, |address| {
        let (request, tls) = (request.clone(), Arc::clone(tls));
        async move {
            let channel = own_channel(&address, &tls)?;
            DispatcherClient::new(channel).disconnect_task(request).await.map(drop)
        }
    })
    .await
}
