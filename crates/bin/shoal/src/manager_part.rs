//! The manager in a node: its store, its port and its loops.
//!
//! Owns: starting them in order, and ending them together.
//! Does not know: how any of them works. Invariant: when it is stopped, nothing of it goes on.

mod conditions;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base::IdSource;
use manager::{CertificateApi, ControlApi, Dispatcher, LogBroker, Managers, Timing};
use pki::{DataKey, NodeTls};
use ports::store::Store;
use store::{Options, Replicated, Tuning};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use types::{Condition, NodeId};

use crate::clock::SystemClock;
use crate::config::Config;
use crate::settings::SwarmDir;

/// How long the loops may take to end.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Pings on idle connections, and how long one may go unanswered.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(crate) type Api = ControlApi<Replicated, SystemClock>;

/// A running manager.
pub(crate) struct ManagerPart {
    pub store: Replicated,
    pub control: Api,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// What a manager is made of.
pub(crate) struct Parts<'a> {
    pub config: &'a Config,
    pub dir: &'a SwarmDir,
    pub node: NodeId,
    pub raft_id: u64,
    pub listen: SocketAddr,
    pub advertise: SocketAddr,
    pub tls: Arc<NodeTls>,
    pub ids: IdSource,
    /// What is wrong with this manager; it is kept true while the manager runs.
    pub conditions: watch::Sender<Vec<Condition>>,
}

impl ManagerPart {
    /// Opens the store and serves the managers' port.
    pub(crate) async fn start(parts: Parts<'_>) -> Result<Self> {
        let listener = TcpListener::bind(parts.listen)
            .await
            .with_context(|| format!("--listen-addr {}: cannot listen", parts.listen))?;
        let store = open_store(&parts).await?;
        let clock = SystemClock::new();
        let (stop, stopped) = watch::channel(false);
        let timing = Timing::default();
        let mut ids = parts.ids.clone();
        let mut source = || IdSource::new(ids.mint().as_u128());
        let (dispatcher, handle) = Dispatcher::new(store.clone(), clock, timing);
        let broker = LogBroker::default();
        let control = ControlApi::new(
            store.clone(),
            clock,
            source(),
            Arc::clone(&parts.tls),
            handle.clone(),
            broker.clone(),
            parts.conditions.subscribe(),
        );
        let certificates = CertificateApi::new(store.clone(), clock, source());
        let managers = Managers {
            store: store.clone(),
            clock,
            control: control.clone(),
            certificates,
            dispatcher: handle,
            broker,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(manager::reconcile::run(
            store.clone(),
            clock,
            source(),
            timing,
            stopped.clone(),
        ));
        tasks.spawn(manager::membership::run(store.clone(), clock, timing, stopped.clone()));
        tasks.spawn(dispatcher.run(stopped.clone()));
        let raft = store.raft().clone();
        let stand = move |stands| raft.set_stands(stands);
        tasks.spawn(manager::standing::run(store.clone(), clock, timing, stand, stopped.clone()));
        let data_dir = parts.config.data_dir.clone();
        let told = parts.conditions.clone();
        tasks.spawn(conditions::keep(store.clone(), data_dir, told, stopped.clone()));
        let incoming = pki::accept_stream(listener, &parts.tls)?.divert(store.raft().divert());
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .add_routes(manager::router(managers));
        let mut until = stopped;
        tasks.spawn(async move {
            let ended = async move { drop(until.wait_for(|stop| *stop).await) };
            if let Err(error) = serving.serve_with_incoming_shutdown(incoming, ended).await {
                tracing::error!(error = %base::chain(&error), "the managers' port is closed");
            }
        });
        Ok(Self { store, control, stop, tasks })
    }

    /// Ends everything; the state stays on disk.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_MAX, all).await.is_err() {
            self.tasks.abort_all();
        }
        self.store.raft().shutdown().await;
    }

    /// Waits until this manager can say who leads.
    pub(crate) async fn until_led(&self, wait: Duration) -> bool {
        let mut leadership = self.store.leadership();
        let led = leadership.wait_for(|now| now.leader.is_some());
        tokio::time::timeout(wait, led).await.is_ok_and(|led| led.is_ok())
    }
}

async fn open_store(parts: &Parts<'_>) -> Result<Replicated> {
    let path = parts.dir.data_key();
    let key = match DataKey::load(&path)? {
        Some(key) => key,
        None => {
            let key = DataKey::generate()?;
            key.save_new(&path)?;
            key
        }
    };
    let tuning = Tuning { timing: parts.config.raft_timing, ..Tuning::default() };
    let store = Replicated::open(|machine, on_apply| Options {
        dir: parts.dir.raft(),
        key,
        raft_id: parts.raft_id,
        node: parts.node.0,
        address: parts.advertise.to_string(),
        tls: Arc::clone(&parts.tls),
        machine,
        on_apply,
        tuning,
    })
    .await;
    store.context("the managers' store cannot be opened")
}
