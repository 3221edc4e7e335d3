//! One connection to netd.
//!
//! Owns: opening it, reading replies, and ending the process at the other end.
//! Does not know: what is asked and why.
//! Invariant: the process that is ended is the one at the other end of an open connection.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::launch::SOCKET;
use crate::proto::{Decoder, READ_BYTES, Reply, Request};

/// A connection: the half that is written to, and what the other half says.
pub(crate) struct Link {
    pub(crate) writer: OwnedWriteHalf,
    pub(crate) replies: mpsc::Receiver<(u32, Reply)>,
    reader: JoinHandle<()>,
    pub(crate) pid: Option<i32>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Link {
    /// Connects, and gives what netd calls itself.
    pub(crate) async fn open(dir: &Path) -> io::Result<(Self, String)> {
        let stream = UnixStream::connect(dir.join(SOCKET)).await?;
        let pid = stream.peer_cred()?.pid();
        let (read, writer) = stream.into_split();
        let (sender, mut replies) = mpsc::channel(REPLIES_MAX);
        let reader = tokio::spawn(listen(read, sender));
        let said = timeout(ANSWER_TIME, replies.recv()).await;
        let link = Self { writer, replies, reader, pid };
        match said {
            Ok(Some((_, Reply::Hello { build, .. }))) => Ok((link, build)),
            // It holds ports and sockets that its successor needs.
            Err(_) => {
                link.kill();
                Err(io::ErrorKind::TimedOut.into())
            }
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Asks one thing of a netd that is to end, and waits a little for the answer.
    pub(crate) async fn ask(&mut self, request: &Request) {
        let asked = async {
            self.writer.write_all(&request.encode(LAST_TAG)).await.ok()?;
            while self.replies.recv().await?.0 != LAST_TAG {}
            Some(())
        };
        if timeout(OLD_TIME, asked).await.is_err() {
            self.kill();
        }
    }

    /// Ends the process at the other end, which is there as long as the connection is.
    pub(crate) fn kill(&self) {
        if let Some(pid) = self.pid {
            let pid = nix::unistd::Pid::from_raw(pid);
            // It may end by itself in this moment.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Reads replies until the connection ends.
async fn listen(mut read: OwnedReadHalf, replies: mpsc::Sender<(u32, Reply)>) {
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; READ_BYTES]);
    while let Ok(length @ 1..) = read.read(&mut buffer).await {
        decoder.push(&buffer[..length]);
        loop {
            match decoder.next_frame().and_then(|frame| {
                frame.map(|frame| Ok((frame.tag, Reply::decode(&frame)?))).transpose()
            }) {
                Ok(None) => break,
                // A kind of a later version.
                Ok(Some((_, None))) => {}
                Ok(Some((tag, Some(reply)))) => {
                    if replies.send((tag, reply)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "netd cannot be understood");
                    return;
                }
            }
        }
    }
}

const REPLIES_MAX: usize = 1_024;
/// Without any answer for so long netd hangs.
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(10);
const OLD_TIME: Duration = Duration::from_secs(2);
const LAST_TAG: u32 = u32::MAX;
