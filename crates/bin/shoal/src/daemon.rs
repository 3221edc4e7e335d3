//! The daemon: directories, runtime, network, socket, membership, and their end.
//!
//! Owns: the order in which they begin and end.
//! Does not know: what any of them does. Invariant: containers go on when the daemon ends.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cli::{DaemonArgs, LogFormat};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use runtime::ContainerRuntime;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use wire::v1::control_server::ControlServer;
use wire::v1::local_server::LocalServer;

use crate::config::Config;
use crate::gate::Gate;
use crate::instance::{Instance, private_dir};
use crate::local::LocalApi;
use crate::networks::NodeNetwork;
use crate::node::Node;
use crate::socket;

/// Threads of the runtime at most; the managers' log has its own.
const WORKERS_MAX: usize = 4;
const THREADS_BLOCKING_MAX: usize = 64;
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Runs the daemon until it is told to stop.
pub(crate) fn main(args: &DaemonArgs) -> Result<()> {
    let config = Config::load(args)?;
    log_to_stderr(&config)?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a provider of cryptography is installed already"))?;
    raise_open_files();
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.clamp(1, WORKERS_MAX))
        .max_blocking_threads(THREADS_BLOCKING_MAX)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(config))
}

async fn run(mut config: Config) -> Result<()> {
    let metrics = crate::metrics::bind(&mut config).await?;
    let instance = Instance::open(&config.data_dir)?;
    private_run_dir(&config)?;
    tracing::info!(
        instance = instance.id,
        data_dir = %config.data_dir.display(),
        version = crate::BUILD.version,
        "daemon starts"
    );
    let containers = ContainerRuntime::open(runtime::Options {
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        instance_id: instance.id.clone(),
        binary: std::env::current_exe().context("cannot find this program")?,
        cgroup_parent: config.cgroup_parent.clone(),
        insecure_registries: config.insecure_registries.clone(),
    })
    .await
    .context("containers")?;
    let tasks = NodeNetwork::open(&config, &instance.id).await?;
    let socket_path = config.run_dir.join("shoal.sock");
    let listener = socket::bind(&socket_path)?;
    let node = Arc::new(Node::new(config, containers, tasks)?);
    let (stop_keeping, keeping) = node.keep_networks();
    let describing = tokio::spawn(Arc::clone(&node).keep_described());
    let measuring = metrics.map(|server| tokio::spawn(Arc::clone(&node).serve_metrics(server)));
    let control = ControlServer::new(Gate { node: Arc::clone(&node) })
        .max_decoding_message_size(wire::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(usize::MAX);
    let local = LocalServer::new(LocalApi { node: Arc::clone(&node) })
        .max_decoding_message_size(wire::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(wire::MESSAGE_BYTES_MAX);
    let serving = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(local)
        .add_service(control)
        .serve_with_incoming(socket::incoming(listener));
    let serving = tokio::spawn(serving);
    // The socket answers while the membership starts: it may have to wait for other managers.
    let resuming = tokio::spawn({
        let node = Arc::clone(&node);
        async move {
            if let Err(error) = node.resume().await {
                tracing::error!(error = format!("{error:#}"), "membership cannot be read");
            }
        }
    });
    until_told_to_stop().await?;
    tracing::info!("daemon stops; containers go on");
    resuming.abort();
    describing.abort();
    if let Some(measuring) = measuring {
        measuring.abort();
    }
    node.stop().await;
    stop_keeping.send_replace(true);
    let _ = keeping.await;
    serving.abort();
    node.release_all().await;
    let _ = std::fs::remove_file(&socket_path);
    drop(instance);
    Ok(())
}

/// The run directory may be entered by all, so that the socket's own mode decides.
fn private_run_dir(config: &Config) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    private_dir(&config.run_dir)?;
    let mode = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(&config.run_dir, mode).context("--run-dir")?;
    Ok(())
}

async fn until_told_to_stop() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn log_to_stderr(config: &Config) -> Result<()> {
    // openraft warns at every heartbeat to a manager that is away; the store says it once.
    let quiet = match config.log_level.contains("openraft") {
        true => String::new(),
        false => ",openraft=error".into(),
    };
    let filter = EnvFilter::try_new(format!("{}{quiet}", config.log_level))
        .with_context(|| format!("--log-level: `{}`", config.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// A manager holds a connection for every node.
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err()
    {
        tracing::warn!(soft, hard, "the limit of open files could not be raised");
    }
}
