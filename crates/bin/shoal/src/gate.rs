//! The control API on the local socket, while this node is a manager.
//!
//! Owns: handing calls to the manager in this node, and docker's words when there is none.
//! Does not know: any call. Invariant: on a worker no call reaches a manager with its certificate.

use std::sync::Arc;

use manager::CallerUid;
use tonic::{Request, Response, Status};
use types::{ErrorCode, Fault};
use wire::status_of;
use wire::v1::control_server::Control;
use wire::v1::{self};

use crate::node::Node;
use crate::socket::CallerInfo;

const WORKER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or \
                      modify cluster state. Please run this command on a manager node or promote \
                      the current node to a manager.";
const NONE: &str = "This node is not a swarm manager. Use \"shoal swarm init\" or \"shoal swarm \
                    join\" to connect this node to swarm and try again.";
const STARTING: &str = "This node is not a swarm manager. Manager is being prepared or has trouble \
                        connecting to the cluster.";

/// The service `Control` of the local socket.
#[derive(Clone)]
pub(crate) struct Gate {
    pub node: Arc<Node>,
}

impl Gate {
    async fn api(&self) -> Result<crate::manager_part::Api, Status> {
        let message = match self.node.standing().await {
            crate::node::Standing::Manager(api) => return Ok(*api),
            crate::node::Standing::Worker => WORKER,
            crate::node::Standing::Starting => STARTING,
            crate::node::Standing::None => NONE,
        };
        Err(status_of(&Fault::new(ErrorCode::NotAManager, message)))
    }

    /// A network that the cluster does not know may be this node's own: then these are docker's
    /// words.
    fn explain(&self, status: Status, asked: &[String]) -> Status {
        let fault = wire::fault_of(&status);
        if fault.code != ErrorCode::NotFound || fault.field != "--network" {
            return status;
        }
        let own = |name: &&String| {
            fault.message.contains(name.as_str())
                && matches!(self.node.network().find(name), Ok(crate::networks::Known::Own(_)))
        };
        let Some(name) = asked.iter().find(own) else { return status };
        let message = format!(
            "The network {name} cannot be used with services. Only networks scoped to the swarm \
             can be used, such as those created with the overlay driver."
        );
        status_of(&Fault::invalid("--network", message))
    }
}

/// What a service's networks are called by who asks for it.
fn networks_of(spec: Option<&v1::ServiceSpec>) -> Vec<String> {
    let task = spec.and_then(|spec| spec.task.as_ref());
    task.into_iter().flat_map(|task| &task.networks).map(|one| one.target.clone()).collect()
}

/// Names the caller to the API.
fn named<T>(mut request: Request<T>) -> Request<T> {
    if let Some(CallerInfo { uid }) = request.extensions().get().copied() {
        request.extensions_mut().insert(CallerUid(uid));
    }
    request
}

