//! Calls into the kernel that the standard library does not have.
//!
//! Owns: waiting for descriptors, a wake-up, a thread's weight, socket addresses in the kernel's
//! form.
//! Does not know: what is read or written. Invariant: every pointer that is handed to the kernel
//! points to memory that outlives the call.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Ends the waiting of threads.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor that comes back is ours alone.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        check(fd)?;
        // SAFETY: just made, and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// For good: it is never read, so that every thread sees it.
    pub(crate) fn wake(&self) {
        let one = 1_u64;
        // SAFETY: eight bytes of a value on the stack.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Waits until there is something to read from one of them, or the wake-up; answers of which
    /// there is.
    pub(crate) fn wait<const N: usize>(&self, fds: [BorrowedFd<'_>; N]) -> io::Result<[bool; N]> {
        let entry = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let own = entry(self.0.as_raw_fd());
        let mut entries = [own; WAITED_MAX + 1];
        const { assert!(N <= WAITED_MAX) };
        for (entry, fd) in entries[1..].iter_mut().zip(fds) {
            entry.fd = fd.as_raw_fd();
        }
        loop {
            // SAFETY: the first entries of an array on the stack.
            let count = unsafe { libc::poll(entries.as_mut_ptr(), 1 + N as libc::nfds_t, -1) };
            match check(count) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                // An error is there to be read, too.
                Ok(_) => return Ok(std::array::from_fn(|at| entries[1 + at].revents != 0)),
            }
        }
    }
}

/// Puts the calling thread before those whose packets it carries, as the kernel's own network stack
/// is. It takes no more than they give it to do, and when it comes to its turn late, a processor
/// that could carry on what it does stands idle.
///
/// With a single processor it stays as it is: nothing stands idle there, and what a flood leaves to
/// others should be a fair share. Without the right to do so (`CAP_SYS_NICE`) too.
pub(crate) fn go_first() {
    if std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1) {
        // SAFETY: no pointers; 0 is the calling thread.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    }
}

/// Nine times the weight of an ordinary thread.
const NICENESS: libc::c_int = -10;
/// The device and the socket.
const WAITED_MAX: usize = 2;

pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(crate) fn check_size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Room for an address of either family.
pub(crate) type RawAddress = libc::sockaddr_in6;

pub(crate) const NO_ADDRESS: RawAddress = RawAddress {
    sin6_family: 0,
    sin6_port: 0,
    sin6_flowinfo: 0,
    sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
    sin6_scope_id: 0,
};

/// In the form of a socket of that family; IPv4 in the mapped form for one of IPv6. `None` for an
/// IPv6 address and a socket of IPv4.
pub(crate) fn encode(to: SocketAddr, v6: bool) -> Option<(RawAddress, libc::socklen_t)> {
    let mut raw = NO_ADDRESS;
    raw.sin6_port = to.port().to_be();
    if v6 {
        raw.sin6_family = libc::AF_INET6 as u16;
        raw.sin6_addr.s6_addr = match to.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        if let SocketAddr::V6(address) = to {
            raw.sin6_scope_id = address.scope_id();
        }
        return Some((raw, size_of::<libc::sockaddr_in6>() as libc::socklen_t));
    }
    let IpAddr::V4(address) = to.ip() else { return None };
    raw.sin6_family = libc::AF_INET as u16;
    // The address of IPv4 stands where IPv6 has its flow.
    raw.sin6_flowinfo = u32::from_ne_bytes(address.octets());
    Some((raw, size_of::<libc::sockaddr_in>() as libc::socklen_t))
}

/// Of a datagram that came; mapped addresses as those of IPv4.
pub(crate) fn decode(raw: &RawAddress) -> SocketAddr {
    let port = u16::from_be(raw.sin6_port);
    if i32::from(raw.sin6_family) == libc::AF_INET {
        return (Ipv4Addr::from(raw.sin6_flowinfo.to_ne_bytes()), port).into();
    }
    let address = Ipv6Addr::from(raw.sin6_addr.s6_addr);
    match address.to_ipv4_mapped() {
        Some(address) => (address, port).into(),
        None => SocketAddrV6::new(address, port, 0, raw.sin6_scope_id).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_went() {
        for text in ["192.0.2.1:51820", "[2001:db8::1]:1", "[fe80::1%3]:2"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(decode(&encode(address, true).unwrap().0), address);
            match encode(address, false) {
                Some((raw, _)) => assert_eq!(decode(&raw), address),
                None => assert!(address.is_ipv6()),
            }
        }
    }

    #[test]
    fn a_thread_goes_before_others_where_there_are_processors_for_both() {
        // SAFETY: no pointers; 0 is the calling thread.
        let niceness = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        std::thread::scope(|scope| {
            let before = niceness();
            let raised = scope.spawn(move || {
                go_first();
                niceness()
            });
            let several = std::thread::available_parallelism().unwrap().get() > 1;
            assert_eq!(raised.join().unwrap(), if several { NICENESS } else { before });
            assert_eq!(niceness(), before, "it is the thread's own");
        });
    }

    #[test]
    fn a_wake_up_is_seen_by_everybody_who_waits() {
        let wake = Wake::new().unwrap();
        let (quiet, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        wake.wake();
        for _ in 0..2 {
            assert_eq!(wake.wait([std::os::fd::AsFd::as_fd(&quiet)]).unwrap(), [false]);
        }
    }
}
