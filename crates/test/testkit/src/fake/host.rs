//! Containers and networks of a host that is not there.
//!
//! Owns: what the host's kernel would: containers that outlive the daemon and die with the host.
//! Does not know: tasks. Invariant: as the ports say, which the conformance suite sees to.
//!
//! Every image exists whose name does not begin with `missing`. A program runs until it is stopped,
//! unless its first argument is `exit N`: then it ends at once with that code.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::{IdSource, Millis, Timestamp};
use bytes::Bytes;
use futures::stream;
use ports::network::{Attached, ContainerNetwork, Drain, Network};
use ports::runtime::{
    BoxStream, ContainerConfig, ContainerObservation, ContainerState, Exit, ImageRecord, LogLine,
    LogOptions, PullItem, RegistryAuth, Runtime, RuntimeError,
};
use tokio::sync::watch;
use tokio::time::{Duration, sleep};
use types::{DirectoryUpdate, NetworkCheck, NetworkId};

use super::Gate;

struct Inner {
    containers: BTreeMap<String, ContainerState>,
    /// Codes of the programs that end by themselves.
    exits: BTreeMap<String, i32>,
    networks: BTreeMap<String, ()>,
    /// What each container was connected to.
    connections: BTreeMap<String, Vec<types::NetworkId>>,
    random: IdSource,
    /// Calls fail now and then.
    troubled: bool,
    started: u64,
}

/// One host.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<u64>,
    /// Of the daemon; containers go on while it stands still.
    gate: Gate,
}

impl Host {
    /// A host on which calls fail now and then.
    #[must_use]
    pub fn troubled(random: IdSource, gate: Gate) -> Self {
        Self::new(random, gate, true)
    }

    /// A host on which everything works.
    #[must_use]
    pub fn steady(random: IdSource) -> Self {
        Self::new(random, Gate::default(), false)
    }

    fn new(random: IdSource, gate: Gate, troubled: bool) -> Self {
        let inner = Inner {
            containers: BTreeMap::new(),
            exits: BTreeMap::new(),
            networks: BTreeMap::new(),
            connections: BTreeMap::new(),
            random,
            troubled,
            started: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)), changed: watch::Sender::new(0), gate }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    async fn work(&self, most: u64) {
        let wait = 1 + self.lock().random.below(most);
        sleep(Duration::from_millis(wait)).await;
        self.gate.pass().await;
    }

    /// The machine went down: whatever ran is lost.
    pub fn reboot(&self) {
        let mut inner = self.lock();
        for state in inner.containers.values_mut() {
            if matches!(state, ContainerState::Running { .. }) {
                *state = ContainerState::Lost;
            }
        }
        inner.networks.clear();
        drop(inner);
        self.touch();
    }

    /// Ends the n-th running container by itself.
    pub fn end_one(&self, nth: u64, code: i32) {
        let mut inner = self.lock();
        let running: Vec<String> = inner.running();
        if running.is_empty() {
            return;
        }
        let id = running[(nth % running.len() as u64) as usize].clone();
        let exit = Exit { code, oom: false, at: Timestamp::ZERO };
        inner.containers.insert(id, ContainerState::Exited(exit));
        drop(inner);
        self.touch();
    }

    #[must_use]
    pub fn running(&self) -> Vec<String> {
        self.lock().running()
    }

    /// Everything that exists, networks included.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let inner = self.lock();
        inner.containers.keys().chain(inner.networks.keys()).cloned().collect()
    }
}

impl Inner {
    fn running(&self) -> Vec<String> {
        let runs = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
        self.containers.iter().filter(|(_, state)| runs(state)).map(|(id, _)| id.clone()).collect()
    }
}

fn is_missing(image: &str) -> bool {
    image.starts_with("missing")
}

impl Runtime for Host {
    async fn find_image(&self, reference: &str) -> Result<Option<ImageRecord>, RuntimeError> {
        self.work(5).await;
        Ok((!is_missing(reference)).then(|| ImageRecord {
            id: "sha256:0".into(),
            references: vec![reference.to_owned()],
            digests: Vec::new(),
            architecture: "amd64".into(),
            os: "linux".into(),
            size_bytes: 1,
            created: None,
            config_json: "{}".into(),
        }))
    }

    fn pull_image(
        &self,
        reference: &str,
        _: Option<RegistryAuth>,
    ) -> BoxStream<Result<PullItem, RuntimeError>> {
        let error =
            RuntimeError::ImageMissing { reference: reference.to_owned(), detail: String::new() };
        Box::pin(stream::iter([Err(error)]))
    }

    fn load_image(
        &self,
        _: BoxStream<std::io::Result<Bytes>>,
    ) -> BoxStream<Result<PullItem, RuntimeError>> {
        Box::pin(stream::empty())
    }

