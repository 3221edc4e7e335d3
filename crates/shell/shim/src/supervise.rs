//! The life of a shim.
//!
//! Owns: the one loop that moves output into files, answers daemons, reaps children, and records
//! how the container ended.
//! Does not know: how a container is made; see `container`.
//! Invariant: the exit record is on disk before anybody is told of the end, and the shim ends only
//! after that; a daemon that finds neither shim nor record knows that the shim was killed.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use crate::cgroup::Cgroups;
use crate::container::{self, Running, StartFailure, set_nonblocking};
use crate::files::{self, ExitRecord, FORMAT, StateRecord};
use crate::launch::Launch;
use crate::logfile::{LogWriter, Stream};
use crate::process::ProcessIdentity;
use crate::proto::{Decoder, Report, Request};
use crate::sys::prctl;
use crate::{Inherited, SHIMS_GROUP};

/// Runs the container in `dir` to its end; the result is the shim's own exit code.
pub(crate) fn run(dir: PathBuf, inherited: Inherited) -> i32 {
    let shim = match Shim::prepare(dir, inherited) {
        Ok(shim) => shim,
        Err(error) => {
            eprintln!("shoal shim: {error}");
            return 1;
        }
    };
    shim.run()
}

struct Shim {
    dir: PathBuf,
    launch: Launch,
    cgroups: Cgroups,
    signals: SignalFd,
    listener: UnixListener,
    clients: Vec<Client>,
    /// What a new connection is told after the greeting.
    latest: Option<Report>,
    _inherited_lock: OwnedFd,
}

/// The first process of the container, as it was when its program had been executed.
struct Started {
    pid: u32,
    at_ms: u64,
    identity: Result<ProcessIdentity, String>,
}

impl Started {
    fn observe(pid: i32) -> Self {
        let pid = pid as u32;
        let identity = ProcessIdentity::observe(pid).map_err(|error| error.to_string());
        Self { pid, at_ms: now_ns() / 1_000_000, identity }
    }

    fn report(&self) -> Report {
        let start_ticks = self.identity.as_ref().map_or(0, |identity| identity.start_ticks);
        Report::Started { pid: self.pid, start_ticks, at_ms: self.at_ms }
    }
}

/// A connected daemon.
struct Client {
    stream: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
}

impl Shim {
    fn prepare(dir: PathBuf, inherited: Inherited) -> io::Result<Self> {
        // Fails only for a process group leader, which has its own session already.
        let _ = setsid();
        let _ = crate::sys::set_name(c"shoal-shim");
        prctl(libc::PR_SET_CHILD_SUBREAPER, 1)?;
        ignore_stop_requests();
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let launch: Launch = files::read_record(&dir.join(files::LAUNCH))?
            .ok_or_else(|| io::Error::other("the launch record is missing"))?;
        let cgroups = Cgroups::detect()?;
        crate::rootfs::leave_mount_namespace()?;
        let listener = listen(&launch.run_dir)?;
        let mut shim = Self {
            dir,
            launch,
            cgroups,
            signals,
            listener,
            clients: Vec::new(),
            latest: None,
            _inherited_lock: inherited._lock,
        };
        shim.add_client(UnixStream::from(inherited.control));
        Ok(shim)
    }

    fn run(self) -> i32 {
        let log = LogWriter::open(
            &self.dir.join(files::LOG),
            self.launch.log_file_bytes,
            self.launch.log_files,
        );
        let started = log
            .map_err(|error| StartFailure::step("open the log file", &error))
            .and_then(|log| Ok((log, container::start(&self.dir, &self.launch, &self.cgroups)?)));
        // libcontainer gave this process the container's score.
        let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
        match started {
            Ok((log, running)) => self.supervise(running, log),
            Err(failure) => self.fail(&failure),
        }
    }

    /// Nothing runs: says so, leaves a record, cleans up.
    fn fail(mut self, failure: &StartFailure) -> i32 {
        self.record_exit(&ExitRecord {
            format: FORMAT,
            code: failure.code,
            oom: false,
            at_ms: now_ns() / 1_000_000,
            failure: Some(failure.message.clone()),
        });
        self.broadcast(Report::Failed {
            kind: failure.kind,
            code: failure.code,
            message: failure.message.clone(),
        });
        self.end()
    }

