//! The control API: what users ask of the cluster.
//!
//! Owns: the service `Control`, its answers from the snapshot, and the writes it proposes.
//! Does not know: how a write is carried out. Invariant: what is answered as done is replicated.

mod check_api;
mod cluster_api;
pub(crate) mod find;
mod logs;
mod network_api;
mod node_api;
mod service_api;
mod task_api;

use std::sync::Arc;

use base::{Id, IdSource};
use pki::NodeTls;
use ports::Clock;
use ports::store::Store;
use state::{Author, Change, ChangeSet, Proposal, Snapshot};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use types::{Condition, ErrorCode, Fault};
use wire::status_of;
use wire::v1::control_server::Control;
use wire::v1::{self, Freshness};

use crate::dispatcher::DispatcherHandle;
use crate::forward::{
    Answer, Leader, fault_of_proposal, not_leader, replaced_meanwhile, unless_replaced,
};

pub(crate) use cluster_api::cluster as cluster_of;
pub use logs::LogBroker;

/// A stream of log lines and warnings.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<v1::LogsItem, Status>> + Send>>;

/// A stream of what a check finds.
pub type CheckStream = Pin<Box<dyn Stream<Item = Result<v1::CheckNetworksItem, Status>> + Send>>;

/// The control API of one manager.
#[derive(Clone)]
pub struct ControlApi<S, C> {
    pub(crate) store: S,
    pub(crate) clock: C,
    ids: Arc<Mutex<IdSource>>,
    leader: Leader<S>,
    pub(crate) dispatcher: DispatcherHandle,
    pub(crate) broker: LogBroker,
    /// What is wrong with this manager, as it knows itself.
    pub(crate) conditions: watch::Receiver<Vec<Condition>>,
    /// Served for other managers: a request that came from one is not forwarded again.
    last_hop: bool,
}

impl<S: Store, C: Clock> ControlApi<S, C> {
    pub fn new(
        store: S,
        clock: C,
        ids: IdSource,
        tls: Arc<NodeTls>,
        dispatcher: DispatcherHandle,
        broker: LogBroker,
        conditions: watch::Receiver<Vec<Condition>>,
    ) -> Self {
        let leader = Leader::new(store.clone(), tls);
        let ids = Arc::new(Mutex::new(ids));
        Self { store, clock, ids, leader, dispatcher, broker, conditions, last_hop: false }
    }

    /// The state as this manager sees it, for counts.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The same API, for requests that another manager forwarded.
    #[must_use]
    pub fn for_managers(&self) -> Self {
        Self { last_hop: true, ..self.clone() }
    }

    pub(crate) fn mint(&self) -> Id {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).mint()
    }

    fn locate(&self) -> Result<Answer, Fault> {
        match self.leader.locate()? {
            Answer::There(_) if self.last_hop => {
                let leader = self.store.leadership().borrow().leader.clone();
                Err(not_leader(leader.map(|(_, address)| address).as_deref()))
            }
            answer => Ok(answer),
        }
    }

    /// Proposes one change of a user and waits until it is applied.
    pub(crate) async fn write(&self, changes: Vec<Change>) -> Result<u64, Fault> {
        let atoms = vec![ChangeSet { author: Author::Api, changes }];
        let proposal = Proposal { time: self.clock.now(), atoms };
        let applied =
            self.store.propose(proposal).await.map_err(|error| fault_of_proposal(&error))?;
        match applied.results.into_iter().next() {
            Some(Err(refusal)) => Err(refusal.to_fault()),
            _ => Ok(applied.index),
        }
    }

    /// The state for an answer: confirmed by a quorum on the leader, else as it is here.
    pub(crate) async fn read(&self) -> Result<(Snapshot, Freshness), Fault> {
        let leads = self.store.leadership().borrow().is_leader;
        let confirmed = leads && self.store.read_barrier().await.is_ok();
        let view = self.store.snapshot();
        let behind = if confirmed { 0 } else { self.clock.now().since(view.time()).0 };
        // Whoever does not lead answers only when the leader cannot be reached.
        let index = view.index();
        Ok((view, Freshness { leader_known: leads, behind_ms: behind, index }))
    }
}

