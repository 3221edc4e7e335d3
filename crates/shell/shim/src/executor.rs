//! The last steps inside the container before its program runs.
//!
//! Owns: capabilities, the system call filter, the parent-death signal, and the search for the
//! program with docker's messages when it is not there.
//! Does not know: namespaces, mounts and groups; libcontainer has set them up by then.
//! Invariant: libcontainer keeps all capabilities up to here (its configuration names none), and
//! nothing after [`Executor::exec`] runs with them: the filter needs CAP_SYS_ADMIN to load.

use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::rc::Rc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

use crate::sys::{check, prctl};

/// Executes the program of a container.
#[derive(Clone)]
pub(crate) struct ContainerExecutor {
    /// Bit set of the capabilities to keep.
    pub(crate) capabilities: u64,
    pub(crate) filter: Rc<Vec<libc::sock_filter>>,
    /// Closed on exec; carries an [`ExecFailure`] when there is one.
    pub(crate) failure_writer: RawFd,
    /// The other end, which belongs to the shim only.
    pub(crate) failure_reader: RawFd,
}

/// Why the program could not be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExecFailure {
    /// Docker's 126 or 127; 128 when it is not about the program.
    pub(crate) code: i32,
    pub(crate) message: String,
}

impl ExecFailure {
    fn new(code: i32, message: String) -> Self {
        Self { code, message }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.code.to_le_bytes().to_vec();
        bytes.extend(self.message.as_bytes());
        bytes
    }

    /// `None` for no bytes: the program runs.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (code, message) = bytes.split_first_chunk::<4>()?;
        let message = String::from_utf8_lossy(message).into_owned();
        Some(Self { code: i32::from_le_bytes(*code), message })
    }
}

impl Executor for ContainerExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failure = self.exec_or_fail(spec);
        let bytes = failure.encode();
        // SAFETY: `bytes` is live for the call; `_exit` ends this child without running the
        // shim's destructors, which belong to the shim.
        unsafe {
            libc::write(self.failure_writer, bytes.as_ptr().cast(), bytes.len());
            libc::_exit(failure.code)
        }
    }

    /// Everything is looked at in `exec`, where the answer reaches the daemon as a message.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }
}

impl ContainerExecutor {
    /// Returns only when it failed.
    fn exec_or_fail(&self, spec: &Spec) -> ExecFailure {
        let args = spec.process().as_ref().and_then(|process| process.args().as_ref());
        let Some(args) = args.filter(|args| !args.is_empty()) else {
            return ExecFailure::new(127, "no command specified".into());
        };
        let strings: Result<Vec<CString>, _> =
            args.iter().map(|arg| CString::new(arg.as_str())).collect();
        let Ok(strings) = strings else {
            return ExecFailure::new(126, "an argument contains a zero byte".into());
        };
        if let Err(error) = self.restrict() {
            return ExecFailure::new(128, format!("restrict the container's process: {error}"));
        }
        let path = match find_program(&args[0], &std::env::var("PATH").unwrap_or_default()) {
            Ok(path) => path,
            Err(failure) => return failure,
        };
        let Ok(program) = CString::new(path.as_str()) else {
            return ExecFailure::new(126, "the program's path contains a zero byte".into());
        };
        let mut pointers: Vec<*const libc::c_char> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        // SAFETY: program and arguments are strings that end with zero, the array ends with null,
        // and all of them live until the call either replaced this process or failed. The
        // environment was set by `setup_envs` in this single-threaded process.
        unsafe { libc::execv(program.as_ptr(), pointers.as_ptr()) };
        let error = io::Error::last_os_error();
        let code = if error.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 };
        ExecFailure::new(code, format!("exec {path}: {}", os_text(&error)))
    }

    /// After this the process can do only what the container may.
    fn restrict(&self) -> io::Result<()> {
        // SAFETY: closes our copy of the shim's end, which no object in this child uses again.
        unsafe { libc::close(self.failure_reader) };
        reset_signals()?;
        join_new_session_keyring();
        drop_bounding_set(self.capabilities)?;
        load_filter(&self.filter)?;
        set_capabilities(self.capabilities)?;
        prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)?;
        self.check_shim_alive()
    }

    /// The shim may have died before the parent-death signal was armed: then its end of the pipe
    /// is closed and nobody would ever reap or kill this container.
    fn check_shim_alive(&self) -> io::Result<()> {
        let mut poll = libc::pollfd { fd: self.failure_writer, events: 0, revents: 0 };
        // SAFETY: one live structure, and the count says one.
        check(unsafe { libc::poll(&raw mut poll, 1, 0) })?;
        if poll.revents & libc::POLLERR == 0 {
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
}

/// Ignored signals and the mask survive exec, so they are set back to what a program expects.
/// The raw call, because the C library keeps two signals to itself.
fn reset_signals() -> io::Result<()> {
    // The kernel's structure: handler, flags, restorer, mask; all zero is the default action.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the structure is live and as large as the kernel's; refused for the two signals
        // that cannot be changed, which is fine.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8,
            )
        };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask().map_err(io::Error::from)
}

