//! The daemon's way to netd.
//!
//! Owns: finding or starting netd, replacing one of another build, and telling one that was
//! started again everything that it was told before.
//! Does not know: what answers look like. Invariant: what a call was told is done is done again
//! after every restart of netd, until it is taken back.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use types::{DirectoryUpdate, PortBinding, PortProtocol};

use crate::counters::Counters;
use crate::launch::{self, SOCKET};
use crate::part::{Change, Mirror};
use crate::proto::{Decoder, PIECE_BYTES_MAX, READ_BYTES, Reply, Request};
use crate::server::{directory_frames, reserve_requests};
use crate::{Container, Scope};

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
        let mut keeper = Keeper {
            options,
            commands: receiver,
            wanted: Wanted::default(),
            known: BTreeMap::new(),
            epoch: 0,
            pid: 0,
            ports,
            waiting: HashMap::new(),
            next_tag: 0,
            outbox: VecDeque::new(),
            refeeding: 0,
            old: None,
            progress: Instant::now(),
        };
        let link = keeper.connect().await.map_err(|error| unreachable(&error))?;
        tokio::spawn(keeper.run(link));
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

fn unreachable(error: &io::Error) -> ClientError {
    ClientError::Unreachable(base::chain(error).to_string())
}

#[derive(Debug)]
struct Command {
    call: Call,
    done: Option<Done>,
}

type Done = oneshot::Sender<Result<Answer, ClientError>>;

#[derive(Debug)]
enum Call {
    Update { scope: Scope, full: bool, index: u64, change: Change },
    Serve(Box<Container>),
    Release(String),
    Reserve(BTreeSet<PortBinding>),
    Loopback6(BTreeSet<(PortProtocol, u16)>),
    Settled(u64),
    Status,
    Stop,
}

#[derive(Debug)]
enum Answer {
    Done,
    Port(u16),
    Missing(Vec<PortBinding>),
    Status(Box<Status>),
}

/// Everything that netd was told.
#[derive(Debug, Default)]
struct Wanted {
    mirrors: [Mirror; 2],
    /// A whole directory has come: before that, an earlier daemon's stands.
    is_whole: [bool; 2],
    index: [u64; 2],
    containers: BTreeMap<String, Container>,
    /// `None` until asked for, as above.
    bindings: Option<BTreeSet<PortBinding>>,
    loopback: Option<BTreeSet<(PortProtocol, u16)>>,
}

/// What an answer is waited for.
#[derive(Debug)]
struct Waiting {
    what: What,
    done: Option<Done>,
    /// It is part of telling a new netd everything.
    is_refeed: bool,
}

#[derive(Debug)]
enum What {
    /// Any answer will do.
    Plain,
    Serve(String),
    Reserve(Vec<PortBinding>),
    Status(Box<Status>),
    Stop,
}

/// A connection: the half that is written to, and what the other half says.
struct Link {
    writer: OwnedWriteHalf,
    replies: mpsc::Receiver<(u32, Reply)>,
    reader: JoinHandle<()>,
    pid: Option<i32>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The one task that talks to netd.
struct Keeper {
    options: Options,
    commands: mpsc::Receiver<Command>,
    wanted: Wanted,
    /// Ports of the netd in use.
    known: BTreeMap<String, u16>,
    epoch: u64,
    pid: u32,
    ports: watch::Sender<Ports>,
    waiting: HashMap<u32, Waiting>,
    next_tag: u32,
    /// Frames that are to be written, the first perhaps in part.
    outbox: VecDeque<Vec<u8>>,
    /// Answers that are still missing until a new netd knows everything.
    refeeding: usize,
    /// One of another build, until containers use the new one.
    old: Option<(Link, Instant)>,
    progress: Instant,
}

enum Event {
    Reply(u32, Reply),
    Command(Command),
    Written(usize),
    Lost,
    Abandoned,
    OldIsOver,
    Hangs,
}

impl Keeper {
    async fn run(mut self, mut link: Link) {
        let mut written = 0;
        loop {
            match self.next_event(&mut link, written).await {
                Event::Reply(tag, reply) => {
                    self.progress = Instant::now();
                    if self.take_reply(tag, reply) {
                        return;
                    }
                }
                Event::Command(command) => self.take_command(command),
                Event::Written(count) => {
                    written += count;
                    if self.outbox.front().is_some_and(|frame| frame.len() == written) {
                        self.outbox.pop_front();
                        written = 0;
                    }
                }
                Event::OldIsOver => self.end_old().await,
                Event::Hangs => {
                    tracing::warn!("netd does not answer and is ended");
                    kill(&link);
                    // Its end is seen as any other.
                    self.progress = Instant::now();
                }
                Event::Lost => {
                    written = 0;
                    let Some(fresh) = self.reconnect().await else { return };
                    link = fresh;
                }
                Event::Abandoned => return,
            }
        }
    }