    fn supervise(mut self, running: Running, log: LogWriter) -> i32 {
        // First the news, which somebody waits for: the record only helps a later daemon, and one
        // that does not find it asks.
        let started = Started::observe(running.pid);
        self.broadcast(started.report());
        self.record_start(&started);
        self.leave_daemons_group();
        crate::sys::give_back_memory();
        let mut output = Output::new(running.stdout, running.stderr, log);
        let status = loop {
            self.turn(&mut output, PollTimeout::NONE);
            if let Some(status) = self.reap(running.pid) {
                break status;
            }
        };
        // Descendants may hold the pipes open for ever; what they print later is not waited for.
        let deadline = Instant::now() + DRAIN_LIMIT;
        while !output.is_closed() && Instant::now() < deadline {
            self.turn(&mut output, PollTimeout::from(DRAIN_POLL_MS));
        }
        output.drain();
        output.log.finish(now_ns());
        if output.log.dropped() > 0 {
            eprintln!("shoal shim: {} lines could not be written", output.log.dropped());
        }
        let oom = self.cgroups.oom_kills(&self.launch.cgroup) > 0;
        let at_ms = now_ns() / 1_000_000;
        self.record_exit(&ExitRecord { format: FORMAT, code: status, oom, at_ms, failure: None });
        self.broadcast(Report::Exited { code: status, oom, at_ms });
        self.end()
    }

    /// After the start, because the kernel takes some milliseconds for it.
    fn leave_daemons_group(&self) {
        if let Some(parent) = self.launch.cgroup.parent()
            && let Err(error) = self.cgroups.join_unified(&parent.join(SHIMS_GROUP))
        {
            eprintln!("shoal shim: leave the daemon's group: {error}");
        }
    }

    fn record_start(&self, started: &Started) {
        let shim = ProcessIdentity::observe(std::process::id());
        let written = started.identity.clone().map_err(io::Error::other).and_then(|container| {
            let record = StateRecord {
                format: FORMAT,
                container,
                shim: shim?,
                started_at_ms: started.at_ms,
            };
            files::write_record(&self.launch.run_dir.join(files::STATE), &record)
        });
        if let Err(error) = written {
            // A program that has ended at once cannot be observed; its exit record will say more.
            eprintln!("shoal shim: state record: {error}");
        }
    }

    /// On a full disk the run directory, usually memory, takes the record.
    fn record_exit(&self, record: &ExitRecord) {
        if let Err(error) = files::write_record(&self.dir.join(files::EXIT), record) {
            eprintln!("shoal shim: exit record: {error}");
            let fallback = self.launch.run_dir.join(files::EXIT);
            if let Err(error) = files::write_record(&fallback, record) {
                eprintln!("shoal shim: exit record: {error}");
            }
        }
    }

    /// Waits for one thing to happen and handles all that has.
    fn turn(&mut self, output: &mut Output, timeout: PollTimeout) {
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        for source in output.sources.iter().flatten() {
            fds.push(PollFd::new(source.0.as_fd(), PollFlags::POLLIN));
        }
        for client in &self.clients {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, !client.out.is_empty());
            fds.push(PollFd::new(client.stream.as_fd(), events));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => eprintln!("shoal shim: poll: {error}"),
        }
        drop(fds);
        while let Ok(Some(_)) = self.signals.read_signal() {}
        output.read_some();
        self.accept();
        self.serve_clients();
    }

    /// Reaps every child that has ended; the code of the container's first process, if it has.
    fn reap(&self, init: i32) -> Option<i32> {
        let mut code = None;
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid, status),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return code,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return code,
            };
            if pid.as_raw() == init {
                code = Some(status);
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() < CLIENTS_MAX {
                self.add_client(stream);
            }
        }
    }

    fn add_client(&mut self, stream: UnixStream) {
        if set_nonblocking(&stream).is_err() {
            return;
        }
        let mut out = Report::Hello { shim_pid: std::process::id() }.encode();
        if let Some(latest) = &self.latest {
            out.extend(latest.encode());
        }
        self.clients.push(Client { stream, decoder: Decoder::default(), out });
    }

    fn serve_clients(&mut self) {
        let mut clients = std::mem::take(&mut self.clients);
        clients.retain_mut(|client| {
            let alive = client.read(|request| self.perform(&request));
            alive && client.flush()
        });
        self.clients = clients;
    }

    fn perform(&self, request: &Request) {
        match request {
            Request::Signal(number) => {
                // Only a container that runs has anybody to signal, and its first process is not
                // reaped yet, so the number is still its own.
                if let Some(Report::Started { pid, .. }) = &self.latest
                    && let Ok(signal) = Signal::try_from(*number)
                {
                    let _ = kill(Pid::from_raw(*pid as i32), signal);
                } else if let Some(Report::Started { pid, .. }) = &self.latest {
                    send_realtime(*pid as i32, *number);
                }
            }
            Request::KillAll => {
                if let Some(Report::Started { pid, .. }) = &self.latest {
                    let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
                }
                // The kernel kills the rest of the pid namespace with its first process; this is
                // for a process that was moved out of it.
                for pid in self.cgroups.processes(&self.launch.cgroup) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
    }

    fn broadcast(&mut self, report: Report) {
        let bytes = report.encode();
        for client in &mut self.clients {
            client.out.extend(&bytes);
        }
        self.clients.retain_mut(Client::flush);
        self.latest = Some(report);
    }

    /// Hands out what is still to be told, removes what is left, and ends.
    fn end(mut self) -> i32 {
        let deadline = Instant::now() + FAREWELL_LIMIT;
        self.accept();
        while Instant::now() < deadline {
            self.clients.retain_mut(Client::flush);
            if self.clients.iter().all(|client| client.out.is_empty()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let group = &self.launch.cgroup;
        let cleaned = self.cgroups.kill(group, CLEAN_LIMIT).and_then(|()| {
            while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|s| s.pid().is_some()) {}
            self.cgroups.remove(group, CLEAN_LIMIT)
        });
        if let Err(error) = cleaned {
            eprintln!("shoal shim: remove the container's groups: {error}");
        }
        let _ = std::fs::remove_file(self.launch.run_dir.join(files::SOCKET));
        0
    }
}

impl Client {
    /// `false` when the daemon is gone or talks nonsense.
    fn read(&mut self, mut perform: impl FnMut(Request)) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            loop {
                match self.decoder.next_request() {
                    Ok(Some(request)) => perform(request),
                    Ok(None) => break,
                    Err(_) => return false,
                }
            }
        }
        true
    }

    /// `false` when the daemon is gone or has not read for a long time.
    fn flush(&mut self) -> bool {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(0) => return false,
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.out.len() <= CLIENT_BYTES_MAX
    }
}

