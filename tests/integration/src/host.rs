//! One host: its namespace, its daemon, and what can be done to them.
//!
//! Owns: starting and ending the daemon, running `shoal` against it, cutting its link.
//! Does not know: the other hosts.
//! Invariant: the daemon runs in the host's network namespace and keeps everything in its folder.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{Answer, run, tool};
use crate::lab::program;
use crate::wait::{SHORT, wait_until};

pub struct Host {
    name: String,
    namespace: String,
    address: String,
    folder: PathBuf,
    /// Namespace and name of its link's other end.
    port: (String, String),
    daemon: Mutex<Option<Child>>,
    /// What goes before the daemon's command line, such as `faketime -f +2h`.
    prefix: Mutex<Vec<String>>,
    /// Options of the daemon beyond those that every one has.
    options: Mutex<Vec<String>>,
    /// Another build than the one that is tested.
    build: Mutex<Option<PathBuf>>,
}

impl Host {
    pub(crate) fn new(
        name: String,
        namespace: String,
        address: String,
        folder: PathBuf,
        port: (String, String),
    ) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self {
            name,
            namespace,
            address,
            folder,
            port,
            daemon: Mutex::new(None),
            prefix: Mutex::new(Vec::new()),
            options: Mutex::new(Vec::new()),
            build: Mutex::new(None),
        })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("shoal.sock")
    }

    /// Starts the daemon and waits until its socket answers.
    ///
    /// # Errors
    /// When it runs already, cannot be started or does not answer.
    pub fn start(&self) -> Result<()> {
        self.spawn()?;
        wait_until(&format!("the daemon of {}", self.name), SHORT, || {
            if let Some(status) = self.ended()? {
                bail!("the daemon ended with {status}: {}", self.log_tail(20));
            }
            self.shoal(&["version"])?.ok().map(|_| true)
        })
    }

    /// Starts the daemon without waiting for it.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn spawn(&self) -> Result<()> {
        let mut daemon = self.lock();
        if let Some(child) = daemon.as_mut()
            && child.try_wait()?.is_none()
        {
            bail!("the daemon of {} runs already", self.name);
        }
        let other = self.build.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shoal = match other {
            Some(other) => other,
            None => program("shoal", "SHOAL_BIN", false)?,
        };
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        // `ip netns exec` would remount /sys and hide the cgroups.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace));
        command.args(self.prefix.lock().unwrap_or_else(PoisonError::into_inner).iter());
        command.arg(shoal).args(["daemon", "--hostname", &self.name, "--log-level", LOG_LEVEL]);
        command.arg("--data-dir").arg(self.data_dir()).arg("--run-dir").arg(self.run_dir());
        command.args(self.options.lock().unwrap_or_else(PoisonError::into_inner).iter());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        *daemon = Some(command.spawn().context("cannot start nsenter")?);
        Ok(())
    }

    /// The next start puts these words before the daemon's command line.
    pub fn start_under(&self, words: &[&str]) {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        *self.prefix.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }

    /// The next start has these options, too.
    pub fn start_with(&self, options: &[&str]) {
        let options = options.iter().map(|word| (*word).to_owned()).collect();
        *self.options.lock().unwrap_or_else(PoisonError::into_inner) = options;
    }

    /// The next start is of another build: the same program, changed where nothing is read.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn start_another_build(&self) -> Result<()> {
        let copy = self.folder.join("shoal");
        fs::copy(program("shoal", "SHOAL_BIN", false)?, &copy)?;
        OpenOptions::new().append(true).open(&copy)?.write_all(b"another build")?;
        *self.build.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy);
        Ok(())
    }

    /// The process that keeps names while the daemon is away.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn netd(&self) -> Result<Pid> {
        let dir = self.run_dir();
        let is_it = |line: &[u8]| {
            let mut words = line.split(|byte| *byte == 0).skip(1);
            words.next() == Some(b"netd")
                && words.next().is_some_and(|word| word.starts_with(dir.as_os_str().as_bytes()))
        };
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            if fs::read(entry.path().join("cmdline")).is_ok_and(|line| is_it(&line)) {
                found.push(Pid::from_raw(pid));
            }
        }
        match found[..] {
            [pid] => Ok(pid),
            _ => bail!("{} processes keep the names of {}", found.len(), self.name),
        }
    }

    /// kill -9 of that process, and waits until it has ended. A daemon that runs starts another.
    ///
    /// # Errors
    /// When there is none, or it does not end in time.
    pub fn kill_netd(&self) -> Result<()> {
        let pid = self.netd()?;
        kill(pid, Signal::SIGKILL)?;
        wait_until("the end of netd", SHORT, || Ok(self.netd().map_or(true, |now| now != pid)))
    }

    /// How the daemon ended, when it did.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn ended(&self) -> Result<Option<String>> {
        match self.lock().as_mut() {
            Some(child) => Ok(child.try_wait()?.map(|status| status.to_string())),
            None => Ok(Some("nothing: it was not started".to_owned())),
        }
    }

    /// kill -9.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self) -> Result<()> {
        let mut daemon = self.lock();
        let mut child = daemon.take().context("the daemon does not run")?;
        kill(daemon_pid(&child)?, Signal::SIGKILL)?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits until it has ended.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        wait_until("the daemon's end", SHORT, || Ok(self.ended()?.is_some()))?;
        self.lock().take();
        Ok(())
    }

    /// SIGSTOP: it hangs, with all its connections open.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// The daemon's number of open files, and the bytes of its memory that are resident.
    ///
    /// # Errors
    /// When it does not run.
    pub fn usage(&self) -> Result<Usage> {
        let pid = daemon_pid(self.lock().as_ref().context("the daemon does not run")?)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|text| text.split_whitespace().next());
        let kib: u64 = kib.context("the daemon has ended")?.parse()?;
        Ok(Usage { files: fs::read_dir(format!("/proc/{pid}/fd"))?.count(), bytes: kib * 1024 })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let daemon = self.lock();
        let child = daemon.as_ref().context("the daemon does not run")?;
        kill(daemon_pid(child)?, signal)?;
        Ok(())
    }

    /// Cuts its link to the others.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn cut(&self) -> Result<()> {
        let (switch, port) = (&self.port.0, &self.port.1);
        tool("ip", &["-n", switch, "link", "set", port, "down"]).map(drop)
    }

    /// Mends its link.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn mend(&self) -> Result<()> {
        let (switch, port) = (&self.port.0, &self.port.1);
        tool("ip", &["-n", switch, "link", "set", port, "up"]).map(drop)
    }

    /// Lets its link carry packets of so many bytes; larger ones vanish on the way.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn narrow(&self, mtu: u32) -> Result<()> {
        let (switch, port) = (&self.port.0, &self.port.1);
        tool("ip", &["-n", switch, "link", "set", port, "mtu", &mtu.to_string()]).map(drop)
    }

    /// Runs `shoal` against this host's daemon.
    ///
    /// # Errors
    /// When it cannot be run or does not end in time.
    pub fn shoal(&self, args: &[&str]) -> Result<Answer> {
        let shoal = program("shoal", "SHOAL_BIN", false)?;
        let url = format!("unix://{}", self.socket().display());
        run(Command::new(shoal).arg("-H").arg(url).args(args), COMMAND_LIMIT)
    }

    /// Runs a program in the host's network namespace.
    ///
    /// # Errors
    /// When it fails.
    pub fn inside(&self, program: &str, args: &[&str]) -> Result<Answer> {
        let net = format!("--net=/run/netns/{}", self.namespace);
        run(Command::new("nsenter").arg(net).arg(program).args(args), COMMAND_LIMIT)
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self, count: usize) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// The daemon's log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Empties the host: as a machine whose disk was replaced.
    ///
    /// # Errors
    /// When its files cannot be removed.
    pub fn wipe(&self) -> Result<()> {
        crate::cleanup::everything_below(&self.folder);
        for folder in [self.data_dir(), self.run_dir()] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
        }
        File::create(self.log_path())?;
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends the daemon however it is.
    pub(crate) fn kill_quietly(&self) {
        if let Some(mut child) = self.lock().take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The daemon itself: what goes before its command line may stay above it and wait, as faketime.
fn daemon_pid(started: &Child) -> Result<Pid> {
    let pid = started.id();
    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    if !line.starts_with(b"faketime") {
        return Ok(Pid::from_raw(i32::try_from(pid)?));
    }
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let child = children.split_whitespace().next().context("faketime has not started it yet")?;
    Ok(Pid::from_raw(child.parse()?))
}

/// What a daemon uses of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub files: usize,
    pub bytes: u64,
}

/// A command that waits for a service may take as long as the longest wait of a test.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);
/// Raft and HTTP tell each of their steps, thousands a second.
const LOG_LEVEL: &str = "debug,openraft=warn,h2=info,hyper_util=info,tower=info,rustls=info";
