//! Commands against a daemon that is a fake, over a real socket.
//!
//! Owns: the fake: it answers what the tests need and refuses the rest by name.
//! Does not know: what is printed; the forms are tested where they are made.
//! Invariant: what was asked is kept, so that a test can look at it.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use base::Id;
use clap::Parser;
use futures::Stream;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};
use types::{ErrorCode, Fault, ServiceMode, ServiceSpec};
use wire::v1;
use wire::v1::control_server::{Control, ControlServer};
use wire::v1::local_server::{Local, LocalServer};

use crate::args::Args;
use crate::{Build, CliError, Exit};

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    archive_bytes: usize,
    created: Option<v1::ServiceSpec>,
    updates: Vec<v1::UpdateServiceRequest>,
    tail: Option<u64>,
    /// What was asked about networks.
    networks: Vec<String>,
    /// How often it was asked how far nodes are with their keys.
    asked_keys: usize,
}

/// An implementation with some methods written out, and the rest refused.
macro_rules! fake {
    ($trait:ident { $($written:item)* } $($name:ident: $asked:ident -> $answer:ident;)*) => {
        #[tonic::async_trait]
        impl $trait for Fake {
            $($written)*
            $(async fn $name(&self, _: Request<v1::$asked>) -> Answer<v1::$answer> {
                Err(Status::unimplemented(stringify!($name)))
            })*
        }
    };
}

fake! { Local {
    type PullImageStream = Events<v1::ImageEvent>;
    type LoadImageStream = Events<v1::ImageEvent>;

    async fn pull_image(&self, _: Request<v1::PullImageRequest>) -> Answer<Events<v1::ImageEvent>> {
        Err(Status::unavailable("no registry"))
    }

    async fn load_image(
        &self,
        request: Request<Streaming<v1::LoadImageRequest>>,
    ) -> Answer<Events<v1::ImageEvent>> {
        let mut chunks = request.into_inner();
        while let Some(chunk) = chunks.message().await? {
            self.0.lock().unwrap().archive_bytes += chunk.chunk.len();
        }
        let image = v1::Image { references: vec!["a:1".into()], ..v1::Image::default() };
        let done = v1::ImageEvent { event: Some(v1::image_event::Event::Done(image)) };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(done)]))))
    }

    async fn join(&self, _: Request<v1::JoinRequest>) -> Answer<v1::JoinResponse> {
        let fault = Fault::invalid("--token", "A valid join token is necessary")
            .hint("ask a manager for one");
        Err(wire::status_of(&fault))
    }

    async fn create_network(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Answer<v1::CreateNetworkResponse> {
        let spec = request.into_inner().spec.unwrap_or_default();
        self.0.lock().unwrap().networks.push(format!("node creates {} {}", spec.driver, spec.name));
        Ok(Response::new(v1::CreateNetworkResponse { id: id(), warnings: vec![] }))
    }

    /// It has its own `lan`, and one that is called as the cluster's `back`.
    async fn get_network(
        &self,
        request: Request<v1::GetNetworkRequest>,
    ) -> Answer<v1::NodeNetworkView> {
        let name = request.into_inner().r#ref;
        if !["lan", "back", own_id().as_str()].contains(&name.as_str()) {
            return Err(not_found(&name));
        }
        let spec = v1::NetworkSpec { name, driver: "bridge".into(), ..v1::NetworkSpec::default() };
        let id = types::NetworkId::MAX.to_bytes().to_vec().into();
        let network = v1::LocalNetwork { id, spec: Some(spec), ..v1::LocalNetwork::default() };
        let network = Some(network);
        Ok(Response::new(v1::NodeNetworkView { network, ..v1::NodeNetworkView::default() }))
    }

    async fn remove_network(&self, request: Request<v1::ObjectRef>) -> Answer<v1::Empty> {
        let text = format!("node removes {}", request.into_inner().r#ref);
        self.0.lock().unwrap().networks.push(text);
        Ok(Response::new(v1::Empty {}))
    }

    /// The cluster's as far as it is known here, and its own.
    async fn list_networks(
        &self,
        request: Request<v1::ListNetworksRequest>,
    ) -> Answer<v1::NodeNetworkList> {
        let names = request.into_inner().names;
        self.0.lock().unwrap().networks.push(format!("node lists {names:?}"));
        let view = |swarm, name: &str| {
            let spec = v1::NetworkSpec { name: name.into(), ..v1::NetworkSpec::default() };
            let network = v1::LocalNetwork { spec: Some(spec), ..v1::LocalNetwork::default() };
            v1::NodeNetworkView { network: Some(network), swarm, ..v1::NodeNetworkView::default() }
        };
        let networks = vec![view(false, "lan"), view(true, "back")];
        Ok(Response::new(v1::NodeNetworkList { networks }))
    }

    async fn prune_networks(
        &self,
        request: Request<v1::PruneNetworksRequest>,
    ) -> Answer<v1::PruneNetworksResponse> {
        let labels = request.into_inner().labels;
        self.0.lock().unwrap().networks.push(format!("node prunes {labels:?}"));
        Ok(Response::new(v1::PruneNetworksResponse { names: vec!["lan".into()] }))
    }

    async fn connect_network(
        &self,
        request: Request<v1::ConnectNetworkRequest>,
    ) -> Answer<v1::Empty> {
        let r = request.into_inner();
        let text = format!("{} {} {} {:?}", r.network, r.container, r.ip, r.aliases);
        self.0.lock().unwrap().networks.push(text);
        Ok(Response::new(v1::Empty {}))
    }

    async fn disconnect_network(
        &self,
        request: Request<v1::DisconnectNetworkRequest>,
    ) -> Answer<v1::Empty> {
        let r = request.into_inner();
        let text = format!("{} {} {}", r.network, r.container, r.force);
        self.0.lock().unwrap().networks.push(text);
        Ok(Response::new(v1::Empty {}))
    }
}
    version: VersionRequest -> VersionResponse;
    info: InfoRequest -> InfoResponse;
    init: InitRequest -> InitResponse;
    leave: LeaveRequest -> LeaveResponse;
    list_images: ListImagesRequest -> ImageList;
    remove_image: RemoveImageRequest -> RemoveImageResponse;
}

