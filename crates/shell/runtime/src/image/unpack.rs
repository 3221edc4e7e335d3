//! Turns a layer's archive into a directory that overlayfs understands.
//!
//! Owns: decompression, both digests, safe paths, whiteouts, links, owners, times and attributes.
//! Does not know: where archives come from, which layers an image has.
//! Invariant: the archive is untrusted until its digest is known, so nothing is ever created,
//! opened or linked outside `dest`, and `dest` is thrown away unless the digests agree.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, makedev, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use ring::digest::{Context, SHA256};
use shim::rootfs::Root;
use tar::{Archive, Entry, EntryType, Header};

/// What was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// `sha256:…` of the uncompressed archive.
    pub(crate) diff_id: String,
    /// Sum of the sizes of its files.
    pub(crate) bytes: u64,
}

/// Unpacks all of `archive` (plain, gzip or zstd) into the empty directory `dest`.
pub(crate) fn unpack_layer(archive: impl Read, dest: &Path) -> io::Result<Unpacked> {
    let mut plain = HashingReader::new(decompress(archive)?);
    let root = Root::open(dest)?;
    let mut unpacker = Unpacker {
        top: root.open_at(Path::new("."), OFlag::O_PATH | OFlag::O_DIRECTORY)?,
        root,
        parent: None,
        dir_times: BTreeMap::new(),
        bytes: 0,
        entries: 0,
    };
    let mut entries = Archive::new(&mut plain);
    for entry in entries.entries()? {
        unpacker.add(entry?)?;
    }
    unpacker.finish()?;
    // Padding behind the end mark belongs to the digest too.
    io::copy(&mut plain, &mut io::sink())?;
    Ok(Unpacked { diff_id: plain.finish(), bytes: unpacker.bytes })
}

/// The plain bytes of what may be compressed; told by its first bytes, not by a name.
pub(crate) fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut buffered = BufReader::with_capacity(128 * 1024, reader);
    let start = buffered.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(buffered)));
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Ok(Box::new(zstd::Decoder::with_buffer(buffered)?));
    }
    Ok(Box::new(buffered))
}

/// Hashes what passes through.
pub(crate) struct HashingReader<R> {
    inner: R,
    context: Context,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, context: Context::new(&SHA256) }
    }

    /// `sha256:…` of the bytes read so far.
    pub(crate) fn current(&self) -> String {
        digest_text(self.context.clone().finish().as_ref())
    }

    /// `sha256:…` of all bytes read.
    pub(crate) fn finish(self) -> String {
        digest_text(self.context.finish().as_ref())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.context.update(&buffer[..count]);
        Ok(count)
    }
}

/// `sha256:` and the digest of `bytes` in hexadecimal.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    digest_text(ring::digest::digest(&SHA256, bytes).as_ref())
}

