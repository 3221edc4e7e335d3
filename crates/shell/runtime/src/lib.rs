//! Containers, images and logs of one node: the real implementation of the runtime port.
//!
//! Owns: everything below the data directory's `containers`, `layers`, `ingest`, `trash` and
//! `images.redb`, and below the run directory's `containers` and `seccomp`.
//! Does not know: the cluster, networks, who asks.
//! Invariant: whatever it makes carries this daemon's instance id (cgroups) or lies in its own
//! directories, so that two daemons on one machine never touch each other's containers.

#![allow(unsafe_code)]

mod binary;
mod capability;
mod container;
mod create;
mod fail;
#[doc(hidden)]
pub mod fuzzing;
mod hostfiles;
mod image;
mod logs;
mod operate;
pub mod seccomp;
mod spec;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ports::runtime::{
    BoxStream, ContainerConfig, ContainerObservation, ContainerState, ImageRecord, LogLine,
    LogOptions, PullItem, RegistryAuth, Runtime, RuntimeError,
};
use shim::cgroup::Cgroups;
use shim::files;

use crate::binary::ShimBinary;
use crate::container::{Container, ContainerRecord, Phase, observe_phase, shim_has_ended};
use crate::fail::{blocking, io_failed, refused};
use crate::image::store::ImageStore;

/// What a runtime needs to be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Outlives a reboot; locked by the daemon, not here.
    pub data_dir: PathBuf,
    /// Gone after a reboot.
    pub run_dir: PathBuf,
    /// Names this daemon among those of one machine: letters, digits and `-`, at most 32.
    pub instance_id: String,
    /// The binary whose `main` calls [`shim::run_if_shim`] first.
    pub binary: PathBuf,
    /// Group below which all groups are made, `/shoal` unless configured otherwise.
    pub cgroup_parent: PathBuf,
    /// Registries (`host` or `host:port`) that are spoken to without TLS. Loopback ones always are.
    pub insecure_registries: Vec<String>,
}

impl Options {
    /// Group of everything that this daemon runs.
    fn instance_group(&self) -> PathBuf {
        Path::new("/").join(&self.cgroup_parent).join(&self.instance_id)
    }
}

/// The containers and images of one node. Clones share everything.
#[derive(Clone, Debug)]
pub struct ContainerRuntime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    binary: Arc<ShimBinary>,
    cgroups: Cgroups,
    boot_id: String,
    store: Arc<ImageStore>,
    sweeping: sweep::Turns,
    containers: RwLock<BTreeMap<String, Arc<Container>>>,
    /// Compiled filters by capabilities.
    filters: Mutex<BTreeMap<u64, PathBuf>>,
}

impl ContainerRuntime {
    /// Opens the directories and adopts what an earlier daemon left running. Containers whose shim
    /// vanished, or that ran before a reboot, are `Lost`; none of their processes is left.
    ///
    /// Must be called inside a tokio runtime.
    pub async fn open(options: Options) -> Result<Self, RuntimeError> {
        check_instance_id(&options.instance_id)?;
        let inner = blocking("open the runtime", move || Inner::open(options)).await?;
        let runtime = Self { inner: Arc::new(inner) };
        let inner = Arc::clone(&runtime.inner);
        let found = blocking("look for containers", move || inner.find_containers()).await?;
        for container in &found {
            match container.phase() {
                Phase::Starting | Phase::Running { .. } => container.adopt(),
                Phase::Created | Phase::Exited(_) | Phase::Failed { .. } => {}
                Phase::Lost => {
                    let container = Arc::clone(container);
                    blocking("kill a lost container", move || container.kill_group()).await?;
                }
            }
        }
        for container in &found {
            // Whose state is not on disk yet says it itself, at once; a shim that does not is seen
            // as starting until it does or its silence counts as its end.
            let settled = container.wait_for(|phase| *phase != Phase::Starting);
            let _ = tokio::time::timeout(ADOPTION_LIMIT, settled).await;
        }
        let store = Arc::clone(&runtime.inner.store);
        tokio::task::spawn_blocking(move || store.empty_trash());
        Ok(runtime)
    }