fake! { Control {
    type CheckNetworksStream = Events<v1::CheckNetworksItem>;

    async fn check_networks(
        &self,
        request: Request<v1::CheckNetworksRequest>,
    ) -> Answer<Events<v1::CheckNetworksItem>> {
        use v1::check_networks_item::Item;
        let problem = match request.into_inner().refs.is_empty() {
            true => String::new(),
            false => "no answer".to_owned(),
        };
        let path = v1::CheckedPath { problem, ..v1::CheckedPath::default() };
        let progress = v1::CheckProgress { asked: 1, answered: 1 };
        let items = [Item::Progress(progress), Item::Path(path)];
        let items = items.map(|item| Ok(v1::CheckNetworksItem { item: Some(item) }));
        Ok(Response::new(Box::pin(futures::stream::iter(items))))
    }

    type LogsStream = Events<v1::LogsItem>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Events<v1::LogsItem>> {
        self.0.lock().unwrap().tail = request.into_inner().tail;
        let warning = v1::logs_item::Item::Warning("node h2 is away".into());
        let item = v1::LogsItem { item: Some(warning) };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(item)]))))
    }

    async fn create_service(
        &self,
        request: Request<v1::CreateServiceRequest>,
    ) -> Answer<v1::CreateServiceResponse> {
        self.0.lock().unwrap().created = request.into_inner().spec;
        Ok(Response::new(v1::CreateServiceResponse { id: id(), warnings: vec![] }))
    }

    async fn get_service(&self, request: Request<v1::ObjectRef>) -> Answer<v1::ServiceView> {
        let name = request.into_inner().r#ref;
        if name == "nosuch" {
            let fault = Fault::new(ErrorCode::NotFound, format!("service {name} not found"));
            return Err(wire::status_of(&fault));
        }
        Ok(Response::new(v1::ServiceView {
            service: Some(v1::Service {
                id: id(),
                meta: Some(v1::Meta { spec_version: 7, ..v1::Meta::default() }),
                spec: self.0.lock().unwrap().created.clone(),
                reasons: vec![v1::Reason { message: "no node".into(), ..v1::Reason::default() }],
                ..v1::Service::default()
            }),
            desired: 1,
            ..v1::ServiceView::default()
        }))
    }

    async fn update_service(
        &self,
        request: Request<v1::UpdateServiceRequest>,
    ) -> Answer<v1::UpdateServiceResponse> {
        let mut seen = self.0.lock().unwrap();
        seen.updates.push(request.into_inner());
        if seen.updates.len() == 1 {
            let fault = Fault::new(ErrorCode::OutOfDate, "update out of sequence");
            return Err(wire::status_of(&fault));
        }
        Ok(Response::new(v1::UpdateServiceResponse::default()))
    }

    async fn create_network(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Answer<v1::CreateNetworkResponse> {
        let spec = request.into_inner().spec.unwrap_or_default();
        let text = format!("cluster creates {} {}", spec.driver, spec.name);
        self.0.lock().unwrap().networks.push(text);
        Ok(Response::new(v1::CreateNetworkResponse { id: id(), warnings: vec![] }))
    }

    async fn get_network(
        &self,
        request: Request<v1::GetNetworkRequest>,
    ) -> Answer<v1::NetworkView> {
        let name = request.into_inner().r#ref;
        if name != "back" {
            return Err(not_found(&name));
        }
        let spec = v1::NetworkSpec { name, ..v1::NetworkSpec::default() };
        let (meta, spec) = (Some(v1::Meta::default()), Some(spec));
        let network = Some(v1::Network { id: id(), meta, spec, ..v1::Network::default() });
        Ok(Response::new(v1::NetworkView { network, ..v1::NetworkView::default() }))
    }

    async fn remove_network(&self, request: Request<v1::ObjectRef>) -> Answer<v1::Empty> {
        let text = format!("cluster removes {}", request.into_inner().r#ref);
        self.0.lock().unwrap().networks.push(text);
        Ok(Response::new(v1::Empty {}))
    }

    async fn list_networks(
        &self,
        request: Request<v1::ListNetworksRequest>,
    ) -> Answer<v1::NetworkList> {
        let v1::ListNetworksRequest { names, ids, .. } = request.into_inner();
        self.0.lock().unwrap().networks.push(format!("cluster lists {names:?} {ids:?}"));
        Ok(Response::new(v1::NetworkList::default()))
    }

    /// As on a node that is no manager.
    async fn prune_networks(
        &self,
        _: Request<v1::PruneNetworksRequest>,
    ) -> Answer<v1::PruneNetworksResponse> {
        self.0.lock().unwrap().networks.push("cluster prunes".into());
        Err(wire::status_of(&Fault::new(ErrorCode::NotAManager, "not a manager")))
    }

    async fn rotate_network_key(
        &self,
        _: Request<v1::RotateNetworkKeyRequest>,
    ) -> Answer<v1::NetworkKeyProgress> {
        Ok(Response::new(keys(true)))
    }

    async fn get_network_key_progress(
        &self,
        _: Request<v1::GetNetworkKeyProgressRequest>,
    ) -> Answer<v1::NetworkKeyProgress> {
        let mut seen = self.0.lock().unwrap();
        seen.asked_keys += 1;
        Ok(Response::new(keys(seen.asked_keys < 2)))
    }

    async fn list_tasks(&self, _: Request<v1::ListTasksRequest>) -> Answer<v1::TaskList> {
        Ok(Response::new(v1::TaskList::default()))
    }
}
    get_cluster: GetClusterRequest -> ClusterView;
    update_cluster: UpdateClusterRequest -> ClusterView;
    rotate_join_token: RotateJoinTokenRequest -> JoinTokens;
    get_join_tokens: GetJoinTokensRequest -> JoinTokens;
    list_nodes: ListNodesRequest -> NodeList;
    get_node: ObjectRef -> NodeView;
    update_node: UpdateNodeRequest -> NodeView;
    remove_node: RemoveNodeRequest -> Empty;
    list_services: ListServicesRequest -> ServiceList;
    remove_service: ObjectRef -> Empty;
    get_task: ObjectRef -> TaskView;
}