fn digest_text(digest: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in digest {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

struct Unpacker {
    root: Root,
    top: OwnedFd,
    /// The directory of the last entry: most entries follow one of the same directory.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Set last, because making files inside changes them.
    dir_times: BTreeMap<PathBuf, TimeSpec>,
    bytes: u64,
    entries: u64,
}

impl Unpacker {
    fn add<R: Read>(&mut self, mut entry: Entry<'_, R>) -> io::Result<()> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.size());
        if self.entries > ENTRIES_MAX || self.bytes > BYTES_MAX {
            return Err(bad(format!("more than {ENTRIES_MAX} entries or {BYTES_MAX} bytes")));
        }
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = clean_path(&entry.path()?)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            let fd = self.root.open_at(Path::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            return self.dress_dir(&mut entry, &fd, PathBuf::new());
        };
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.open_parent(&directory)?;
        let result = if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            whiteout(&parent, hidden)
        } else {
            self.make(&mut entry, kind, &parent, &name, &path)
        };
        self.parent = Some((directory, parent));
        result.map_err(|error| {
            io::Error::new(error.kind(), EntryError { path: path.display().to_string(), error })
        })
    }

    fn open_parent(&mut self, directory: &Path) -> io::Result<OwnedFd> {
        match self.parent.take() {
            Some((path, fd)) if path == directory => Ok(fd),
            _ => self.root.open_or_make_dir(directory),
        }
    }

    fn make<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        kind: EntryType,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> io::Result<()> {
        if kind != EntryType::Directory {
            remove_existing(parent, name)?;
        }
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY;
                let flags = flags | OFlag::O_CLOEXEC;
                let fd = openat(parent, name, flags, Mode::from_bits_truncate(0o600))?;
                let mut file = File::from(fd);
                io::copy(entry, &mut file)?;
                let fd = OwnedFd::from(file);
                dress(entry, &fd)?;
                set_times(&fd, modified(entry.header()))
            }
            EntryType::Directory => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
                let open = || openat(parent, name, flags | OFlag::O_CLOEXEC, Mode::empty());
                let fd = match open() {
                    Ok(fd) => fd,
                    Err(_) => {
                        remove_existing(parent, name)?;
                        mkdirat(parent, name, Mode::from_bits_truncate(0o700))?;
                        open()?
                    }
                };
                self.dress_dir(entry, &fd, path.to_owned())
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(|| bad("a link without a target"))?;
                symlinkat(target.as_os_str(), parent, name)?;
                dress_by_name(entry, parent, name)
            }
            EntryType::Link => {
                let target = entry.link_name()?.ok_or_else(|| bad("a link without a target"))?;
                self.link(&clean_path(&target)?, parent, name)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                make_node(entry.header(), kind, parent, name)?;
                dress_by_name(entry, parent, name)
            }
            other => Err(bad(format!("entry of type {:?}", other.as_byte() as char))),
        }
    }

    /// The target itself, never what it points to.
    fn link(&mut self, target: &Path, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let target_name = target.file_name().ok_or_else(|| bad("a link to the root"))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let from = match target.parent() {
            Some(directory) => self.root.open_at(directory, flags)?,
            None => self.top.try_clone()?,
        };
        Ok(linkat(&from, target_name, parent, name, AtFlags::empty())?)
    }

    fn dress_dir<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        fd: &OwnedFd,
        path: PathBuf,
    ) -> io::Result<()> {
        dress(entry, fd)?;
        self.dir_times.insert(path, modified(entry.header()));
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        for (path, time) in std::mem::take(&mut self.dir_times) {
            // A later entry of the archive may have replaced the directory.
            if let Ok(fd) = self.root.open_at(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
                set_times(&fd, time)?;
            }
        }
        Ok(())
    }
}

/// Which entry it was.
#[derive(Debug, thiserror::Error)]
#[error("entry {path}")]
struct EntryError {
    path: String,
    #[source]
    error: io::Error,
}

/// Relative, without `.`; `..` is refused.
fn clean_path(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(bad(format!("path {} leads out of the layer", path.display())));
            }
        }
    }
    Ok(clean)
}

/// `hidden` is what follows `.wh.` in the entry's name.
fn whiteout(parent: &OwnedFd, hidden: &[u8]) -> io::Result<()> {
    if hidden == b".wh..opq" {
        return set_xattr(&fd_path(parent), "trusted.overlay.opaque", b"y");
    }
    if hidden.starts_with(b".wh.") {
        // Notes of an old union filesystem to itself.
        return Ok(());
    }
    let name = OsStr::from_bytes(hidden);
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(bad("a whiteout of no name"));
    }
    remove_existing(parent, name)?;
    Ok(mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))?)
}

