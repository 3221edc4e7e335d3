//! One container as the daemon sees it.
//!
//! Owns: its phase, its connection to the shim, and what the traces of a vanished shim mean.
//! Does not know: images; how a container is made.
//! Invariant: the phase only moves forward (created, starting, running, ended), and "lost" is said
//! only when the shim's lock is free and there is no exit record.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::Timestamp;
use ports::runtime::{ContainerState, Exit, RuntimeError};
use serde::{Deserialize, Serialize};
use shim::cgroup::Cgroups;
use shim::files::{self, ExitRecord, StateRecord};
use shim::proto::{Decoder, FailureKind, Report, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use crate::binary::ShimBinary;
use crate::fail::{blocking, io_failed, refused};

/// What the daemon must remember of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) format: u32,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) image_id: String,
    /// Diff ids, held for as long as the container is there.
    pub(crate) layers: Vec<String>,
    pub(crate) stop_signal: i32,
    pub(crate) cgroup: PathBuf,
    /// Nothing of a container runs in another boot than that of its creation.
    pub(crate) boot_id: String,
    pub(crate) created_at_ms: u64,
}

/// Where a container is, with what only the daemon needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Starting,
    Running {
        pid: u32,
        started_at: Timestamp,
    },
    Exited(Exit),
    /// Its program never ran.
    Failed {
        error: RuntimeError,
        exit: Exit,
    },
    Lost,
}

impl Phase {
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self, Self::Exited(_) | Self::Failed { .. } | Self::Lost)
    }

    pub(crate) fn state(&self) -> ContainerState {
        match self {
            Self::Created | Self::Starting => ContainerState::Created,
            Self::Running { pid, started_at } => {
                ContainerState::Running { pid: *pid, started_at: *started_at }
            }
            Self::Exited(exit) | Self::Failed { exit, .. } => ContainerState::Exited(exit.clone()),
            Self::Lost => ContainerState::Lost,
        }
    }
}

/// A container of this daemon instance.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) record: ContainerRecord,
    pub(crate) dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    cgroups: Cgroups,
    phase: watch::Sender<Phase>,
    /// One start, stop or removal at a time.
    pub(crate) turn: tokio::sync::Mutex<()>,
    control: Mutex<Option<mpsc::Sender<Request>>>,
}

impl Container {
    pub(crate) fn new(
        record: ContainerRecord,
        dir: PathBuf,
        run_dir: PathBuf,
        cgroups: Cgroups,
        phase: Phase,
    ) -> Self {
        Self {
            record,
            dir,
            run_dir,
            cgroups,
            phase: watch::Sender::new(phase),
            turn: tokio::sync::Mutex::new(()),
            control: Mutex::new(None),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Waits until `reached` holds.
    pub(crate) async fn wait_for(&self, reached: impl FnMut(&Phase) -> bool) -> Phase {
        let mut receiver = self.phase.subscribe();
        match receiver.wait_for(reached).await {
            Ok(phase) => phase.clone(),
            // The sender lives as long as `self`.
            Err(_) => self.phase(),
        }
    }

    /// Executes the shim and follows it. Returns when it has been spawned.
    pub(crate) async fn launch(
        self: &Arc<Self>,
        binary: &Arc<ShimBinary>,
    ) -> Result<(), RuntimeError> {
        let (ours, theirs) = UnixStream::pair()
            .and_then(|(a, b)| Ok((a, b.into_std()?)))
            .map_err(io_failed("make the shim's connection", &self.run_dir))?;
        let this = Arc::clone(self);
        let binary = Arc::clone(binary);
        let runtime = tokio::runtime::Handle::current();
        let cgroups = self.cgroups.clone();
        // Not waited for: only the speed of the start depends on it.
        drop(tokio::task::spawn_blocking(move || cgroups.expect_moves()));
        let child = blocking("start the shim", move || {
            let _inside = runtime.enter();
            this.spawn_shim(&binary, theirs)
        })
        .await?;
        self.phase.send_replace(Phase::Starting);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let mut child = child;
            this.follow(ours).await;
            // Its exit status says nothing that the records do not say.
            let _ = child.wait().await;
        });
        Ok(())
    }

