//! Network namespaces for both ends.
//!
//! Owns: two hosts with a cable. Does not know: what is measured.
//! Invariant: a namespace goes with the last descriptor of it and the last process in it.

use std::fs::File;

use anyhow::Result;

use super::Wire;
use crate::network::rig;

/// A network namespace.
pub(super) struct Space(File);

impl Space {
    pub(super) fn new() -> Result<Self> {
        rig::new_namespace().map(Self)
    }

    pub(super) fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Something that names it to other programs, while this one lives.
    pub(super) fn path(&self) -> String {
        rig::path_of(&self.0)
    }

    pub(super) fn run(&self, line: &str) -> Result<()> {
        rig::run_in(&self.0, line)
    }

    /// Does something inside, in a thread of its own.
    pub(super) fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        rig::enter(&self.0, work)
    }
}

/// Two hosts with a cable, 192.0.2.1 and .2.
pub(super) fn cabled(wire: Wire) -> Result<[Space; 2]> {
    let hosts = [Space::new()?, Space::new()?];
    hosts[0]
        .run(&format!("ip link add eth0 type veth peer name eth0 netns {}", hosts[1].path()))?;
    for (host, number) in hosts.iter().zip(1..) {
        host.run(&format!("ip addr add 192.0.2.{number}/24 dev eth0"))?;
        if wire == Wire::Packets {
            host.run("ethtool -K eth0 tso off gso off tx-udp-segmentation off gro on")?;
        }
        host.run("ip link set eth0 up")?;
    }
    Ok(hosts)
}
