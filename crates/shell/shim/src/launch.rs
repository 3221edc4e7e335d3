//! What a shim is told to do.
//!
//! Owns: the launch record, written by the daemon and read once by the shim.
//! Does not know: how any of it is done.
//! Invariant: additions only; a field that an older daemon did not write has a default.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One container, ready to be started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    pub format: u32,
    pub id: String,
    /// Run directory of this container: lock, socket, state.
    pub run_dir: PathBuf,
    /// Path below each cgroup hierarchy's root, with a leading slash.
    pub cgroup: PathBuf,
    /// Where the short links to the layers are; the shim goes there to keep the mount data short.
    pub layers_dir: PathBuf,
    /// Layers relative to `layers_dir`, lowest first.
    pub layers: Vec<String>,
    /// Compiled system call filter.
    pub seccomp: PathBuf,
    /// Bit set of the capabilities the container may have.
    pub capabilities: u64,
    /// `name|uid[:group|gid]`; empty is root.
    #[serde(default)]
    pub user: String,
    /// Supplementary groups, names or numbers.
    #[serde(default)]
    pub groups: Vec<String>,
    pub log_file_bytes: u64,
    pub log_files: u32,
}
