//! Files that a daemon and a shim leave for each other.
//!
//! Owns: names inside a container's two directories and the atomic way to write them.
//! Does not know: what the records mean to the cluster.
//! Invariant: a record is either absent or whole: written beside its name, synced, renamed, and the
//! directory synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::process::ProcessIdentity;

/// Instructions of the daemon for the shim, in the container's directory.
pub const LAUNCH: &str = "launch.json";
/// The OCI configuration as the daemon wants it, before the user is looked up in the image.
pub const SPEC: &str = "spec.json";
/// The OCI configuration as it is run; the name is the OCI bundle's.
pub const CONFIG: &str = "config.json";
/// How the container ended, in the container's directory: it outlives a reboot.
pub const EXIT: &str = "exit.json";
/// The shim's own complaints.
pub const SHIM_LOG: &str = "shim.log";
/// Mount point of the root filesystem, in the shim's mount namespace only.
pub const ROOTFS: &str = "rootfs";
/// Output of the container; older files have `.1`, `.2`… appended.
pub const LOG: &str = "output.log";

/// The running container, in its run directory: gone after a reboot.
pub const STATE: &str = "state.json";
/// Locked for as long as the shim lives.
pub const LOCK: &str = "lock";
/// Where the shim listens.
pub const SOCKET: &str = "shim.sock";
/// State of libcontainer.
pub const OCI_STATE: &str = "oci";

/// Format of the records below; readers accept their own and all older ones.
pub const FORMAT: u32 = 1;

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    pub format: u32,
    pub container: ProcessIdentity,
    pub shim: ProcessIdentity,
    pub started_at_ms: u64,
}

/// A container that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub format: u32,
    /// 128 + n when ended by signal n.
    pub code: i32,
    pub oom: bool,
    pub at_ms: u64,
    /// Why the program never ran, when it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Writes `value` as JSON so that after a crash the file is the old one, the new one or absent.
pub fn write_record<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    write_atomic(path, &bytes)
}

/// The record, or `None` when there is none.
pub fn read_record<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes, syncs, renames, and syncs the directory.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::other("path without a directory"))?;
    let beside = beside(path);
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(parent)?.sync_all()
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Launch;

    fn process(pid: u32) -> ProcessIdentity {
        ProcessIdentity { boot_id: "b0".into(), pid, start_ticks: 4_711 }
    }

    fn check<T: DeserializeOwned + PartialEq + std::fmt::Debug>(text: &str, expected: &T) {
        let dir = std::env::temp_dir();
        let path = dir.join(format!("shoal-record-{}-{}", std::process::id(), text.len()));
        fs::write(&path, text).unwrap();
        let read = read_record::<T>(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap().as_ref(), Some(expected), "{text}");
    }

    /// Records as the first release wrote them: a shim lives as long as its container, so an old
    /// one leaves them to a new daemon. Never change a text; add new ones.
    #[test]
    fn recorded_records_of_format_1_are_read() {
        let state = StateRecord {
            format: 1,
            container: process(7),
            shim: process(6),
            started_at_ms: 1_767_225_600_000,
        };
        check(
            concat!(
                r#"{"format":1,"container":{"boot_id":"b0","pid":7,"start_ticks":4711},"#,
                r#""shim":{"boot_id":"b0","pid":6,"start_ticks":4711},"#,
                r#""started_at_ms":1767225600000}"#,
            ),
            &state,
        );
        let exit =
            ExitRecord { format: 1, code: 137, oom: true, at_ms: 1_767_225_600_001, failure: None };
        check(r#"{"format":1,"code":137,"oom":true,"at_ms":1767225600001}"#, &exit);
        let failed =
            ExitRecord { code: 127, oom: false, failure: Some("exec: \"x\"".into()), ..exit };
        check(
            r#"{"format":1,"code":127,"oom":false,"at_ms":1767225600001,"failure":"exec: \"x\""}"#,
            &failed,
        );
    }

    /// The other way: what a daemon of the first release told its shim.
    #[test]
    fn a_recorded_launch_of_format_1_is_read() {
        let launch = Launch {
            format: 1,
            id: "t1".into(),
            run_dir: "/run/shoal/containers/t1".into(),
            cgroup: "/shoal/i0/t1".into(),
            layers_dir: "/var/lib/shoal/layers".into(),
            layers: vec!["l/00".into(), "l/11".into()],
            seccomp: "/run/shoal/seccomp/x.bpf".into(),
            capabilities: 2_818_844_155,
            user: "app".into(),
            groups: vec!["44".into()],
            log_file_bytes: 10_485_760,
            log_files: 5,
        };
        check(
            concat!(
                r#"{"format":1,"id":"t1","run_dir":"/run/shoal/containers/t1","#,
                r#""cgroup":"/shoal/i0/t1","layers_dir":"/var/lib/shoal/layers","#,
                r#""layers":["l/00","l/11"],"seccomp":"/run/shoal/seccomp/x.bpf","#,
                r#""capabilities":2818844155,"user":"app","groups":["44"],"#,
                r#""log_file_bytes":10485760,"log_files":5}"#,
            ),
            &launch,
        );
    }

    #[test]
    fn a_later_release_may_add_fields() {
        let text = r#"{"format":1,"code":0,"oom":false,"at_ms":5,"signal":"none"}"#;
        let exit = ExitRecord { format: 1, code: 0, oom: false, at_ms: 5, failure: None };
        check(text, &exit);
    }
}