fn make_node(header: &Header, kind: EntryType, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let number = || -> io::Result<u64> {
        let major = header.device_major()?.unwrap_or(0);
        let minor = header.device_minor()?.unwrap_or(0);
        Ok(makedev(u64::from(major), u64::from(minor)))
    };
    let (kind, device) = match kind {
        EntryType::Char => (SFlag::S_IFCHR, number()?),
        EntryType::Block => (SFlag::S_IFBLK, number()?),
        _ => (SFlag::S_IFIFO, 0),
    };
    Ok(mknodat(parent, name, kind, Mode::empty(), device)?)
}

/// Later entries replace earlier ones of the same name.
fn remove_existing(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => Ok(()),
        Err(nix::Error::EISDIR | nix::Error::EPERM) => {
            std::fs::remove_dir_all(fd_path(parent).join(name))
        }
        Err(error) => Err(error.into()),
    }
}

/// Owner first (it clears set-user-id and capabilities), then attributes, then mode.
fn dress<R: Read>(entry: &mut Entry<'_, R>, fd: &OwnedFd) -> io::Result<()> {
    let (uid, gid) = owner(entry.header())?;
    nix::unistd::fchown(fd, Some(uid), Some(gid))?;
    set_xattrs(entry, &fd_path(fd))?;
    Ok(fchmod(fd, mode(entry.header())?)?)
}

/// The same for what cannot be opened: links and nodes.
fn dress_by_name<R: Read>(
    entry: &mut Entry<'_, R>,
    parent: &OwnedFd,
    name: &OsStr,
) -> io::Result<()> {
    let (uid, gid) = owner(entry.header())?;
    fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    set_xattrs(entry, &fd_path(parent).join(name))?;
    if entry.header().entry_type() != EntryType::Symlink {
        // Just made by us and nobody else is here, so the name is no link.
        let mode = mode(entry.header())?;
        let flag = nix::sys::stat::FchmodatFlags::FollowSymlink;
        nix::sys::stat::fchmodat(parent, name, mode, flag)?;
    }
    let time = modified(entry.header());
    Ok(utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

/// Attributes of the archive, but for those by which overlayfs keeps its own books: an image must
/// not be able to redirect a lookup.
fn set_xattrs<R: Read>(entry: &mut Entry<'_, R>, path: &Path) -> io::Result<()> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    for extension in extensions {
        let extension = extension?;
        let Ok(key) = extension.key() else { continue };
        let Some(name) = key.strip_prefix("SCHILY.xattr.") else { continue };
        if name.starts_with("trusted.") || name.starts_with("user.overlay.") {
            continue;
        }
        match set_xattr(path, name, extension.value_bytes()) {
            // The filesystem has no such attributes: docker goes on too.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM)) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Of the path's last component itself. `path` goes through a descriptor of ours.
fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let follow = path
        .file_name()
        .is_some_and(|last| path.parent() == Some(Path::new("/proc/self/fd")) && !last.is_empty());
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    let set = if follow { libc::setxattr } else { libc::lsetxattr };
    // SAFETY: path and name end with zero, the value is as long as said, all live for the call.
    let result =
        unsafe { set(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn fd_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn owner(header: &Header) -> io::Result<(Uid, Gid)> {
    let number = |value: u64| u32::try_from(value).map_err(|_| bad(format!("owner {value}")));
    Ok((Uid::from_raw(number(header.uid()?)?), Gid::from_raw(number(header.gid()?)?)))
}

fn mode(header: &Header) -> io::Result<Mode> {
    Ok(Mode::from_bits_truncate(header.mode()? & 0o7777))
}

fn modified(header: &Header) -> TimeSpec {
    let seconds = header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok());
    TimeSpec::new(seconds.unwrap_or(0), 0)
}

fn set_times(fd: &OwnedFd, time: TimeSpec) -> io::Result<()> {
    Ok(nix::sys::stat::futimens(fd.as_fd(), &time, &time)?)
}

fn bad(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

/// Ten times the largest layers seen; a bound on what one archive can make us do.
const ENTRIES_MAX: u64 = 4_000_000;
const BYTES_MAX: u64 = 256 * 1024 * 1024 * 1024;

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
