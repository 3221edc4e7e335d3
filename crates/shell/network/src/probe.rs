//! Questions to the kernels of peers, from inside a network's namespace.
//!
//! Owns: a socket for ICMPv6 echo in one namespace, and its packets.
//! Does not know: who is asked when, and what the answers mean.
//! Invariant: a question goes the way of containers' packets, through the VXLAN device; an answer
//! counts when it comes from that device, to this socket, with this process's own token.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use netplan::paths::SMALL_BYTES;
use netplan::{link_v6, number_of};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netlink::set_option;

/// The socket of one namespace. It stays there, whichever thread uses it.
#[derive(Debug)]
pub(crate) struct ProbeSocket {
    fd: OwnedFd,
    /// Number of the VXLAN device.
    link: u32,
    token: u64,
    begun: Instant,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Echo {
    pub(crate) number: u32,
    /// Of the whole packet.
    pub(crate) size: u32,
    pub(crate) round_us: u64,
}

impl ProbeSocket {
    /// In the namespace of the calling thread, which has the device with this number.
    pub(crate) fn open(link: u32, token: u64) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET6, kind, libc::IPPROTO_ICMPV6) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Packets leave as they are: neither cut nor held back for what was learned of sizes.
        set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &PMTUDISC_PROBE)?;
        set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, &1i32)?;
        set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BYTES)?;
        // A bit that is set keeps that kind out.
        let mut filter = [0xff_u8; 32];
        let (byte, bit) = (usize::from(ECHO_REPLY) / 32 * 4, u32::from(ECHO_REPLY) % 32);
        filter[byte..byte + 4].copy_from_slice(&(!(1u32 << bit)).to_ne_bytes());
        set_option(&fd, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &filter)?;
        Ok(Self { fd, link, token, begun: Instant::now() })
    }

    /// Asks the node with this number; the packet has so many bytes, at least [`SMALL_BYTES`].
    pub(crate) fn send(&self, number: u32, size: u32) -> io::Result<()> {
        let mut packet = vec![0; (size.max(SMALL_BYTES) - IP_HEADER_BYTES) as usize];
        packet[0] = ECHO_REQUEST;
        packet[4..6].copy_from_slice(&self.token.to_be_bytes()[..2]);
        packet[8..16].copy_from_slice(&self.token.to_be_bytes());
        packet[16..24].copy_from_slice(&self.now_us().to_be_bytes());
        let to = self.address(link_v6(number));
        // SAFETY: packet and address are valid for their lengths during the call.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_in6>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn address(&self, to: Ipv6Addr) -> libc::sockaddr_in6 {
        libc::sockaddr_in6 {
            sin6_family: libc::AF_INET6 as libc::sa_family_t,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: to.octets() },
            sin6_scope_id: self.link,
        }
    }

    /// The next answer to a question of this socket; `None`: there is none now.
    pub(crate) fn receive(&self) -> io::Result<Option<Echo>> {
        let mut buffer = [0; 24];
        loop {
            let mut from = self.address(Ipv6Addr::UNSPECIFIED);
            let mut length = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            // SAFETY: buffer and address are valid for their lengths during the call.
            let count = unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_TRUNC,
                    (&raw mut from).cast(),
                    &raw mut length,
                )
            };
            if count < 0 {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted => continue,
                    _ => return Err(error),
                }
            }
            let address = Ipv6Addr::from(from.sin6_addr.s6_addr);
            let number = number_of(address).filter(|_| from.sin6_scope_id == self.link);
            if let (Some(number), Some(sent)) = (number, self.parse(&buffer, count as usize)) {
                let size = count as u32 + IP_HEADER_BYTES;
                let round_us = self.now_us().saturating_sub(sent);
                return Ok(Some(Echo { number, size, round_us }));
            }
        }
    }

    /// When the question was asked.
    fn parse(&self, packet: &[u8; 24], count: usize) -> Option<u64> {
        let long = |at: usize| packet[at..].first_chunk().copied().map(u64::from_be_bytes);
        let ours = count >= packet.len() && packet[0] == ECHO_REPLY && long(8) == Some(self.token);
        long(16).filter(|_| ours)
    }

    fn now_us(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }
}

impl AsRawFd for ProbeSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A socket whose answers are waited for.
#[derive(Debug)]
pub(crate) struct Asker(AsyncFd<ProbeSocket>);

impl AsFd for ProbeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Asker {
    pub(crate) fn new(socket: ProbeSocket) -> io::Result<Self> {
        // SAFETY: the socket owns its descriptor, and always answers the same one while it lives.
        let fd = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Self(fd))
    }

    pub(crate) fn send(&self, number: u32, size: u32) -> io::Result<()> {
        self.0.get_ref().send(number, size)
    }

    /// The next answers, at least one.
    pub(crate) async fn answers(&self) -> io::Result<Vec<Echo>> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut all = Vec::new();
            while all.len() < ANSWERS_MAX {
                match ready.get_inner().receive()? {
                    Some(echo) => all.push(echo),
                    None => {
                        ready.clear_ready();
                        break;
                    }
                }
            }
            if !all.is_empty() {
                return Ok(all);
            }
        }
    }
}

const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
const ICMP6_FILTER: libc::c_int = 1;
const PMTUDISC_PROBE: libc::c_int = 3;
const IP_HEADER_BYTES: u32 = 40;

/// Answers of a second, of the largest size.
const RECEIVE_BYTES: libc::c_int = 1 << 20;

/// Answers taken at once.
const ANSWERS_MAX: usize = 256;
