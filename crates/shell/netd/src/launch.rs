//! Starting netd.
//!
//! Owns: the command, and waiting until it can be talked to.
//! Does not know: what is said then.
//! Invariant: netd is no part of the daemon's session and holds none of its descriptors.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Name of the control socket in the run directory.
pub(crate) const SOCKET: &str = "netd.sock";
/// What netd writes when it listens.
pub(crate) const READY: &[u8] = b"ready\n";

/// Starts netd and returns when it listens.
pub(crate) async fn start(executable: &Path, dir: &Path, build: &str) -> io::Result<()> {
    let log = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(dir.join(LOG))?;
    let mut child = Command::new(executable)
        .arg(crate::SUBCOMMAND)
        .arg(dir)
        .arg(build)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let Some(mut output) = child.stdout.take() else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let mut said = [0; READY.len()];
    match timeout(START_TIME, output.read_exact(&mut said)).await {
        // The runtime reaps it when it ends.
        Ok(Ok(_)) if said == READY => Ok(()),
        Ok(_) => {
            let reason = std::fs::read_to_string(dir.join(LOG)).unwrap_or_default();
            Err(io::Error::other(format!("netd ended at once: {}", reason.trim())))
        }
        Err(_) => {
            // It may have ended in this moment.
            let _ = child.start_kill();
            Err(io::Error::new(io::ErrorKind::TimedOut, "netd does not begin"))
        }
    }
}

const LOG: &str = "netd.log";
const START_TIME: Duration = Duration::from_secs(20);
