//! Networks of this node, as its user sees and changes them.
//!
//! Owns: which of the node's parts a request goes to, the one name space with the cluster's, and
//! having the managers connect a task.
//! Does not know: how a network is made or joined.
//! Invariant: a name that the cluster has, as far as this node can tell, is no network's of its
//! own; a task that could not be connected in time is not connected.

use std::sync::Arc;
use std::time::Duration;

use network::AskedBy;
use pki::NodeTls;
use ports::Clock as _;
use ports::store::Store as _;
use tokio::time::{Instant, timeout, timeout_at};
use types::{Attachment, ErrorCode, Fault, LocalNetwork, NetworkId, NetworkSpec, TaskId};
use wire::v1;

use super::{Node, Standing};
use crate::join;
use crate::networks::{Known, Wishes, name_taken};

/// As docker's: from the request until the container has the interface.
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// Managers that do not answer do not keep a node from having networks of its own.
const NAME_CHECK_MAX: Duration = Duration::from_secs(3);
/// For what was half done.
const TAKE_BACK_MAX: Duration = Duration::from_secs(10);

/// How this node speaks to the managers.
type Managers = (Arc<NodeTls>, Vec<String>);

impl Node {
    /// Makes a network of this node's own.
    pub(crate) async fn create_network(
        &self,
        request: v1::CreateNetworkRequest,
    ) -> Result<v1::CreateNetworkResponse, Fault> {
        let spec = request.spec.ok_or_else(|| Fault::invalid("spec", "is missing"))?;
        let spec = NetworkSpec::try_from(spec)?;
        if self.cluster_has(&spec.name).await {
            return Err(name_taken(&spec.name));
        }
        let id = NetworkId(self.source().mint());
        self.network.create_own(spec, id, self.clock.now()).await?;
        Ok(v1::CreateNetworkResponse { id: wire::bytes_of(id.0), warnings: Vec::new() })
    }

    /// Whether a network of the cluster is called so, as far as can be found out soon.
    async fn cluster_has(&self, name: &str) -> bool {
        match self.standing().await {
            Standing::Manager(api) => api.store().snapshot().network_by_name(name).is_some(),
            Standing::Worker => {
                let Ok((tls, managers)) = self.managers().await else { return false };
                let found = timeout(NAME_CHECK_MAX, join::find_network(&tls, &managers, name));
                let found = found.await;
                matches!(found, Ok(Ok(network)) if network.name.eq_ignore_ascii_case(name))
            }
            Standing::None | Standing::Starting => false,
        }
    }

    async fn managers(&self) -> Result<Managers, Fault> {
        let active = self.active.lock().await;
        let Some(member) = &active.member else {
            let message = "This node is not part of a swarm";
            return Err(Fault::new(ErrorCode::FailedPrecondition, message));
        };
        let known = member.agent.orders.borrow().managers.clone();
        let managers = if known.is_empty() { member.settings.remotes.clone() } else { known };
        Ok((Arc::clone(&member.tls), managers))
    }

    /// Connects a running container of this node to a network.
    pub(crate) async fn connect_network(
        &self,
        request: v1::ConnectNetworkRequest,
    ) -> Result<(), Fault> {
        let wishes = Wishes::of(&request)?;
        let (id, container) = self.network.running(&self.runtime, &request.container).await?;
        let network = match self.network.find(&request.network) {
            Ok(Known::Own(network)) => {
                return self.network.connect_own(&id, &network, wishes).await;
            }
            Ok(Known::Cluster(part)) => part.id.to_string(),
            // The cluster may have one that this node has not heard of.
            Err(fault) if fault.code == ErrorCode::NotFound => {
                if self.facts().await.node.is_none() {
                    return Err(fault);
                }
                request.network.clone()
            }
            Err(fault) => return Err(fault),
        };
        if container.links.is_empty() {
            let message = "container cannot be connected to a network: it has that of the host, \
                           or none";
            return Err(Fault::new(ErrorCode::FailedPrecondition, message));
        }
        self.connect_task(&id, network, wishes).await
    }

    async fn connect_task(&self, id: &str, network: String, wishes: Wishes) -> Result<(), Fault> {
        let deadline = Instant::now() + CONNECT_MAX;
        let (tls, managers) = self.managers().await?;
        let task = task_of(id)?;
        let wanted = Attachment { network: NetworkId::MIN, v4: wishes.v4, v6: wishes.v6 };
        let request = v1::ConnectTaskRequest {
            task: wire::bytes_of(task.0),
            network,
            wanted: Some((&wanted).into()),
            aliases: wishes.aliases,
        };
        let asked = timeout_at(deadline, join::connect_task(&tls, &managers, &request)).await;
        let connected = match asked {
            Ok(Ok(connected)) => connected,
            // What is said about the request itself needs no more words.
            Ok(Err(fault)) if is_final(fault.code) => return Err(fault),
            Ok(Err(fault)) => return Err(failed(&fault.message)),
            Err(_) => {
                // It may have been done all the same.
                self.take_back(&request).await;
                return Err(failed("context deadline exceeded"));
            }
        };
        let attachment: Attachment = connected.attachment.unwrap_or_default().try_into()?;
        let network = attachment.network;
        match self.network.until_connected(id, network, true, deadline).await {
            Ok(()) => Ok(()),
            Err(why) => {
                self.disconnect_task(id, network, TAKE_BACK_MAX).await.unwrap_or_else(|fault| {
                    tracing::warn!(task.id = id, %fault, "a connection is not taken back yet");
                });
                Err(failed(&why))
            }
        }
    }

