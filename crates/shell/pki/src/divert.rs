//! Connections of one protocol, served by another thread than all others.
//!
//! Owns: the handing over of an accepted socket, with the greeting that was read from it.
//! Does not know: what is served on either side.
//! Invariant: after the hand-over nothing of the first thread is needed for the connection, so
//! that its load cannot delay what is urgent. A taker that is behind loses the connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use rustls::ServerConfig;
use rustls::server::Accepted;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::StartHandshake;
use tonic::transport::server::Connected;

use crate::accept::{TlsConn, finish};
use crate::limits::{DIVERTED_HANDSHAKE_TIMEOUT, DIVERTED_HANDSHAKES_MAX};
use crate::tls::{NodeTls, TlsError};

/// Which connections go where.
#[derive(Debug, Clone)]
pub struct Divert {
    protocol: &'static [u8],
    taker: mpsc::Sender<Diverted>,
}

/// A connection whose client has greeted and whose handshake is still to be done.
pub struct Diverted {
    accepted: Accepted,
    tcp: std::net::TcpStream,
    addr: SocketAddr,
}

impl Divert {
    /// Connections whose client asks for `protocol` go to `taker`.
    #[must_use]
    pub const fn new(protocol: &'static [u8], taker: mpsc::Sender<Diverted>) -> Self {
        Self { protocol, taker }
    }

    pub(crate) fn wants(&self, start: &StartHandshake<TcpStream>) -> bool {
        let asked = start.client_hello().alpn();
        asked.is_some_and(|mut asked| asked.any(|protocol| protocol == self.protocol))
    }

    pub(crate) fn hand_over(
        &self,
        start: StartHandshake<TcpStream>,
        addr: SocketAddr,
    ) -> io::Result<()> {
        let StartHandshake { accepted, io, .. } = start;
        let diverted = Diverted { accepted, tcp: io.into_std()?, addr };
        self.taker.try_send(diverted).map_err(|_| io::Error::other("nobody takes it over"))
    }
}

/// The connections that arrive in `diverted`, with their handshakes done on the thread that polls
/// the stream. Peers without certificate are sent away.
///
/// # Errors
/// Only when the provider lacks TLS 1.3, which a build decides.
pub fn diverted_stream(
    mut diverted: mpsc::Receiver<Diverted>,
    tls: &Arc<NodeTls>,
    protocol: &[u8],
) -> Result<impl Stream<Item = io::Result<TlsConn>> + Send + use<>, TlsError> {
    let config = tls.server_config(protocol)?;
    let arrivals = futures::stream::poll_fn(move |cx| diverted.poll_recv(cx));
    Ok(arrivals
        .map(move |arrival| handshake(arrival, Arc::clone(&config)))
        .buffer_unordered(DIVERTED_HANDSHAKES_MAX)
        .filter_map(|connection| futures::future::ready(connection.map(Ok))))
}

async fn handshake(diverted: Diverted, config: Arc<ServerConfig>) -> Option<TlsConn> {
    let Diverted { accepted, tcp, addr } = diverted;
    let shake = async {
        let start = StartHandshake::from_parts(accepted, TcpStream::from_std(tcp)?);
        start.into_stream(config).await.map(Some)
    };
    let connection = finish(timeout(DIVERTED_HANDSHAKE_TIMEOUT, shake).await, addr);
    connection.filter(|connection| connection.connect_info().identity.is_some())
}
