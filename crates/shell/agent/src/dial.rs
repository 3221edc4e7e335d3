//! Sessions and uploads over gRPC.
//!
//! Owns: turning an address into a session's queues. Does not know: what is said.
//! Invariant: when either direction of the stream ends, both queues close.

use std::sync::Arc;

use pki::NodeTls;
use ports::{Link, LinkError, SessionDialer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use wire::v1::dispatcher_client::DispatcherClient;
use wire::v1::{LogsPublish, ManagerMessage, NodeMessage};

use crate::logs::LogUplink;

/// Messages waiting in each direction.
const QUEUE_MAX: usize = 256;

/// Dials managers with this node's certificate.
#[derive(Clone)]
pub struct GrpcDialer {
    tls: Arc<NodeTls>,
}

impl GrpcDialer {
    #[must_use]
    pub fn new(tls: Arc<NodeTls>) -> Self {
        Self { tls }
    }

    fn client(&self, address: &str) -> Result<DispatcherClient<Channel>, LinkError> {
        let unreachable = |problem: String| {
            let address = address.to_owned();
            LinkError::Unreachable { address, problem }
        };
        let connector = pki::connector(&self.tls, pki::Expected::default())
            .map_err(|error| unreachable(error.to_string()))?;
        let channel =
            pki::channel(address, connector).map_err(|error| unreachable(error.to_string()))?;
        Ok(DispatcherClient::new(channel)
            .max_decoding_message_size(wire::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(wire::MESSAGE_BYTES_MAX))
    }
}

impl SessionDialer<NodeMessage, ManagerMessage> for GrpcDialer {
    async fn dial(&self, address: &str) -> Result<Link<NodeMessage, ManagerMessage>, LinkError> {
        let mut client = self.client(address)?;
        let (near, far) = Link::pair(QUEUE_MAX);
        let outgoing = ReceiverStream::new(far.rx);
        let stream = client.session(outgoing).await.map_err(|status| {
            let (address, problem) = (address.to_owned(), base::chain(&status).to_string());
            match status.code() {
                tonic::Code::PermissionDenied => LinkError::Refused { address, problem },
                _ => LinkError::Unreachable { address, problem },
            }
        })?;
        tokio::spawn(pump(stream.into_inner(), far.tx));
        Ok(near)
    }
}

async fn pump(mut stream: Streaming<ManagerMessage>, tx: mpsc::Sender<ManagerMessage>) {
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

impl LogUplink for GrpcDialer {
    async fn publish(&self, address: &str, stream: mpsc::Receiver<LogsPublish>) {
        let Ok(mut client) = self.client(address) else { return };
        if let Err(status) = client.publish_logs(ReceiverStream::new(stream)).await {
            tracing::debug!(%status, "log upload ended");
        }
    }
}
