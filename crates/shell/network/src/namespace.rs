//! Network namespaces that stay without a process in them.
//!
//! Owns: the directory of their bind mounts.
//! Does not know: what is configured inside.
//! Invariant: the directory is a shared mount, so that an unmount here also happens in the mount
//! namespaces of shims, which were copied from this one while the namespace was mounted;
//! otherwise a removed namespace would live on until the last of them ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::statfs;

use crate::route::RouteSocket;

/// The namespaces of one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Namespaces {
    dir: PathBuf,
}

/// A namespace and a way to configure it from outside.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) socket: RouteSocket,
}

impl Namespaces {
    /// Makes the directory, and makes it a shared mount unless it is one.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let none = None::<&str>;
        if mount(none, &dir, none, MsFlags::MS_SHARED, none).is_err() {
            // Not a mount yet.
            mount(Some(&dir), &dir, none, MsFlags::MS_BIND, none)?;
            mount(none, &dir, none, MsFlags::MS_SHARED, none)?;
        }
        Ok(Self { dir })
    }

    pub(crate) fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// Names of all that are mounted; empty leftovers of a crash are removed on the way.
    pub(crate) fn list(&self) -> io::Result<Vec<String>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if self.is_mounted(&name) {
                all.push(name);
            } else {
                let _ = fs::remove_file(entry.path());
            }
        }
        all.sort();
        Ok(all)
    }

    pub(crate) fn is_mounted(&self, id: &str) -> bool {
        statfs(&self.path(id)).is_ok_and(|stat| stat.filesystem_type().0 == NSFS_MAGIC)
    }

    /// Makes a namespace with its loopback up.
    pub(crate) fn make(&self, id: &str) -> io::Result<Opened> {
        let path = self.path(id);
        drop(File::create(&path)?);
        let target = path.clone();
        let opened = in_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let none = None::<&str>;
            mount(Some(OWN_NAMESPACE), &target, none, MsFlags::MS_BIND, none)?;
            allow_unprivileged_use();
            opened_here()
        });
        if opened.is_err() {
            self.remove(id)?;
        }
        opened
    }

    /// Enters one that is there, to configure it.
    pub(crate) fn enter(&self, id: &str) -> io::Result<Opened> {
        let file = File::open(self.path(id))?;
        in_thread(move || {
            nix::sched::setns(&file, CloneFlags::CLONE_NEWNET)?;
            opened_here()
        })
    }

    /// Removes one; the kernel ends it with its last process. What is not there is no error.
    pub(crate) fn remove(&self, id: &str) -> io::Result<()> {
        let path = self.path(id);
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Not mounted, or not there at all.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Undoes [`Namespaces::open`]; all namespaces must be removed before.
    pub(crate) fn close(&self) -> io::Result<()> {
        match umount2(&self.dir, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn opened_here() -> io::Result<Opened> {
    let fd = File::open(Path::new(OWN_NAMESPACE))?.into();
    let mut socket = RouteSocket::open()?;
    let loopback = socket.links()?.into_iter().find(|link| link.name == "lo");
    if let Some(loopback) = loopback {
        socket.set_up(loopback.index)?;
    }
    Ok(Opened { fd, socket })
}

/// Docker's defaults: low ports and ping need no capability inside a container. A kernel without
/// these files behaves as it always did.
fn allow_unprivileged_use() {
    for (name, value) in [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 2147483647")]
    {
        let _ = fs::write(Path::new("/proc/sys/net/ipv4").join(name), value);
    }
}

/// Runs in a thread of its own, which may change its namespace because it ends with `work`.
fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("netns".into()).spawn(work)?;
    thread.join().map_err(|_| io::Error::other("the namespace's thread panicked"))?
}

/// The calling thread's, not the process's.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

const NSFS_MAGIC: libc::__fsword_t = 0x6e73_6673;