    async fn next_event(&mut self, link: &mut Link, written: usize) -> Event {
        let old_until = self.old.as_ref().map(|(_, until)| *until);
        let hangs_at = (!self.waiting.is_empty()).then(|| self.progress + ANSWER_TIME);
        let rest = self.outbox.front().map_or(&[][..], |frame| &frame[written..]);
        let takes = self.outbox.len() < OUTBOX_MAX && self.waiting.len() < WAITING_MAX;
        tokio::select! {
            biased;
            reply = link.replies.recv() => match reply {
                Some((tag, reply)) => Event::Reply(tag, reply),
                None => Event::Lost,
            },
            count = link.writer.write(rest), if !rest.is_empty() => match count {
                Ok(count @ 1..) => Event::Written(count),
                _ => Event::Lost,
            },
            () = sleep_until(old_until.unwrap_or_else(Instant::now)), if old_until.is_some() => {
                Event::OldIsOver
            }
            () = sleep_until(hangs_at.unwrap_or_else(Instant::now)), if hangs_at.is_some() => {
                Event::Hangs
            }
            command = self.commands.recv(), if takes => match command {
                Some(command) => Event::Command(command),
                None => Event::Abandoned,
            },
        }
    }

    fn send(&mut self, request: &Request, what: What, done: Option<Done>, is_refeed: bool) {
        let tag = self.tag();
        self.outbox.push_back(request.encode(tag));
        self.wait(tag, what, done, is_refeed);
    }

    fn tag(&mut self) -> u32 {
        self.next_tag = self.next_tag.wrapping_add(1);
        self.next_tag
    }

    fn wait(&mut self, tag: u32, what: What, done: Option<Done>, is_refeed: bool) {
        if self.waiting.is_empty() {
            self.progress = Instant::now();
        }
        self.refeeding += usize::from(is_refeed);
        self.waiting.insert(tag, Waiting { what, done, is_refeed });
    }

    fn take_command(&mut self, Command { call, done }: Command) {
        match call {
            Call::Update { scope, full, index, change } => {
                self.update(scope, full, index, change, done);
            }
            Call::Serve(container) => {
                let id = container.id.clone();
                self.wanted.containers.insert(id.clone(), (*container).clone());
                self.send(&Request::Serve(*container), What::Serve(id), done, false);
            }
            Call::Release(id) => {
                self.wanted.containers.remove(&id);
                if self.known.remove(&id).is_some() {
                    self.publish();
                }
                self.send(&Request::Release(id), What::Plain, done, false);
            }
            Call::Reserve(bindings) => {
                self.wanted.bindings = Some(bindings);
                self.send_bindings(done, false);
            }
            Call::Loopback6(ports) => {
                let request = Request::Loopback6(ports.iter().copied().collect());
                self.wanted.loopback = Some(ports);
                self.send(&request, What::Plain, done, false);
            }
            Call::Settled(epoch) => {
                if let Some((_, until)) = self.old.as_mut().filter(|_| epoch == self.epoch) {
                    *until = Instant::now();
                }
                answer(done, Ok(Answer::Done));
            }
            Call::Status => self.send(&Request::Status, What::Status(Box::default()), done, false),
            Call::Stop => self.send(&Request::Stop { forget: true }, What::Stop, done, false),
        }
    }

    fn update(&mut self, scope: Scope, full: bool, index: u64, change: Change, done: Option<Done>) {
        let slot = scope as usize;
        if full {
            self.wanted.mirrors[slot] = Mirror::default();
            self.wanted.is_whole[slot] = true;
        }
        self.wanted.index[slot] = index;
        let pieces = change.pieces(PIECE_BYTES_MAX);
        self.wanted.mirrors[slot].apply(change);
        let last = pieces.len() - 1;
        let mut done = done;
        for (at, piece) in pieces.into_iter().enumerate() {
            let more = at < last;
            let done = if more { None } else { done.take() };
            let request = Request::Directory { scope, full, more, index, piece };
            self.send(&request, What::Plain, done, false);
        }
    }