fn keys(waits: bool) -> v1::NetworkKeyProgress {
    let lag = v1::NetworkKeyLag { name: "a".into(), ..v1::NetworkKeyLag::default() };
    let lags = if waits { vec![lag] } else { Vec::new() };
    v1::NetworkKeyProgress { generation: 2, live: 3, away: 0, lags }
}

fn id<T: From<Vec<u8>>>() -> T {
    Id::from_u128(1).unwrap().to_bytes().to_vec().into()
}

fn own_id() -> String {
    types::NetworkId::MAX.to_string()
}

fn not_found(name: &str) -> Status {
    wire::status_of(&Fault::new(ErrorCode::NotFound, format!("network {name} not found")))
}

/// The fake on a socket in a folder of its own.
struct Stage {
    fake: Fake,
    folder: TempDir,
}

impl Stage {
    fn set() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        let listener = UnixListener::bind(folder.path().join("shoal.sock")).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(LocalServer::new(fake.clone()))
            .add_service(ControlServer::new(fake.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Self { fake, folder }
    }

    async fn run(&self, line: &str) -> Result<(), CliError> {
        let url = format!("unix://{}/shoal.sock", self.folder.path().display());
        let words = ["shoal", "-H", &url].into_iter().chain(line.split(' '));
        let args = Args::try_parse_from(words).unwrap();
        super::run(Build { version: "1", commit: "c" }, args.options, args.command).await
    }
}

#[tokio::test]
async fn an_archive_arrives_whole() {
    let stage = Stage::set();
    let path = stage.folder.path().join("image.tar");
    std::fs::write(&path, vec![7; 1_000_001]).unwrap();
    stage.run(&format!("image load -i {}", path.display())).await.unwrap();
    assert_eq!(stage.fake.0.lock().unwrap().archive_bytes, 1_000_001);
}

#[tokio::test]
async fn keys_are_waited_for_unless_detached() {
    let stage = Stage::set();
    stage.run("swarm rotate-network-key --detach").await.unwrap();
    assert_eq!(stage.fake.0.lock().unwrap().asked_keys, 0);
    stage.run("swarm rotate-network-key -q").await.unwrap();
    assert_eq!(stage.fake.0.lock().unwrap().asked_keys, 2);
}

#[tokio::test]
async fn a_refusal_carries_field_and_hint() {
    let stage = Stage::set();
    let error = stage.run("swarm join --token x 10.0.0.1:2377").await.unwrap_err();
    assert_eq!(error.message, "--token: A valid join token is necessary");
    assert_eq!((error.hint.as_str(), error.exit), ("ask a manager for one", Exit::Failed));
}

#[tokio::test]
async fn a_service_is_created_as_asked_and_scaled_again_when_it_changed_meanwhile() {
    let stage = Stage::set();
    stage.run("service create -d --name web --replicas 3 nginx:1").await.unwrap();
    stage.run("service scale -d web=5").await.unwrap();
    let seen = stage.fake.0.lock().unwrap();
    let spec: ServiceSpec = seen.created.clone().unwrap().try_into().unwrap();
    assert_eq!((spec.name.as_str(), spec.mode), ("web", ServiceMode::Replicated(3)));
    assert_eq!(seen.updates.len(), 2);
    for update in &seen.updates {
        assert_eq!(update.spec_version, 7);
        let spec: ServiceSpec = update.spec.clone().unwrap().try_into().unwrap();
        assert_eq!(spec.mode, ServiceMode::Replicated(5));
    }
}

#[tokio::test]
async fn waiting_ends_when_its_time_is_up_with_the_reason() {
    let stage = Stage::set();
    let line = "service create -q --wait-timeout 300ms --name web nginx:1";
    let error = stage.run(line).await.unwrap_err();
    assert_eq!(error.exit, Exit::WaitTimedOut);
    assert!(error.message.ends_with("is not as wanted after 300ms: no node"), "{error}");
}

#[tokio::test]
async fn names_that_do_not_exist_are_errors_after_the_others() {
    let stage = Stage::set();
    stage.run("service create -d --name web nginx:1").await.unwrap();
    let error = stage.run("service inspect web nosuch").await.unwrap_err();
    assert_eq!(error.message, "no such service: nosuch");
    let error = stage.run("service ps nosuch web").await.unwrap_err();
    assert_eq!(error.message, "no such service: nosuch");
}

#[tokio::test]
async fn logs_ask_for_what_the_flags_say() {
    let stage = Stage::set();
    stage.run("service logs --tail 5 web").await.unwrap();
    assert_eq!(stage.fake.0.lock().unwrap().tail, Some(5));
}

#[tokio::test]
async fn without_a_daemon_the_socket_is_named() {
    let host = "unix:///nonexistent/shoal.sock";
    let args = Args::try_parse_from(["shoal", "-H", host, "node", "ls"]).unwrap();
    let build = Build { version: "1", commit: "c" };
    let error = super::run(build, args.options, args.command).await.unwrap_err();
    assert!(error.message.contains(host) && !error.hint.is_empty(), "{error}");
}

#[tokio::test]
async fn networks_are_the_nodes_or_the_clusters() {
    let stage = Stage::set();
    stage.run("network create lan").await.unwrap();
    stage.run("network create -d overlay back").await.unwrap();
    stage.run("network rm lan back").await.unwrap();
    stage.run(&format!("network rm {}", own_id())).await.unwrap();
    let error = stage.run("network rm nosuch").await.unwrap_err();
    assert_eq!(error.message, "network nosuch not found");
    stage.run("network rm --force nosuch").await.unwrap();
    let (own, theirs) = (own_id(), Id::from_u128(1).unwrap());
    assert_eq!(
        stage.fake.0.lock().unwrap().networks,
        [
            "node creates bridge lan".to_owned(),
            "cluster creates overlay back".to_owned(),
            format!("node removes {own}"),
            format!("cluster removes {theirs}"),
            format!("node removes {own}"),
        ]
    );
}

#[tokio::test]
async fn containers_are_connected_and_disconnected_as_the_flags_say() {
    let stage = Stage::set();
    let line = "network connect --ip 10.0.0.7 --alias db --alias store lan web.1.x";
    stage.run(line).await.unwrap();
    stage.run("network disconnect -f lan web.1.x").await.unwrap();
    let error = stage.run("network connect --link other lan web.1.x").await.unwrap_err();
    assert!(error.message.starts_with("--link: links are not supported"), "{error}");
    assert_eq!(error.exit, Exit::Usage);
    let seen = &stage.fake.0.lock().unwrap().networks;
    assert_eq!(*seen, ["lan web.1.x 10.0.0.7 [\"db\", \"store\"]", "lan web.1.x true"]);
}

#[tokio::test]
async fn networks_of_both_sides_are_listed_shown_and_pruned() {
    let stage = Stage::set();
    stage.run("network ls -q --filter name=a").await.unwrap();
    let error = stage.run("network ls --filter colour=red").await.unwrap_err();
    assert!(error.message.contains("colour"), "{error}");
    stage.run("network prune --force --filter label=a=b").await.unwrap();
    let error = stage.run("network prune --force --filter name=a").await.unwrap_err();
    assert!(error.message.contains("name"), "{error}");
    stage.run("network inspect lan back").await.unwrap();
    let error = stage.run("network inspect back nosuch").await.unwrap_err();
    assert_eq!(error.message, "network nosuch not found");
    assert_eq!(
        stage.fake.0.lock().unwrap().networks,
        [
            "node lists [\"a\"]",
            "cluster lists [\"a\"] []",
            "node prunes {\"a\": \"b\"}",
            "cluster prunes",
        ]
    );
}

#[tokio::test]
async fn a_services_networks_are_shown_by_name() {
    let stage = Stage::set();
    stage.run("service create -d --name web nginx:1").await.unwrap();
    stage.run("service inspect --pretty web").await.unwrap();
    assert_eq!(*stage.fake.0.lock().unwrap().networks, Vec::<String>::new(), "it has none");
    stage.run("service create -d --name web --network back nginx:1").await.unwrap();
    stage.run("service inspect --pretty web").await.unwrap();
    assert_eq!(stage.fake.0.lock().unwrap().networks, ["cluster lists [] [\"back\"]"]);
}
