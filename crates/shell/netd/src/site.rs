//! The resolver of one container.
//!
//! Owns: its sockets in the container's namespace, and the loops that answer what comes to them.
//! Does not know: what names mean, how a question is passed on.
//! Invariant: nothing that a container sends makes more than a bounded amount of work or memory:
//! questions under way, connections and their time are limited per container and in all.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, setsockopt,
    socket, sockopt,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet, spawn_local};
use tokio::time::{Instant, timeout};

use crate::cache::{self, Cache};
use crate::counters::{Counting, count};
use crate::datagrams::{Batch, QUESTION_BYTES_MAX, Said};
use crate::forward;
use crate::query::{Code, Malformed, Query, refuse_malformed};
use crate::resolv::RESOLVER_PORT;
use crate::resolve::{Records, Scratch, Verdict};
use crate::spaces::{SpaceId, Spaces, space_id};
use crate::{Container, Forward, Origin};

/// What the resolvers of all containers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) records: RefCell<Records>,
    pub(crate) counting: Counting,
    pub(crate) cache: RefCell<Cache>,
    pub(crate) spaces: Spaces,
    pub(crate) random: RandomState,
    /// Questions under way at servers.
    pub(crate) forwards: Cell<usize>,
    connections: Cell<usize>,
    scratch: RefCell<Scratch>,
    batch: RefCell<Batch>,
}

/// One container, as its loops see it.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) container: RefCell<Container>,
    /// Tells its servers apart from those of others in the cache.
    pub(crate) servers: Cell<u64>,
    pub(crate) forwards: Cell<usize>,
    connections: Cell<usize>,
}

/// A container that is served, until this is dropped.
#[derive(Debug)]
pub(crate) struct Served {
    site: Rc<Site>,
    space: SpaceId,
    port: u16,
    loops: [JoinHandle<()>; 2],
}

/// One of a bounded number; given back when dropped.
pub(crate) struct Place<'a>(&'a Cell<usize>);

