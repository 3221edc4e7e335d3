//! The UDP socket between nodes.
//!
//! Owns: the descriptor, its buffers, receiving and sending many datagrams in one call.
//! Does not know: what is in them. Invariant: receiving never blocks; sending blocks a second at
//! most, while the link is full.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::sys::{NO_ADDRESS, RawAddress, check, check_size, decode, encode};

/// A socket that is prepared for tunnels.
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    v6: bool,
}

impl Socket {
    /// Binds one in the calling thread's network namespace. Bound to `[::]`, it takes IPv4 too.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        Self::adopt(UdpSocket::bind(address)?)
    }

    /// Takes over a bound socket, wherever it was made.
    pub fn adopt(socket: UdpSocket) -> io::Result<Self> {
        let v6 = socket.local_addr()?.is_ipv6();
        let adopted = Self { socket, v6 };
        adopted.socket.set_write_timeout(Some(SEND_PATIENCE))?;
        adopted.set_buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER)?;
        adopted.set_buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER)?;
        // Joined on the way in; a kernel before 5.0 gives single datagrams.
        let _ = adopted.set(libc::SOL_UDP, libc::UDP_GRO, 1);
        Ok(adopted)
    }

    /// Where it is bound.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The descriptor, to hand it to a successor.
    pub fn try_clone(&self) -> io::Result<UdpSocket> {
        self.socket.try_clone()
    }

    /// Root may go beyond the system's limit; others get as much as they may.
    fn set_buffer(&self, forced: i32, plain: i32, bytes: i32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, forced, bytes)
            .or_else(|_| self.set(libc::SOL_SOCKET, plain, bytes))
    }

    fn set(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        let size = size_of::<i32>() as libc::socklen_t;
        // SAFETY: four bytes of a value on the stack.
        let result = unsafe {
            libc::setsockopt(self.socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
        };
        check(result).map(drop)
    }

    /// One datagram.
    pub(crate) fn send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        let (address, size) = encode(to, self.v6).ok_or_else(unreachable_family)?;
        // SAFETY: the datagram and the address outlive the call.
        let result = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                datagram.as_ptr().cast(),
                datagram.len(),
                0,
                (&raw const address).cast(),
                size,
            )
        };
        check_size(result).map(drop)
    }

    /// Datagrams of `size` bytes each, the last one perhaps shorter, in one go.
    pub(crate) fn send_segments(&self, all: &[u8], size: u16, to: SocketAddr) -> io::Result<()> {
        let (mut address, length) = encode(to, self.v6).ok_or_else(unreachable_family)?;
        let mut vector =
            libc::iovec { iov_base: all.as_ptr().cast_mut().cast(), iov_len: all.len() };
        let mut control = Control::segment(size);
        // SAFETY: all zeros is a message without anything.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = length;
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control>() as _;
        // SAFETY: everything that the message points to outlives the call.
        let result = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, 0) };
        check_size(result).map(drop)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn unreachable_family() -> io::Error {
    io::Error::new(io::ErrorKind::AddrNotAvailable, "an IPv6 endpoint and a socket of IPv4")
}

/// One control message with a number.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    value: [u8; 8],
}

impl Control {
    fn segment(size: u16) -> Self {
        let mut value = [0; 8];
        value[..2].copy_from_slice(&size.to_ne_bytes());
        // SAFETY: all zeros is a header without anything.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        // SAFETY: a computation on a number.
        header.cmsg_len = unsafe { libc::CMSG_LEN(2) } as _;
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = libc::UDP_SEGMENT;
        Self { header, value }
    }

    fn empty() -> Self {
        // SAFETY: all zeros is a header without anything.
        Self { header: unsafe { std::mem::zeroed() }, value: [0; 8] }
    }
}

/// Places for datagrams, filled by one call.
pub(crate) struct Inbox {
    buffers: Vec<u8>,
    addresses: Box<[RawAddress; DATAGRAMS]>,
    controls: Box<[Control; DATAGRAMS]>,
    lengths: [usize; DATAGRAMS],
    sizes: [usize; DATAGRAMS],
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            buffers: vec![0; DATAGRAMS * DATAGRAM_MAX],
            addresses: Box::new([NO_ADDRESS; DATAGRAMS]),
            controls: Box::new([Control::empty(); DATAGRAMS]),
            lengths: [0; DATAGRAMS],
            sizes: [0; DATAGRAMS],
        }
    }

    /// Takes what is there; answers how many, or `WouldBlock`.
    pub(crate) fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        // SAFETY: all zeros is a message without anything.
        let mut messages: [libc::mmsghdr; DATAGRAMS] = unsafe { std::mem::zeroed() };
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; DATAGRAMS];
        let buffers = self.buffers.chunks_exact_mut(DATAGRAM_MAX);
        for (at, (vector, buffer)) in vectors.iter_mut().zip(buffers).enumerate() {
            *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut messages[at].msg_hdr;
            header.msg_name = (&raw mut self.addresses[at]).cast();
            header.msg_namelen = size_of::<RawAddress>() as _;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[at]).cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: everything that the messages point to belongs to `self` or the stack.
        let count = unsafe {
            libc::recvmmsg(
                socket.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                DATAGRAMS as _,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = check(count)? as usize;
        for (at, message) in messages[..count].iter().enumerate() {
            self.lengths[at] = message.msg_len as usize;
            let given = message.msg_hdr.msg_controllen;
            self.sizes[at] = self.segment_size(at, given).unwrap_or(self.lengths[at]);
        }
        Ok(count)
    }

    /// Of a joined datagram; `None` for a single one.
    fn segment_size(&self, at: usize, given: usize) -> Option<usize> {
        let control = &self.controls[at];
        let is_size = given >= size_of::<libc::cmsghdr>() + 4
            && control.header.cmsg_level == libc::SOL_UDP
            && control.header.cmsg_type == libc::UDP_GRO;
        let value = &control.value;
        let size = i32::from_ne_bytes([value[0], value[1], value[2], value[3]]);
        usize::try_from(size).ok().filter(|size| is_size && *size > 0)
    }

    /// What came: bytes, the size of each datagram among them, and from where.
    pub(crate) fn get(&self, at: usize) -> (&[u8], usize, SocketAddr) {
        let begin = at * DATAGRAM_MAX;
        let bytes = &self.buffers[begin..begin + self.lengths[at].min(DATAGRAM_MAX)];
        (bytes, self.sizes[at].max(1), decode(&self.addresses[at]))
    }
}

const DATAGRAMS: usize = 8;
const DATAGRAM_MAX: usize = 65_536;
/// About 20 ms at 3 Gb/s: what comes while the thread is not running.
const RECEIVE_BUFFER: i32 = 8 << 20;
const SEND_BUFFER: i32 = 2 << 20;
const SEND_PATIENCE: Duration = Duration::from_secs(1);
