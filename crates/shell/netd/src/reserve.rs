//! Ports of the host that no other program may take.
//!
//! Owns: the bound sockets, one for each family of a binding, and which ::1 is forwarded on.
//! Does not know: why a port is wanted, how packets get anywhere.
//! Invariant: a socket is bound and does not listen, without leave for others to share the port;
//! only one that ::1 is forwarded on listens, and takes nothing but what is meant for ::1.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket,
    sockopt,
};
use types::{PortBinding, PortProtocol};

use crate::loopback::Forwarder;
use crate::proto::LOOPBACK6_ADDRESS;
use crate::site::Shared;

/// A protocol and a number.
pub(crate) type Port = (PortProtocol, u16);

/// What is reserved, and what of it is forwarded.
#[derive(Debug, Default)]
pub(crate) struct Reserved {
    wanted: BTreeSet<PortBinding>,
    held: BTreeMap<PortBinding, Held>,
    wanted_loopback: BTreeSet<Port>,
    forwarders: BTreeMap<Port, (Source, Forwarder)>,
}

/// The sockets of one binding; none where the kernel does not know the protocol or the family.
#[derive(Debug)]
struct Held {
    _v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

/// Whose socket a forwarder listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Reservation,
    Own,
}

impl Reserved {
    pub(crate) fn wanted(&self) -> impl Iterator<Item = &PortBinding> {
        self.wanted.iter()
    }

    pub(crate) fn wanted_loopback(&self) -> Vec<Port> {
        self.wanted_loopback.iter().copied().collect()
    }

    /// Makes the whole set what is reserved, as far as possible; gives what could not be had.
    /// Call again to try those once more.
    pub(crate) async fn reserve(
        &mut self,
        shared: &Rc<Shared>,
        wanted: BTreeSet<PortBinding>,
    ) -> Vec<PortBinding> {
        self.wanted = wanted;
        let wanted = &self.wanted;
        let gone: Vec<Port> = self.forwarders.keys().copied().collect();
        for port in gone {
            let everywhere = binding_of(port);
            let source = self.forwarders.get(&port).map(|(source, _)| *source);
            let stays = match source {
                Some(Source::Reservation) => wanted.contains(&everywhere),
                _ => !wanted.contains(&everywhere),
            };
            if !stays && let Some((_, forwarder)) = self.forwarders.remove(&port) {
                forwarder.end().await;
            }
        }
        self.held.retain(|binding, _| wanted.contains(binding));
        let mut missing = Vec::new();
        for binding in wanted {
            if self.held.contains_key(binding) {
                continue;
            }
            match Held::take(binding) {
                Ok(held) => drop(self.held.insert(*binding, held)),
                Err(_) => missing.push(*binding),
            }
        }
        self.settle(shared).await;
        missing
    }

    /// Makes the whole set what ::1 is forwarded on.
    pub(crate) async fn forward(&mut self, shared: &Rc<Shared>, wanted: BTreeSet<Port>) {
        self.wanted_loopback = wanted;
        self.settle(shared).await;
    }

    /// Closes all sockets; what was wanted is forgotten here, not in the state file.
    pub(crate) async fn give_up(mut self) -> Self {
        while let Some((_, (_, forwarder))) = self.forwarders.pop_first() {
            forwarder.end().await;
        }
        Self::default()
    }

    /// Starts the forwarders that are missing and ends those too many.
    async fn settle(&mut self, shared: &Rc<Shared>) {
        let running: Vec<Port> = self.forwarders.keys().copied().collect();
        for port in running.into_iter().filter(|port| !self.wanted_loopback.contains(port)) {
            if let Some((_, forwarder)) = self.forwarders.remove(&port) {
                forwarder.end().await;
            }
        }
        for port in &self.wanted_loopback {
            if self.forwarders.contains_key(port) {
                continue;
            }
            let (source, fd) = match self.held.get(&binding_of(*port)) {
                Some(held) => {
                    let Some(v6) = &held.v6 else { continue };
                    (Source::Reservation, v6.try_clone())
                }
                None => (Source::Own, open(port.0, (LOOPBACK6_ADDRESS, port.1).into())),
            };
            // The host's own program on that port answers for ::1 then.
            let Ok(fd) = fd else { continue };
            if let Ok(forwarder) = Forwarder::begin(shared, port.0, port.1, fd) {
                self.forwarders.insert(*port, (source, forwarder));
            }
        }
    }
}

fn binding_of((protocol, port): Port) -> PortBinding {
    PortBinding { protocol, port, address: None }
}

impl Held {
    fn take(binding: &PortBinding) -> io::Result<Self> {
        let open = |ip: IpAddr| match open(binding.protocol, SocketAddr::new(ip, binding.port)) {
            Ok(fd) => Ok(Some(fd)),
            // Without the protocol or the family nobody on this host can take the port either.
            Err(error) if is_unsupported(&error) => Ok(None),
            Err(error) => Err(error),
        };
        Ok(match binding.address {
            None => Self {
                _v4: open(Ipv4Addr::UNSPECIFIED.into())?,
                v6: open(Ipv6Addr::UNSPECIFIED.into())?,
            },
            Some(ip @ IpAddr::V4(_)) => Self { _v4: open(ip)?, v6: None },
            Some(ip @ IpAddr::V6(_)) => Self { _v4: None, v6: open(ip)? },
        })
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    let codes = [libc_code(nix::Error::EPROTONOSUPPORT), libc_code(nix::Error::EAFNOSUPPORT)];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

fn libc_code(error: nix::Error) -> i32 {
    error as i32
}

/// Bound, not listening, the port not shared.
fn open(protocol: PortProtocol, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let (kind, number) = match protocol {
        PortProtocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        PortProtocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        PortProtocol::Sctp => (SockType::Stream, SockProtocol::Sctp),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, kind, flags, number)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    if !address.ip().is_unspecified() {
        // An address that the host does not have yet is reserved too.
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
    }
    if protocol == PortProtocol::Udp {
        // Nobody reads it: what arrives while no rule leads it elsewhere takes no memory.
        setsockopt(&fd, sockopt::RcvBuf, &0)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}