    fn send_bindings(&mut self, done: Option<Done>, is_refeed: bool) {
        let bindings = self.wanted.bindings.iter().flatten().copied().collect::<Vec<_>>();
        let tag = self.tag();
        let frames = reserve_requests(&bindings).map(|request| request.encode(tag));
        self.outbox.extend(frames);
        self.wait(tag, What::Reserve(Vec::new()), done, is_refeed);
    }

    /// True when netd was stopped.
    fn take_reply(&mut self, tag: u32, reply: Reply) -> bool {
        let Some(mut waiting) = self.waiting.remove(&tag) else { return false };
        let result = match (&mut waiting.what, reply) {
            (What::Serve(id), Reply::Served { port, error }) if error.is_empty() => {
                // It may have been released meanwhile.
                if self.wanted.containers.contains_key(id) {
                    self.known.insert(id.clone(), port);
                }
                Ok(Answer::Port(port))
            }
            (What::Serve(id), Reply::Served { error, .. }) => {
                self.known.remove(id);
                Err(ClientError::Container { id: id.clone(), reason: error })
            }
            (What::Reserve(all), Reply::Reserved { more, missing }) => {
                all.extend(missing);
                if more {
                    self.waiting.insert(tag, waiting);
                    return false;
                }
                Ok(Answer::Missing(std::mem::take(all)))
            }
            (What::Status(all), Reply::Status { more, index, counters, containers }) => {
                all.containers.extend(containers);
                (all.index, all.counters) = (index, Counters::from_list(&counters));
                all.pid = self.pid;
                if more {
                    self.waiting.insert(tag, waiting);
                    return false;
                }
                Ok(Answer::Status(std::mem::take(all)))
            }
            (What::Stop, _) => {
                answer(waiting.done, Ok(Answer::Done));
                return true;
            }
            _ => Ok(Answer::Done),
        };
        self.refeeding -= usize::from(waiting.is_refeed);
        self.publish();
        answer(waiting.done, result);
        false
    }

    /// Tells of the ports, once all of a new netd are known.
    fn publish(&self) {
        if self.refeeding > 0 {
            return;
        }
        self.ports.send_if_modified(|ports| {
            if ports.epoch == self.epoch && ports.by_container == self.known {
                return false;
            }
            *ports = Ports { epoch: self.epoch, by_container: self.known.clone() };
            true
        });
    }

