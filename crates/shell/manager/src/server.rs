//! The services of the managers' port, and the adapter from gRPC streams to sessions.
//!
//! Owns: which service is open to whom. Does not know: sockets and TLS.
//! Invariant: every call but those of `Bootstrap` needs a certificate of this cluster, of a node
//! that was not removed; a call for managers, of one that the store has as a manager.

use std::pin::Pin;

use pki::{Roles, peer_info};
use ports::store::Store;
use ports::{Clock, Link};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use types::{Fault, NodeId};
use wire::status_of;
use wire::v1::bootstrap_server::BootstrapServer;
use wire::v1::certificates_server::CertificatesServer;
use wire::v1::control_server::ControlServer;
use wire::v1::dispatcher_server::{Dispatcher, DispatcherServer};
use wire::v1::membership_server::MembershipServer;
use wire::v1::{self, ManagerMessage, NodeMessage};

use crate::api::{ControlApi, LogBroker};
use crate::authorize::{check_caller, check_manager};
use crate::certificates::CertificateApi;
use crate::connections::Connections;
use crate::dispatcher::DispatcherHandle;
use crate::dispatcher_addresses;
use crate::options::OUTBOX_MAX;

/// The parts of a manager that its port serves.
#[derive(Clone)]
pub struct Managers<S, C> {
    pub store: S,
    pub clock: C,
    pub control: ControlApi<S, C>,
    pub certificates: CertificateApi<S, C>,
    pub dispatcher: DispatcherHandle,
    pub broker: LogBroker,
}

/// All services of the managers' port, Raft's own aside.
pub fn router<S: Store, C: Clock>(managers: Managers<S, C>) -> Routes {
    let (store, clock) = (managers.store.clone(), managers.clock.clone());
    let managers_only = move |request: Request<()>| {
        check_manager(&store, &request, clock.now())?;
        Ok(request)
    };
    let control = ControlServer::new(managers.control.for_managers())
        .max_decoding_message_size(wire::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(usize::MAX);
    let control = tonic::service::interceptor::InterceptedService::new(control, managers_only);
    let dispatcher = DispatcherServer::new(Sessions { managers: managers.clone() })
        .max_decoding_message_size(wire::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(wire::MESSAGE_BYTES_MAX);
    Routes::new(BootstrapServer::new(managers.certificates.clone()))
        .add_service(CertificatesServer::new(managers.certificates.clone()))
        .add_service(MembershipServer::new(managers.certificates))
        .add_service(dispatcher)
        .add_service(control)
}

/// The service `Dispatcher`.
struct Sessions<S, C> {
    managers: Managers<S, C>,
}

impl<S: Store, C: Clock> Sessions<S, C> {
    fn caller<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let now = self.managers.clock.now();
        check_caller(&self.managers.store, request, Roles::AnyNode, now)
    }

    fn connections(&self, node: NodeId) -> Connections<'_, S, C> {
        Connections { store: &self.managers.store, clock: &self.managers.clock, node }
    }
}

fn answer<T>(result: Result<T, Fault>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|fault| status_of(&fault))
}

type Out = Pin<Box<dyn Stream<Item = Result<ManagerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl<S: Store, C: Clock> Dispatcher for Sessions<S, C> {
    type SessionStream = Out;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Out>, Status> {
        let node = self.caller(&request)?;
        let address =
            peer_info(&request).map_or_else(String::new, |peer| peer.addr.ip().to_string());
        let (near, far) = Link::pair(OUTBOX_MAX);
        tokio::spawn(pump(request.into_inner(), far.tx));
        self.managers.dispatcher.attach(node, address, near).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(far.rx).map(Ok))))
    }

    async fn managers(
        &self,
        request: Request<v1::ManagersRequest>,
    ) -> Result<Response<v1::ManagersResponse>, Status> {
        self.caller(&request)?;
        let leader = self.managers.store.leadership().borrow().leader.clone();
        Ok(Response::new(v1::ManagersResponse {
            leader: leader.map(|(_, address)| address).unwrap_or_default(),
            managers: dispatcher_addresses(&self.managers.store.snapshot()),
        }))
    }

    async fn find_network(
        &self,
        request: Request<v1::FindNetworkRequest>,
    ) -> Result<Response<v1::FoundNetwork>, Status> {
        let node = self.caller(&request)?;
        answer(self.connections(node).find(request.get_ref()).await)
    }

    async fn connect_task(
        &self,
        request: Request<v1::ConnectTaskRequest>,
    ) -> Result<Response<v1::ConnectTaskResponse>, Status> {
        let node = self.caller(&request)?;
        answer(self.connections(node).connect(request.into_inner()).await)
    }

    async fn disconnect_task(
        &self,
        request: Request<v1::DisconnectTaskRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        let node = self.caller(&request)?;
        answer(self.connections(node).disconnect(request.get_ref()).await)
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<v1::LogsPublish>>,
    ) -> Result<Response<v1::Empty>, Status> {
        let node = self.caller(&request)?;
        let mut stream = request.into_inner();
        while let Some(published) = stream.message().await? {
            if !self.managers.broker.publish(node, published).await {
                break;
            }
        }
        Ok(Response::new(v1::Empty {}))
    }
}

/// Carries a node's messages into its link, until either ends.
async fn pump(mut stream: Streaming<NodeMessage>, tx: mpsc::Sender<NodeMessage>) {
    loop {
        tokio::select! {
            biased;
            () = tx.closed() => return,
            message = stream.message() => match message {
                Ok(Some(message)) => if tx.send(message).await.is_err() { return },
                Ok(None) | Err(_) => return,
            }
        }
    }
}