    /// Removes this instance's control groups when there is no container; the next one makes them
    /// anew. Answers whether nothing of them is left. Must not be called while one is created.
    pub async fn release_groups(&self) -> Result<bool, RuntimeError> {
        let inner = Arc::clone(&self.inner);
        blocking("remove unused control groups", move || {
            // The last shim leaves its group a moment after it has let go of its lock.
            let deadline = Instant::now() + RELEASE_LIMIT;
            while !inner.release_groups() {
                if inner.has_containers() || Instant::now() >= deadline {
                    return Ok(false);
                }
                std::thread::sleep(RELEASE_PERIOD);
            }
            Ok(true)
        })
        .await
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        self.inner.container(id).ok_or_else(|| RuntimeError::NoContainer { id: id.to_owned() })
    }
}

impl Inner {
    fn open(options: Options) -> Result<Self, RuntimeError> {
        for dir in [
            options.data_dir.join(CONTAINERS_DIR),
            options.run_dir.join(CONTAINERS_DIR),
            options.run_dir.join(FILTERS_DIR),
        ] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(io_failed("make the runtime's directories", &dir))?;
        }
        let step = io_failed("prepare the shim's binary", &options.binary);
        let binary = ShimBinary::make(&options.binary, &options.run_dir).map_err(step)?;
        let cgroups = Cgroups::detect()
            .map_err(io_failed("find the control groups", Path::new("/sys/fs/cgroup")))?;
        let boot_id = shim::process::boot_id()
            .map_err(io_failed("read the boot id", Path::new("/proc/sys/kernel/random/boot_id")))?;
        let store = Arc::new(ImageStore::open(&options.data_dir)?);
        Ok(Self {
            options,
            binary: Arc::new(binary),
            cgroups,
            boot_id,
            store,
            sweeping: sweep::Turns::default(),
            containers: RwLock::default(),
            filters: Mutex::default(),
        })
    }

    /// Reads every container's record; directories without a readable one are leftovers of a
    /// creation that did not finish.
    fn find_containers(&self) -> Result<Vec<Arc<Container>>, RuntimeError> {
        let dir = self.options.data_dir.join(CONTAINERS_DIR);
        let entries = fs::read_dir(&dir).map_err(io_failed("read the containers", &dir))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let record = match files::read_record::<ContainerRecord>(&path.join(RECORD)) {
                Ok(Some(record)) if record.format <= files::FORMAT => record,
                Ok(Some(record)) => {
                    let problem = format!("{} has format {}", path.display(), record.format);
                    return Err(refused("read the containers", problem));
                }
                Ok(None) | Err(_) => {
                    tracing::warn!(path = %path.display(), "container without a record: removed");
                    self.store.discard(&path);
                    continue;
                }
            };
            let run_dir = self.container_run_dir(&record.id);
            let phase = observe_phase(&record, &path, &run_dir, &self.boot_id, &self.cgroups);
            self.insert(Container::new(record, path, run_dir, self.cgroups.clone(), phase));
        }
        self.sweep_orphans();
        Ok(self.all_containers())
    }

    /// Innermost first. The parent of all may be another daemon's too: then it stays.
    fn release_groups(&self) -> bool {
        if self.has_containers() {
            return false;
        }
        let own = self.options.instance_group();
        let released = self.cgroups.remove_unused(&own.join(shim::SHIMS_GROUP))
            && self.cgroups.remove_unused(&own);
        if released && let Some(parent) = own.parent().filter(|parent| *parent != Path::new("/")) {
            self.cgroups.remove_unused(parent);
        }
        released
    }

    /// Ends and removes what has no record: a removal that was cut short, or a data directory that
    /// somebody emptied. Only groups and directories of this instance are looked at.
    fn sweep_orphans(&self) {
        let options = &self.options;
        let group = options.instance_group();
        let run_dirs = options.run_dir.join(CONTAINERS_DIR);
        let mut names = BTreeSet::new();
        for dir in self.cgroups.dirs(&group).iter().chain([&run_dirs]) {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let dirs = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
            names.extend(dirs.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        }
        names.remove(shim::SHIMS_GROUP);
        for name in names.iter().filter(|name| self.container(name).is_none()) {
            tracing::warn!(task.id = %name, "leftovers without a record: removed");
            let group = group.join(name);
            let ended = self
                .cgroups
                .kill(&group, ORPHAN_LIMIT)
                .and_then(|()| self.cgroups.remove(&group, ORPHAN_LIMIT));
            // Its shim still writes down how it ended.
            let run_dir = run_dirs.join(name);
            if !shim_has_ended(&run_dir, ORPHAN_LIMIT) {
                tracing::error!(task.id = %name, "a shim without a record does not end");
            }
            let _ = fs::remove_dir_all(&run_dir);
            if let Err(error) = ended {
                tracing::error!(task.id = %name, %error, "leftovers stay");
            }
        }
    }

    fn insert(&self, container: Container) {
        let mut containers = self.containers.write().unwrap_or_else(PoisonError::into_inner);
        containers.entry(container.record.id.clone()).or_insert_with(|| Arc::new(container));
    }

    fn container(&self, id: &str) -> Option<Arc<Container>> {
        self.containers.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn all_containers(&self) -> Vec<Arc<Container>> {
        let containers = self.containers.read().unwrap_or_else(PoisonError::into_inner);
        containers.values().cloned().collect()
    }

    fn has_containers(&self) -> bool {
        !self.containers.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn forget(&self, id: &str) {
        self.containers.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn container_dir(&self, id: &str) -> PathBuf {
        self.options.data_dir.join(CONTAINERS_DIR).join(id)
    }

    fn container_run_dir(&self, id: &str) -> PathBuf {
        self.options.run_dir.join(CONTAINERS_DIR).join(id)
    }

    /// Layers that containers need even when their image is gone.
    fn held_layers(&self) -> BTreeSet<String> {
        self.all_containers().iter().flat_map(|c| c.record.layers.iter().cloned()).collect()
    }
}

impl Runtime for ContainerRuntime {
    async fn find_image(&self, reference: &str) -> Result<Option<ImageRecord>, RuntimeError> {
        Ok(self.inner.store.find(reference)?.map(|image| image.record()))
    }

    fn pull_image(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> BoxStream<Result<PullItem, RuntimeError>> {
        operate::pull_image(&self.inner, reference.to_owned(), auth)
    }

    fn load_image(
        &self,
        archive: BoxStream<std::io::Result<bytes::Bytes>>,
    ) -> BoxStream<Result<PullItem, RuntimeError>> {
        operate::load_image(&self.inner, archive)
    }

    async fn list_images(&self) -> Result<Vec<ImageRecord>, RuntimeError> {
        Ok(self.inner.store.list().iter().map(|image| image.record()).collect())
    }

    async fn remove_image(
        &self,
        reference: &str,
        force: bool,
    ) -> Result<Vec<String>, RuntimeError> {
        operate::remove_image(&self.inner, reference.to_owned(), force).await
    }

    async fn create(&self, config: &ContainerConfig) -> Result<(), RuntimeError> {
        // Until the container holds its layers nobody may sweep them.
        let kept = sweep::keep_layers(&self.inner).await;
        let (inner, config) = (Arc::clone(&self.inner), config.clone());
        blocking("create the container", move || {
            let _kept = kept;
            create::create(&inner, &config)
        })
        .await
    }

    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        operate::start(&self.container(id)?, &self.inner.binary).await
    }

    async fn stop(&self, id: &str, grace: base::Millis) -> Result<(), RuntimeError> {
        operate::stop(&self.container(id)?, grace).await
    }

    async fn wait(&self, id: &str) -> Result<ContainerState, RuntimeError> {
        Ok(self.container(id)?.wait_for(Phase::has_ended).await.state())
    }

    async fn observe(&self) -> Result<Vec<ContainerObservation>, RuntimeError> {
        let observe = |container: &Arc<Container>| ContainerObservation {
            id: container.record.id.clone(),
            state: container.phase().state(),
        };
        Ok(self.inner.all_containers().iter().map(observe).collect())
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        operate::remove(&self.inner, id).await
    }

    fn logs(&self, id: &str, options: LogOptions) -> BoxStream<Result<LogLine, RuntimeError>> {
        operate::logs(self.container(id), options)
    }
}

fn check_instance_id(id: &str) -> Result<(), RuntimeError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if id.is_empty() || id.len() > 32 || !id.bytes().all(allowed) {
        return Err(fail::invalid(
            "instance_id",
            format!("{id:?} must be 1 to 32 letters, digits and hyphens"),
        ));
    }
    Ok(())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

const CONTAINERS_DIR: &str = "containers";
/// For the shims that are starting a container just now.
const ADOPTION_LIMIT: Duration = Duration::from_secs(5);

/// For processes without a record to be gone.
const ORPHAN_LIMIT: Duration = Duration::from_secs(10);

/// For the last shim to be out of its group.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);
const RELEASE_PERIOD: Duration = Duration::from_millis(5);

const FILTERS_DIR: &str = "seccomp";
/// What the daemon remembers of a container, in the container's directory.
const RECORD: &str = "container.json";
