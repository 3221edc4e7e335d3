//! Network namespaces for both ends.
//!
//! Owns: making and entering them. Does not know: what is measured.
//! Invariant: a namespace goes with the last descriptor of it and the last process in it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

use super::Wire;

/// A network namespace.
pub(super) struct Space(File);

impl Space {
    pub(super) fn new() -> Result<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
            run("ip link set lo up")?;
            Ok(Self(File::open("/proc/thread-self/ns/net")?))
        })
    }

    pub(super) fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Something that names it to other programs, while this one lives.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub(super) fn run(&self, line: &str) -> Result<()> {
        let line = line.to_owned();
        self.enter(move || run(&line))
    }

    /// Does something inside, in a thread of its own.
    pub(super) fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let space = self.0.try_clone()?;
        in_thread(move || {
            setns(&space, CloneFlags::CLONE_NEWNET)?;
            work()
        })
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

fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = std::thread::spawn(work).join();
    joined.map_err(|_| anyhow::anyhow!("a thread in a namespace panicked"))?
}

fn run(line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let program = words.next().context("an empty command")?;
    let output = Command::new(program).args(words).output().with_context(|| line.to_owned())?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
