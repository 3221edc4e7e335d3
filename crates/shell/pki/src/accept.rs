//! The listening side: TCP accepted, handshakes done side by side, identities read.
//!
//! Owns: the stream of finished connections for tonic's `serve_with_incoming`.
//! Does not know: what is served, or what a peer may do.
//! Invariant: callers that stay silent cannot keep others out: when all places are taken the
//! oldest unfinished handshake loses its place, and so does the oldest caller without certificate.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::divert::Divert;
use crate::identity::Identity;
use crate::limits::{ACCEPT_PAUSE, HANDSHAKE_EVICT_AGE, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX};
use crate::patience::{Patience, Strangers};
use crate::tls::{NodeTls, PROTOCOL_HTTP, TlsError};

/// Serves `listener` with this node's certificate.
///
/// # Errors
/// Only when the provider lacks TLS 1.3, which a build decides.
pub fn accept_stream(listener: TcpListener, tls: &Arc<NodeTls>) -> Result<Incoming, TlsError> {
    Ok(Incoming {
        listener,
        config: tls.server_config(PROTOCOL_HTTP)?,
        divert: None,
        handshakes: JoinSet::new(),
        places: VecDeque::new(),
        strangers: Strangers::default(),
        timer: None,
    })
}

/// Who is at the other end of a connection; tonic puts it into each request's extensions.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// `None` when the peer showed no certificate.
    pub identity: Option<Arc<Identity>>,
    pub addr: SocketAddr,
}

/// One accepted connection.
#[derive(Debug)]
pub struct TlsConn {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
    patience: Patience,
}

/// The stream of accepted connections; it ends never.
pub struct Incoming {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    divert: Option<Divert>,
    handshakes: JoinSet<Option<TlsConn>>,
    /// Unfinished handshakes by age, the oldest first; finished ones are swept out now and then.
    places: VecDeque<(Instant, AbortHandle)>,
    /// Who is connected without a certificate.
    strangers: Strangers,
    /// Wakes the stream when the oldest may be evicted, or when `accept` may be tried again.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// Hands connections of one protocol to somebody else, before their handshake is done.
    #[must_use]
    pub fn divert(mut self, divert: Divert) -> Self {
        self.divert = Some(divert);
        self
    }

    fn accept(&mut self, cx: &mut Context<'_>) {
        while self.timer_has_fired(cx) && self.has_place(cx) {
            match self.listener.poll_accept(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok((tcp, addr))) => {
                    let (config, divert) = (Arc::clone(&self.config), self.divert.clone());
                    let handle = self.handshakes.spawn(handshake(config, divert, tcp, addr));
                    self.places.push_back((Instant::now(), handle));
                }
                Poll::Ready(Err(error)) => {
                    tracing::warn!(%error, "connection could not be accepted");
                    self.timer = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }

    /// Whether no timer is set, or it has just run out (and is then taken away).
    fn timer_has_fired(&mut self, cx: &mut Context<'_>) -> bool {
        match self.timer.as_mut().map(|timer| timer.as_mut().poll(cx)) {
            Some(Poll::Pending) => false,
            Some(Poll::Ready(())) => {
                self.timer = None;
                true
            }
            None => true,
        }
    }

    /// Makes room by evicting the oldest handshake, or sets the timer for when that is allowed.
    fn has_place(&mut self, cx: &mut Context<'_>) -> bool {
        if self.handshakes.len() < HANDSHAKES_MAX {
            if self.places.len() > 2 * HANDSHAKES_MAX {
                self.places.retain(|(_, handle)| !handle.is_finished());
            }
            return true;
        }
        while self.places.front().is_some_and(|(_, handle)| handle.is_finished()) {
            self.places.pop_front();
        }
        let Some((begun, handle)) = self.places.front() else { return false };
        if begun.elapsed() >= HANDSHAKE_EVICT_AGE {
            handle.abort();
            self.places.pop_front();
            tracing::debug!("oldest unfinished handshake evicted");
            return true;
        }
        let mut timer = Box::pin(tokio::time::sleep_until(*begun + HANDSHAKE_EVICT_AGE));
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        self.timer = Some(timer);
        false
    }
}

impl Stream for Incoming {
    type Item = io::Result<TlsConn>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            self.accept(cx);
            match ready_or_empty(self.handshakes.poll_join_next(cx)) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(mut connection)) => {
                    if connection.peer.identity.is_none() {
                        connection.patience.hold(self.strangers.enter());
                    }
                    return Poll::Ready(Some(Ok(connection)));
                }
                // A failed, evicted or panicked handshake has left a place free.
                Poll::Ready(None) => {}
            }
        }
    }
}

/// An empty set is not the end: the listener wakes the stream for the next connection.
fn ready_or_empty<E>(joined: Poll<Option<Result<Option<TlsConn>, E>>>) -> Poll<Option<TlsConn>> {
    match ready!(joined) {
        None => Poll::Pending,
        Some(Ok(connection)) => Poll::Ready(connection),
        Some(Err(_)) => Poll::Ready(None),
    }
}

async fn handshake(
    config: Arc<ServerConfig>,
    divert: Option<Divert>,
    tcp: TcpStream,
    addr: SocketAddr,
) -> Option<TlsConn> {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%addr, %error, "socket option refused");
    }
    let shake = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        match divert.filter(|divert| divert.wants(&start)) {
            Some(divert) => divert.hand_over(start, addr).map(|()| None),
            None => start.into_stream(config).await.map(Some),
        }
    };
    finish(timeout(HANDSHAKE_TIMEOUT, shake).await, addr)
}

/// The connection of a finished handshake; what went wrong is for the log only.
pub(crate) fn finish(
    outcome: Result<io::Result<Option<TlsStream<TcpStream>>>, Elapsed>,
    addr: SocketAddr,
) -> Option<TlsConn> {
    let stream = match outcome {
        Ok(Ok(stream)) => stream?,
        Ok(Err(error)) => {
            tracing::debug!(%addr, %error, "tls handshake failed");
            return None;
        }
        Err(_) => {
            tracing::debug!(%addr, "tls handshake took too long");
            return None;
        }
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    match leaf.map(|leaf| Identity::from_der(leaf)).transpose() {
        Ok(identity) => {
            let patience = Patience::new(identity.is_none());
            let peer = PeerInfo { identity: identity.map(Arc::new), addr };
            Some(TlsConn { stream, peer, patience })
        }
        Err(error) => {
            tracing::debug!(%addr, %error, "peer certificate refused");
            None
        }
    }
}

impl Connected for TlsConn {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for TlsConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.patience.poll_end(cx) {
            tracing::debug!(addr = %self.peer.addr, %error, "connection ended");
            return Poll::Ready(Err(error));
        }
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        self.patience.heard(buf.filled().len() - before);
        Poll::Ready(read)
    }
}

impl AsyncWrite for TlsConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