#[tonic::async_trait]
impl Control for Gate {
    async fn get_cluster(
        &self,
        request: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::ClusterView>, Status> {
        Control::get_cluster(&self.api().await?, named(request)).await
    }

    async fn update_cluster(
        &self,
        request: Request<v1::UpdateClusterRequest>,
    ) -> Result<Response<v1::ClusterView>, Status> {
        Control::update_cluster(&self.api().await?, named(request)).await
    }

    async fn rotate_join_token(
        &self,
        request: Request<v1::RotateJoinTokenRequest>,
    ) -> Result<Response<v1::JoinTokens>, Status> {
        Control::rotate_join_token(&self.api().await?, named(request)).await
    }

    async fn get_join_tokens(
        &self,
        request: Request<v1::GetJoinTokensRequest>,
    ) -> Result<Response<v1::JoinTokens>, Status> {
        Control::get_join_tokens(&self.api().await?, named(request)).await
    }

    async fn rotate_network_key(
        &self,
        request: Request<v1::RotateNetworkKeyRequest>,
    ) -> Result<Response<v1::NetworkKeyProgress>, Status> {
        Control::rotate_network_key(&self.api().await?, named(request)).await
    }

    async fn get_network_key_progress(
        &self,
        request: Request<v1::GetNetworkKeyProgressRequest>,
    ) -> Result<Response<v1::NetworkKeyProgress>, Status> {
        Control::get_network_key_progress(&self.api().await?, named(request)).await
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::NodeList>, Status> {
        Control::list_nodes(&self.api().await?, named(request)).await
    }

    async fn get_node(
        &self,
        request: Request<v1::ObjectRef>,
    ) -> Result<Response<v1::NodeView>, Status> {
        Control::get_node(&self.api().await?, named(request)).await
    }

    async fn update_node(
        &self,
        request: Request<v1::UpdateNodeRequest>,
    ) -> Result<Response<v1::NodeView>, Status> {
        Control::update_node(&self.api().await?, named(request)).await
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        Control::remove_node(&self.api().await?, named(request)).await
    }

    async fn create_service(
        &self,
        request: Request<v1::CreateServiceRequest>,
    ) -> Result<Response<v1::CreateServiceResponse>, Status> {
        let asked = networks_of(request.get_ref().spec.as_ref());
        let created = Control::create_service(&self.api().await?, named(request)).await;
        created.map_err(|status| self.explain(status, &asked))
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ServiceList>, Status> {
        Control::list_services(&self.api().await?, named(request)).await
    }

    async fn get_service(
        &self,
        request: Request<v1::ObjectRef>,
    ) -> Result<Response<v1::ServiceView>, Status> {
        Control::get_service(&self.api().await?, named(request)).await
    }

    async fn update_service(
        &self,
        request: Request<v1::UpdateServiceRequest>,
    ) -> Result<Response<v1::UpdateServiceResponse>, Status> {
        let asked = networks_of(request.get_ref().spec.as_ref());
        let updated = Control::update_service(&self.api().await?, named(request)).await;
        updated.map_err(|status| self.explain(status, &asked))
    }

    async fn remove_service(
        &self,
        request: Request<v1::ObjectRef>,
    ) -> Result<Response<v1::Empty>, Status> {
        Control::remove_service(&self.api().await?, named(request)).await
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::TaskList>, Status> {
        Control::list_tasks(&self.api().await?, named(request)).await
    }

    async fn get_task(
        &self,
        request: Request<v1::ObjectRef>,
    ) -> Result<Response<v1::TaskView>, Status> {
        Control::get_task(&self.api().await?, named(request)).await
    }

    async fn create_network(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Result<Response<v1::CreateNetworkResponse>, Status> {
        Control::create_network(&self.api().await?, named(request)).await
    }

    async fn list_networks(
        &self,
        request: Request<v1::ListNetworksRequest>,
    ) -> Result<Response<v1::NetworkList>, Status> {
        Control::list_networks(&self.api().await?, named(request)).await
    }

    async fn get_network(
        &self,
        request: Request<v1::GetNetworkRequest>,
    ) -> Result<Response<v1::NetworkView>, Status> {
        Control::get_network(&self.api().await?, named(request)).await
    }

    async fn remove_network(
        &self,
        request: Request<v1::ObjectRef>,
    ) -> Result<Response<v1::Empty>, Status> {
        Control::remove_network(&self.api().await?, named(request)).await
    }

    async fn prune_networks(
        &self,
        request: Request<v1::PruneNetworksRequest>,
    ) -> Result<Response<v1::PruneNetworksResponse>, Status> {
        Control::prune_networks(&self.api().await?, named(request)).await
    }

    type CheckNetworksStream = manager::CheckStream;

    async fn check_networks(
        &self,
        request: Request<v1::CheckNetworksRequest>,
    ) -> Result<Response<Self::CheckNetworksStream>, Status> {
        Control::check_networks(&self.api().await?, named(request)).await
    }

    type LogsStream = <crate::manager_part::Api as Control>::LogsStream;

    async fn logs(
        &self,
        request: Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        Control::logs(&self.api().await?, named(request)).await
    }
}
