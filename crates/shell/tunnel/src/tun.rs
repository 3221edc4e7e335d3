//! The device: what the kernel sends into the tunnel, and takes out of it.
//!
//! Owns: its descriptor, and how much of the work the kernel leaves to us.
//! Does not know: in which namespace the link is, its addresses and routes.
//! Invariant: reads and writes never block, and each frame begins with a virtio header of one size.
//!
//! To the kernel it is a link of Ethernet without ARP (a TAP device): only there does it take
//! super-packets inside VXLAN. To the rest of this crate it carries IP packets.

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::header::{OffloadHeader, PLAIN, TUNNEL};
use crate::sys::check;

/// How much is left to us, from least to most. More is faster: fewer and larger frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// Packets, each with its checksum.
    None,
    /// TCP of up to 64 KiB.
    Tcp,
    /// UDP too; kernels from 6.2 on.
    Udp,
    /// TCP and UDP inside VXLAN too; kernels from 6.17 on.
    Tunnel,
}

impl Offload {
    /// Bytes of the virtio header.
    pub(crate) fn header_size(self) -> usize {
        if self == Self::Tunnel { TUNNEL } else { PLAIN }
    }
}

/// Whether the device outlives its last descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It stays, with its addresses and routes, for whoever opens it next.
    Persistent,
    /// It ends with its last descriptor.
    Temporary,
}

/// An open TUN device.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    offload: Offload,
    /// Before each packet that is written: to this link, from it, IPv4 or IPv6.
    link: [u8; ETHERNET],
}

impl Tun {
    /// Makes a device in the calling thread's network namespace, or opens the persistent one that
    /// is there, with all that the kernel can leave to us but at most `most`.
    pub fn open(name: &str, lifetime: Lifetime, most: Offload) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/net/tun")?;
        let mut request = Request::named(name)?;
        request.value[..2].copy_from_slice(&FLAGS.to_ne_bytes());
        control(&file, libc::TUNSETIFF, &raw mut request)?;
        set_lifetime(&file, lifetime)?;
        set_without_arp(&request.name())?;
        Self::prepare(file, request.name(), most)
    }

    /// Takes over the descriptor of a device that somebody else has opened so.
    pub fn adopt(fd: OwnedFd, most: Offload) -> io::Result<Self> {
        let file = File::from(fd);
        let mut request = Request::named("")?;
        control(&file, libc::TUNGETIFF, &raw mut request)?;
        let flags = u16::from_ne_bytes([request.value[0], request.value[1]]);
        if flags & FLAGS != FLAGS {
            let problem = "the descriptor is that of no TAP device with virtio headers";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        Self::prepare(file, request.name(), most)
    }

    /// Climbs down until the kernel agrees.
    fn prepare(file: File, name: String, most: Offload) -> io::Result<Self> {
        set_nonblocking(&file)?;
        let mut request = Request::named("")?;
        // Of the descriptor itself, wherever the link is.
        control(&file, libc::SIOCGIFHWADDR as libc::Ioctl, &raw mut request)?;
        let mut link = [0; ETHERNET];
        // Behind the family.
        link[..6].copy_from_slice(&request.value[2..8]);
        link[6..12].copy_from_slice(&request.value[2..8]);
        let rungs = [Offload::Tunnel, Offload::Udp, Offload::Tcp, Offload::None];
        let mut refused = None;
        for offload in rungs.into_iter().filter(|rung| *rung <= most) {
            match agree(&file, offload) {
                Ok(()) => return Ok(Self { file, name, offload, link }),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| io::Error::other("no way to offload was tried")))
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// The descriptor, to hand it to a successor.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Whether it stays without a descriptor, wherever the link is.
    pub fn set_lifetime(&self, lifetime: Lifetime) -> io::Result<()> {
        set_lifetime(&self.file, lifetime)
    }

    /// The longest packet that the kernel sends into it.
    ///
    /// To be called in the namespace where the link is.
    pub fn set_mtu(&self, bytes: u32) -> io::Result<()> {
        let mut request = Request::named(&self.name)?;
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        request.value[..4].copy_from_slice(&bytes.to_ne_bytes());
        control(&any_socket()?, libc::SIOCSIFMTU as libc::Ioctl, &raw mut request)
    }

    /// Lets packets in.
    ///
    /// To be called in the namespace where the link is.
    pub fn set_up(&self) -> io::Result<()> {
        change_flags(&self.name, libc::IFF_UP)
    }

    /// How many packets may wait to be read; the kernel's own 500 are lost within a millisecond.
    ///
    /// To be called in the namespace where the link is.
    pub fn set_queue_length(&self, packets: u32) -> io::Result<()> {
        let socket = any_socket()?;
        let mut request = Request::named(&self.name)?;
        let packets = i32::try_from(packets).unwrap_or(i32::MAX);
        request.value[..4].copy_from_slice(&packets.to_ne_bytes());
        control(&socket, SIOCSIFTXQLEN, &raw mut request)
    }

    /// The next frame as bytes, for [`Tun::packet`]; `WouldBlock` when there is none.
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(into)
    }

    /// The packet of a frame that was read, and what is to be done for it; `None` when there is no
    /// whole one.
    pub(crate) fn packet<'a>(&self, frame: &'a mut [u8]) -> Option<(OffloadHeader, &'a mut [u8])> {
        let size = self.offload.header_size();
        let header = OffloadHeader::parse(frame, size)?.moved(-(ETHERNET as i32))?;
        Some((header, frame.get_mut(size + ETHERNET..)?))
    }

    /// A packet behind its virtio header.
    pub(crate) fn write(&self, frame: &[u8]) -> io::Result<()> {
        let size = self.offload.header_size();
        let header = OffloadHeader::parse(frame, size).and_then(|h| h.moved(ETHERNET as i32));
        let header = header.ok_or(io::ErrorKind::InvalidInput)?;
        let mut bytes = [0; TUNNEL];
        header.write(&mut bytes[..size]);
        let mut link = self.link;
        let is_v6 = frame.get(size).is_some_and(|first| first >> 4 == 6);
        link[12..].copy_from_slice(if is_v6 { &ETH_IP6 } else { &ETH_IP4 });
        let parts = [&bytes[..size], &link, &frame[size..]].map(IoSlice::new);
        (&self.file).write_vectored(&parts).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The kernel's `ifreq`, as far as it is used here.
#[repr(C, align(8))]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    /// Flags or a number, by request.
    value: [u8; 24],
}

