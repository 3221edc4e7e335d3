//! The program file of shims.
//!
//! Owns: a sealed copy of our own binary in memory, from which every shim is executed.
//! Does not know: what a shim does.
//! Invariant: nothing inside a container can change the copy, even though `/proc/self/exe` leads
//! to it until the container's program is executed. Neither can an upgrade of the file on disk
//! change what runs under an older daemon.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Something that can be executed as a shim.
#[derive(Debug)]
pub(crate) enum ShimBinary {
    Sealed(OwnedFd),
    /// Where the kernel forbids executing memory: a copy behind a read-only mount.
    Mounted(PathBuf),
}

impl ShimBinary {
    /// Copies `binary`; the copy in `run_dir` is made only where memory cannot be executed.
    pub(crate) fn make(binary: &Path, run_dir: &Path) -> io::Result<Self> {
        if memory_may_be_executed() {
            match sealed_copy(binary) {
                Ok(fd) => return Ok(Self::Sealed(fd)),
                Err(error) => tracing::warn!(%error, "no sealed copy; using a read-only mount"),
            }
        }
        mounted_copy(binary, run_dir).map(Self::Mounted)
    }

    /// Path to execute, valid in this process and in a child until it executes it.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Sealed(fd) => PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
            Self::Mounted(path) => path.clone(),
        }
    }
}

fn sealed_copy(binary: &Path) -> io::Result<OwnedFd> {
    // Without the flag older kernels behave as with it.
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let exec = MFdFlags::from_bits_retain(MFD_EXEC);
    let fd = match memfd_create(c"shoal-shim", flags | exec) {
        Err(nix::Error::EINVAL) => memfd_create(c"shoal-shim", flags)?,
        other => other?,
    };
    let mut copy = File::from(fd);
    copy_loaded_part(&mut File::open(binary)?, &mut copy)?;
    copy.set_permissions(fs::Permissions::from_mode(0o500))?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(copy.into())
}

fn mounted_copy(binary: &Path, run_dir: &Path) -> io::Result<PathBuf> {
    let path = run_dir.join("shim-binary");
    // One of an earlier daemon may be mounted there and in use.
    while nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
    let _ = fs::remove_file(&path);
    let mut copy = File::create(&path)?;
    copy_loaded_part(&mut File::open(binary)?, &mut copy)?;
    copy.set_permissions(fs::Permissions::from_mode(0o500))?;
    drop(copy);
    let none = None::<&str>;
    mount(Some(&path), &path, none, MsFlags::MS_BIND, none)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, &path, none, flags, none)?;
    Ok(path)
}

/// `vm.memfd_noexec` of 2 refuses executable memory files altogether.
fn memory_may_be_executed() -> bool {
    fs::read_to_string("/proc/sys/vm/memfd_noexec").map_or(true, |text| text.trim() != "2")
}

/// Copies what the kernel maps and leaves out debug information, which is most of the file and
/// would otherwise sit in memory.
fn copy_loaded_part(from: &mut File, to: &mut File) -> io::Result<()> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    if let Some(end) = loaded_end(&bytes) {
        bytes.truncate(end);
        // Section headers are gone, so the header must not point to them.
        bytes[0x28..0x30].fill(0);
        bytes[0x3a..0x40].fill(0);
    }
    to.write_all(&bytes)
}

/// End of the last loaded segment of a 64-bit little-endian ELF file; `None` for anything else.
fn loaded_end(bytes: &[u8]) -> Option<usize> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let word = |at: usize| -> Option<usize> {
        let eight = bytes.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(eight)).ok()
    };
    let half = |at: usize| -> Option<usize> {
        Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
    };
    let (table, size, count) = (word(0x20)?, half(0x36)?, half(0x38)?);
    let mut end = table.checked_add(size.checked_mul(count)?)?;
    for index in 0..count {
        let header = table + index * size;
        if bytes.get(header..header + 4)? == [1, 0, 0, 0] {
            end = end.max(word(header + 8)?.checked_add(word(header + 32)?)?);
        }
    }
    (end <= bytes.len()).then_some(end)
}

const MFD_EXEC: libc::c_uint = 0x0010;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_runs_and_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let copy = sealed_copy(Path::new("/bin/busybox")).unwrap();
        let binary = ShimBinary::Sealed(copy);
        let path = binary.path();
        let out = std::process::Command::new(&path).args(["echo", "hi"]).output();
        // The applet is chosen by the first argument only when the name is busybox.
        let out = out.unwrap();
        assert!(!out.stderr.is_empty() || out.stdout == b"hi\n");
        assert!(
            fs::OpenOptions::new().write(true).open(&path).and_then(|mut f| f.write(b"x")).is_err()
        );

        let mounted = mounted_copy(Path::new("/bin/busybox"), dir.path()).unwrap();
        assert!(fs::OpenOptions::new().write(true).open(&mounted).is_err());
        nix::mount::umount(&mounted).unwrap();
    }
}
