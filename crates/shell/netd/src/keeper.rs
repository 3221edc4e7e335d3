//! The one task of a daemon that talks to netd.
//!
//! Owns: finding or starting netd, replacing one of another build, and telling one that was
//! started again everything that it was told before.
//! Does not know: what answers to questions look like. Invariant: what a call was told is done is
//! done again after every restart of netd, until it is taken back.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use types::{PortBinding, PortProtocol};

use crate::client::{ClientError, Options, Ports, Status};
use crate::counters::Counters;
use crate::launch;
use crate::link::{ANSWER_TIME, Link};
use crate::part::{Change, Mirror};
use crate::proto::{PIECE_BYTES_MAX, Reply, Request};
use crate::server::{directory_requests, reserve_requests};
use crate::tunnels::{self, tunnel_requests};
use crate::{Container, Scope, Tunnel, TunnelStatus};

#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) call: Call,
    pub(crate) done: Option<Done>,
}

pub(crate) type Done = oneshot::Sender<Result<Answer, ClientError>>;

#[derive(Debug)]
pub(crate) enum Call {
    Update { scope: Scope, full: bool, index: u64, change: Change },
    Serve(Box<Container>),
    Release(String),
    Reserve(BTreeSet<PortBinding>),
    Loopback6(BTreeSet<(PortProtocol, u16)>),
    Tunnels(Vec<Tunnel>),
    TunnelsSeen,
    Settled(u64),
    Status,
    Stop,
}

#[derive(Debug)]
pub(crate) enum Answer {
    Done,
    Port(u16),
    Missing(Vec<PortBinding>),
    Tunnels(Vec<TunnelStatus>),
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
    tunnels: Option<Vec<Tunnel>>,
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
    Tunnels(Vec<TunnelStatus>),
    Status(Box<Status>),
    Stop,
}

/// The one task that talks to netd.
pub(crate) struct Keeper {
    options: Options,
    commands: mpsc::Receiver<Command>,
    wanted: Wanted,
    /// Ports of the netd in use.
    known: BTreeMap<String, u16>,
    /// Taken back since the netd in use was asked what it serves.
    released: BTreeSet<String>,
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
    /// Finds or starts netd, then keeps it until nobody calls any more.
    pub(crate) async fn begin(
        options: Options,
        commands: mpsc::Receiver<Command>,
        ports: watch::Sender<Ports>,
    ) -> Result<(), ClientError> {
        let mut keeper = Self {
            options,
            commands,
            wanted: Wanted::default(),
            known: BTreeMap::new(),
            released: BTreeSet::new(),
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
        Ok(())
    }

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
                    link.kill();
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
                if self.refeeding > 0 {
                    self.released.insert(id.clone());
                }
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
            Call::Tunnels(tunnels) => {
                self.wanted.tunnels = Some(tunnels);
                self.send_tunnels(done, false);
            }
            Call::TunnelsSeen => {
                self.send(&Request::TunnelsSeen, What::Tunnels(Vec::new()), done, false);
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
        let pieces: Vec<Vec<u8>> = change.pieces(PIECE_BYTES_MAX).collect();
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

    fn send_tunnels(&mut self, done: Option<Done>, is_refeed: bool) {
        let tunnels = self.wanted.tunnels.clone().unwrap_or_default();
        let tag = self.tag();
        self.outbox.extend(tunnel_requests(tunnels).map(|request| request.encode(tag)));
        self.wait(tag, What::Plain, done, is_refeed);
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
            (What::Tunnels(all), Reply::Tunnels { more, tunnels }) => {
                tunnels::join(all, tunnels);
                if more {
                    self.waiting.insert(tag, waiting);
                    return false;
                }
                Ok(Answer::Tunnels(std::mem::take(all)))
            }
            (What::Status(all), Reply::Status { more, index, counters, containers }) => {
                all.containers.extend(containers);
                (all.index, all.counters) = (index, Counters::from_list(&counters));
                all.pid = self.pid;
                if more {
                    self.waiting.insert(tag, waiting);
                    return false;
                }
                if waiting.is_refeed {
                    // What an earlier daemon asked for, too.
                    let still = all.containers.iter().filter(|(id, _)| !self.released.contains(id));
                    self.known.extend(still.cloned());
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
        if self.refeeding == 0 {
            self.released.clear();
        }
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
            What::Tunnels(_) => {
                self.send(&Request::TunnelsSeen, What::Tunnels(Vec::new()), done, false);
            }
            What::Stop => self.send(&Request::Stop { forget: true }, What::Stop, done, false),
        }
    }

    /// Connects to the netd of the run directory, replaces one of another build, starts one when
    /// there is none; then everything that is wanted stands in the outbox.
    async fn connect(&mut self) -> io::Result<Link> {
        let Options { dir, executable, build, handover } = self.options.clone();
        let found = Link::open(&dir).await;
        let link = match found {
            Ok((link, found)) if found == build => link,
            found => {
                if let Ok((mut old, found)) = found {
                    tracing::info!(found, build, "netd of another build is replaced");
                    old.ask(&Request::Yield).await;
                    self.old = Some((old, Instant::now() + handover));
                }
                launch::start(&executable, &dir, &build).await?;
                let (link, started) = Link::open(&dir).await?;
                if started != build {
                    return Err(io::Error::other(format!("a netd of build {started} is there")));
                }
                link
            }
        };
        self.epoch += 1;
        self.pid = link.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        self.known.clear();
        self.released.clear();
        self.send(&Request::Status, What::Status(Box::default()), None, true);
        self.refeed();
        Ok(link)
    }

    fn refeed(&mut self) {
        if self.wanted.tunnels.is_some() {
            self.send_tunnels(None, true);
        }
        for scope in Scope::ALL {
            let slot = scope as usize;
            if !self.wanted.is_whole[slot] {
                continue;
            }
            let pieces = self.wanted.mirrors[slot].pieces(PIECE_BYTES_MAX);
            let requests: Vec<Request> =
                directory_requests(scope, pieces, self.wanted.index[slot]).collect();
            for request in requests {
                self.send(&request, What::Plain, None, true);
            }
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
            old.ask(&Request::Stop { forget: false }).await;
        }
    }
}

/// The asker may have gone.
fn answer(done: Option<Done>, result: Result<Answer, ClientError>) {
    if let Some(done) = done {
        let _ = done.send(result);
    }
}

fn unreachable(error: &io::Error) -> ClientError {
    ClientError::Unreachable(base::chain(error).to_string())
}

/// Frames of 256 KiB at most; a whole directory is more and goes in at once.
const OUTBOX_MAX: usize = 64;
const WAITING_MAX: usize = 256;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
