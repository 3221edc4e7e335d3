//! What really runs on hosts, seen from outside: processes in the control groups of tasks.
//!
//! Owns: listing them, and writing down over time which tasks ran where.
//! Does not know: what the cluster says about it; a test compares the two.
//! Invariant: nothing is asked of a daemon, so that one that hangs or lies hides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::host::Host;

/// The tasks whose containers have a process on the host, by their full ids.
///
/// # Errors
/// When the host's daemon never began, so that its groups have no name, or the kernel does not say
/// what runs.
pub fn containers(host: &Host) -> Result<BTreeSet<String>> {
    let path = host.data_dir().join("instance");
    let instance = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies()? {
        let group = hierarchy.join("shoal").join(instance.trim());
        for entry in folders(&group)? {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // The shims' own group stands beside those of the tasks.
            if name.len() == TASK_ID_CHARACTERS && has_process(&entry)? {
                found.insert(name);
            }
        }
    }
    Ok(found)
}

/// All roots of control groups: one with version 2, one for each controller with version 1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    let mut roots = folders(root)?;
    roots.push(root.to_path_buf());
    Ok(roots)
}

/// Whether a process is in the group or in one below it, which a container may make itself.
fn has_process(group: &Path) -> Result<bool> {
    let path = group.join("cgroup.procs");
    let own = still_there(fs::read_to_string(&path)).with_context(|| path.display().to_string())?;
    if own.is_some_and(|own| !own.trim().is_empty()) {
        return Ok(true);
    }
    for below in folders(group)? {
        if has_process(&below)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The folders in a folder; none when it is gone.
fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = still_there(fs::read_dir(path)).with_context(|| path.display().to_string())?;
    for entry in entries.into_iter().flatten() {
        let Some(entry) = still_there(entry)? else { break };
        if still_there(entry.file_type())?.is_some_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A group may go away while it is looked at.
fn still_there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(NO_SUCH_DEVICE) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The tasks that ran on each host at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    pub at: Instant,
    pub tasks: BTreeMap<String, BTreeSet<String>>,
}

impl Sample {
    fn take(hosts: &[Host]) -> Result<Self> {
        let at = Instant::now();
        let tasks = hosts.iter().map(|host| Ok((host.name().to_owned(), containers(host)?)));
        Ok(Self { at, tasks: tasks.collect::<Result<_>>()? })
    }

    /// The slots that run more than once, with the hosts of their copies.
    #[must_use]
    pub fn doubled(&self, slots: &BTreeMap<String, String>) -> BTreeMap<String, Vec<String>> {
        let mut copies: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (host, tasks) in &self.tasks {
            for task in tasks {
                let slot = slots.get(task).unwrap_or(task);
                copies.entry(slot.clone()).or_default().push(host.clone());
            }
        }
        copies.retain(|_, hosts| hosts.len() > 1);
        copies
    }
}

/// Writes down what runs on the hosts, all along, while `act` does something to them.
///
/// # Errors
/// When the hosts cannot be looked at, or `act` fails.
pub fn watched<T>(hosts: &[Host], act: impl FnOnce() -> Result<T>) -> Result<(Vec<Sample>, T)> {
    let ended = AtomicBool::new(false);
    let (samples, acted) = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut samples = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                samples.push(Sample::take(hosts)?);
                thread::sleep(PERIOD);
            }
            Ok::<_, anyhow::Error>(samples)
        });
        let acted = act();
        ended.store(true, Ordering::Relaxed);
        (watcher.join(), acted)
    });
    let samples = samples.map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
    Ok((samples, acted?))
}

/// Shorter than anything starts and stops.
const PERIOD: Duration = Duration::from_millis(20);
const TASK_ID_CHARACTERS: usize = 25;
/// What reading a file of a group that was just removed gives (ENODEV).
const NO_SUCH_DEVICE: i32 = 19;
