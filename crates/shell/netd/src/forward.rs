//! Questions that somebody else must answer.
//!
//! Owns: asking the servers of a container one after the other, and whether an answer fits.
//! Does not know: names of ours.
//! Invariant: there is always an answer, after a bounded time; a server's answer counts only when
//! it has the number, port and question that were sent to it, all of them new for each question.

use std::cell::Cell;
use std::hash::BuildHasher;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use crate::cache;
use crate::counters::count;
use crate::query::{Code, HEADER_BYTES, Query};
use crate::site::{Place, Shared, Site, Via};
use crate::{Forward, Origin, Upstream};

/// The answer to a question that is well-formed.
pub(crate) async fn ask(shared: &Shared, site: &Site, question: Vec<u8>, via: Via) -> Vec<u8> {
    let mut out = Vec::new();
    let Ok(query) = Query::parse(&question) else { return out };
    let all = Place::take(&shared.forwards, FORWARDS_MAX);
    let own = Place::take(&site.forwards, FORWARDS_OF_ONE_MAX);
    if all.is_none() || own.is_none() {
        count(&shared.counting.refused);
        query.refuse(Code::ServFail, &mut out);
        return out;
    }
    count(&shared.counting.forwarded);
    let Some(mut answer) = ask_servers(shared, site, &query, via).await else {
        count(&shared.counting.unanswered);
        query.refuse(Code::ServFail, &mut out);
        return out;
    };
    answer[..2].copy_from_slice(&query.id.to_be_bytes());
    let key = cache::key(site.servers.get(), &query);
    shared.cache.borrow_mut().insert(key, &answer, Instant::now());
    if answer.len() > via.bytes_max(&query) {
        query.truncated(&mut out);
        return out;
    }
    answer
}

async fn ask_servers(shared: &Shared, site: &Site, query: &Query<'_>, via: Via) -> Option<Vec<u8>> {
    let upstreams = match &site.container.borrow().forward {
        Forward::None => return None,
        Forward::Servers(upstreams) => upstreams.clone(),
    };
    let mut failed = None;
    for upstream in upstreams.into_iter().take(SERVERS_MAX) {
        let asked = timeout(SERVER_TIME, ask_server(shared, site, query, upstream, via)).await;
        let Ok(Ok(answer)) = asked else { continue };
        let code = answer[3] & 0xf;
        // Others may do better: it fails, does not know how, or refuses us.
        if [2, 4, 5].contains(&code) {
            failed.get_or_insert(answer);
        } else {
            return Some(answer);
        }
    }
    failed
}

async fn ask_server(
    shared: &Shared,
    site: &Site,
    query: &Query<'_>,
    upstream: Upstream,
    via: Via,
) -> io::Result<Vec<u8>> {
    let kind = match via {
        Via::Datagram => SockType::Datagram,
        Via::Stream => SockType::Stream,
    };
    let open = move || open(kind, upstream.address);
    let fd = match upstream.from {
        Origin::Host => open()?,
        Origin::Container => {
            let netns = site.container.borrow().netns.clone();
            shared.spaces.visit(&netns, open)?
        }
    };
    let mut sent = query.bytes.to_vec();
    let id = next_id(shared);
    sent[..2].copy_from_slice(&id.to_be_bytes());
    match via {
        Via::Datagram => {
            let socket = UdpSocket::from_std(fd.into())?;
            socket.send(&sent).await?;
            loop {
                socket.readable().await?;
                let answer = match receive(&socket) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    answer => answer?,
                };
                if fits(&answer, id, query) {
                    return Ok(answer);
                }
                count(&shared.counting.mismatched);
            }
        }
        Via::Stream => {
            let mut stream = TcpStream::from_std(fd.into())?;
            stream.writable().await?;
            let mut framed = Vec::with_capacity(sent.len() + 2);
            framed.extend((sent.len() as u16).to_be_bytes());
            framed.append(&mut sent);
            stream.write_all(&framed).await?;
            let length = usize::from(stream.read_u16().await?);
            let mut answer = vec![0; length];
            stream.read_exact(&mut answer).await?;
            if fits(&answer, id, query) {
                return Ok(answer);
            }
            count(&shared.counting.mismatched);
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

/// A connected socket, of a stream one that is connecting; its port is chosen at random.
fn open(kind: SockType, server: SocketAddr) -> io::Result<OwnedFd> {
    let family = match server.ip() {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, kind, flags, None)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(server)) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => Ok(fd),
        Err(error) => Err(error.into()),
    }
}

/// One datagram, in a buffer of its own size.
fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    thread_local! {
        static BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
    }
    let mut buffer = BUFFER.take().unwrap_or_else(|| vec![0; DATAGRAM_BYTES_MAX].into());
    let received = socket.try_recv(&mut buffer).map(|length| buffer[..length].to_vec());
    BUFFER.set(Some(buffer));
    received
}

/// It answers this very question.
pub(crate) fn fits(answer: &[u8], id: u16, query: &Query<'_>) -> bool {
    let Some((header, body)) = answer.split_first_chunk::<HEADER_BYTES>() else { return false };
    let is_answer = header[..2] == id.to_be_bytes() && header[2] & 0x80 != 0;
    let repeats = header[4..6] == [0, 1]
        && body
            .get(..query.question.len())
            .is_some_and(|question| question.eq_ignore_ascii_case(query.question));
    // A server that did not understand need not repeat the question.
    let is_bare_failure = header[4..6] == [0, 0] && header[3] & 0xf != 0;
    is_answer && (repeats || is_bare_failure)
}

/// A number that cannot be guessed from earlier ones: keyed hashes of a counter.
fn next_id(shared: &Shared) -> u16 {
    thread_local! {
        static COUNTER: Cell<u64> = const { Cell::new(0) };
    }
    let counter = COUNTER.get().wrapping_add(1);
    COUNTER.set(counter);
    shared.random.hash_one(counter) as u16
}

/// docker's, in all; each takes a socket and a few KiB.
const FORWARDS_MAX: usize = 1_024;
/// One container cannot take all.
const FORWARDS_OF_ONE_MAX: usize = 256;
const SERVERS_MAX: usize = 3;
/// Three of them are tried before the C library gives up the second time.
const SERVER_TIME: Duration = Duration::from_secs(2);
const DATAGRAM_BYTES_MAX: usize = 65_535;
