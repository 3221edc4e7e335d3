//! The service `Local` of the daemon's socket.
//!
//! Owns: answers about this node, its membership and its images.
//! Does not know: the cluster's state, beyond counts for `info`.
//! Invariant: works whether or not the node is part of a cluster.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use ports::runtime::{ContainerState, ImageRecord, PullItem, RegistryAuth, Runtime, RuntimeError};
use ports::store::Store;
use tonic::{Request, Response, Status, Streaming};
use types::{ErrorCode, Fault};
use wire::status_of;
use wire::v1::local_server::Local;
use wire::v1::{self, LocalState};

use crate::node::{Node, Standing};

/// The service `Local`.
#[derive(Clone)]
pub(crate) struct LocalApi {
    pub node: Arc<Node>,
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::ImageEvent, Status>> + Send>>;

fn answer<T>(result: Result<T, Fault>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|fault| status_of(&fault))
}

fn fault(error: &RuntimeError) -> Fault {
    let code = match error {
        RuntimeError::ImageMissing { .. } | RuntimeError::NoContainer { .. } => ErrorCode::NotFound,
        RuntimeError::Invalid { field, problem } => return Fault::invalid(*field, problem),
        RuntimeError::NoSpace { .. } => ErrorCode::NoSpace,
        RuntimeError::NotExecutable { .. } | RuntimeError::Failed { .. } => {
            ErrorCode::FailedPrecondition
        }
    };
    Fault::new(code, base::chain(error).to_string())
}

fn image(record: ImageRecord) -> v1::Image {
    v1::Image {
        id: record.id,
        references: record.references,
        digests: record.digests,
        architecture: record.architecture,
        os: record.os,
        size_bytes: record.size_bytes,
        created_at: record.created.map_or(0, |at| at.0),
        config_json: record.config_json,
    }
}

fn event(item: Result<PullItem, RuntimeError>) -> Result<v1::ImageEvent, Status> {
    use v1::image_event::Event;
    let event = match item.map_err(|error| status_of(&fault(&error)))? {
        PullItem::Done(record) => Event::Done(image(record)),
        PullItem::Progress(progress) => Event::Progress(v1::ImageProgress {
            id: progress.id,
            status: progress.status,
            current: progress.current,
            total: progress.total,
        }),
    };
    Ok(v1::ImageEvent { event: Some(event) })
}

impl LocalApi {
    async fn describe(&self) -> v1::InfoResponse {
        let (node, facts) = (&self.node, self.node.facts().await);
        let running = node.runtime.observe().await.unwrap_or_default();
        let is_running = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
        let state = match () {
            () if !facts.error.is_empty() || facts.removed => LocalState::Error,
            () if !facts.member => LocalState::Inactive,
            () if !facts.connected && !facts.manager => LocalState::Pending,
            () => LocalState::Active,
        };
        let error = match facts.removed {
            true => "this node was removed from the cluster; run `shoal swarm leave`".to_owned(),
            false => facts.error,
        };
        let mut info = v1::InfoResponse {
            hostname: node.config.hostname.clone(),
            data_dir: node.config.data_dir.display().to_string(),
            state: state as i32,
            error,
            node_id: facts.node.map(|id| wire::bytes_of(id.0)).unwrap_or_default(),
            cluster_id: facts.cluster.map(|id| wire::bytes_of(id.0)).unwrap_or_default(),
            manager: facts.manager,
            node_address: facts.address,
            manager_addresses: facts.managers,
            cpus: node.machine.cpus,
            memory_bytes: node.machine.memory_bytes,
            kernel: node.machine.kernel.clone(),
            os: node.machine.os.clone(),
            architecture: node.machine.architecture.clone(),
            cgroup_version: node.machine.cgroup_version.clone(),
            containers_running: running.iter().filter(|one| is_running(&one.state)).count() as u64,
            images: node.runtime.list_images().await.map_or(0, |images| images.len() as u64),
            version: env!("CARGO_PKG_VERSION").into(),
            metrics_address: node.config.metrics_addr.map(|at| at.to_string()).unwrap_or_default(),
            ..v1::InfoResponse::default()
        };
        if let Standing::Manager(api) = node.standing().await {
            let view = api.store().snapshot();
            info.nodes = view.node_count() as u64;
            info.managers = view.nodes().filter(|node| node.manager.is_some()).count() as u64;
            if let Some(cluster) = view.cluster() {
                info.spec = Some((&cluster.spec).into());
                info.data_path_port = cluster.data_path_port;
                info.encryption_ports = cluster.encryption_ports.map(u32::from).to_vec();
                info.address_pools.clone_from(&cluster.address_pools);
                info.address_pool_mask = cluster.address_pool_mask;
            }
            if info.managers == 2 {
                info.warnings.push(
                    "Running Swarm in a two-manager configuration. This configuration provides no \
                     fault tolerance, and poses a high risk to lose control over the cluster."
                        .into(),
                );
            }
        }
        info
    }
}

