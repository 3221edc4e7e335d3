//! Makes and starts the container.
//!
//! Owns: the order of the steps from the launch record to the executed program.
//! Does not know: what happens afterwards; see `supervise`.
//! Invariant: the program runs only after the group's device rules and the system call filter are
//! in place; on any failure nothing of the container is left running.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Uid, fchown, pipe2};

use crate::cgroup::Cgroups;
use crate::executor::{ContainerExecutor, ExecFailure};
use crate::files;
use crate::launch::Launch;
use crate::proto::FailureKind;
use crate::rootfs::{Root, User, mount_overlay, resolve_user};
use crate::sys::check;

/// A container whose program has been executed.
pub(crate) struct Running {
    pub(crate) pid: i32,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Why it could not be started, and what to show as its exit code.
#[derive(Debug)]
pub(crate) struct StartFailure {
    pub(crate) kind: FailureKind,
    pub(crate) code: i32,
    pub(crate) message: String,
}

impl StartFailure {
    pub(crate) fn step(step: &'static str, error: &dyn std::error::Error) -> Self {
        let message = format!("{step}: {}", one_line(&base_chain(error)));
        let kind = if message.contains("No space left on device") {
            FailureKind::NoSpace
        } else {
            FailureKind::Other
        };
        Self { kind, code: EXIT_NOT_STARTED, message }
    }

    fn new(kind: FailureKind, message: String) -> Self {
        Self { kind, code: EXIT_NOT_STARTED, message }
    }
}

/// Runs all steps. `dir` is the container's directory.
pub(crate) fn start(
    dir: &Path,
    launch: &Launch,
    cgroups: &Cgroups,
) -> Result<Running, StartFailure> {
    let step = |name| move |error: io::Error| StartFailure::step(name, &error);
    let rootfs = mount_overlay(&launch.layers_dir, &launch.layers, dir)
        .map_err(step("mount the root filesystem"))?;
    let user = prepare_spec(dir, launch, &rootfs)?;
    let pipes = Pipes::new(&user).map_err(step("make the output pipes"))?;
    let filter =
        Rc::new(read_filter(&launch.seccomp).map_err(step("read the system call filter"))?);
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|e| step("make a pipe")(e.into()))?;
    let executor = ContainerExecutor {
        capabilities: launch.capabilities,
        filter,
        failure_writer: writer.as_raw_fd(),
        failure_reader: reader.as_raw_fd(),
    };
    let mut container = build(dir, launch, executor, pipes.child)?;
    drop(writer);
    let pid = container.pid().map_or(0, nix_pid);
    if cgroups.is_unified() {
        for group in cgroups.dirs(&launch.cgroup) {
            crate::device::attach_default(&group).map_err(step("attach the device rules"))?;
        }
    }
    container.start().map_err(|error| StartFailure::step("start the container", &error))?;
    match read_failure(reader).map_err(step("wait for the program to be executed"))? {
        None => Ok(Running { pid, stdout: pipes.stdout, stderr: pipes.stderr }),
        Some(failure) if failure.code == EXIT_NOT_STARTED => {
            Err(StartFailure::new(FailureKind::Other, failure.message))
        }
        Some(ExecFailure { code, message }) => {
            Err(StartFailure { kind: FailureKind::NotExecutable, code, message })
        }
    }
}

fn build(
    dir: &Path,
    launch: &Launch,
    executor: ContainerExecutor,
    stdio: ChildEnds,
) -> Result<Container, StartFailure> {
    let state = launch.run_dir.join(files::OCI_STATE);
    let failed = |error| StartFailure::step("create the container", &error);
    ContainerBuilder::new(launch.id.clone(), SyscallType::default())
        .with_executor(executor)
        .with_stdin(stdio.stdin)
        .with_stdout(stdio.stdout)
        .with_stderr(stdio.stderr)
        .with_root_path(state)
        .map_err(failed)?
        .validate_id()
        .map_err(failed)?
        .as_init(dir)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(failed)
}