/// Keys of the daemon's session must not be reachable. Kernels without keyrings have none.
fn join_new_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for a new anonymous keyring; no memory is read.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
}

fn drop_bounding_set(keep: u64) -> io::Result<()> {
    for capability in 0..64u32 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        if let Err(error) = prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability)) {
            // The first number that this kernel does not have.
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error);
        }
    }
    Ok(())
}

fn load_filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::Error::other("filter too long"))?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program points at `len` instructions that live for the call; the kernel copies
    // and verifies them.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    check(result as libc::c_int)
}

/// Effective and permitted become `keep`; inheritable and ambient become empty. When the program
/// is executed the kernel computes them anew: all of `keep` for user 0, none for others.
fn set_capabilities(keep: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |bits: u64| Data { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let data = [half(keep), half(keep >> 32)];
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong)?;
    prctl(libc::PR_SET_KEEPCAPS, 0)?;
    // SAFETY: both structures have the kernel's layout of version 3 and live for the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    check(result as libc::c_int)
}

/// Where the program is, or docker's words for why it cannot be run.
fn find_program(name: &str, path: &str) -> Result<String, ExecFailure> {
    if name.is_empty() {
        return Err(ExecFailure::new(127, "exec: \"\": executable file not found in $PATH".into()));
    }
    if name.contains('/') {
        return check_program(name).map(|()| name.to_owned()).map_err(|error| match error {
            ProgramError::Stat(error) => {
                ExecFailure::new(127, format!("exec: {name:?}: stat {name}: {}", os_text(&error)))
            }
            ProgramError::Directory => {
                ExecFailure::new(126, format!("exec: {name:?}: is a directory"))
            }
            ProgramError::Permission => {
                ExecFailure::new(126, format!("exec: {name:?}: permission denied"))
            }
        });
    }
    let candidates = path.split(':').map(|dir| {
        let dir = if dir.is_empty() { "." } else { dir };
        format!("{dir}/{name}")
    });
    candidates.into_iter().find(|path| check_program(path).is_ok()).ok_or_else(|| {
        ExecFailure::new(127, format!("exec: {name:?}: executable file not found in $PATH"))
    })
}

enum ProgramError {
    Stat(io::Error),
    Directory,
    Permission,
}

fn check_program(path: &str) -> Result<(), ProgramError> {
    let metadata = std::fs::metadata(path).map_err(ProgramError::Stat)?;
    if metadata.is_dir() {
        return Err(ProgramError::Directory);
    }
    let mode = metadata.permissions().mode();
    // SAFETY: these calls take no arguments and cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let bits = if uid == 0 {
        0o111
    } else if uid == metadata.uid() {
        0o100
    } else if gid == metadata.gid() {
        0o010
    } else {
        // Supplementary groups may also allow it: then execve has the last word.
        0o011
    };
    if mode & bits == 0 { Err(ProgramError::Permission) } else { Ok(()) }
}

/// The system's words without Rust's `(os error N)`, as docker prints them.
fn os_text(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or_default();
    let mut characters = words.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_lowercase().collect::<String>() + characters.as_str()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_programs_get_dockers_words() {
        let dir = std::env::temp_dir().join(format!("shoal-exec-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let plain = dir.join("plain");
        std::fs::write(&plain, "text").unwrap();
        std::fs::set_permissions(&plain, PermissionsExt::from_mode(0o644)).unwrap();
        let (dir_text, plain_text) = (dir.to_str().unwrap(), plain.to_str().unwrap());
        let path = format!("/nonexistent:{dir_text}");
        for (name, code, message) in [
            ("", 127, "exec: \"\": executable file not found in $PATH".to_owned()),
            ("nope", 127, "exec: \"nope\": executable file not found in $PATH".to_owned()),
            ("plain", 127, "exec: \"plain\": executable file not found in $PATH".to_owned()),
            ("/no/pe", 127, "exec: \"/no/pe\": stat /no/pe: no such file or directory".to_owned()),
            (dir_text, 126, format!("exec: {dir_text:?}: is a directory")),
            (plain_text, 126, format!("exec: {plain_text:?}: permission denied")),
        ] {
            assert_eq!(find_program(name, &path), Err(ExecFailure::new(code, message)));
        }
        std::fs::set_permissions(&plain, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(find_program("plain", &path), Ok(plain_text.to_owned()));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_failure_comes_back_through_the_pipe() {
        let failure = ExecFailure::new(126, "exec /x: permission denied".into());
        assert_eq!(ExecFailure::decode(&failure.encode()), Some(failure));
        assert_eq!(ExecFailure::decode(b""), None);
    }
}
