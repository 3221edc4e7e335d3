//! The control groups of one container, on cgroup v1, hybrid and v2.
//!
//! Owns: where a container's groups are, its out-of-memory count, killing and removing it.
//! Does not know: limits; libcontainer writes them when the container is made.
//! Invariant: only the given path and what lies below it is ever touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;

/// The hierarchies of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    root: PathBuf,
    unified: bool,
}

impl Cgroups {
    /// Looks at `/sys/fs/cgroup`; an error when no hierarchy is mounted there.
    pub fn detect() -> io::Result<Self> {
        let root = PathBuf::from(ROOT);
        let unified = statfs(&root)?.filesystem_type() == CGROUP2_SUPER_MAGIC;
        if !unified && !root.join("memory").is_dir() {
            return Err(io::Error::other(format!("{ROOT}: no cgroup hierarchy is mounted")));
        }
        Ok(Self { root, unified })
    }

    /// Pure cgroup v2.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.unified
    }

    /// Directories of the group `path` that exist, one a hierarchy.
    #[must_use]
    pub fn dirs(&self, path: &Path) -> Vec<PathBuf> {
        let below = path.strip_prefix("/").unwrap_or(path);
        if self.unified {
            let dir = self.root.join(below);
            return if dir.is_dir() { vec![dir] } else { Vec::new() };
        }
        let Ok(hierarchies) = fs::read_dir(&self.root) else { return Vec::new() };
        let mut dirs: Vec<PathBuf> = hierarchies
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path().join(below))
            .filter(|dir| dir.is_dir())
            .collect();
        dirs.sort();
        dirs
    }

    /// How many processes of the group the kernel killed for want of memory; zero when the group
    /// is gone.
    #[must_use]
    pub fn oom_kills(&self, path: &Path) -> u64 {
        let below = path.strip_prefix("/").unwrap_or(path);
        let file = if self.unified {
            self.root.join(below).join("memory.events")
        } else {
            self.root.join("memory").join(below).join("memory.oom_control")
        };
        fs::read_to_string(file).map_or(0, |text| parse_counter(&text, "oom_kill"))
    }

    /// Every process of the group and of groups below it.
    #[must_use]
    pub fn processes(&self, path: &Path) -> Vec<i32> {
        let mut pids: Vec<i32> = Vec::new();
        for dir in self.dirs(path) {
            collect_processes(&dir, DEPTH_MAX, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills every process of the group; new ones are looked for until there are none or `limit`
    /// has passed. A group that is not there has none.
    pub fn kill(&self, path: &Path, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if self.unified {
                for dir in self.dirs(path) {
                    // Kernels before 5.14 have no such file; the loop below does it then.
                    let _ = fs::write(dir.join("cgroup.kill"), "1");
                }
            }
            let pids = self.processes(path);
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::Error::other(format!(
                    "{}: {} processes do not die",
                    path.display(),
                    pids.len()
                )));
            }
            for pid in pids {
                // It may be gone already.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Removes the group in every hierarchy. The kernel may need a moment after the last process.
    pub fn remove(&self, path: &Path, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let mut last = None;
            for dir in self.dirs(path) {
                if let Err(error) = remove_tree(&dir, DEPTH_MAX) {
                    last = Some(io::Error::other(format!("{}: {error}", dir.display())));
                }
            }
            match last {
                None => return Ok(()),
                Some(error) if Instant::now() >= deadline => return Err(error),
                Some(_) => std::thread::sleep(RETRY),
            }
        }
    }

    /// Removes the group in every hierarchy if it holds neither a process nor another group; one
    /// that is in use stays, and is not an error. `true` when nothing of it is left.
    pub fn remove_unused(&self, path: &Path) -> bool {
        let mut gone = true;
        for dir in self.dirs(path) {
            gone &= match fs::remove_dir(dir) {
                Ok(()) => true,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
        }
        gone
    }

    /// Makes moves between groups fast for the next moments. The first move after a pause waits in
    /// the kernel for all processors to pass a quiet state, about ten milliseconds; those that
    /// follow do not. Whoever is about to make a container can let that pass meanwhile: this moves
    /// the calling process into the group that it is in. Blocks as long.
    pub fn expect_moves(&self) -> io::Result<()> {
        let text = fs::read_to_string("/proc/self/cgroup")?;
        let mount = if self.unified { self.root.clone() } else { self.root.join("unified") };
        let own = parse_unified(&text).filter(|own| !own.starts_with("/.."));
        let procs = own.map(|own| mount.join(own.trim_start_matches('/')).join("cgroup.procs"));
        match procs.filter(|procs| procs.exists()) {
            Some(procs) => fs::write(procs, "0"),
            // Hierarchies of v1 alone: the move takes as long as it takes.
            None => Ok(()),
        }
    }

    /// Moves the calling process into `path` of the v2 hierarchy, where there is one (pure or
    /// hybrid), so that whoever stops the daemon's own group does not stop this process.
    pub fn join_unified(&self, path: &Path) -> io::Result<()> {
        let mount = if self.unified { self.root.clone() } else { self.root.join("unified") };
        if !mount.join("cgroup.procs").exists() {
            return Ok(());
        }
        let dir = mount.join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("cgroup.procs"), "0")
    }
}

fn collect_processes(dir: &Path, depth: u32, pids: &mut Vec<i32>) {
    if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|p| *p > 0));
    }
    for child in children(dir, depth) {
        collect_processes(&child, depth - 1, pids);
    }
}