    /// Of a request whose answer did not come in time.
    async fn take_back(&self, request: &v1::ConnectTaskRequest) {
        let taken_back = async {
            let (tls, managers) = self.managers().await?;
            let found = join::find_network(&tls, &managers, &request.network).await?;
            let (task, network) = (request.task.clone(), found.id);
            let request = v1::DisconnectTaskRequest { task, network };
            join::disconnect_task(&tls, &managers, &request).await
        };
        match timeout(TAKE_BACK_MAX, taken_back).await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) if fault.code == ErrorCode::NotFound => {}
            Ok(Err(fault)) => tracing::warn!(%fault, "a connection may not be taken back"),
            Err(_) => tracing::warn!("a connection may not be taken back: no answer"),
        }
    }

    async fn find_in_cluster(&self, text: &str) -> Result<Sought, Fault> {
        let (tls, managers) = self.managers().await?;
        let found = timeout(CONNECT_MAX, join::find_network(&tls, &managers, text)).await;
        let found = found.unwrap_or_else(|_| Err(failed("context deadline exceeded")))?;
        Ok(Sought { id: wire::id(&found.id, "network.id")?, name: found.name, own: None })
    }

    async fn disconnect_task(
        &self,
        id: &str,
        network: NetworkId,
        limit: Duration,
    ) -> Result<(), Fault> {
        let deadline = Instant::now() + limit;
        let (tls, managers) = self.managers().await?;
        let request = v1::DisconnectTaskRequest {
            task: wire::bytes_of(task_of(id)?.0),
            network: wire::bytes_of(network.0),
        };
        let asked = timeout_at(deadline, join::disconnect_task(&tls, &managers, &request)).await;
        asked.unwrap_or_else(|_| Err(failed("context deadline exceeded")))?;
        let gone = self.network.until_connected(id, network, false, deadline).await;
        gone.map_err(|why| failed(&why))
    }

    /// Takes it off a network that it was connected to.
    pub(crate) async fn disconnect_network(
        &self,
        request: v1::DisconnectNetworkRequest,
    ) -> Result<(), Fault> {
        match self.try_disconnect(&request).await {
            Err(fault) if request.force && fault.code == ErrorCode::NotFound => Ok(()),
            result => result,
        }
    }

    async fn try_disconnect(&self, request: &v1::DisconnectNetworkRequest) -> Result<(), Fault> {
        let (id, container) = self.network.find_container(&request.container)?;
        let known = match self.network.find(&request.network) {
            // It is the cluster's, and the managers have not been heard since the daemon's start.
            Err(fault)
                if fault.code == ErrorCode::NotFound && self.facts().await.node.is_some() =>
            {
                self.find_in_cluster(&request.network).await?
            }
            found => Sought::from(found?),
        };
        let (name, network) = (container.names.first().unwrap_or(&id), &known.name);
        let end = container.links.iter().find(|end| end.network == Some(known.id));
        match (end.map(|end| end.asked_by), &known.own) {
            (None, _) => {
                let message = format!("container {name} is not connected to network {network}");
                Err(Fault::new(ErrorCode::NotFound, message))
            }
            (Some(AskedBy::Service), _) => {
                let message =
                    format!("container {name} is on network {network} because its service is");
                Err(Fault::new(ErrorCode::FailedPrecondition, message)
                    .hint("change the service: shoal service update --network-rm"))
            }
            (Some(_), Some(network)) => self.network.disconnect_own(&id, network).await,
            (Some(_), None) => self.disconnect_task(&id, known.id, CONNECT_MAX).await,
        }
    }
}

/// A network that somebody means.
struct Sought {
    id: NetworkId,
    name: String,
    /// `None`: the cluster's.
    own: Option<LocalNetwork>,
}

impl From<Known> for Sought {
    fn from(known: Known) -> Self {
        let (id, name) = (known.id(), known.name().to_owned());
        let own = match known {
            Known::Own(network) => Some(network),
            Known::Cluster(_) => None,
        };
        Self { id, name, own }
    }
}

/// Its id is its task's.
fn task_of(id: &str) -> Result<TaskId, Fault> {
    let message = || format!("container {id} is no task's");
    id.parse().map_err(|_| Fault::new(ErrorCode::FailedPrecondition, message()))
}

const fn is_final(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Invalid
            | ErrorCode::NotFound
            | ErrorCode::Conflict
            | ErrorCode::PermissionDenied
            | ErrorCode::FailedPrecondition
    )
}

/// Docker's words.
fn failed(why: &str) -> Fault {
    let message = format!(
        "attaching to network failed, make sure your network options are correct and check \
         manager logs: {why}"
    );
    Fault::new(ErrorCode::FailedPrecondition, message)
}
