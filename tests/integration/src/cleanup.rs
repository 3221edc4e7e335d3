//! Removing what a test leaves: processes, cgroups, mounts, namespaces.
//!
//! Owns: finding them by the folder of the test, which stands in command lines and mounts.
//! Does not know: which test it was.
//! Invariant: nothing is touched that does not carry the folder's or the namespace's name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::tool;
use crate::wait::{SHORT, wait_until};

/// Kills the processes and unmounts the mounts of `folder`; gives up on nothing.
pub(crate) fn everything_below(folder: &Path) {
    let mut cgroups = BTreeSet::new();
    let ended = wait_until("the end of all processes", SHORT, || {
        let pids = processes_of(folder);
        for pid in &pids {
            cgroups.extend(cgroups_of(*pid));
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        Ok(pids.is_empty())
    });
    if let Err(error) = ended {
        eprintln!("cleanup: {error:#}");
    }
    for mount in mounts_below(folder) {
        if let Err(error) = umount2(&mount, MntFlags::MNT_DETACH) {
            eprintln!("cleanup: cannot unmount {}: {error}", mount.display());
        }
    }
    for cgroup in cgroups {
        remove_cgroup(&cgroup);
    }
    for id in instances(folder) {
        let pattern = format!("*/shoal/{id}*");
        let find = ["/sys/fs/cgroup", "-depth", "-type", "d", "-path", &pattern];
        // A cgroup that is in use stays and is reported by whoever uses it.
        drop(tool("find", &[&find[..], &["-exec", "rmdir", "{}", ";"]].concat()));
    }
}

/// Ids of the daemons that kept their data below `folder`: their cgroups carry them.
fn instances(folder: &Path) -> Vec<String> {
    let hosts = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    hosts
        .chain([folder.to_path_buf()])
        .filter_map(|host| fs::read_to_string(host.join("data/instance")).ok())
        .map(|id| id.trim().to_owned())
        .filter(|id| id.len() >= 6 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        .collect()
}

/// Processes whose command line names `folder`, and all that descend from them.
pub(crate) fn processes_of(folder: &Path) -> Vec<i32> {
    let needle = folder.to_string_lossy().into_owned();
    let mut parents = Vec::new();
    let mut found = BTreeSet::new();
    for pid in pids() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if pid != std::process::id() as i32 && String::from_utf8_lossy(&line).contains(&needle) {
            found.insert(pid);
        }
        parents.push((pid, parent_of(pid)));
    }
    let mut grown = true;
    while grown {
        let before = found.len();
        let children = parents.iter().filter(|(_, parent)| found.contains(parent));
        let children: Vec<i32> = children.map(|(pid, _)| *pid).collect();
        found.extend(children);
        grown = found.len() > before;
    }
    found.into_iter().collect()
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
}

fn parent_of(pid: i32) -> i32 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold anything; the state and the parent follow it.
    let rest = text.rsplit(')').next().unwrap_or_default();
    rest.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Folders of the cgroups of a process that are Shoal's.
pub(crate) fn cgroups_of(pid: i32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if !path.contains("shoal") {
            continue;
        }
        let relative = path.trim_start_matches('/');
        let named = controllers.strip_prefix("name=").unwrap_or(controllers);
        for root in [named, "unified", ""] {
            found.push(Path::new("/sys/fs/cgroup").join(root).join(relative));
        }
    }
    found
}

/// Removes an empty cgroup and the empty ones above it that are Shoal's.
fn remove_cgroup(path: &Path) {
    let mut path = path.to_path_buf();
    while path.to_string_lossy().contains("shoal") && fs::remove_dir(&path).is_ok() {
        path.pop();
    }
}

/// Mount points below `folder`, the innermost first.
pub(crate) fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut found: Vec<PathBuf> =
        points.filter(|point| point.starts_with(folder) && point != folder).collect();
    found.sort();
    found.reverse();
    found
}

pub(crate) fn namespace(name: &str) {
    if let Err(error) = tool("ip", &["netns", "del", name]) {
        eprintln!("cleanup: {error:#}");
    }
}
