//! The dialling side of a connection.
//!
//! Owns: TCP and TLS of a client, as the connector of a tonic endpoint.
//! Does not know: which service is called.
//! Invariant: dialling and handshake end within their limits, whatever the other side does.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::identity::Role;
use crate::limits::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, KEEP_ALIVE_PERIOD, KEEP_ALIVE_TIMEOUT};
use crate::tls::{NodeTls, PROTOCOL_HTTP, TlsError};

pub use crate::verify::{Expected, PeerMismatch};

/// Opens one connection per call, to the address in the URI.
#[derive(Debug, Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
}

impl Connector {
    pub(crate) fn from_config(config: Arc<ClientConfig>) -> Self {
        Self { config }
    }
}

/// A connector that shows this node's certificate and wants a manager of its cluster.
///
/// # Errors
/// Only when the provider lacks TLS 1.3, which a build decides.
pub fn connector(tls: &Arc<NodeTls>, expected: Expected) -> Result<Connector, TlsError> {
    connector_for(tls, expected, PROTOCOL_HTTP)
}

/// As [`connector`], for connections that the other side diverts by their protocol.
///
/// # Errors
/// Only when the provider lacks TLS 1.3, which a build decides.
pub fn connector_for(
    tls: &Arc<NodeTls>,
    expected: Expected,
    protocol: &[u8],
) -> Result<Connector, TlsError> {
    tls.client_config(expected, protocol).map(Connector::from_config)
}

/// A channel to `address` (`host:port`), dialled at the first call and again after each break.
///
/// # Errors
/// When `address` is not `host:port`.
pub fn channel(address: &str, connector: Connector) -> Result<Channel, AddressError> {
    let wrong = || AddressError(address.to_owned());
    if address.rsplit_once(':').is_none_or(|(host, _)| host.is_empty()) {
        return Err(wrong());
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| wrong())?
        .connect_timeout(CONNECT_TIMEOUT + HANDSHAKE_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_PERIOD)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// The text is not an address to dial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("address must be host:port, not {0:?}")]
pub struct AddressError(String);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let config = Arc::clone(&self.config);
        Box::pin(async move { dial(config, &uri).await.map(TokioIo::new) })
    }
}

async fn dial(config: Arc<ClientConfig>, uri: &Uri) -> io::Result<TlsStream<TcpStream>> {
    let authority = uri.authority().map_or("", http::uri::Authority::as_str);
    let late = |what: &str| io::Error::new(io::ErrorKind::TimedOut, format!("{what} {authority}"));
    let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(authority))
        .await
        .map_err(|_| late("no connection to"))??;
    tcp.set_nodelay(true)?;
    // The name is fixed: who the peer is stands in its subject, which the verifier reads.
    let name = ServerName::try_from(Role::Manager.unit()).map_err(io::Error::other)?;
    timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(config).connect(name, tcp))
        .await
        .map_err(|_| late("no tls handshake with"))?
}

/// Room for one large log entry on the way, so that a stream is not stalled by round trips.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