    /// Starts netd again until it works, and tells it everything. `None` when nobody wants it.
    async fn reconnect(&mut self) -> Option<Link> {
        tracing::warn!("netd is gone and is started again");
        let unanswered = std::mem::take(&mut self.waiting);
        self.outbox.clear();
        self.refeeding = 0;
        let mut pause = PAUSE_MIN;
        let link = loop {
            match self.connect().await {
                Ok(link) => break link,
                Err(error) => tracing::error!(%error, "netd cannot be started"),
            }
            if self.commands.is_closed() {
                return None;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        };
        // Nothing that was asked for is lost: it is part of what was just told again.
        let mut unanswered: Vec<(u32, Waiting)> = unanswered.into_iter().collect();
        unanswered.sort_by_key(|(tag, _)| *tag);
        for (_, Waiting { what, done, .. }) in unanswered {
            let Some(done) = done else { continue };
            self.ask_again(what, done);
        }
        Some(link)
    }

    fn ask_again(&mut self, what: What, done: Done) {
        let done = Some(done);
        match what {
            What::Plain => self.send(&Request::Status, What::Plain, done, false),
            What::Serve(id) => match self.wanted.containers.get(&id).cloned() {
                Some(container) => {
                    self.send(&Request::Serve(container), What::Serve(id), done, false);
                }
                None => answer(done, Ok(Answer::Port(0))),
            },
            What::Reserve(_) => self.send_bindings(done, false),
            What::Status(_) => {
                self.send(&Request::Status, What::Status(Box::default()), done, false);
            }
            What::Stop => self.send(&Request::Stop { forget: true }, What::Stop, done, false),
        }
    }

    /// Connects to the netd of the run directory, replaces one of another build, starts one when
    /// there is none; then everything that is wanted stands in the outbox.
    async fn connect(&mut self) -> io::Result<Link> {
        let Options { dir, executable, build, handover } = self.options.clone();
        let found = open(&dir).await;
        let link = match found {
            Ok((link, found)) if found == build => link,
            found => {
                if let Ok((mut old, found)) = found {
                    tracing::info!(found, build, "netd of another build is replaced");
                    ask(&mut old, &Request::Yield).await;
                    self.old = Some((old, Instant::now() + handover));
                }
                launch::start(&executable, &dir, &build).await?;
                let (link, started) = open(&dir).await?;
                if started != build {
                    return Err(io::Error::other(format!("a netd of build {started} is there")));
                }
                link
            }
        };
        self.epoch += 1;
        self.pid = link.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        self.known.clear();
        self.refeed();
        Ok(link)
    }

    fn refeed(&mut self) {
        for scope in Scope::ALL {
            let slot = scope as usize;
            if !self.wanted.is_whole[slot] {
                continue;
            }
            let tag = self.tag();
            let index = self.wanted.index[slot];
            let mirror = &self.wanted.mirrors[slot];
            let frames: Vec<Vec<u8>> = directory_frames(scope, mirror, index, tag).collect();
            self.outbox.extend(frames);
            self.wait(tag, What::Plain, None, true);
        }
        let containers: Vec<Container> = self.wanted.containers.values().cloned().collect();
        for container in containers {
            let id = container.id.clone();
            self.send(&Request::Serve(container), What::Serve(id), None, true);
        }
        if self.wanted.bindings.is_some() {
            self.send_bindings(None, true);
        }
        if let Some(ports) = &self.wanted.loopback {
            let request = Request::Loopback6(ports.iter().copied().collect());
            self.send(&request, What::Plain, None, true);
        }
    }

    async fn end_old(&mut self) {
        if let Some((mut old, _)) = self.old.take() {
            ask(&mut old, &Request::Stop { forget: false }).await;
        }
    }
}

/// The asker may have gone.
fn answer(done: Option<Done>, result: Result<Answer, ClientError>) {
    if let Some(done) = done {
        let _ = done.send(result);
    }
}

/// Connects, and gives what netd calls itself.
async fn open(dir: &Path) -> io::Result<(Link, String)> {
    let stream = UnixStream::connect(dir.join(SOCKET)).await?;
    let pid = stream.peer_cred()?.pid();
    let (read, writer) = stream.into_split();
    let (sender, mut replies) = mpsc::channel(REPLIES_MAX);
    let reader = tokio::spawn(listen(read, sender));
    let said = timeout(ANSWER_TIME, replies.recv()).await;
    let link = Link { writer, replies, reader, pid };
    match said {
        Ok(Some((_, Reply::Hello { build, .. }))) => Ok((link, build)),
        // It holds ports and sockets that its successor needs.
        Err(_) => {
            kill(&link);
            Err(io::ErrorKind::TimedOut.into())
        }
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Reads replies until the connection ends.
async fn listen(mut read: OwnedReadHalf, replies: mpsc::Sender<(u32, Reply)>) {
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; READ_BYTES]);
    while let Ok(length @ 1..) = read.read(&mut buffer).await {
        decoder.push(&buffer[..length]);
        loop {
            match decoder.next_frame().and_then(|frame| {
                frame.map(|frame| Ok((frame.tag, Reply::decode(&frame)?))).transpose()
            }) {
                Ok(None) => break,
                // A kind of a later version.
                Ok(Some((_, None))) => {}
                Ok(Some((tag, Some(reply)))) => {
                    if replies.send((tag, reply)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "netd cannot be understood");
                    return;
                }
            }
        }
    }
}

/// Asks one thing of a netd that is to end, and waits a little for the answer.
async fn ask(link: &mut Link, request: &Request) {
    let asked = async {
        link.writer.write_all(&request.encode(LAST_TAG)).await.ok()?;
        while link.replies.recv().await?.0 != LAST_TAG {}
        Some(())
    };
    if timeout(OLD_TIME, asked).await.is_err() {
        kill(link);
    }
}

/// Ends the process at the other end, which is there as long as the connection is.
fn kill(link: &Link) {
    if let Some(pid) = link.pid {
        let pid = nix::unistd::Pid::from_raw(pid);
        // It may end by itself in this moment.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

const COMMANDS_MAX: usize = 64;
const REPLIES_MAX: usize = 1_024;
/// Frames of 256 KiB at most; a whole directory is more and goes in at once.
const OUTBOX_MAX: usize = 64;
const WAITING_MAX: usize = 256;
/// A call may have to wait for a restart.
const CALL_TIME: Duration = Duration::from_secs(30);
/// Without any answer for so long netd hangs.
const ANSWER_TIME: Duration = Duration::from_secs(10);
const OLD_TIME: Duration = Duration::from_secs(2);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const LAST_TAG: u32 = u32::MAX;
