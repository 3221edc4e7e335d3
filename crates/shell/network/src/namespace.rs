//! Network namespaces that stay without a process in them.
//!
//! Owns: directories of their bind mounts, and going into them and home again.
//! Does not know: what is configured inside.
//! Invariant: a thread that cannot go home does nothing any more, and the process with it: whatever
//! it did next would be done to the wrong namespace. A directory is a shared mount, so that an
//! unmount here also happens in the mount namespaces of shims, which were copied from this one
//! while the namespace was mounted; otherwise a removed namespace would live on until the last of
//! them ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::statfs;

/// The namespaces in one directory.
#[derive(Clone, Debug)]
pub(crate) struct Namespaces {
    dir: PathBuf,
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

    /// Makes a namespace and does something inside it.
    pub(crate) fn make<T>(
        &self,
        id: &str,
        inside: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        in_new(|| {
            self.adopt(id, &own_namespace()?)?;
            let made = inside();
            if made.is_err() {
                self.remove(id)?;
            }
            made
        })
    }

    /// Names a namespace that is there already.
    pub(crate) fn adopt(&self, id: &str, namespace: &OwnedFd) -> io::Result<()> {
        let path = self.path(id);
        drop(File::create(&path)?);
        let source = format!("/proc/thread-self/fd/{}", namespace.as_raw_fd());
        let none = None::<&str>;
        match mount(Some(source.as_str()), &path, none, MsFlags::MS_BIND, none) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.remove(id)?;
                Err(error.into())
            }
        }
    }

    /// Does something in one that is there.
    pub(crate) fn enter<T>(
        &self,
        id: &str,
        inside: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        enter(&self.open_one(id)?, inside)
    }

    pub(crate) fn open_one(&self, id: &str) -> io::Result<OwnedFd> {
        Ok(File::open(self.path(id))?.into())
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

/// The namespace of the calling thread.
pub(crate) fn own_namespace() -> io::Result<OwnedFd> {
    Ok(File::open(Path::new(OWN_NAMESPACE))?.into())
}

/// Does something in a new namespace, which ends with it unless somebody holds it by then.
pub(crate) fn in_new<T>(inside: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    away(|| unshare(CloneFlags::CLONE_NEWNET), inside)
}

/// Does something in a namespace.
pub(crate) fn enter<T>(
    namespace: &OwnedFd,
    inside: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    away(|| setns(namespace, CloneFlags::CLONE_NEWNET), inside)
}

/// The calling thread leaves its namespace, and is back when this returns. It must be a thread
/// that may block, for nothing else runs on it meanwhile.
fn away<T>(
    leave: impl FnOnce() -> nix::Result<()>,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let _home = Home(own_namespace()?);
    leave()?;
    work()
}

/// Where the thread goes back to, also when it panics.
struct Home(OwnedFd);

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.0, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "cannot leave a network namespace");
            std::process::abort();
        }
    }
}

/// The calling thread's, not the process's.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

const NSFS_MAGIC: libc::__fsword_t = 0x6e73_6673;