#[tonic::async_trait]
impl Local for LocalApi {
    async fn version(
        &self,
        _: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionResponse>, Status> {
        Ok(Response::new(v1::VersionResponse {
            version: crate::BUILD.version.into(),
            commit: crate::BUILD.commit.into(),
            os: "linux".into(),
            architecture: self.node.machine.architecture.clone(),
            kernel: self.node.machine.kernel.clone(),
            protocol: wire::PROTOCOL,
        }))
    }

    async fn info(
        &self,
        _: Request<v1::InfoRequest>,
    ) -> Result<Response<v1::InfoResponse>, Status> {
        Ok(Response::new(self.describe().await))
    }

    async fn init(
        &self,
        request: Request<v1::InitRequest>,
    ) -> Result<Response<v1::InitResponse>, Status> {
        log_caller(&request, "init");
        let node = Arc::clone(&self.node);
        answer(finish(async move { node.init(request.into_inner()).await }).await)
    }

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        log_caller(&request, "join");
        let node = Arc::clone(&self.node);
        answer(finish(async move { node.join(request.into_inner()).await }).await)
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveResponse>, Status> {
        log_caller(&request, "leave");
        let node = Arc::clone(&self.node);
        let left = finish(async move { node.leave(request.into_inner().force).await }).await;
        answer(left.map(|()| v1::LeaveResponse {}))
    }

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ImageList>, Status> {
        let wanted = request.into_inner().reference;
        if !wanted.is_empty() {
            let found = self.node.runtime.find_image(&wanted).await;
            let found = found.map_err(|error| status_of(&fault(&error)))?;
            let images = found.into_iter().map(image).collect();
            return Ok(Response::new(v1::ImageList { images }));
        }
        let images = self.node.runtime.list_images().await.map_err(|error| fault(&error));
        answer(images.map(|all| v1::ImageList { images: all.into_iter().map(image).collect() }))
    }

    type PullImageStream = Events;

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<Events>, Status> {
        log_caller(&request, "image pull");
        let request = request.into_inner();
        let reference = request.reference.clone();
        let items = self.node.runtime.pull_image(&reference, registry_auth(request));
        Ok(Response::new(Box::pin(items.map(event))))
    }

    type LoadImageStream = Events;

    async fn load_image(
        &self,
        request: Request<Streaming<v1::LoadImageRequest>>,
    ) -> Result<Response<Events>, Status> {
        log_caller(&request, "image load");
        let chunks = request.into_inner().map(|chunk| match chunk {
            Ok(chunk) => Ok(chunk.chunk),
            Err(status) => Err(std::io::Error::other(status.message().to_owned())),
        });
        let items = self.node.runtime.load_image(Box::pin(chunks));
        Ok(Response::new(Box::pin(items.map(event))))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        log_caller(&request, "image rm");
        let request = request.into_inner();
        let lines = self.node.runtime.remove_image(&request.reference, request.force).await;
        let lines = lines.map_err(|error| fault(&error));
        answer(lines.map(|lines| v1::RemoveImageResponse { lines }))
    }

    async fn create_network(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Result<Response<v1::CreateNetworkResponse>, Status> {
        log_caller(&request, "network create");
        let node = Arc::clone(&self.node);
        answer(finish(async move { node.create_network(request.into_inner()).await }).await)
    }

    async fn list_networks(
        &self,
        request: Request<v1::ListNetworksRequest>,
    ) -> Result<Response<v1::NodeNetworkList>, Status> {
        let networks = self.node.network().list(&request.into_inner());
        Ok(Response::new(v1::NodeNetworkList { networks }))
    }

    async fn get_network(
        &self,
        request: Request<v1::GetNetworkRequest>,
    ) -> Result<Response<v1::NodeNetworkView>, Status> {
        let request = request.into_inner();
        let text = network_ref(&request.r#ref).map_err(|fault| status_of(&fault))?;
        answer(self.node.network().get(text).await)
    }

    async fn remove_network(
        &self,
        request: Request<v1::ObjectRef>,
    ) -> Result<Response<v1::Empty>, Status> {
        log_caller(&request, "network rm");
        let node = Arc::clone(&self.node);
        let wanted = request.into_inner().r#ref;
        let removed = finish(async move {
            let network = node.network();
            network.remove(network_ref(&wanted)?).await
        });
        answer(removed.await.map(|()| v1::Empty {}))
    }

    async fn prune_networks(
        &self,
        request: Request<v1::PruneNetworksRequest>,
    ) -> Result<Response<v1::PruneNetworksResponse>, Status> {
        log_caller(&request, "network prune");
        let node = Arc::clone(&self.node);
        let names = finish(async move { node.network().prune(&request.into_inner()).await });
        answer(names.await.map(|names| v1::PruneNetworksResponse { names }))
    }

    async fn connect_network(
        &self,
        request: Request<v1::ConnectNetworkRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        log_caller(&request, "network connect");
        let node = Arc::clone(&self.node);
        let done = finish(async move { node.connect_network(request.into_inner()).await });
        answer(done.await.map(|()| v1::Empty {}))
    }

    async fn disconnect_network(
        &self,
        request: Request<v1::DisconnectNetworkRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        log_caller(&request, "network disconnect");
        let node = Arc::clone(&self.node);
        let done = finish(async move { node.disconnect_network(request.into_inner()).await });
        answer(done.await.map(|()| v1::Empty {}))
    }
}

fn network_ref(text: &str) -> Result<&str, Fault> {
    match text.is_empty() {
        true => Err(Fault::invalid("network", "name a network")),
        false => Ok(text),
    }
}

fn registry_auth(request: v1::PullImageRequest) -> Option<RegistryAuth> {
    let given = |text: &String| !text.is_empty();
    if given(&request.registry_token) {
        return Some(RegistryAuth::RegistryToken(request.registry_token));
    }
    if given(&request.identity_token) {
        return Some(RegistryAuth::IdentityToken(request.identity_token));
    }
    let (username, password) = (request.username, request.password);
    given(&username).then_some(RegistryAuth::Password { username, password })
}

/// A change is carried through though its caller goes away.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    let broken = |_| Fault::new(ErrorCode::Internal, "the change has stopped");
    tokio::spawn(work).await.map_err(broken)?
}

fn log_caller<T>(request: &Request<T>, call: &'static str) {
    let uid = request.extensions().get::<crate::socket::CallerInfo>().map(|info| info.uid);
    tracing::info!(caller.uid = uid, call, "write requested");
}