fn remove_tree(dir: &Path, depth: u32) -> io::Result<()> {
    for child in children(dir, depth) {
        remove_tree(&child, depth - 1)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn children(dir: &Path, depth: u32) -> Vec<PathBuf> {
    if depth == 0 {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The group of the v2 hierarchy in `/proc/PID/cgroup`.
fn parse_unified(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The number behind `name` on a line of its own.
fn parse_counter(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

const ROOT: &str = "/sys/fs/cgroup";

/// Pause between two looks at a group that is about to be empty.
const RETRY: Duration = Duration::from_millis(2);

/// Groups nested deeper than this are not ours to walk: a container that may write its groups
/// could otherwise make the walk long.
const DEPTH_MAX: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        let v2 = "low 0\nhigh 0\nmax 41\noom 2\noom_kill 1\noom_group_kill 7\n";
        for (text, count) in [(v1, 3), (v2, 1), ("", 0), ("oom_kill x", 0)] {
            assert_eq!(parse_counter(text, "oom_kill"), count, "{text:?}");
        }
    }

    #[test]
    fn expecting_moves_moves_nothing() {
        let cgroups = Cgroups::detect().unwrap();
        let before = fs::read_to_string("/proc/self/cgroup").unwrap();
        cgroups.expect_moves().unwrap();
        assert_eq!(fs::read_to_string("/proc/self/cgroup").unwrap(), before);
        assert_eq!(parse_unified("5:pids:/a\n0::/b/c\n"), Some("/b/c"));
        assert_eq!(parse_unified("5:pids:/a\n"), None);
    }

    #[test]
    fn only_unused_groups_are_removed() {
        let cgroups = Cgroups::detect().unwrap();
        let name = format!("/shoal-test-unused-{}", std::process::id());
        let (top, inner) = (Path::new(&name), PathBuf::from(format!("{name}/inner")));
        let base = if cgroups.unified { cgroups.root.clone() } else { cgroups.root.join("pids") };
        fs::create_dir_all(base.join(inner.strip_prefix("/").unwrap())).unwrap();
        assert!(!cgroups.remove_unused(top), "there is a group inside");
        assert!(cgroups.remove_unused(&inner) && cgroups.remove_unused(top));
        assert!(cgroups.dirs(top).is_empty());
        assert!(cgroups.remove_unused(top), "what is not there is not left");
    }

    #[test]
    fn processes_are_killed_and_the_group_is_removed() {
        let cgroups = Cgroups::detect().unwrap();
        let name = format!("/shoal-test-{}/deep/er", std::process::id());
        let path = Path::new(&name);
        let top = Path::new(name.split_at(name.find("/deep").unwrap()).0);
        let base = if cgroups.unified { cgroups.root.clone() } else { cgroups.root.join("pids") };
        let dir = base.join(path.strip_prefix("/").unwrap());
        fs::create_dir_all(&dir).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert_eq!(cgroups.processes(top), vec![child.id() as i32]);

        // The parent is this test, so the child stays a zombie until it is waited for, and a
        // zombie still counts on v1.
        let waiter = std::thread::spawn(move || child.wait().unwrap());
        cgroups.kill(top, Duration::from_secs(10)).unwrap();
        assert!(!waiter.join().unwrap().success());
        cgroups.remove(top, Duration::from_secs(10)).unwrap();
        assert!(cgroups.dirs(top).is_empty());
        cgroups.kill(top, Duration::ZERO).unwrap();
        cgroups.remove(top, Duration::ZERO).unwrap();
    }
}
