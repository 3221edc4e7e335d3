//! The few raw system calls of the shim that nix has no safe form for.
//!
//! Owns: descriptors' duplication, process attributes, the thread count.
//! Does not know: what they are for.
//! Invariant: every descriptor made here is closed on exec.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// An error unless this process has exactly one thread.
pub(crate) fn check_single_threaded() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads == 1 {
        return Ok(());
    }
    Err(io::Error::other(format!("{threads} threads exist; the shim needs to be the only one")))
}

/// A close-on-exec duplicate of `fd`, numbered 10 or higher.
pub(crate) fn duplicate_high(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with a number takes no memory; the result is a new descriptor that we own.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10) };
    check(copy)?;
    // SAFETY: `copy` was just made and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Makes descriptor `fd` (0, 1 or 2) `/dev/null`.
pub(crate) fn null_onto(fd: RawFd) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // SAFETY: dup2 takes two numbers; the old `fd` is one of the standard streams, which are not
    // owned by any object.
    check(unsafe { libc::dup2(null.as_raw_fd(), fd) })
}

/// prctl with one number.
pub(crate) fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: used with options whose argument is a number, so no memory is read or written.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) })
}

/// Names this process in `ps`; at most 15 bytes.
pub(crate) fn set_name(name: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: the kernel copies up to 16 bytes of a string that ends with zero.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) })
}

/// The last error when a system call answered below zero.
pub(crate) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