    fn spawn_shim(
        &self,
        binary: &ShimBinary,
        control: std::os::unix::net::UnixStream,
    ) -> Result<tokio::process::Child, RuntimeError> {
        let step = io_failed("start the shim", &self.run_dir);
        let lock = try_lock(&self.run_dir.join(files::LOCK))
            .map_err(&step)?
            .ok_or_else(|| refused("start the shim", "another one runs already"))?;
        control.set_nonblocking(false).map_err(&step)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.dir.join(files::SHIM_LOG))
            .map_err(&step)?;
        tokio::process::Command::new(binary.path())
            .arg0("shoal")
            .arg(shim::SUBCOMMAND)
            .arg(&self.dir)
            .env_clear()
            .current_dir("/")
            .stdin(std::os::fd::OwnedFd::from(control))
            .stdout(lock)
            .stderr(log)
            .spawn()
            .map_err(step)
    }

    /// Connects to the shim of an earlier daemon.
    pub(crate) fn adopt(self: &Arc<Self>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            match connect(&this.run_dir).await {
                Ok(stream) => this.follow(stream).await,
                Err(_) => this.follow_again().await,
            }
        });
    }

    /// Sends a request, also when the connection is just being made anew. Gives up when the
    /// container has ended or after [`REQUEST_LIMIT`]; whoever asks waits for the effect anyway.
    pub(crate) async fn request(&self, request: Request) {
        let deadline = tokio::time::Instant::now() + REQUEST_LIMIT;
        while !self.phase().has_ended() && tokio::time::Instant::now() < deadline {
            let sender = self.control.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(sender) = sender
                && sender.send(request.clone()).await.is_ok()
            {
                return;
            }
            tokio::time::sleep(RECONNECT_PERIOD).await;
        }
    }

    async fn follow(self: &Arc<Self>, stream: UnixStream) {
        self.listen(stream).await;
        self.follow_again().await;
    }

    /// The connection is gone: the records say why, or the shim is asked again.
    async fn follow_again(self: &Arc<Self>) {
        let deadline = tokio::time::Instant::now() + SILENCE_LIMIT;
        while !self.phase().has_ended() {
            if self.read_exit() {
                break;
            }
            if self.lock_is_free() {
                // It may have ended between the two looks.
                if !self.read_exit() {
                    self.declare_lost().await;
                }
                break;
            }
            if tokio::time::Instant::now() >= deadline {
                self.declare_lost().await;
                break;
            }
            if let Ok(stream) = connect(&self.run_dir).await {
                self.listen(stream).await;
            }
            tokio::time::sleep(RECONNECT_PERIOD).await;
        }
    }

    /// Handles reports and passes requests on until the connection ends.
    async fn listen(&self, stream: UnixStream) {
        let (sender, mut requests) = mpsc::channel(REQUESTS_MAX);
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        let (mut reader, mut writer) = stream.into_split();
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; 4096];
        loop {
            tokio::select! {
                biased;
                read = reader.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(count) => {
                        decoder.push(&buffer[..count]);
                        if !self.apply_reports(&mut decoder) {
                            break;
                        }
                    }
                },
                Some(request) = requests.recv() => {
                    if writer.write_all(&request.encode()).await.is_err() {
                        break;
                    }
                }
            }
        }
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// `false` when the peer does not speak the protocol.
    fn apply_reports(&self, decoder: &mut Decoder) -> bool {
        loop {
            match decoder.next_report() {
                Ok(Some(report)) => self.apply(report),
                Ok(None) => return true,
                Err(error) => {
                    tracing::warn!(task.id = %self.record.id, %error, "shim talks nonsense");
                    return false;
                }
            }
        }
    }

    fn apply(&self, report: Report) {
        let next = match report {
            Report::Hello { .. } => return,
            Report::Started { pid, at_ms, .. } => {
                Phase::Running { pid, started_at: Timestamp(at_ms) }
            }
            Report::Failed { kind, code, message } => {
                let exit = Exit { code, oom: false, at: Timestamp(crate::now_ms()) };
                Phase::Failed { error: self.start_error(kind, code, message), exit }
            }
            Report::Exited { code, oom, at_ms } => {
                Phase::Exited(Exit { code, oom, at: Timestamp(at_ms) })
            }
        };
        self.advance(next);
    }

    fn start_error(&self, kind: FailureKind, code: i32, message: String) -> RuntimeError {
        match kind {
            FailureKind::NotExecutable => RuntimeError::NotExecutable { message, code },
            FailureKind::User => RuntimeError::Invalid { field: "user", problem: message },
            FailureKind::Workdir => RuntimeError::Invalid { field: "workdir", problem: message },
            FailureKind::NoSpace => RuntimeError::NoSpace { path: self.dir.clone() },
            FailureKind::Other => refused("start the container", message),
        }
    }

    fn advance(&self, next: Phase) {
        self.phase.send_if_modified(|phase| {
            let forward = !phase.has_ended() && *phase != next;
            if forward {
                *phase = next;
            }
            forward
        });
    }

    /// Takes over what a record on disk says; `false` when there is none.
    fn read_exit(&self) -> bool {
        for dir in [&self.dir, &self.run_dir] {
            match files::read_record::<ExitRecord>(&dir.join(files::EXIT)) {
                Ok(Some(record)) => {
                    self.advance(exit_phase(record));
                    return true;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(task.id = %self.record.id, %error, "unreadable exit record");
                }
            }
        }
        false
    }

    fn lock_is_free(&self) -> bool {
        matches!(try_lock(&self.run_dir.join(files::LOCK)), Ok(Some(_)))
    }

    /// The shim is gone or mute: nothing of its container may go on running.
    async fn declare_lost(self: &Arc<Self>) {
        tracing::warn!(task.id = %self.record.id, "the container's shim vanished");
        let this = Arc::clone(self);
        let killed = blocking("kill a lost container", move || {
            if let Ok(Some(state)) =
                files::read_record::<StateRecord>(&this.run_dir.join(files::STATE))
                && state.shim.is_alive()
            {
                let pid = nix::unistd::Pid::from_raw(state.shim.pid as i32);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            this.kill_group()
        });
        if let Err(error) = killed.await {
            tracing::error!(task.id = %self.record.id, %error, "processes of a lost container");
        }
        self.advance(Phase::Lost);
    }

    /// The container is no more: whoever still waits for it or follows its output stops.
    pub(crate) fn end_waiting(&self) {
        self.advance(Phase::Lost);
    }

    /// Waits until the shim has ended; one that does not is killed. Blocks.
    pub(crate) fn wait_for_shim(&self, limit: Duration) -> Result<(), RuntimeError> {
        if shim_has_ended(&self.run_dir, limit) {
            return Ok(());
        }
        let state = files::read_record::<StateRecord>(&self.run_dir.join(files::STATE));
        if let Ok(Some(state)) = state
            && state.shim.is_alive()
        {
            let pid = nix::unistd::Pid::from_raw(state.shim.pid as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            return Ok(());
        }
        Err(refused("end the container's shim", "it holds its lock and stays"))
    }

    /// Kills what is in the container's groups and removes them. Blocks.
    pub(crate) fn kill_group(&self) -> Result<(), RuntimeError> {
        let group = &self.record.cgroup;
        self.cgroups
            .kill(group, KILL_LIMIT)
            .and_then(|()| self.cgroups.remove(group, KILL_LIMIT))
            .map_err(io_failed("kill the container's processes", group))
    }
}

/// Finds out where a container of an earlier daemon is. Blocks. Whoever gets `Starting` or
/// `Running` must adopt it.
pub(crate) fn observe_phase(
    record: &ContainerRecord,
    dir: &Path,
    run_dir: &Path,
    boot_id: &str,
    cgroups: &Cgroups,
) -> Phase {
    for dir in [dir, run_dir] {
        if let Ok(Some(record)) = files::read_record::<ExitRecord>(&dir.join(files::EXIT)) {
            return exit_phase(record);
        }
    }
    if record.boot_id != boot_id {
        return Phase::Lost;
    }
    let lock = run_dir.join(files::LOCK);
    if !lock.exists() {
        // Never started, unless somebody removed the run directory under a running container.
        let orphaned = !cgroups.processes(&record.cgroup).is_empty();
        return if orphaned { Phase::Lost } else { Phase::Created };
    }
    if matches!(try_lock(&lock), Ok(Some(_))) {
        // Between the two looks the shim may have ended properly.
        return match files::read_record::<ExitRecord>(&dir.join(files::EXIT)) {
            Ok(Some(record)) => exit_phase(record),
            _ => Phase::Lost,
        };
    }
    match files::read_record::<StateRecord>(&run_dir.join(files::STATE)) {
        Ok(Some(state)) => {
            Phase::Running { pid: state.container.pid, started_at: Timestamp(state.started_at_ms) }
        }
        _ => Phase::Starting,
    }
}

fn exit_phase(record: ExitRecord) -> Phase {
    let exit = Exit { code: record.code, oom: record.oom, at: Timestamp(record.at_ms) };
    match record.failure {
        None => Phase::Exited(exit),
        Some(message) => {
            let error = match exit.code {
                126 | 127 => RuntimeError::NotExecutable { message, code: exit.code },
                _ => refused("start the container", message),
            };
            Phase::Failed { error, exit }
        }
    }
}

/// Whether the shim of this run directory has ended within `limit`. Blocks.
pub(crate) fn shim_has_ended(run_dir: &Path, limit: Duration) -> bool {
    let deadline = std::time::Instant::now() + limit;
    let lock = run_dir.join(files::LOCK);
    while lock.exists() && !matches!(try_lock(&lock), Ok(Some(_))) {
        if std::time::Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// The locked file, or `None` while somebody else holds the lock.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    // The lock belongs to the open file, which the shim inherits; it ends with the last copy.
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Through the directory's descriptor: a socket's path has room for 107 bytes only.
async fn connect(run_dir: &Path) -> io::Result<UnixStream> {
    let dir = File::open(run_dir)?;
    let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), files::SOCKET);
    UnixStream::connect(path).await
}

/// How long a shim may neither answer nor end.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);

/// For a connection to be there again.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

const RECONNECT_PERIOD: Duration = Duration::from_millis(20);

/// Requests on their way to one shim: a stop is two.
const REQUESTS_MAX: usize = 16;

/// For killed processes to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first release wrote it. Never change the text; add new ones.
    #[test]
    fn a_recorded_container_of_format_1_is_read() {
        let text = concat!(
            r#"{"format":1,"id":"t1","name":"web.1.t1","image_id":"sha256:11","#,
            r#""layers":["sha256:22"],"stop_signal":15,"cgroup":"/shoal/i0/t1","#,
            r#""boot_id":"b0","created_at_ms":1767225600000}"#
        );
        let record = ContainerRecord {
            format: 1,
            id: "t1".into(),
            name: "web.1.t1".into(),
            image_id: "sha256:11".into(),
            layers: vec!["sha256:22".into()],
            stop_signal: 15,
            cgroup: "/shoal/i0/t1".into(),
            boot_id: "b0".into(),
            created_at_ms: 1_767_225_600_000,
        };
        assert_eq!(serde_json::from_str::<ContainerRecord>(text).unwrap(), record);
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
    }
}
