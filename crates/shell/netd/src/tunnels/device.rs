//! What a tunnel is made of: key, socket, device.
//!
//! Owns: reading the key, opening the two, with what is wrong in words.
//! Does not know: when they are used.
//! Invariant: a key that others may read is not used, and none is in a message.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use tunnel::{Lifetime, Offload, PrivateKey, Socket, Tun, TunnelError};
use zeroize::Zeroizing;

use crate::spaces::Spaces;

/// What keeps a tunnel from being served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelFault {
    /// There is none, or it cannot be read.
    #[error("the key file {path} cannot be read")]
    KeyFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It may be known to others.
    #[error(
        "the key file {path} has mode {mode:04o} and owner {owner}: only this process's user may \
         have access, with mode 0600"
    )]
    KeyAccess { path: PathBuf, mode: u32, owner: u32 },
    /// It is something else.
    #[error("the key file {path} holds no key")]
    KeyText {
        path: PathBuf,
        #[source]
        source: TunnelError,
    },
    /// Another program has the port, or another netd still does.
    #[error("UDP port {port} cannot be had")]
    Socket {
        port: u16,
        #[source]
        source: io::Error,
    },
    /// The namespace is gone, or another netd still has the device.
    #[error("device {device} in {netns} cannot be had")]
    Device {
        device: String,
        netns: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Peers that cannot be told apart, or no more threads.
    #[error("the tunnel does not begin")]
    Engine(#[source] TunnelError),
    /// A thread of ours is gone.
    #[error("the tunnel does not begin")]
    Thread,
}

/// The private key in a file.
pub(crate) fn read_key(path: &Path) -> Result<PrivateKey, TunnelFault> {
    let fault = |source| TunnelFault::KeyFile { path: path.to_owned(), source };
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut file =
        OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(fault)?;
    let meta = file.metadata().map_err(fault)?;
    if !meta.is_file() {
        return Err(fault(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let (mode, owner) = (meta.mode() & 0o7777, meta.uid());
    if mode & 0o077 != 0 || owner != nix::unistd::geteuid().as_raw() {
        return Err(TunnelFault::KeyAccess { path: path.to_owned(), mode, owner });
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES_MAX]);
    let mut length = 0;
    while length < bytes.len() {
        match file.read(&mut bytes[length..]).map_err(fault)? {
            0 => break,
            count => length += count,
        }
    }
    // What is no text is no key either.
    let text = std::str::from_utf8(&bytes[..length]).unwrap_or_default();
    PrivateKey::from_text(text)
        .map_err(|source| TunnelFault::KeyText { path: path.to_owned(), source })
}

/// The port, for both families where the host has both.
pub(crate) fn open_socket(port: u16) -> Result<Socket, TunnelFault> {
    let opened = match bound(AddressFamily::Inet6, (Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
            bound(AddressFamily::Inet, (Ipv4Addr::UNSPECIFIED, port).into())
        }
        opened => opened,
    };
    opened
        .map_err(io::Error::from)
        .and_then(Socket::adopt)
        .map_err(|source| TunnelFault::Socket { port, source })
}

fn bound(family: AddressFamily, address: SocketAddr) -> nix::Result<std::net::UdpSocket> {
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if family == AddressFamily::Inet6 {
        // Whatever the host's default is.
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd.into())
}

/// The device, made where there is none yet.
pub(crate) async fn open_device(
    spaces: &Spaces,
    netns: &Path,
    device: &str,
    mtu: u32,
) -> Result<Tun, TunnelFault> {
    let name = device.to_owned();
    let opened = spaces.run(netns, move || {
        let tun = Tun::open(&name, Lifetime::Persistent, Offload::Tunnel)?;
        tun.set_queue_length(QUEUE_PACKETS)?;
        tun.set_mtu(mtu)?;
        tun.set_up()?;
        Ok(tun)
    });
    opened.await.map_err(|source| TunnelFault::Device {
        device: device.to_owned(),
        netns: netns.to_owned(),
        source,
    })
}

/// A key's text has 44.
const KEY_BYTES_MAX: usize = 64;
/// The kernel cuts a container's packet of 64 KiB into more than forty before they are read.
const QUEUE_PACKETS: u32 = 10_000;
