//! The connection to a daemon: its unix socket, or one on another host through ssh.
//!
//! Owns: reading `-H`, connecting, limits of the connection.
//! Does not know: what is asked over it.
//! Invariant: nothing is listened on, and there is no way over the network but ssh.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tonic::transport::{Channel, Endpoint};
use wire::v1::VersionRequest;
use wire::v1::control_client::ControlClient;
use wire::v1::local_client::LocalClient;

use crate::error::CliError;

/// Both services of a daemon's socket.
#[derive(Clone)]
pub(crate) struct Daemon {
    pub(crate) control: ControlClient<Channel>,
    pub(crate) local: LocalClient<Channel>,
}

/// Where a daemon is, as `-H` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Unix(PathBuf),
    Ssh { target: String, port: Option<u16> },
}

impl Host {
    pub(crate) fn parse(text: &str) -> Result<Self, CliError> {
        let wrong = |message: &str| {
            CliError::usage("--host", format!("`{text}`: {message}"))
                .hint("write unix:///path/to/shoal.sock or ssh://[user@]host[:port]")
        };
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("unix", _)) => Err(wrong("the path is not absolute")),
            Some(("ssh", rest)) => parse_ssh(rest).map_err(|message| wrong(&message)),
            Some(("tcp" | "http" | "https", _)) => {
                Err(wrong("there is no access over TCP, use ssh"))
            }
            _ => Err(wrong("not a URL that is known")),
        }
    }

    /// The socket's path; `None` for a daemon on another host.
    pub(crate) fn socket(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Ssh { .. } => None,
        }
    }
}

fn parse_ssh(rest: &str) -> Result<Host, String> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (target, port) = match rest.rsplit_once(':') {
        Some((target, port)) => {
            let port = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
            (target, Some(port))
        }
        None => (rest, None),
    };
    // ssh would take a target that begins with a dash for an option.
    let host = target.rsplit_once('@').map_or(target, |(_, host)| host);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@[]".contains(c);
    if host.is_empty() || target.starts_with('-') || !target.chars().all(plain) {
        return Err("the host's name is missing or wrong".into());
    }
    Ok(Host::Ssh { target: target.to_owned(), port })
}

/// Connects, within [`CONNECT_TIMEOUT`].
pub(crate) async fn connect(host: &Host) -> Result<Daemon, CliError> {
    let channel = match host {
        Host::Unix(path) => connect_unix(path).await?,
        Host::Ssh { target, port } => connect_ssh(target, *port).await?,
    };
    let mut daemon = Daemon {
        control: ControlClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
        local: LocalClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX),
    };
    if let Host::Ssh { target, .. } = host {
        check_ssh(&mut daemon, target).await?;
    }
    Ok(daemon)
}

/// An ssh that runs is no daemon that answers: the first answer shows that the way is there.
async fn check_ssh(daemon: &mut Daemon, target: &str) -> Result<(), CliError> {
    let asking = daemon.local.version(VersionRequest {});
    let problem = match tokio::time::timeout(CONNECT_TIMEOUT, asking).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(_)) => "the connection has ended".to_owned(),
        Err(_) => format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
    };
    let message = format!("the daemon at ssh://{target} does not answer: {problem}");
    Err(CliError::failed(message).hint(format!("try `ssh {target} shoal version`")))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://shoal.sock")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

async fn connect_unix(path: &Path) -> Result<Channel, CliError> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(path))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| cannot_connect(path, &source))?;
    over(TokioIo::new(stream)).await.map_err(|message| {
        CliError::failed(format!(
            "the daemon at unix://{} does not answer: {message}",
            path.display()
        ))
    })
}

fn cannot_connect(path: &Path, source: &io::Error) -> CliError {
    let message = format!("cannot connect to the daemon at unix://{}: {source}", path.display());
    let hint = match source.kind() {
        io::ErrorKind::PermissionDenied => "be root or a member of the group shoal",
        _ => "is the daemon running? see `shoal daemon --help`, or name another with -H",
    };
    CliError::failed(message).hint(hint)
}

async fn connect_ssh(target: &str, port: Option<u16>) -> Result<Channel, CliError> {
    let mut command = Command::new("ssh");
    if let Some(port) = port {
        command.arg("-p").arg(port.to_string());
    }
    let mut child = command
        .args(["-o", "ConnectTimeout=30", "-T", "--", target, "shoal", "system", "dial-stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| {
            CliError::failed(format!("cannot start ssh: {source}")).hint("install openssh-client")
        })?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(CliError::failed("ssh has no standard input and output"));
    };
    over(TokioIo::new(SshStream { stdin, stdout, _child: child })).await.map_err(|message| {
        CliError::failed(format!("the daemon at ssh://{target} does not answer: {message}"))
    })
}

/// A channel over one stream; it is not opened anew, a command ends with its connection.
async fn over<S>(stream: TokioIo<S>) -> Result<Channel, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(io::ErrorKind::NotConnected);
        async move { stream.map_err(io::Error::from) }
    });
    let endpoint = endpoint();
    let connecting = endpoint.connect_with_connector(connector);
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(base::chain(&error).to_string()),
        Err(_) => Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
    }
}

/// Standard input and output of an ssh that runs `shoal system dial-stdio` on the far side.
struct SshStream {
    stdin: ChildStdin,
    stdout: ChildStdout,
    /// Killed when the stream is dropped.
    _child: Child,
}

impl AsyncRead for SshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(context, buffer)
    }
}

impl AsyncWrite for SshStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(context)
    }
}

/// A local socket answers at once; ssh may ask for a passphrase first.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A list of a million tasks with their specs; the daemon is trusted.
const ANSWER_BYTES_MAX: usize = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (text, host) in [
            ("unix:///run/shoal/shoal.sock", Host::Unix("/run/shoal/shoal.sock".into())),
            ("ssh://root@a.b:22", Host::Ssh { target: "root@a.b".into(), port: Some(22) }),
            ("ssh://a/", Host::Ssh { target: "a".into(), port: None }),
        ] {
            assert_eq!(Host::parse(text).unwrap(), host, "{text}");
        }
        for text in [
            "",
            "/run/shoal.sock",
            "unix://run/x",
            "tcp://1.2.3.4:2375",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://a b",
            "ssh://a:x",
        ] {
            let error = Host::parse(text).unwrap_err();
            assert!(error.message.starts_with("--host: "), "{text}: {error}");
            assert_eq!(error.exit, crate::error::Exit::Usage);
        }
    }
}