/// Answers a read here when this manager leads or nobody does, else where the leader is; when the
/// leader cannot be reached, from the local replica.
macro_rules! read {
    ($self:ident, $request:ident, $method:ident) => {{
        let request = $request.into_inner();
        for _ in 0..LEADERS_ASKED_MAX {
            let replaced = $self.leader.replaced();
            let Answer::There(channel) = $self.locate().map_err(|fault| status_of(&fault))? else {
                break;
            };
            let mut client = client(channel);
            match unless_replaced(client.$method(request.clone()), replaced).await {
                None => continue,
                Some(Err(status)) if is_unreachable(&status) => break,
                Some(answer) => return answer,
            }
        }
        answer($self.$method(request).await)
    }};
}

/// Answers a write on the leader only.
macro_rules! write {
    ($self:ident, $request:ident, $method:ident) => {{
        let uid = $request.extensions().get::<CallerUid>().map(|uid| uid.0);
        tracing::info!(caller.uid = uid, call = stringify!($method), "write requested");
        let replaced = $self.leader.replaced();
        match $self.locate().map_err(|fault| status_of(&fault))? {
            Answer::Here => answer($self.$method($request.into_inner()).await),
            Answer::There(channel) => {
                let mut client = client(channel);
                let call = client.$method($request.into_inner());
                match unless_replaced(call, replaced).await {
                    Some(answer) => answer.map_err(|status| leader_lost($self, status)),
                    None => Err(status_of(&replaced_meanwhile())),
                }
            }
            Answer::Nowhere => Err(status_of(&not_leader(None))),
        }
    }};
}

/// The user on the local socket, put into a request's extensions by whoever serves it.
#[derive(Clone, Copy, Debug)]
pub struct CallerUid(pub u32);

type Client = v1::control_client::ControlClient<tonic::transport::Channel>;

fn client(channel: tonic::transport::Channel) -> Client {
    Client::new(channel)
        .max_decoding_message_size(ANSWER_BYTES_MAX)
        .max_encoding_message_size(wire::MESSAGE_BYTES_MAX)
}

/// Leaders that a read is asked of while they are replaced; then this manager answers itself.
const LEADERS_ASKED_MAX: usize = 2;
/// Lists of a large cluster are long; one answer never exceeds this.
const ANSWER_BYTES_MAX: usize = 1024 * 1024 * 1024;

fn answer<T>(result: Result<T, Fault>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|fault| status_of(&fault))
}

/// A leader that cannot be reached is none to the caller.
fn leader_lost<S: Store, C: Clock>(api: &ControlApi<S, C>, status: Status) -> Status {
    let answered = status.metadata().contains_key(wire::ERROR_KEY);
    if answered || status.code() != tonic::Code::Unavailable {
        return status;
    }
    let address = api.store.leadership().borrow().leader.clone().map(|(_, address)| address);
    let fault = not_leader(None);
    let hint = format!("the last known leader, {}, is away", address.unwrap_or_default());
    status_of(&fault.hint(hint))
}

/// The leader did not answer at all, as against answering with an error.
fn is_unreachable(status: &Status) -> bool {
    let fault = wire::fault_of(status);
    fault.code == ErrorCode::Unavailable || fault.code == ErrorCode::NoQuorum
}

