//! The process.
//!
//! Owns: its beginning and end, the control socket, and carrying out what a daemon asks for.
//! Does not know: why it is asked.
//! Invariant: what was acknowledged is in the state file or known to be lost, and one request is
//! carried out at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{dup2_stdout, setsid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::interval;
use types::PortBinding;

use crate::journal::Journal;
use crate::launch::{READY, SOCKET};
use crate::names::Directory;
use crate::part::Change;
use crate::proto::{BINDINGS_MAX, Decoder, PIECE_BYTES_MAX, READ_BYTES, Reply, Request};
use crate::reserve::Reserved;
use crate::site::{Served, Shared};
use crate::spaces::{SpaceId, Spaces, space_id};
use crate::tunnels::{self, Tunnels, tunnel_replies, tunnel_requests};
use crate::{Container, Scope, Tunnel};

/// What keeps netd from beginning.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The directory is missing or not ours.
    #[error("the directory {dir} cannot be used")]
    Directory {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The system refuses threads, sockets or descriptors.
    #[error("cannot begin")]
    Begin(#[source] io::Error),
}

/// Runs until told to stop, or until nobody can tell it anything any more.
pub(crate) fn run(dir: PathBuf, build: String) -> Result<(), RunError> {
    let absolute = dir.canonicalize();
    let dir = absolute.map_err(|source| RunError::Directory { dir, source })?;
    // Fails only for one that leads its session already.
    let _ = setsid();
    // The daemon's directory may be on something that is to be unmounted.
    let _ = std::env::set_current_dir("/");
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Two sockets a container and two a port.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .map_err(RunError::Begin)?;
    let result = LocalSet::new().block_on(&runtime, serve(&dir, build)).map_err(RunError::Begin);
    runtime.shutdown_background();
    result
}

async fn serve(dir: &Path, build: String) -> io::Result<()> {
    let netd = Rc::new(Netd {
        shared: Rc::new(Shared::new(Spaces::start()?)),
        build,
        state: Mutex::new(State::new(dir)),
        stopped: Notify::new(),
    });
    netd.replay(dir).await?;
    let (listener, own) = listen(dir)?;
    announce()?;
    let mut connections = JoinSet::new();
    let mut tick = interval(TICK);
    let mut alone_since = None;
    loop {
        tokio::select! {
            biased;
            () = netd.stopped.notified() => return Ok(()),
            accepted = listener.accept() => {
                while connections.try_join_next().is_some() {}
                let Ok((stream, _)) = accepted else { continue };
                if connections.len() < CONNECTIONS_MAX {
                    connections.spawn_local(netd.clone().converse(stream));
                }
            }
            now = tick.tick() => {
                while connections.try_join_next().is_some() {}
                let is_reachable = space_id(&dir.join(SOCKET)).is_ok_and(|id| id == own);
                if is_reachable || !connections.is_empty() {
                    alone_since = None;
                } else if now - *alone_since.get_or_insert(now) >= ALONE_TIME {
                    return Ok(());
                }
                netd.state.lock().await.retry(&netd.shared, is_reachable).await;
            }
        }
    }
}

/// Listens on the socket of the directory, in the place of whoever did before.
fn listen(dir: &Path) -> io::Result<(UnixListener, SpaceId)> {
    let fresh = dir.join(format!("{SOCKET}.{}", std::process::id()));
    // One of a process with the same number that died at this very point.
    let _ = std::fs::remove_file(&fresh);
    let mask = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(&fresh);
    umask(mask);
    let listener = listener?;
    let id = space_id(&fresh)?;
    std::fs::rename(&fresh, dir.join(SOCKET))?;
    Ok((listener, id))
}

/// Tells whoever started us that the socket is there.
fn announce() -> io::Result<()> {
    use io::Write as _;
    // Whoever started us may be gone; that is nothing to us.
    let _ = io::stdout().write_all(READY);
    let _ = io::stdout().flush();
    dup2_stdout(std::fs::File::options().write(true).open("/dev/null")?)?;
    Ok(())
}

struct Netd {
    shared: Rc<Shared>,
    build: String,
    state: Mutex<State>,
    stopped: Notify,
}

/// What was asked for, and the parts that it takes.
struct State {
    dir: PathBuf,
    served: BTreeMap<String, Served>,
    reserved: Reserved,
    missing: Vec<PortBinding>,
    tunnels: Tunnels,
    index: [u64; 2],
    journal: Journal,
}

/// What one connection has said of something that is not whole yet.
#[derive(Default)]
struct Staged {
    /// A directory that is being built beside the one in use.
    directory: Option<Directory>,
    change: Change,
    frames: Vec<u8>,
    bindings: Vec<PortBinding>,
    tunnels: Vec<Tunnel>,
}

impl Netd {
    /// Takes up what an earlier netd was told.
    async fn replay(&self, dir: &Path) -> io::Result<()> {
        let journal = Journal::new(dir);
        let mut staged = Staged::default();
        let mut state = self.state.lock().await;
        let state = &mut *state;
        journal
            .replay(async |frame| {
                if let Ok(Some(request)) = Request::decode(&frame) {
                    // What could be done then and cannot be now is asked for again by a daemon.
                    let _ = state.carry_out(&self.shared, &mut staged, request, Origin::File).await;
                }
                // Tunnels, which stand first, begin before all names are read.
                tokio::task::yield_now().await;
            })
            .await?;
        state.write_all(&self.shared);
        Ok(())
    }

    async fn converse(self: Rc<Self>, mut stream: UnixStream) {
        let hello = Reply::Hello { build: self.build.clone(), pid: std::process::id() };
        if stream.write_all(&hello.encode(0)).await.is_err() {
            return;
        }
        let (mut decoder, mut staged) = (Decoder::default(), Staged::default());
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let Ok(length @ 1..) = stream.read(&mut buffer).await else { return };
            decoder.push(&buffer[..length]);
            loop {
                let frame = match decoder.next_frame() {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    // Out of step: only a new connection helps.
                    Err(_) => return,
                };
                let tag = frame.tag;
                let request = match Request::decode(&frame) {
                    Ok(Some(request)) => request,
                    Ok(None) => continue,
                    Err(_) => return,
                };
                let stop = matches!(request, Request::Stop { .. });
                let mut state = self.state.lock().await;
                let Some(replies) =
                    state.carry_out(&self.shared, &mut staged, request, Origin::Daemon).await
                else {
                    return;
                };
                drop(state);
                for reply in replies {
                    if stream.write_all(&reply.encode(tag)).await.is_err() {
                        return;
                    }
                }
                if stop {
                    return self.stopped.notify_one();
                }
                // The resolvers have their turn between two pieces of a large directory.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Daemon,
    File,
}

impl State {
    fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            served: BTreeMap::new(),
            reserved: Reserved::default(),
            missing: Vec::new(),
            tunnels: Tunnels::default(),
            index: [0; 2],
            journal: Journal::new(dir),
        }
    }

    /// `None` when the peer says more than it may.
    async fn carry_out(
        &mut self,
        shared: &Rc<Shared>,
        staged: &mut Staged,
        request: Request,
        origin: Origin,
    ) -> Option<Vec<Reply>> {
        let is_kept = origin == Origin::Daemon;
        let frame = if is_kept { request.frame_to_keep() } else { Vec::new() };
        let reply = match request {
            Request::Directory { scope, full, more, index, piece } => {
                if let Some(change) = staged.take(shared, full, more, &piece, &frame)? {
                    self.apply(shared, scope, index, change);
                    let frames = std::mem::take(&mut staged.frames);
                    self.keep(shared, is_kept, full, &frames);
                }
                Reply::Done
            }
            Request::Serve(container) => {
                let reply = self.serve(shared, container).await;
                self.keep(shared, is_kept, false, &frame);
                reply
            }
            Request::Release(id) => {
                let was_served = self.release(&id).await;
                self.keep(shared, is_kept && was_served, false, &frame);
                Reply::Done
            }
            Request::Reserve { more, bindings } => {
                if staged.bindings.len() + bindings.len() > BINDINGS_ALL_MAX {
                    return None;
                }
                staged.bindings.extend(bindings);
                if more {
                    return Some(Vec::new());
                }
                let wanted = staged.bindings.drain(..).collect();
                return Some(self.reserve(shared, wanted, is_kept).await);
            }
            Request::Loopback6(ports) => {
                self.reserved.forward(shared, ports.into_iter().collect()).await;
                self.keep(shared, is_kept, false, &frame);
                Reply::Done
            }
            Request::Tunnels { more, tunnels } => {
                tunnels::join(&mut staged.tunnels, tunnels);
                if tunnels::are_too_many(&staged.tunnels) {
                    return None;
                }
                if more {
                    return Some(Vec::new());
                }
                self.set_tunnels(shared, std::mem::take(&mut staged.tunnels), is_kept).await;
                Reply::Done
            }
            Request::TunnelsSeen => return Some(tunnel_replies(self.tunnels.statuses())),
            Request::Yield => {
                self.give_up().await;
                Reply::Done
            }
            Request::Status => return Some(self.status(shared)),
            Request::Stop { forget } => {
                if forget {
                    self.forget().await;
                }
                Reply::Done
            }
        };
        Some(vec![reply])
    }

    fn apply(&mut self, shared: &Shared, scope: Scope, index: u64, change: Whole) {
        self.index[scope as usize] = index;
        let mut records = shared.records.borrow_mut();
        let slot = &mut records.scopes[scope as usize];
        match change {
            Whole::Directory(directory) => {
                let old = std::mem::replace(slot, directory);
                // A large one takes a while to take apart.
                tokio::task::spawn_blocking(move || drop(old));
            }
            Whole::Change(change) => {
                let unreadable = &shared.counting.unreadable;
                unreadable.set(unreadable.get() + slot.apply(change) as u64);
            }
        }
    }

    async fn serve(&mut self, shared: &Rc<Shared>, container: Container) -> Reply {
        let id = container.id.clone();
        let container = match self.served.get(&id) {
            None => container,
            Some(served) => match served.renew(shared, container) {
                Ok(()) => return Reply::Served { port: served.port(), error: String::new() },
                // Its namespace is another one now.
                Err(container) => container,
            },
        };
        self.release(&id).await;
        match Served::begin(shared, container) {
            Ok(served) => {
                let port = served.port();
                self.served.insert(id, served);
                Reply::Served { port, error: String::new() }
            }
            Err(error) => Reply::Served { port: 0, error: base::chain(&error).to_string() },
        }
    }

    /// Whether it was served; its port is free then.
    async fn release(&mut self, id: &str) -> bool {
        let Some(served) = self.served.remove(id) else { return false };
        served.end().await;
        true
    }

    /// Lets a successor have everything that only one can.
    async fn give_up(&mut self) {
        self.tunnels.give_up().await;
        self.reserved = std::mem::take(&mut self.reserved).give_up().await;
        self.missing.clear();
    }

    /// Leaves no trace.
    async fn forget(&mut self) {
        self.tunnels.remove().await;
        self.journal.forget();
        let _ = std::fs::remove_file(self.dir.join(SOCKET));
    }

    async fn reserve(
        &mut self,
        shared: &Rc<Shared>,
        wanted: BTreeSet<PortBinding>,
        is_kept: bool,
    ) -> Vec<Reply> {
        let is_new = !self.reserved.wanted().eq(wanted.iter());
        self.missing = self.reserved.reserve(shared, wanted).await;
        if is_new {
            let bindings: Vec<PortBinding> = self.reserved.wanted().copied().collect();
            let frames: Vec<Vec<u8>> =
                reserve_requests(&bindings).map(|request| request.encode(0)).collect();
            self.keep(shared, is_kept, false, &frames.concat());
        }
        in_pieces(&self.missing)
    }

    async fn set_tunnels(&mut self, shared: &Rc<Shared>, wanted: Vec<Tunnel>, is_kept: bool) {
        let is_new = self.tunnels.wanted() != wanted;
        // Even if not: there may be a reason why it is said now.
        self.tunnels.set(shared, wanted).await;
        if is_kept && is_new {
            let requests = tunnel_requests(self.tunnels.wanted());
            let frames: Vec<Vec<u8>> = requests.map(|request| request.encode(0)).collect();
            self.keep(shared, is_kept, false, &frames.concat());
        }
    }

    /// Tries once more what another program had, and what a successor should have taken but did
    /// not.
    async fn retry(&mut self, shared: &Rc<Shared>, is_reachable: bool) {
        if is_reachable {
            self.tunnels.resume(shared).await;
        }
        if !self.missing.is_empty() {
            let wanted = self.reserved.wanted().copied().collect();
            self.missing = self.reserved.reserve(shared, wanted).await;
        }
    }

    fn status(&self, shared: &Shared) -> Vec<Reply> {
        let mut containers: Vec<(String, u16)> =
            self.served.iter().map(|(id, served)| (id.clone(), served.port())).collect();
        let mut replies = Vec::new();
        loop {
            let rest = containers.split_off(containers.len().min(CONTAINERS_IN_PIECE));
            let more = !rest.is_empty();
            let counters = shared.counting.list();
            let index = self.index[Scope::Cluster as usize];
            replies.push(Reply::Status { more, index, counters, containers });
            if !more {
                return replies;
            }
            containers = rest;
        }
    }

    /// Keeps a request for a successor.
    fn keep(&mut self, shared: &Shared, is_kept: bool, anew: bool, frames: &[u8]) {
        if !is_kept {
            return;
        }
        if anew || self.journal.wants_all() {
            self.write_all(shared);
        } else {
            self.journal.append(frames);
        }
    }

    fn write_all(&mut self, shared: &Shared) {
        let records = shared.records.borrow();
        let directories = Scope::ALL.into_iter().flat_map(|scope| {
            let pieces = records.scopes[scope as usize].pieces(PIECE_BYTES_MAX);
            directory_requests(scope, pieces, self.index[scope as usize])
        });
        let served = self.served.values().map(|served| Request::Serve(served.container()));
        let bindings: Vec<PortBinding> = self.reserved.wanted().copied().collect();
        let ports = reserve_requests(&bindings)
            .chain([Request::Loopback6(self.reserved.wanted_loopback())]);
        let tunnels = tunnel_requests(self.tunnels.wanted());
        let requests = tunnels.chain(directories).chain(served).chain(ports);
        let requests = requests.map(|request| request.encode(0));
        if let Err(error) = self.journal.write_all(requests) {
            eprintln!("shoal netd: the state cannot be kept: {error}");
        }
    }
}

impl Request {
    /// A whole directory is not kept as it came, but written anew; tunnels once they are whole.
    fn frame_to_keep(&self) -> Vec<u8> {
        match self {
            Self::Directory { full: true, .. } | Self::Tunnels { .. } => Vec::new(),
            _ => self.encode(0),
        }
    }
}

/// A directory or a change of one, complete.
enum Whole {
    Directory(Directory),
    Change(Change),
}

impl Staged {
    /// Takes one piece; gives the whole with the last. `None` when it is too much or unreadable.
    #[allow(clippy::option_option)]
    fn take(
        &mut self,
        shared: &Shared,
        full: bool,
        more: bool,
        piece: &[u8],
        frame: &[u8],
    ) -> Option<Option<Whole>> {
        if full {
            let directory = self.directory.get_or_insert_default();
            let unreadable = &shared.counting.unreadable;
            unreadable.set(unreadable.get() + directory.take_piece(piece).ok()? as u64);
            if directory.len() > PARTS_MAX {
                return None;
            }
            let whole = if more { None } else { self.directory.take().map(Whole::Directory) };
            return Some(whole);
        }
        self.change.take_piece(piece).ok()?;
        self.frames.extend_from_slice(frame);
        if self.frames.len() > CHANGE_BYTES_MAX {
            return None;
        }
        if more {
            return Some(None);
        }
        Some(Some(Whole::Change(std::mem::take(&mut self.change))))
    }
}

fn in_pieces(missing: &[PortBinding]) -> Vec<Reply> {
    reserve_pieces(missing)
        .map(|(more, piece)| Reply::Reserved { more, missing: piece.to_vec() })
        .collect()
}

/// At least one piece, each with whether more follow.
fn reserve_pieces(bindings: &[PortBinding]) -> impl Iterator<Item = (bool, &[PortBinding])> {
    let count = bindings.len().div_ceil(BINDINGS_MAX).max(1);
    (0..count).map(move |index| {
        let end = bindings.len().min((index + 1) * BINDINGS_MAX);
        (index + 1 < count, &bindings[index * BINDINGS_MAX..end])
    })
}

pub(crate) fn reserve_requests(bindings: &[PortBinding]) -> impl Iterator<Item = Request> {
    reserve_pieces(bindings)
        .map(|(more, piece)| Request::Reserve { more, bindings: piece.to_vec() })
}

/// The whole directory, as the requests that make it.
pub(crate) fn directory_requests(
    scope: Scope,
    pieces: impl Iterator<Item = Vec<u8>>,
    index: u64,
) -> impl Iterator<Item = Request> {
    let mut pieces = pieces.peekable();
    std::iter::from_fn(move || {
        let piece = pieces.next()?;
        let more = pieces.peek().is_some();
        Some(Request::Directory { scope, full: true, more, index, piece })
    })
}

/// How often netd looks whether it can still be reached, and tries ports again.
const TICK: Duration = Duration::from_secs(1);
/// Without a way to be reached and without a connection it ends.
const ALONE_TIME: Duration = Duration::from_secs(60);
const CONNECTIONS_MAX: usize = 16;
const CONTAINERS_IN_PIECE: usize = 4_096;
/// Ten times what a node is designed for: 10,000 services with 10 endpoints each.
const PARTS_MAX: usize = 2_000_000;
const CHANGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Every port of every protocol, and as many on single addresses.
const BINDINGS_ALL_MAX: usize = 400_000;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    use std::time::Instant;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Until it has worked so often.
    async fn await_start(state: &State, starts: u64) {
        let begun = Instant::now();
        loop {
            let seen = state.tunnels.statuses();
            if let [one] = &*seen
                && one.key.is_some()
            {
                assert_eq!(one.starts, starts);
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{seen:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn take_back(dir: &Path) {
        let inside = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let inside = inside.join().unwrap();
        let key_file = dir.join("key");
        let key = tunnel::PrivateKey::generate().unwrap();
        let mut options = File::options();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&key_file).unwrap();
        file.write_all(key.to_text().as_bytes()).unwrap();
        let wanted = Tunnel {
            generation: 1,
            netns: format!("/proc/self/fd/{}", inside.as_raw_fd()).into(),
            device: "enc1".into(),
            port: 51_900,
            address: [10, 99, 0, 1].into(),
            mtu: 1_400,
            key_file,
            peers: Vec::new(),
        };
        let is_free = || UdpSocket::bind(("0.0.0.0", wanted.port)).is_ok();
        let shared = Rc::new(Shared::new(Spaces::start().unwrap()));
        let (mut state, mut staged) = (State::new(dir), Staged::default());
        let request = Request::Tunnels { more: false, tunnels: vec![wanted.clone()] };
        state.carry_out(&shared, &mut staged, request, Origin::File).await.unwrap();
        await_start(&state, 1).await;
        assert!(!is_free());

        // A successor has its time, and is told what it is to serve by the file.
        state.carry_out(&shared, &mut staged, Request::Yield, Origin::Daemon).await.unwrap();
        let second = Duration::from_secs(1);
        state.tunnels.let_successor_time_pass(second);
        state.retry(&shared, true).await;
        assert!(state.tunnels.statuses().is_empty() && is_free());
        assert_eq!(state.tunnels.wanted(), std::slice::from_ref(&wanted));
        // One that has the directory's socket is there, however long it takes.
        state.tunnels.let_successor_time_pass(Duration::ZERO);
        state.retry(&shared, false).await;
        assert!(state.tunnels.statuses().is_empty() && is_free());
        // None came: they are served again, once.
        state.retry(&shared, true).await;
        await_start(&state, 1).await;
        state.retry(&shared, true).await;
        await_start(&state, 1).await;
        assert!(!is_free());
        assert_eq!(state.tunnels.wanted(), std::slice::from_ref(&wanted));

        // What a daemon says after a hand-over is what counts.
        state.carry_out(&shared, &mut staged, Request::Yield, Origin::Daemon).await.unwrap();
        let request = Request::Tunnels { more: false, tunnels: Vec::new() };
        state.carry_out(&shared, &mut staged, request, Origin::File).await.unwrap();
        state.tunnels.let_successor_time_pass(Duration::ZERO);
        state.retry(&shared, true).await;
        assert!(state.tunnels.statuses().is_empty() && is_free());
    }

    #[test]
    fn tunnels_are_taken_back_when_no_successor_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        // A host of its own: its port is nobody's.
        let host = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            LocalSet::new().block_on(&runtime, take_back(&path));
        });
        host.join().unwrap();
    }
}
