//! What comes to a published port at ::1.
//!
//! Owns: carrying connections and datagrams from ::1 to the same port of 127.0.0.1, because the
//! kernel leads nothing from ::1 out of the host.
//! Does not know: where 127.0.0.1 leads.
//! Invariant: connections and senders are bounded; what is meant for another address of the host
//! is not taken.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{
    Backlog, ControlMessageOwned, MsgFlags, Shutdown, SockaddrIn6, listen, recvmsg, setsockopt,
    shutdown, sockopt,
};
use tokio::io::{Interest, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet, spawn_local};
use tokio::time::timeout;
use types::PortProtocol;

use crate::counters::count;
use crate::proto::LOOPBACK6_ADDRESS;
use crate::site::Shared;

/// One port that is forwarded.
#[derive(Debug)]
pub(crate) struct Forwarder {
    task: JoinHandle<()>,
    /// To be put back into a state in which nothing is taken any more.
    socket: OwnedFd,
    protocol: PortProtocol,
}

impl Forwarder {
    /// Begins with a socket that is bound.
    pub(crate) fn begin(
        shared: &Rc<Shared>,
        protocol: PortProtocol,
        port: u16,
        fd: OwnedFd,
    ) -> io::Result<Self> {
        let socket = fd.try_clone()?;
        let shared = shared.clone();
        let task = match protocol {
            PortProtocol::Tcp => {
                listen(&fd, Backlog::new(BACKLOG)?)?;
                spawn_local(carry_streams(shared, TcpListener::from_std(fd.into())?, port))
            }
            PortProtocol::Udp => {
                setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
                setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BYTES)?;
                spawn_local(carry_datagrams(shared, UdpSocket::from_std(fd.into())?, port))
            }
            PortProtocol::Sctp => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(Self { task, socket, protocol })
    }

    /// Ends, and returns when the socket is merely bound again.
    pub(crate) async fn end(self) {
        self.task.abort();
        // It was aborted, which is what this waits for.
        let _ = self.task.await;
        match self.protocol {
            // A bound socket that stops listening stays bound.
            PortProtocol::Tcp => drop(shutdown(self.socket.as_raw_fd(), Shutdown::Both)),
            _ => drop(setsockopt(&self.socket, sockopt::RcvBuf, &0)),
        }
    }
}

thread_local! {
    /// Connections and senders of all ports.
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
}

/// A place among all; counted when there is none.
struct Carried;

impl Carried {
    fn take(shared: &Shared) -> Option<Self> {
        let taken = UNDER_WAY.get();
        if taken >= CARRIED_MAX {
            count(&shared.counting.loopback_refused);
            return None;
        }
        UNDER_WAY.set(taken + 1);
        Some(Self)
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        UNDER_WAY.set(UNDER_WAY.get() - 1);
    }
}

async fn carry_streams(shared: Rc<Shared>, listener: TcpListener, port: u16) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        let Ok((mut stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let is_meant = stream.local_addr().is_ok_and(|own| own.ip() == LOOPBACK6_ADDRESS);
        let place = if is_meant { Carried::take(&shared) } else { None };
        let Some(place) = place else {
            reset(&stream);
            continue;
        };
        connections.spawn_local(async move {
            let _place = place;
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let Ok(Ok(mut onward)) = timeout(CONNECT_TIME, TcpStream::connect(to)).await else {
                return reset(&stream);
            };
            // Either end may break off at any time.
            let _ = copy_bidirectional(&mut stream, &mut onward).await;
        });
    }
}

/// The peer learns that nobody is there, as from a port without a listener.
fn reset(stream: &TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(stream, sockopt::Linger, &linger);
}

type Senders = Rc<RefCell<HashMap<SocketAddr, Rc<UdpSocket>>>>;

async fn carry_datagrams(shared: Rc<Shared>, socket: UdpSocket, port: u16) {
    let socket = Rc::new(socket);
    let senders = Senders::default();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let received = socket.async_io(Interest::READABLE, || receive(&socket, &mut buffer)).await;
        while answers.try_join_next().is_some() {}
        let Ok((length, from, to)) = received else {
            tokio::task::yield_now().await;
            continue;
        };
        if to != Some(LOOPBACK6_ADDRESS) {
            continue;
        }
        let known = senders.borrow().get(&from).cloned();
        let onward = match known {
            Some(onward) => onward,
            None => {
                let Some(place) = Carried::take(&shared) else { continue };
                let Ok(onward) = onward_socket(port).await else { continue };
                let onward = Rc::new(onward);
                senders.borrow_mut().insert(from, onward.clone());
                let answering = answer(socket.clone(), onward.clone(), from);
                let senders = senders.clone();
                answers.spawn_local(async move {
                    let _place = place;
                    answering.await;
                    senders.borrow_mut().remove(&from);
                });
                onward
            }
        };
        // A full queue loses datagrams, as any queue on the way.
        let _ = onward.try_send(&buffer[..length]);
    }
}

async fn onward_socket(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect((Ipv4Addr::LOCALHOST, port)).await?;
    // Until the runtime has heard of it, nothing can be sent without waiting.
    socket.writable().await?;
    Ok(socket)
}

/// Carries answers back until none has come for a while.
async fn answer(socket: Rc<UdpSocket>, onward: Rc<UdpSocket>, to: SocketAddr) {
    let mut buffer = Vec::new();
    while let Ok(Ok(())) = timeout(SENDER_TIME, onward.readable()).await {
        buffer.clear();
        buffer.reserve(DATAGRAM_BYTES_MAX);
        // Refused by the other end, or nothing to read after all.
        if onward.try_recv_buf(&mut buffer).is_ok() {
            let _ = socket.send_to(&buffer, to).await;
        }
        // Between two answers a sender holds no memory.
        buffer = Vec::new();
    }
}

/// One datagram: its length, who sent it, and to which address.
fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, Option<Ipv6Addr>)> {
    let mut space = nix::cmsg_space!(nix::libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn6>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let from = message.address.ok_or(io::ErrorKind::InvalidData)?;
    let to = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    });
    let from = SocketAddrV6::new(from.ip(), from.port(), 0, from.scope_id());
    Ok((message.bytes, from.into(), to))
}

const BACKLOG: i32 = 128;
/// Each takes two sockets and 16 KiB.
const CARRIED_MAX: usize = 1_024;
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// As the kernel's own memory of a UDP exchange.
const SENDER_TIME: Duration = Duration::from_secs(60);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const RECEIVE_BYTES: usize = 256 * 1024;
const DATAGRAM_BYTES_MAX: usize = 65_535;