impl<'a> Place<'a> {
    pub(crate) fn take(counter: &'a Cell<usize>, max: usize) -> Option<Self> {
        (counter.get() < max).then(|| {
            counter.set(counter.get() + 1);
            Self(counter)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Shared {
    pub(crate) fn new(spaces: Spaces) -> Self {
        Self {
            records: RefCell::default(),
            counting: Counting::default(),
            cache: RefCell::default(),
            spaces,
            random: RandomState::new(),
            forwards: Cell::new(0),
            connections: Cell::new(0),
            scratch: RefCell::default(),
            batch: RefCell::new(Batch::new()),
        }
    }

    /// Answers what can be answered at once. `None`: the question is to be passed on.
    fn answer(&self, site: &Site, question: &[u8], via: Via, out: &mut Vec<u8>) -> Option<Reply> {
        count(&self.counting.questions);
        let query = match Query::parse(question) {
            Ok(query) => query,
            Err(malformed) => {
                count(&self.counting.malformed);
                let Malformed::Refused { id, flags, code } = malformed else {
                    return Some(Reply::Silence);
                };
                refuse_malformed(id, flags, code, out);
                return Some(Reply::Answer);
            }
        };
        let bytes_max = via.bytes_max(&query);
        let container = site.container.borrow();
        let scratch = &mut self.scratch.borrow_mut();
        let records = self.records.borrow();
        if records.resolve(&query, &container.networks, bytes_max, scratch, out)
            == Verdict::Answered
        {
            count(&self.counting.answered);
            return Some(Reply::Answer);
        }
        if container.forward == Forward::None {
            count(&self.counting.answered);
            query.refuse(Code::NxDomain, out);
            return Some(Reply::Answer);
        }
        let key = cache::key(site.servers.get(), &query);
        if self.cache.borrow().find(&key, &query, Instant::now(), out) {
            count(&self.counting.cached);
            if out.len() > bytes_max {
                query.truncated(out);
            }
            return Some(Reply::Answer);
        }
        None
    }
}

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Datagram,
    Stream,
}

impl Via {
    /// Bytes that an answer may have.
    pub(crate) fn bytes_max(self, query: &Query<'_>) -> usize {
        match self {
            Self::Datagram => query.udp_bytes_max(),
            Self::Stream => usize::from(u16::MAX),
        }
    }
}

enum Reply {
    Answer,
    Silence,
}

impl Served {
    /// Opens the sockets and begins to answer.
    pub(crate) fn begin(shared: &Rc<Shared>, container: Container) -> io::Result<Self> {
        let space = space_id(&container.netns)?;
        let (udp, tcp, port) = shared.spaces.visit(&container.netns, open_pair)?;
        let udp = UdpSocket::from_std(udp.into())?;
        let tcp = TcpListener::from_std(tcp.into())?;
        let site = Rc::new(Site {
            servers: Cell::new(servers_of(shared, &container)),
            container: RefCell::new(container),
            forwards: Cell::new(0),
            connections: Cell::new(0),
        });
        let loops = [
            spawn_local(answer_datagrams(shared.clone(), site.clone(), udp.into())),
            spawn_local(answer_streams(shared.clone(), site.clone(), tcp)),
        ];
        Ok(Self { site, space, port, loops })
    }

    /// Takes new settings, if the namespace is still the one that the sockets are in.
    pub(crate) fn renew(&self, shared: &Shared, container: Container) -> Result<(), Container> {
        if space_id(&container.netns).ok() != Some(self.space) {
            return Err(container);
        }
        self.site.servers.set(servers_of(shared, &container));
        *self.site.container.borrow_mut() = container;
        Ok(())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends it; its port is free then. To drop it takes the loops a while longer.
    pub(crate) async fn end(mut self) {
        for one in &self.loops {
            one.abort();
        }
        for one in &mut self.loops {
            let _ = one.await;
        }
    }

    pub(crate) fn container(&self) -> Container {
        self.site.container.borrow().clone()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The sockets close with the loops.
        for one in &self.loops {
            one.abort();
        }
    }
}

/// Containers that ask the same servers from the same place share what these said.
fn servers_of(shared: &Shared, container: &Container) -> u64 {
    let mut hasher = shared.random.build_hasher();
    let Forward::Servers(upstreams) = &container.forward else { return 0 };
    upstreams.hash(&mut hasher);
    if upstreams.iter().any(|upstream| upstream.from == Origin::Container) {
        container.id.hash(&mut hasher);
    }
    hasher.finish()
}

/// Two sockets with one port: the usual one, or else one that the kernel chooses for the first.
fn open_pair() -> io::Result<(OwnedFd, OwnedFd, u16)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in std::iter::once(RESOLVER_PORT).chain([0; PAIR_ATTEMPTS]) {
        match open_both(port) {
            // Somebody in the container has it, or a netd that this one replaces.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            result => return result,
        }
    }
    Err(last)
}

fn open_both(port: u16) -> io::Result<(OwnedFd, OwnedFd, u16)> {
    let udp = open(SockType::Datagram, port)?;
    let port = getsockname::<SockaddrIn>(udp.as_raw_fd())?.port();
    let tcp = open(SockType::Stream, port)?;
    listen(&tcp, Backlog::new(BACKLOG)?)?;
    Ok((udp, tcp, port))
}

fn open(kind: SockType, port: u16) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, kind, flags, None)?;
    // The loopback interface need not be up yet.
    setsockopt(&fd, sockopt::IpFreebind, &true)?;
    let address = SockaddrIn::from(SocketAddrV4::new(crate::resolv::RESOLVER, port));
    bind(fd.as_raw_fd(), &address)?;
    Ok(fd)
}

async fn answer_datagrams(shared: Rc<Shared>, site: Rc<Site>, socket: Rc<UdpSocket>) {
    let mut forwards = JoinSet::new();
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        while forwards.try_join_next().is_some() {}
        answer_batch(&shared, &site, &socket, |question, peer| {
            // The port is to be free when the loop has ended, whoever still waits for a server.
            let (shared, site, socket) = (shared.clone(), site.clone(), Rc::downgrade(&socket));
            forwards.spawn_local(async move {
                let answer = forward::ask(&shared, &site, question, Via::Datagram).await;
                let sent = socket.upgrade().map(|socket| socket.try_send_to(&answer, peer));
                if sent.is_none_or(|sent| sent.is_err()) {
                    count(&shared.counting.undelivered);
                }
            });
        });
        tokio::task::consume_budget().await;
    }
}

