//! Port to the containers, images and logs of one node.
//!
//! Owns: what the agent may ask of a container runtime, and what it is told.
//! Does not know: OCI bundles, shims, cgroups, registries.
//! Invariant: every call is idempotent by container name, so that a loop which lost its memory may
//! simply ask again.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;

use base::{Millis, Timestamp};
use futures::Stream;

/// Everything needed to create one container. Names, units and defaults are docker's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerConfig {
    /// Identity of the container: the task's id in text form. Unique on the node.
    pub id: String,
    /// Human name, e.g. `web.1.<task id>`.
    pub name: String,
    /// Reference or digest of an image that this node has.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Appended after the entrypoint; replaces the image's command when not empty or when
    /// `command` is given.
    pub args: Vec<String>,
    /// `KEY=value`, over the image's; `KEY` alone removes the image's variable.
    pub env: Vec<String>,
    pub workdir: Option<String>,
    /// `name|uid[:group|gid]`, resolved in the image's /etc/passwd and /etc/group.
    pub user: Option<String>,
    /// Supplementary groups, names or numbers.
    pub groups: Vec<String>,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    pub read_only: bool,
    /// Capability names with or without `CAP_`; `ALL` is allowed in both.
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    /// `None`: the image's, else SIGTERM. Name with or without `SIG`, or a number.
    pub stop_signal: Option<String>,
    /// Limits; zero means none.
    pub cpu_nanos: u64,
    pub memory_bytes: u64,
    pub pids: u64,
    /// Network namespace to join, e.g. `/run/shoal/netns/<id>`; made and removed by the agent.
    pub netns: PathBuf,
    /// Lines for `/etc/hosts` after those of the loopback.
    pub hosts: Vec<(IpAddr, String)>,
    /// `/etc/resolv.conf`; `None`: the host's, without its loopback resolvers.
    pub resolv_conf: Option<String>,
    /// Size of one log file and how many are kept, the current one included.
    pub log_file_bytes: u64,
    pub log_files: u32,
}

/// Where a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Root filesystem and configuration are there; no process yet.
    Created,
    Running {
        pid: u32,
        started_at: Timestamp,
    },
    Exited(Exit),
    /// The shim vanished without leaving an exit record (killed, or the machine went down).
    Lost,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + n when ended by signal n.
    pub code: i32,
    /// The kernel killed a process of this container for want of memory.
    pub oom: bool,
    pub at: Timestamp,
}

/// One container as observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerObservation {
    pub id: String,
    pub state: ContainerState,
}

/// An image that this node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// `sha256:…` of the configuration: docker's image id.
    pub id: String,
    /// References with tag, normalised (`docker.io/library/nginx:latest`).
    pub references: Vec<String>,
    /// `repository@sha256:…` of the manifest, when it came from a registry.
    pub digests: Vec<String>,
    pub architecture: String,
    pub os: String,
    pub size_bytes: u64,
    pub created: Option<Timestamp>,
    /// Exposed ports, entrypoint, command and the like, as in the image's configuration (JSON).
    pub config_json: String,
}

/// Progress of a pull or load, in bytes; `total` is zero while unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageProgress {
    /// Short digest of the layer or a word such as `manifest`.
    pub id: String,
    /// `Downloading`, `Extracting`, `Pull complete`, `Already exists`…: docker's words.
    pub status: String,
    pub current: u64,
    pub total: u64,
}

/// Credentials for a registry, redacted when printed.
#[derive(Clone, PartialEq, Eq)]
pub enum RegistryAuth {
    Password {
        username: String,
        password: String,
    },
    /// What the registry's token server exchanges for tokens of one image (OAuth 2 refresh token).
    IdentityToken(String),
    /// What the registry takes itself.
    RegistryToken(String),
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryAuth(redacted)")
    }
}

/// Which log lines are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// `None`: all lines.
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// One line, or the part of a line of more than 16 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub stream: LogStream,
    /// Nanoseconds since the Unix epoch.
    pub at_ns: u64,
    /// With its newline, when it had one.
    pub data: bytes::Bytes,
}

/// Why the runtime could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// Load it (`shoal image load`), pull it, or correct the reference.
    #[error("no such image: {reference}{detail}")]
    ImageMissing { reference: String, detail: String },
    /// Correct the named field of the container's configuration.
    #[error("{field}: {problem}")]
    Invalid { field: &'static str, problem: String },
    /// The container does not exist on this node.
    #[error("no such container: {id}")]
    NoContainer { id: String },
    /// The program could not be executed; `code` is docker's 126 or 127.
    #[error("{message}")]
    NotExecutable { message: String, code: i32 },
    /// The disk is full; free space below `path`.
    #[error("no space left below {path}")]
    NoSpace { path: PathBuf },
    /// Anything else: the text says which step failed on what. Trying again may help.
    #[error("{step}: {problem}")]
    Failed { step: &'static str, problem: String },
}

/// A boxed stream, for answers that come in pieces.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

/// The containers and images of one node.
///
/// All calls may be made concurrently, also for one container; each has its own bound in time
/// (a pull: 30 minutes without progress of more than a minute; everything else: one minute).
pub trait Runtime: Send + Sync + 'static {
    /// Finds `reference` (name, name@digest or image id) among the images of this node.
    fn find_image(
        &self,
        reference: &str,
    ) -> impl Future<Output = Result<Option<ImageRecord>, RuntimeError>> + Send;

    /// Pulls `reference` for this node's platform; the last item is the record or the error.
    fn pull_image(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> BoxStream<Result<PullItem, RuntimeError>>;

    /// Loads a `docker save` or OCI archive, compressed or not, given in chunks.
    /// An archive may hold several images: there is a record for each, at the end.
    fn load_image(
        &self,
        archive: BoxStream<std::io::Result<bytes::Bytes>>,
    ) -> BoxStream<Result<PullItem, RuntimeError>>;

    fn list_images(&self) -> impl Future<Output = Result<Vec<ImageRecord>, RuntimeError>> + Send;

    /// Removes a reference, and the image with its last one; refused while a container uses it,
    /// unless `force`. Answers docker's lines (`Untagged: …`, `Deleted: …`).
    fn remove_image(
        &self,
        reference: &str,
        force: bool,
    ) -> impl Future<Output = Result<Vec<String>, RuntimeError>> + Send;

    /// Prepares the container; does nothing when it is there already.
    fn create(
        &self,
        config: &ContainerConfig,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Starts a created container and returns once its program has been executed.
    /// A container that runs or has ended is left alone.
    fn start(&self, id: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Sends the stop signal, waits up to `grace`, then kills every process of the container.
    /// Returns when it has ended; a container that is not running is left alone.
    fn stop(
        &self,
        id: &str,
        grace: Millis,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Waits until the container has ended. `Lost` is an end too.
    fn wait(&self, id: &str) -> impl Future<Output = Result<ContainerState, RuntimeError>> + Send;

    /// Every container of this daemon instance, from what is on disk and running now.
    fn observe(
        &self,
    ) -> impl Future<Output = Result<Vec<ContainerObservation>, RuntimeError>> + Send;

    /// Kills what still runs and removes every trace: processes, mounts, cgroups, files, logs.
    /// A container that is not there is not an error.
    fn remove(&self, id: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Lines of a container's output, oldest first, while its files are there.
    fn logs(&self, id: &str, options: LogOptions) -> BoxStream<Result<LogLine, RuntimeError>>;
}

/// One item of a pull or a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullItem {
    Progress(ImageProgress),
    Done(ImageRecord),
}