#[tonic::async_trait]
impl<S: Store, C: Clock> Control for ControlApi<S, C> {
    async fn get_cluster(
        &self,
        request: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::ClusterView>, Status> {
        read!(self, request, get_cluster)
    }

    async fn update_cluster(
        &self,
        request: Request<v1::UpdateClusterRequest>,
    ) -> Result<Response<v1::ClusterView>, Status> {
        write!(self, request, update_cluster)
    }

    async fn rotate_join_token(
        &self,
        request: Request<v1::RotateJoinTokenRequest>,
    ) -> Result<Response<v1::JoinTokens>, Status> {
        write!(self, request, rotate_join_token)
    }

    async fn get_join_tokens(
        &self,
        request: Request<v1::GetJoinTokensRequest>,
    ) -> Result<Response<v1::JoinTokens>, Status> {
        read!(self, request, get_join_tokens)
    }

    async fn rotate_network_key(
        &self,
        request: Request<v1::RotateNetworkKeyRequest>,
    ) -> Result<Response<v1::NetworkKeyProgress>, Status> {
        write!(self, request, rotate_network_key)
    }

    async fn get_network_key_progress(
        &self,
        request: Request<v1::GetNetworkKeyProgressRequest>,
    ) -> Result<Response<v1::NetworkKeyProgress>, Status> {
        read!(self, request, get_network_key_progress)
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::NodeList>, Status> {
        read!(self, request, list_nodes)
    }

    async fn get_node(
        &self,
        request: Request<v1::ObjectRef>,
    ) -> Result<Response<v1::NodeView>, Status> {
        read!(self, request, get_node)
    }

    async fn update_node(
        &self,
        request: Request<v1::UpdateNodeRequest>,
    ) -> Result<Response<v1::NodeView>, Status> {
        write!(self, request, update_node)
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        write!(self, request, remove_node)
    }

    async fn create_service(
        &self,
        request: Request<v1::CreateServiceRequest>,
    ) -> Result<Response<v1::CreateServiceResponse>, Status> {
        write!(self, request, create_service)
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ServiceList>, Status> {
        read!(self, request, list_services)
    }

    async fn get_service(
        &self,
        request: Request<v1::ObjectRef>,
    ) -> Result<Response<v1::ServiceView>, Status> {
        read!(self, request, get_service)
    }

    async fn update_service(
        &self,
        request: Request<v1::UpdateServiceRequest>,
    ) -> Result<Response<v1::UpdateServiceResponse>, Status> {
        write!(self, request, update_service)
    }

    async fn remove_service(
        &self,
        request: Request<v1::ObjectRef>,
    ) -> Result<Response<v1::Empty>, Status> {
        write!(self, request, remove_service)
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::TaskList>, Status> {
        read!(self, request, list_tasks)
    }

    async fn get_task(
        &self,
        request: Request<v1::ObjectRef>,
    ) -> Result<Response<v1::TaskView>, Status> {
        read!(self, request, get_task)
    }

    async fn create_network(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Result<Response<v1::CreateNetworkResponse>, Status> {
        write!(self, request, create_network)
    }

    async fn list_networks(
        &self,
        request: Request<v1::ListNetworksRequest>,
    ) -> Result<Response<v1::NetworkList>, Status> {
        read!(self, request, list_networks)
    }

    async fn get_network(
        &self,
        request: Request<v1::GetNetworkRequest>,
    ) -> Result<Response<v1::NetworkView>, Status> {
        read!(self, request, get_network)
    }

    async fn remove_network(
        &self,
        request: Request<v1::ObjectRef>,
    ) -> Result<Response<v1::Empty>, Status> {
        write!(self, request, remove_network)
    }

    async fn prune_networks(
        &self,
        request: Request<v1::PruneNetworksRequest>,
    ) -> Result<Response<v1::PruneNetworksResponse>, Status> {
        write!(self, request, prune_networks)
    }

    type CheckNetworksStream = CheckStream;

    async fn check_networks(
        &self,
        request: Request<v1::CheckNetworksRequest>,
    ) -> Result<Response<CheckStream>, Status> {
        match self.locate().map_err(|fault| status_of(&fault))? {
            Answer::Here => answer(self.check_networks(request.into_inner())),
            Answer::There(channel) => {
                let stream = client(channel).check_networks(request.into_inner()).await?;
                Ok(Response::new(Box::pin(stream.into_inner())))
            }
            Answer::Nowhere => Err(status_of(&not_leader(None))),
        }
    }

    type LogsStream = LogStream;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<LogStream>, Status> {
        match self.locate().map_err(|fault| status_of(&fault))? {
            Answer::Here => answer(self.logs(request.into_inner()).await),
            Answer::There(channel) => {
                let stream = client(channel).logs(request.into_inner()).await?.into_inner();
                Ok(Response::new(Box::pin(stream)))
            }
            Answer::Nowhere => Err(status_of(&not_leader(None))),
        }
    }
}