/// Answers the questions that have come; hands out those that somebody else must be asked.
fn answer_batch(
    shared: &Shared,
    site: &Site,
    socket: &UdpSocket,
    mut pass_on: impl FnMut(Vec<u8>, SocketAddr),
) {
    let batch = &mut *shared.batch.borrow_mut();
    let fd = socket.as_raw_fd();
    let mut has_some = false;
    let received = socket.try_io(Interest::READABLE, || {
        let may_be_more = batch.receive(fd)?;
        has_some = true;
        // Another look would only be told that there is nothing: the next one is waited for.
        if may_be_more { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    });
    if !has_some {
        if received.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            // The error of an answer that could not be delivered.
            count(&shared.counting.undelivered);
        }
        return;
    }
    let undelivered = batch.answer(fd, |question, peer, out| {
        match shared.answer(site, question, Via::Datagram, out) {
            Some(Reply::Answer) => Said::Answer,
            Some(Reply::Silence) => Said::Nothing,
            None => {
                pass_on(question.to_vec(), SocketAddrV4::from(peer).into());
                Said::Nothing
            }
        }
    });
    let counter = &shared.counting.undelivered;
    counter.set(counter.get().wrapping_add(undelivered));
}

async fn answer_streams(shared: Rc<Shared>, site: Rc<Site>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, for example; the kernel's queue is bounded.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (shared, site) = (shared.clone(), site.clone());
        connections.spawn_local(async move {
            let all = Place::take(&shared.connections, CONNECTIONS_MAX);
            let own = Place::take(&site.connections, CONNECTIONS_OF_ONE_MAX);
            if all.is_none() || own.is_none() {
                return count(&shared.counting.connections_refused);
            }
            if answer_stream(&shared, &site, stream).await.is_err() {
                count(&shared.counting.connections_slow);
            }
        });
    }
}

/// Answers one question after the other; an error when the peer is too slow.
async fn answer_stream(
    shared: &Rc<Shared>,
    site: &Rc<Site>,
    mut stream: TcpStream,
) -> Result<(), tokio::time::error::Elapsed> {
    loop {
        let Ok(question) = timeout(QUESTION_TIME, read_question(&mut stream)).await? else {
            return Ok(());
        };
        let mut answer = Vec::new();
        match shared.answer(site, &question, Via::Stream, &mut answer) {
            Some(Reply::Answer) => {}
            Some(Reply::Silence) => return Ok(()),
            None => answer = forward::ask(shared, site, question, Via::Stream).await,
        }
        let mut framed = Vec::with_capacity(answer.len() + 2);
        framed.extend((answer.len() as u16).to_be_bytes());
        framed.append(&mut answer);
        if timeout(QUESTION_TIME, stream.write_all(&framed)).await?.is_err() {
            return Ok(());
        }
    }
}

async fn read_question(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > QUESTION_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    Ok(question)
}

const BACKLOG: i32 = 128;
/// Ports are taken at random out of 28,000.
const PAIR_ATTEMPTS: usize = 16;
const CONNECTIONS_MAX: usize = 1_000;
const CONNECTIONS_OF_ONE_MAX: usize = 100;
/// For a question to arrive from the first byte, and for the first byte (RFC 7766, 6.2.3).
const QUESTION_TIME: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
