//! The daemon's way to netd.
//!
//! Owns: the calls, their answers and errors.
//! Does not know: how netd is found, kept and told. Invariant: every call ends in bounded time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use types::{DirectoryUpdate, PortBinding, PortProtocol};

use crate::counters::Counters;
use crate::keeper::{Answer, Call, Command, Keeper};
use crate::part::Change;
use crate::{Container, Scope, Tunnel, TunnelStatus};

/// How netd is found and started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The run directory: one netd each.
    pub dir: PathBuf,
    /// The program whose `main` calls [`crate::run_if_netd`].
    pub executable: PathBuf,
    /// A netd that was started with another text is replaced.
    pub build: String,
    /// How long the replaced one goes on at most, unless [`Client::settled`] is called before.
    pub handover: Duration,
}

impl Options {
    /// netd from this very program.
    #[must_use]
    pub fn new(dir: PathBuf, build: String) -> Self {
        let executable = PathBuf::from("/proc/self/exe");
        Self { dir, executable, build, handover: Duration::from_secs(10) }
    }
}

/// A call that netd did not carry out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// It cannot be started or reached; the next call tries again. Its reason stands in
    /// `netd.log` of the run directory.
    #[error("netd cannot be reached: {0}")]
    Unreachable(String),
    /// It did not answer in time; it is started again meanwhile.
    #[error("netd does not answer")]
    Late,
    /// The container's namespace is gone, or the system is out of sockets.
    #[error("names cannot be served to container {id}: {reason}")]
    Container { id: String, reason: String },
    /// [`Client::stop`] was called.
    #[error("netd was stopped")]
    Stopped,
}

/// Where each container's resolver listens, on 127.0.0.11 inside its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Counts the processes that have held them: after a change all ports are others.
    pub epoch: u64,
    pub by_container: BTreeMap<String, u16>,
}

/// What netd says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub pid: u32,
    /// Of the last update of the cluster's directory.
    pub index: u64,
    pub counters: Counters,
    pub containers: Vec<(String, u16)>,
}

/// Talks to netd; clones talk to the same one.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    ports: watch::Receiver<Ports>,
}

impl Client {
    /// Finds the netd of the run directory, or starts one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn connect_or_start(options: Options) -> Result<Self, ClientError> {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (ports, watched) = watch::channel(Ports::default());
        Keeper::begin(options, receiver, ports).await?;
        Ok(Self { commands, ports: watched })
    }

    /// Takes what the managers say: names follow from it. Returns when they are given.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn update(&self, update: &DirectoryUpdate) -> Result<(), ClientError> {
        self.update_scope(Scope::Cluster, update).await
    }

    /// The same for networks of the node's own; the two do not replace each other's.
    pub async fn update_scope(
        &self,
        scope: Scope,
        update: &DirectoryUpdate,
    ) -> Result<(), ClientError> {
        let (full, index) = (update.full, update.index);
        let change = Change::of(update);
        self.call(Call::Update { scope, full, index, change }).await.map(drop)
    }

    /// Serves a container, or changes how; gives the port on 127.0.0.11 in its namespace. It stays
    /// the same until the namespace is another one, or netd is: see [`Client::ports`].
    pub async fn serve(&self, container: Container) -> Result<u16, ClientError> {
        match self.call(Call::Serve(Box::new(container))).await? {
            Answer::Port(port) => Ok(port),
            _ => Err(ClientError::Late),
        }
    }

    /// Closes a container's sockets. One that is not served is not an error.
    pub async fn release(&self, id: &str) -> Result<(), ClientError> {
        self.call(Call::Release(id.to_owned())).await.map(drop)
    }

    /// Keeps exactly these ports from the host's other programs; gives those that another one
    /// has. Those are tried again each second, and told with the next call.
    pub async fn reserve(&self, bindings: &[PortBinding]) -> Result<Vec<PortBinding>, ClientError> {
        match self.call(Call::Reserve(bindings.iter().copied().collect())).await? {
            Answer::Missing(missing) => Ok(missing),
            _ => Err(ClientError::Late),
        }
    }

    /// Carries what comes to exactly these ports of ::1 to 127.0.0.1.
    pub async fn forward_loopback6(
        &self,
        ports: &[(PortProtocol, u16)],
    ) -> Result<(), ClientError> {
        self.call(Call::Loopback6(ports.iter().copied().collect())).await.map(drop)
    }

    /// The ports of all containers, and their changes: after a change of `epoch` the rules of
    /// every container must lead to its new port. Call [`Client::settled`] then.
    #[must_use]
    pub fn ports(&self) -> watch::Receiver<Ports> {
        self.ports.clone()
    }

    /// Every container's rules lead to the ports of this epoch: a replaced netd may end.
    pub async fn settled(&self, epoch: u64) -> Result<(), ClientError> {
        self.call(Call::Settled(epoch)).await.map(drop)
    }

    /// Serves exactly these tunnels. Whether they work is told by [`Client::tunnels`]: those that
    /// do not are tried until they do. netd goes on with them when this daemon ends.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn set_tunnels(&self, tunnels: Vec<Tunnel>) -> Result<(), ClientError> {
        self.call(Call::Tunnels(tunnels)).await.map(drop)
    }

    /// What is seen of the tunnels that are served.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn tunnels(&self) -> Result<Vec<TunnelStatus>, ClientError> {
        match self.call(Call::TunnelsSeen).await? {
            Answer::Tunnels(tunnels) => Ok(tunnels),
            _ => Err(ClientError::Late),
        }
    }

    pub async fn status(&self) -> Result<Status, ClientError> {
        match self.call(Call::Status).await? {
            Answer::Status(status) => Ok(*status),
            _ => Err(ClientError::Late),
        }
    }

    /// Ends netd and removes what it kept. All further calls are refused.
    pub async fn stop(&self) -> Result<(), ClientError> {
        self.call(Call::Stop).await.map(drop)
    }

    async fn call(&self, call: Call) -> Result<Answer, ClientError> {
        let (done, answer) = oneshot::channel();
        let command = Command { call, done: Some(done) };
        let called = async {
            self.commands.send(command).await.map_err(|_| ClientError::Stopped)?;
            answer.await.map_err(|_| ClientError::Stopped)?
        };
        timeout(CALL_TIME, called).await.unwrap_or(Err(ClientError::Late))
    }
}

const COMMANDS_MAX: usize = 64;
/// A call may have to wait for a restart.
const CALL_TIME: Duration = Duration::from_secs(30);
