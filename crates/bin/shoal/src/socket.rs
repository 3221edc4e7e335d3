//! The daemon's socket: root's and group `shoal`'s, from its creation.
//!
//! Owns: making it, accepting callers, and knowing who they are.
//! Does not know: what they ask. Invariant: a caller that says nothing holds no place for long, and
//! there are never more than a fixed number of callers.

use std::future::Future;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Group whose members may use the socket.
const GROUP: &str = "shoal";
/// Callers at a time; more wait in the kernel's queue.
const CALLERS_MAX: usize = 2_048;
/// Until a caller must have said something.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Length of the greeting of HTTP/2, which a client sends at once; before it no other limit holds.
const GREETING_BYTES: usize = 24;

/// One caller.
pub(crate) struct Caller {
    stream: UnixStream,
    uid: u32,
    /// Bytes that are missing in its greeting, and until when it must be whole.
    greeting: Option<(usize, Pin<Box<Sleep>>)>,
    _place: OwnedSemaphorePermit,
}

/// Who it is; put into each request's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallerInfo {
    pub uid: u32,
}

/// Makes the socket at `path`; a stale one of a dead daemon is replaced.
pub(crate) fn bind(path: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    // Nobody but root can connect until the group is set, not even for a moment.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = bound.with_context(|| format!("cannot listen on {}", path.display()))?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name(GROUP) {
        chown(path, None, Some(group.gid.as_raw())).context("cannot give the socket its group")?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .context("cannot set the socket's mode")?;
    Ok(listener)
}

/// Accepts callers until the stream is dropped.
pub(crate) fn incoming(listener: UnixListener) -> ReceiverStream<std::io::Result<Caller>> {
    let (tx, rx) = mpsc::channel(16);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CALLERS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let accepted = tokio::select! {
                biased;
                () = tx.closed() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => drop(tokio::spawn(admit(stream, place, tx.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "caller could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    ReceiverStream::new(rx)
}

/// Lets a caller in once it has said something.
async fn admit(
    stream: UnixStream,
    place: OwnedSemaphorePermit,
    tx: mpsc::Sender<std::io::Result<Caller>>,
) {
    let spoken = tokio::time::timeout(SILENCE_MAX, stream.ready(Interest::READABLE)).await;
    let uid = stream.peer_cred().map(|credentials| credentials.uid());
    if let (Ok(Ok(_)), Ok(uid)) = (spoken, uid) {
        let until = Box::pin(tokio::time::sleep(SILENCE_MAX));
        let greeting = Some((GREETING_BYTES, until));
        let _ = tx.send(Ok(Caller { stream, uid, greeting, _place: place })).await;
    }
}

impl Connected for Caller {
    type ConnectInfo = CallerInfo;

    fn connect_info(&self) -> CallerInfo {
        CallerInfo { uid: self.uid }
    }
}

impl AsyncRead for Caller {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if let Some((_, until)) = &mut self.greeting
            && until.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        let count = buffer.filled().len() - before;
        self.greeting = self.greeting.take().and_then(|(missing, until)| {
            missing.checked_sub(count).filter(|left| *left > 0).map(|left| (left, until))
        });
        Poll::Ready(read)
    }
}

impl AsyncWrite for Caller {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