    async fn list_images(&self) -> Result<Vec<ImageRecord>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn remove_image(&self, _: &str, _: bool) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn create(&self, config: &ContainerConfig) -> Result<(), RuntimeError> {
        self.work(30).await;
        let mut inner = self.lock();
        if inner.random.below(100) == 0 && inner.troubled {
            let problem = "the disk hiccuped".into();
            return Err(RuntimeError::Failed { step: "create", problem });
        }
        if inner.containers.contains_key(&config.id) {
            return Ok(());
        }
        if is_missing(&config.image) {
            let (reference, detail) = (config.image.clone(), String::new());
            return Err(RuntimeError::ImageMissing { reference, detail });
        }
        inner.containers.insert(config.id.clone(), ContainerState::Created);
        let exit = config.args.first().and_then(|arg| arg.strip_prefix("exit "));
        if let Some(code) = exit.and_then(|code| code.parse().ok()) {
            inner.exits.insert(config.id.clone(), code);
        }
        Ok(())
    }

    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.work(60).await;
        let mut inner = self.lock();
        inner.started += 1;
        let pid = u32::try_from(inner.started).unwrap_or(u32::MAX);
        let exit = inner.exits.get(id).copied();
        let state = inner.containers.get_mut(id);
        let state = state.ok_or_else(|| RuntimeError::NoContainer { id: id.to_owned() })?;
        if *state == ContainerState::Created {
            *state = match exit {
                Some(code) => {
                    ContainerState::Exited(Exit { code, oom: false, at: Timestamp::ZERO })
                }
                None => ContainerState::Running { pid, started_at: Timestamp::ZERO },
            };
        }
        drop(inner);
        self.touch();
        Ok(())
    }

    async fn stop(&self, id: &str, grace: Millis) -> Result<(), RuntimeError> {
        // Some programs end at once, some wait for the kill.
        self.work(grace.0.clamp(1, 2_000)).await;
        let mut inner = self.lock();
        if inner.random.below(50) == 0 && inner.troubled {
            return Err(RuntimeError::Failed { step: "stop", problem: "no answer".into() });
        }
        let state = inner.containers.get_mut(id);
        let state = state.ok_or_else(|| RuntimeError::NoContainer { id: id.to_owned() })?;
        if matches!(state, ContainerState::Running { .. }) {
            let exit = Exit { code: 143, oom: false, at: Timestamp::ZERO };
            *state = ContainerState::Exited(exit);
        }
        drop(inner);
        self.touch();
        Ok(())
    }

    async fn wait(&self, id: &str) -> Result<ContainerState, RuntimeError> {
        let mut changed = self.changed.subscribe();
        loop {
            self.gate.pass().await;
            let state = self.lock().containers.get(id).cloned();
            match state {
                None => return Err(RuntimeError::NoContainer { id: id.to_owned() }),
                Some(ContainerState::Created | ContainerState::Running { .. }) => {}
                Some(ended) => return Ok(ended),
            }
            if changed.changed().await.is_err() {
                return Ok(ContainerState::Lost);
            }
        }
    }

    async fn observe(&self) -> Result<Vec<ContainerObservation>, RuntimeError> {
        self.work(3).await;
        let inner = self.lock();
        let one = |(id, state): (&String, &ContainerState)| ContainerObservation {
            id: id.clone(),
            state: state.clone(),
        };
        Ok(inner.containers.iter().map(one).collect())
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        self.work(10).await;
        let mut inner = self.lock();
        inner.containers.remove(id);
        inner.exits.remove(id);
        drop(inner);
        self.touch();
        Ok(())
    }

    fn logs(&self, id: &str, _: LogOptions) -> BoxStream<Result<LogLine, RuntimeError>> {
        let known = self.lock().containers.contains_key(id);
        let missing = (!known).then(|| Err(RuntimeError::NoContainer { id: id.to_owned() }));
        Box::pin(stream::iter(missing))
    }
}

impl Network for Host {
    async fn update(&self, _update: DirectoryUpdate) -> Result<(), RuntimeError> {
        self.work(1).await;
        Ok(())
    }

    async fn attach(&self, wanted: &ContainerNetwork) -> Result<Attached, RuntimeError> {
        self.work(5).await;
        self.lock().networks.insert(wanted.id.clone(), ());
        let connected = wanted.connected.iter().map(|one| one.network).collect();
        self.lock().connections.insert(wanted.id.clone(), connected);
        let netns = PathBuf::from(format!("/netns/{}", wanted.id));
        Ok(Attached { netns, host_ports: wanted.host_ports.clone(), ..Attached::default() })
    }

    async fn drain(&self, _id: &str, limit: Drain) {
        self.work(limit.min.0).await;
    }

    async fn detach(&self, id: &str) -> Result<(), RuntimeError> {
        self.work(5).await;
        let mut inner = self.lock();
        inner.networks.remove(id);
        inner.connections.remove(id);
        Ok(())
    }

    async fn connections(&self, id: &str) -> Vec<types::NetworkId> {
        self.lock().connections.get(id).cloned().unwrap_or_default()
    }

    async fn examine(&self, network: NetworkId) -> Result<NetworkCheck, RuntimeError> {
        self.work(1_000).await;
        let (problems, paths, strangers) = Default::default();
        Ok(NetworkCheck { network, problems, paths, strangers })
    }

    async fn observe(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(self.lock().networks.keys().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test(start_paused = true)]
    async fn it_is_a_runtime() {
        let host = Host::steady(IdSource::new(1));
        let shell = |id: &str, script: &str| ContainerConfig {
            id: id.to_owned(),
            image: "app:1".into(),
            args: vec![script.to_owned()],
            ..ContainerConfig::default()
        };
        conformance::runtime::check(&host, "app:1", shell).await;
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_a_network() {
        conformance::network::check(&Host::steady(IdSource::new(1))).await;
    }
}