impl Request {
    fn named(name: &str) -> io::Result<Self> {
        let mut bytes = [0; libc::IFNAMSIZ];
        let fits = name.len() < bytes.len() && !name.contains(['\0', '/']);
        if !fits {
            let problem = format!("`{name}` is no name of a link: 15 bytes at most, no `/`");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self { name: bytes, value: [0; 24] })
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

fn agree(file: &File, offload: Offload) -> io::Result<()> {
    let mut size = offload.header_size() as libc::c_int;
    control(file, libc::TUNSETVNETHDRSZ, &raw mut size)?;
    set(file, libc::TUNSETOFFLOAD, wanted(offload))
}

fn wanted(offload: Offload) -> libc::c_ulong {
    let of = |rung, bits: u32| if offload >= rung { bits } else { 0 };
    let bits = of(Offload::Tcp, CHECKSUM | TSO4 | TSO6 | TSO_ECN)
        | of(Offload::Udp, USO4 | USO6)
        | of(Offload::Tunnel, UDP_TUNNEL | UDP_TUNNEL_CHECKSUM);
    libc::c_ulong::from(bits)
}

fn set_lifetime(file: &File, lifetime: Lifetime) -> io::Result<()> {
    let persistent = libc::c_int::from(lifetime == Lifetime::Persistent);
    set(file, libc::TUNSETPERSIST, persistent as libc::c_ulong)
}

/// Nobody is to be asked for: all that is sent goes to us.
fn set_without_arp(name: &str) -> io::Result<()> {
    change_flags(name, libc::IFF_NOARP)
}

/// Sets one more flag of a link.
fn change_flags(name: &str, more: libc::c_int) -> io::Result<()> {
    let socket = any_socket()?;
    let mut request = Request::named(name)?;
    control(&socket, libc::SIOCGIFFLAGS as libc::Ioctl, &raw mut request)?;
    let flags = u16::from_ne_bytes([request.value[0], request.value[1]]);
    let flags = flags | more as u16;
    request.value[..2].copy_from_slice(&flags.to_ne_bytes());
    control(&socket, libc::SIOCSIFFLAGS as libc::Ioctl, &raw mut request)
}

/// For requests about a link of the calling thread's namespace.
fn any_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; what comes back is ours alone.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: just made, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// A request by pointer.
fn control<T>(fd: &impl AsRawFd, request: libc::Ioctl, argument: *mut T) -> io::Result<()> {
    // SAFETY: callers give a pointer to a live value of the type that the request reads or writes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) }).map(drop)
}

/// A request by value.
fn set(file: &File, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, value) }).map(drop)
}

const FLAGS: u16 = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;

/// The header of a link.
const ETHERNET: usize = 14;
const ETH_IP4: [u8; 2] = [0x08, 0x00];
const ETH_IP6: [u8; 2] = [0x86, 0xdd];

const SIOCSIFTXQLEN: libc::Ioctl = 0x8943;

const CHECKSUM: u32 = 0x01;
const TSO4: u32 = 0x02;
const TSO6: u32 = 0x04;
const TSO_ECN: u32 = 0x08;
const USO4: u32 = 0x20;
const USO6: u32 = 0x40;
const UDP_TUNNEL: u32 = 0x80;
const UDP_TUNNEL_CHECKSUM: u32 = 0x100;
