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

/// Gives back memory that only making the container needed: freed heap, and pages of the program
/// file, which come back by themselves when they are touched again.
pub(crate) fn give_back_memory() {
    // SAFETY: takes a number; trims the free parts of the heap only.
    unsafe { libc::malloc_trim(0) };
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for (start, end) in clean_file_mappings(&smaps) {
        // SAFETY: the range is a mapping of a file in which this process has changed nothing
        // (that is checked), so dropping its pages loses nothing: the next access reads them again.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// Ranges of private file mappings that cannot be written and hold no changed page. Relocated
/// data is not writable either, but has changed pages.
fn clean_file_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut clean = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["Anonymous:", "0", "kB"] => clean.extend(current.take()),
            [name, ..] if name.ends_with(':') => {}
            [range, permissions, _, _, inode, ..] => {
                let bounds = range.split_once('-').and_then(|(start, end)| {
                    let number = |text| usize::from_str_radix(text, 16).ok();
                    Some((number(start)?, number(end)?))
                });
                let readable = matches!(*permissions, "r-xp" | "r--p");
                current = bounds.filter(|_| readable && *inode != "0");
            }
            _ => {}
        }
    }
    clean
}

/// The last error when a system call answered below zero.
pub(crate) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-3000 r-xp 00001000 00:01 77                         /memfd:x (deleted)
Size:                  8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
3000-4000 r--p 00003000 00:01 77                         /memfd:x (deleted)
Anonymous:             4 kB
4000-5000 rw-p 00004000 00:01 77                         /memfd:x (deleted)
Anonymous:             0 kB
5000-6000 r--p 00000000 00:00 0                          [vvar]
Anonymous:             0 kB
7000-9000 r--p 00000000 fe:00 12                         /lib/libc.so.6
Anonymous:             0 kB
";

    #[test]
    fn only_unchanged_read_only_file_pages_are_given_back() {
        assert_eq!(clean_file_mappings(SMAPS), [(0x1000, 0x3000), (0x7000, 0x9000)]);
        assert_eq!(clean_file_mappings("nonsense"), []);
    }

    #[test]
    fn the_process_goes_on_afterwards() {
        give_back_memory();
        assert_eq!(format!("{:?}", clean_file_mappings("")), "[]");
    }
}
