//! What a service must not leave behind on a host.
//!
//! Owns: counting processes, mounts and links, and finding cgroups. Does not know: services.
//! Invariant: what is there before the first task is the measure, so a bridge that the daemon keeps
//! is not taken for a leftover.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;

use crate::cleanup::{cgroups_of, mounts_below, processes_of};
use crate::host::Host;

/// Everything of a host that tasks add to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leftovers {
    pub processes: usize,
    pub mounts: BTreeSet<PathBuf>,
    pub links: BTreeSet<String>,
}

impl Leftovers {
    /// What there is now.
    ///
    /// # Errors
    /// When the host's links cannot be listed.
    pub fn of(host: &Host) -> Result<Self> {
        let links = host.inside("ip", &["-o", "link", "show"])?.lines()?;
        let name = |line: &String| {
            let name = line.split(": ").nth(1).unwrap_or_default();
            name.split('@').next().unwrap_or_default().to_owned()
        };
        Ok(Self {
            processes: processes_of(host.folder()).len(),
            mounts: mounts_below(host.folder()).into_iter().collect(),
            links: links.iter().map(name).collect(),
        })
    }
}

/// The cgroups in which the host's containers run now.
#[must_use]
pub fn cgroups(host: &Host) -> BTreeSet<PathBuf> {
    let pids = processes_of(host.folder());
    pids.into_iter().flat_map(cgroups_of).filter(|path| path.exists()).collect()
}
