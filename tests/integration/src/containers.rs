//! What really runs on hosts, seen from outside: processes in the control groups of tasks.
//!
//! Owns: listing them, and writing down over time which tasks ran where.
//! Does not know: what the cluster says about it; a test compares the two.
//! Invariant: nothing is asked of a daemon, so that one that hangs or lies hides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::host::Host;

/// The tasks whose containers have a process on the host, by their full ids.
///
/// # Errors
/// When the host's daemon never began, so that its groups have no name.
pub fn containers(host: &Host) -> Result<BTreeSet<String>> {
    let path = host.data_dir().join("instance");
    let instance = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies() {
        let group = hierarchy.join("shoal").join(instance.trim());
        for entry in fs::read_dir(group).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // The shims' own group stands beside those of the tasks.
            if name.len() == TASK_ID_CHARACTERS && has_process(&entry.path()) {
                found.insert(name);
            }
        }
    }
    Ok(found)
}

/// All roots of control groups: one with version 2, one for each controller with version 1.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir()).chain([root.to_path_buf()]).collect()
}

/// Whether a process is in the group or in one below it, which a container may make itself.
fn has_process(group: &Path) -> bool {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    !own.trim().is_empty()
        || below
            .filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()))
            .any(|e| has_process(&e.path()))
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
