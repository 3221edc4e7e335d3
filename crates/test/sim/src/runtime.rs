//! Containers and networks of one simulated host.
//!
//! Owns: what the host's kernel would: containers that outlive the daemon and die with the host.
//! Does not know: tasks. Invariant: as the runtime's port says.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::{IdSource, Millis, Timestamp};
use bytes::Bytes;
use futures::stream;
use ports::runtime::{
    BoxStream, ContainerConfig, ContainerObservation, ContainerState, Exit, ImageRecord, LogLine,
    LogOptions, Network, PullItem, RegistryAuth, Runtime, RuntimeError,
};
use tokio::sync::watch;
use tokio::time::{Duration, sleep};

use crate::clock::Gate;

struct Inner {
    containers: BTreeMap<String, ContainerState>,
    networks: BTreeMap<String, ()>,
    random: IdSource,
    started: u64,
}

/// One host.
#[derive(Clone)]
pub(crate) struct Host {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<u64>,
    /// Of the daemon; containers go on while it stands still.
    gate: Gate,
}

impl Host {
    pub(crate) fn new(random: IdSource, gate: Gate) -> Self {
        let inner =
            Inner { containers: BTreeMap::new(), networks: BTreeMap::new(), random, started: 0 };
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
    pub(crate) fn reboot(&self) {
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
    pub(crate) fn end_one(&self, nth: u64, code: i32) {
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

    pub(crate) fn running(&self) -> Vec<String> {
        self.lock().running()
    }

    /// Everything that exists, networks included.
    pub(crate) fn left(&self) -> Vec<String> {
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

impl Runtime for Host {
    async fn find_image(&self, reference: &str) -> Result<Option<ImageRecord>, RuntimeError> {
        self.work(5).await;
        Ok((!reference.starts_with("missing")).then(|| ImageRecord {
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
        if inner.random.below(100) == 0 {
            let problem = "the disk hiccuped".into();
            return Err(RuntimeError::Failed { step: "create", problem });
        }
        inner.containers.entry(config.id.clone()).or_insert(ContainerState::Created);
        Ok(())
    }

    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.work(60).await;
        let mut inner = self.lock();
        inner.started += 1;
        let pid = u32::try_from(inner.started).unwrap_or(u32::MAX);
        let state = inner.containers.get_mut(id);
        let state = state.ok_or_else(|| RuntimeError::NoContainer { id: id.to_owned() })?;
        if *state == ContainerState::Created {
            *state = ContainerState::Running { pid, started_at: Timestamp::ZERO };
        }
        drop(inner);
        self.touch();
        Ok(())
    }

    async fn stop(&self, id: &str, grace: Millis) -> Result<(), RuntimeError> {
        // Some programs end at once, some wait for the kill.
        self.work(grace.0.clamp(1, 2_000)).await;
        let mut inner = self.lock();
        if inner.random.below(50) == 0 {
            return Err(RuntimeError::Failed { step: "stop", problem: "no answer".into() });
        }
        if let Some(state) = inner.containers.get_mut(id)
            && matches!(state, ContainerState::Running { .. })
        {
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
        self.lock().containers.remove(id);
        self.touch();
        Ok(())
    }

    fn logs(&self, _: &str, _: LogOptions) -> BoxStream<Result<LogLine, RuntimeError>> {
        Box::pin(stream::empty())
    }
}

impl Network for Host {
    async fn attach(&self, id: &str) -> Result<PathBuf, RuntimeError> {
        self.work(5).await;
        self.lock().networks.insert(id.to_owned(), ());
        Ok(PathBuf::from(format!("/netns/{id}")))
    }

    async fn detach(&self, id: &str) -> Result<(), RuntimeError> {
        self.work(5).await;
        self.lock().networks.remove(id);
        Ok(())
    }

    async fn observe(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(self.lock().networks.keys().cloned().collect())
    }
}
