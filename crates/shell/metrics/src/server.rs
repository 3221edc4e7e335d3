//! The port: a small HTTP server of one page.
//!
//! Owns: what is answered to whom, how many at a time, how long each may take.
//! Does not know: what the page says.
//! Invariant: a reader that is slow, or says nothing, holds one of a few places for a bounded
//! time, and nothing else.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::facts::Facts;
use crate::text::{Format, text};

/// The facts cannot be had now, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

/// A port that listens already.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Listens; who connects waits until it runs.
    ///
    /// # Errors
    /// The address is not this host's, or somebody listens there.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// With the port that was given for 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until told to stop. `facts` is called for each scrape.
    pub async fn run<F, R>(self, facts: F, shutdown: impl Future<Output = ()> + Send)
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Facts, Unavailable>> + Send + 'static,
    {
        let (facts, places) = (Arc::new(facts), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        let mut shutdown = std::pin::pin!(shutdown);
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                // Whoever is too many waits in the kernel's queue.
                let place = Arc::clone(&places).acquire_owned().await;
                (place, self.listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                biased;
                () = &mut shutdown => return,
                accepted = accepted => accepted,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) => {
                    let facts = Arc::clone(&facts);
                    connections.spawn(async move {
                        serve(stream, facts).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of descriptors, or gone already.
                    tracing::debug!(%error, "a connection to the metrics was not taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// One request a connection.
async fn serve<F, R>(stream: TcpStream, facts: Arc<F>)
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Result<Facts, Unavailable>> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let facts = Arc::clone(&facts);
        async move { Ok::<_, Infallible>(answer(&request, || facts()).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_LIMIT)
        .keep_alive(false)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the metrics has failed"),
        Err(_) => tracing::debug!("a connection to the metrics took too long"),
    }
}

async fn answer<B, R>(request: &Request<B>, facts: impl FnOnce() -> R) -> Response<Full<Bytes>>
where
    R: Future<Output = Result<Facts, Unavailable>>,
{
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is only /metrics\n");
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    let facts = match timeout(FACTS_LIMIT, facts()).await {
        Ok(Ok(facts)) => facts,
        Ok(Err(Unavailable(why))) => return unavailable(&why),
        Err(_) => return unavailable("the node does not answer in time"),
    };
    let written = tokio::task::spawn_blocking(move || text(facts, format)).await;
    match written {
        Ok(Ok(text)) => with_type(StatusCode::OK, format.content_type(), text.into()),
        _ => plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n"),
    }
}

fn unavailable(why: &str) -> Response<Full<Bytes>> {
    plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", text.into())
}

fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Connections at a time: a few servers of Prometheus, and somebody who looks.
const CONNECTIONS_MAX: usize = 16;
/// From the beginning of a connection to the end of its request's head.
const HEADERS_LIMIT: Duration = Duration::from_secs(5);
const HEADERS_MAX: usize = 64;
const BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Until the facts are there.
const FACTS_LIMIT: Duration = Duration::from_secs(5);
/// For all of it, also for a reader that reads slowly; Prometheus' own is 10 s.
const CONNECTION_LIMIT: Duration = Duration::from_secs(20);
/// After a connection that could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