/// The container's output on its way into the files.
struct Output {
    sources: [Option<(std::fs::File, Stream)>; 2],
    log: LogWriter,
    buffer: Vec<u8>,
}

impl Output {
    fn new(stdout: OwnedFd, stderr: OwnedFd, log: LogWriter) -> Self {
        let sources = [
            Some((std::fs::File::from(stdout), Stream::Stdout)),
            Some((std::fs::File::from(stderr), Stream::Stderr)),
        ];
        Self { sources, log, buffer: vec![0; READ_BYTES] }
    }

    fn is_closed(&self) -> bool {
        self.sources.iter().all(Option::is_none)
    }

    /// One read of each pipe, so that neither starves the other or the daemons.
    fn read_some(&mut self) -> bool {
        let mut read = false;
        for source in &mut self.sources {
            let Some((file, stream)) = source else { continue };
            match file.read(&mut self.buffer) {
                Ok(0) => *source = None,
                Ok(count) => {
                    self.log.push(*stream, &self.buffer[..count], now_ns());
                    read = true;
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => *source = None,
            }
        }
        read
    }

    /// What is in the pipes now; bounded, for somebody may go on writing.
    fn drain(&mut self) {
        for _ in 0..DRAIN_READS_MAX {
            if !self.read_some() {
                return;
            }
        }
    }
}

/// Binds through the directory's descriptor: a socket's path has room for 107 bytes only.
fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    use std::os::fd::AsRawFd;
    let dir = std::fs::File::open(run_dir)?;
    let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), files::SOCKET);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A shim ends with its container; a stop of the daemon's service must not take it along.
fn ignore_stop_requests() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGPIPE] {
        // SAFETY: sets an action that runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Real-time signals have no name in nix.
fn send_realtime(pid: i32, number: i32) {
    if (1..=64).contains(&number) {
        // SAFETY: kill takes two numbers.
        unsafe { libc::kill(pid, number) };
    }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The kernel should end almost anything before the process that keeps the exit status.
const OOM_SCORE: &str = "-999";

/// How long output is waited for after the container's first process has ended.
const DRAIN_LIMIT: Duration = Duration::from_millis(100);
const DRAIN_POLL_MS: u8 = 20;

/// 16 MiB: far more than two pipes hold.
const DRAIN_READS_MAX: usize = 256;

const READ_BYTES: usize = 64 * 1024;

/// Connected daemons: one, two while one takes over, and a few for a human with a tool.
const CLIENTS_MAX: usize = 16;

/// A daemon that lets this much pile up is not reading.
const CLIENT_BYTES_MAX: usize = 256 * 1024;

/// For a daemon that is slow to read the last report.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// For the container's last processes and its groups to go.
const CLEAN_LIMIT: Duration = Duration::from_secs(10);
