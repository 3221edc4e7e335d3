//! What stands between one container and the daemon: one small process per container.
//!
//! Owns: the container's creation and start, its output, its exit status, its cgroup's end.
//! Does not know: tokio, images, the cluster; anything but the one container it was started for.
//! Invariant: exactly one thread. The container is made by raw clone, after which the child runs
//! ordinary code; with a second thread it could find a lock taken that nobody releases. Hence
//! [`run_if_shim`] is the first call of `main`, before any thread or runtime exists.
//!
//! The daemon starts a shim as `shoal shim DIR` with three descriptors: 0 is its control
//! connection (see [`proto`]), 1 a lock file, locked by the daemon and released by the kernel with
//! the shim's last breath, 2 a file for what goes wrong. The daemon may come and go: the shim
//! listens on a socket for its successors and leaves an exit record for those who come later.

#![allow(unsafe_code)]

pub mod cgroup;
pub mod files;
pub mod launch;
pub mod logfile;
pub mod process;
pub mod proto;
pub mod rootfs;

mod container;
mod device;
mod executor;
mod supervise;
mod sys;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// First argument that makes the binary a shim.
pub const SUBCOMMAND: &str = "shim";

/// Group of all shims of one daemon, beside the groups of its containers; no container has this
/// name.
pub const SHIMS_GROUP: &str = "shims";

/// Becomes a shim when the arguments say so, and then never returns.
///
/// Call this first in `main`. With any other first argument it does nothing.
pub fn run_if_shim() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == SUBCOMMAND) {
        main(args.collect())
    }
}

/// Runs the shim for the directory in `args[0]`; ends the process.
pub fn main(args: Vec<OsString>) -> ! {
    let [dir] = args.as_slice() else {
        eprintln!("shoal shim: exactly one argument, the container's directory, is expected");
        std::process::exit(EXIT_USAGE);
    };
    if let Err(error) = sys::check_single_threaded() {
        eprintln!("shoal shim: {error}");
        std::process::exit(EXIT_USAGE);
    }
    let code = match Inherited::take() {
        Ok(inherited) => supervise::run(PathBuf::from(dir), inherited),
        Err(error) => {
            eprintln!("shoal shim: inherited descriptors: {error}");
            EXIT_USAGE
        }
    };
    std::process::exit(code);
}

/// The descriptors that the daemon handed over.
struct Inherited {
    /// Connection to the daemon that started this shim.
    control: OwnedFd,
    /// Locked file; kept open, and out of the container, for as long as the shim lives.
    _lock: OwnedFd,
}

impl Inherited {
    /// Moves descriptors 0 and 1 out of the way of the standard streams.
    fn take() -> std::io::Result<Self> {
        let control = sys::duplicate_high(0)?;
        let lock = sys::duplicate_high(1)?;
        sys::null_onto(0)?;
        sys::null_onto(1)?;
        Ok(Self { control, _lock: lock })
    }
}

/// As docker's for a wrong use of the command.
const EXIT_USAGE: i32 = 125;