/// Looks the user up in the image, makes the working directory, and writes the configuration that
/// libcontainer reads.
fn prepare_spec(dir: &Path, launch: &Launch, rootfs: &Path) -> Result<User, StartFailure> {
    let io_step = |name| move |error: io::Error| StartFailure::step(name, &error);
    let root = Root::open(rootfs).map_err(io_step("open the root filesystem"))?;
    let text = |path: &str| {
        let text = root.read_text(Path::new(path)).map_err(io_step("read the image's users"))?;
        Ok::<_, StartFailure>(text.unwrap_or_default())
    };
    let user =
        resolve_user(&launch.user, &launch.groups, &text("etc/passwd")?, &text("etc/group")?)
            .map_err(|error| StartFailure::new(FailureKind::User, error.to_string()))?;

    let mut spec = Spec::load(dir.join(files::SPEC))
        .map_err(|error| StartFailure::step("read the configuration", &error))?;
    let Some(process) = spec.process_mut() else {
        return Err(StartFailure::new(FailureKind::Other, "configuration without process".into()));
    };
    make_workdir(&root, process.cwd(), &user)?;
    let oci_user = process.user_mut();
    oci_user.set_uid(user.uid);
    oci_user.set_gid(user.gid);
    oci_user.set_additional_gids(Some(user.groups.clone()));
    spec.save(dir.join(files::CONFIG))
        .map_err(|error| StartFailure::step("write the configuration", &error))?;
    Ok(user)
}

/// A missing working directory is made, owned by the user, as docker does.
fn make_workdir(root: &Root, path: &Path, user: &User) -> Result<(), StartFailure> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let failed = |error: io::Error| {
        let message = format!("working directory {}: {error}", path.display());
        StartFailure::new(FailureKind::Workdir, message)
    };
    match root.open_at(path, flags) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let made = root.open_or_make_dir(path).map_err(failed)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    nix::unistd::fchownat(&made, "", Some(uid), Some(gid), nix::fcntl::AtFlags::AT_EMPTY_PATH)
        .map_err(|error| failed(error.into()))
}

/// The container's ends of its standard streams.
struct ChildEnds {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

struct Pipes {
    child: ChildEnds,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Pipes {
    /// The container's user owns its ends, so that it may open `/dev/stdout` anew.
    fn new(user: &User) -> io::Result<Self> {
        let make = || -> io::Result<(OwnedFd, OwnedFd)> {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
            fchown(writer.as_fd(), Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
            // A smaller pipe works too, only slower.
            let _ = fcntl(&reader, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
            set_nonblocking(&reader)?;
            Ok((reader, writer))
        };
        let (stdout, child_stdout) = make()?;
        let (stderr, child_stderr) = make()?;
        let stdin = std::fs::File::open("/dev/null")?.into();
        let child = ChildEnds { stdin, stdout: child_stdout, stderr: child_stderr };
        Ok(Self { child, stdout, stderr })
    }
}

/// Bytes as the daemon compiled them: eight an instruction, in this machine's order.
fn read_filter(path: &Path) -> io::Result<Vec<libc::sock_filter>> {
    let bytes = std::fs::read(path)?;
    let instructions: Vec<libc::sock_filter> = bytes
        .chunks_exact(8)
        .map(|eight| libc::sock_filter {
            code: u16::from_ne_bytes([eight[0], eight[1]]),
            jt: eight[2],
            jf: eight[3],
            k: u32::from_ne_bytes([eight[4], eight[5], eight[6], eight[7]]),
        })
        .collect();
    if instructions.is_empty() || bytes.len() % 8 != 0 {
        return Err(io::Error::other(format!("{}: not a filter", path.display())));
    }
    Ok(instructions)
}

/// Waits for the pipe to be closed by exec (`None`) or to carry a failure.
fn read_failure(reader: OwnedFd) -> io::Result<Option<ExecFailure>> {
    let mut ready = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(EXEC_LIMIT).map_err(io::Error::other)?;
    if poll(&mut ready, timeout)? == 0 {
        return Err(io::Error::from(io::ErrorKind::TimedOut));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(reader).take(FAILURE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(ExecFailure::decode(&bytes))
}

pub(crate) fn set_nonblocking<F: AsFd>(fd: &F) -> io::Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: fcntl with numbers; `fd` is open for the call.
    let flags = unsafe { libc::fcntl(raw, libc::F_GETFL) };
    check(flags)?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(raw, libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

fn nix_pid<P: std::fmt::Display>(pid: P) -> i32 {
    // libcontainer uses another version of nix, whose Pid prints its number.
    pid.to_string().parse().unwrap_or(0)
}

fn base_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    for _ in 0..16 {
        let Some(source) = next else { break };
        let more = source.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Docker's code for a container that could not be started.
const EXIT_NOT_STARTED: i32 = 128;

/// From the start signal to the executed program: the steps between take milliseconds.
const EXEC_LIMIT: Duration = Duration::from_secs(30);

const FAILURE_BYTES_MAX: u64 = 16 * 1024;

const PIPE_BYTES: libc::c_int = 256 * 1024;
