//! Clusters by stage: booted, joined, running a service.
//!
//! Owns: the steps from hosts to a service that runs, and reading what `shoal` lists.
//! Does not know: what a test breaks afterwards.
//! Invariant: a fixture returns when what it promises is there, not before.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::command::run;
use crate::host::Host;
use crate::lab::{Lab, program};
use crate::wait::{LONG, SHORT, wait_for, wait_until};

/// The image that every host of [`joined`] has.
pub const IMAGE: &str = "shoal/whoami:latest";

/// `count` hosts whose daemons answer, in no cluster.
///
/// # Errors
/// What went wrong.
pub fn booted(count: usize) -> Result<Lab> {
    let lab = Lab::new(count)?;
    for host in lab.hosts() {
        host.spawn()?;
    }
    for host in lab.hosts() {
        wait_until(&format!("the daemon of {}", host.name()), SHORT, || {
            host.shoal(&["version"])?.ok().map(|_| true)
        })?;
    }
    Ok(lab)
}

/// A cluster: managers first, then workers; each host has [`IMAGE`].
///
/// # Errors
/// What went wrong.
pub fn joined(managers: usize, workers: usize) -> Result<Lab> {
    let lab = booted(managers + workers)?;
    let first = lab.host(1);
    first.shoal(&["swarm", "init", "--advertise-addr", first.address()])?.ok()?;
    for (index, host) in lab.hosts().iter().enumerate().skip(1) {
        host.join(first, if index < managers { "manager" } else { "worker" })?;
    }
    load_image(&lab)?;
    first.wait_for_nodes(managers + workers, LONG)?;
    wait_until("all managers to vote", LONG, || {
        let lines = first.shoal(&["node", "ls", "--format", "{{.ManagerStatus}}"])?.lines()?;
        let voting = lines.iter().filter(|line| *line == "Leader" || *line == "Reachable");
        let count = voting.count();
        ensure!(count == managers, "{count} of {managers}");
        Ok(true)
    })?;
    Ok(lab)
}

/// Loads [`IMAGE`] on each host.
///
/// # Errors
/// What went wrong.
pub fn load_image(lab: &Lab) -> Result<()> {
    let archive = lab.folder().join("whoami.tar");
    let whoami = program("whoami", "WHOAMI_BIN", true)?;
    run(Command::new(whoami).arg("image").arg(&archive), SHORT)?.ok()?;
    for host in lab.hosts() {
        let path = archive.to_str().context("the folder's name is no text")?;
        host.shoal(&["image", "load", "-q", "-i", path])?.ok()?;
    }
    Ok(())
}

/// A cluster with a service of so many replicas, all running.
///
/// # Errors
/// What went wrong.
pub fn running(managers: usize, workers: usize, name: &str, replicas: usize) -> Result<Lab> {
    let lab = joined(managers, workers)?;
    let count = replicas.to_string();
    let args = ["service", "create", "-d", "--name", name, "--replicas", &count, IMAGE];
    lab.host(1).shoal(&args)?.ok()?;
    lab.host(1).wait_for_running(name, replicas, LONG)?;
    Ok(lab)
}

/// A task as `service ps` lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    pub id: String,
    pub name: String,
    pub node: String,
    pub desired: String,
    /// Without the time.
    pub state: String,
    pub error: String,
}

impl Task {
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state == "Running" && self.desired == "Running"
    }
}

impl Host {
    /// Joins the cluster of `manager` in a role.
    ///
    /// # Errors
    /// What the command printed.
    pub fn join(&self, manager: &Self, role: &str) -> Result<()> {
        self.join_with(manager, role, &["--advertise-addr", self.address()])
    }

    /// The same with these options, which say where it is; without them it finds out.
    ///
    /// # Errors
    /// What the command printed.
    pub fn join_with(&self, manager: &Self, role: &str, options: &[&str]) -> Result<()> {
        let token = manager.shoal(&["swarm", "join-token", "-q", role])?.ok()?;
        let remote = format!("{}:2377", manager.address());
        let args = [&["swarm", "join", "--token", token.trim()], options, &[&remote]].concat();
        self.shoal(&args)?.ok().map(drop)
    }

    /// The VXLAN network identifier of a network.
    ///
    /// # Errors
    /// When it has none.
    pub fn vni(&self, network: &str) -> Result<u32> {
        let shown = self.shoal(&["network", "inspect", network])?.json()?;
        let option = &shown[0]["Options"]["com.docker.network.driver.overlay.vxlanid_list"];
        Ok(option.as_str().with_context(|| format!("no identifier: {shown}"))?.parse()?)
    }

    /// Waits until so many nodes are ready.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn wait_for_nodes(&self, count: usize, deadline: Duration) -> Result<()> {
        wait_until(&format!("{count} ready nodes"), deadline, || {
            let lines = self.shoal(&["node", "ls", "--format", "{{.Status}}"])?.lines()?;
            Ok(lines.iter().filter(|status| status.starts_with("Ready")).count() == count)
        })
    }

    /// The host name of the leader, as this host sees it.
    ///
    /// # Errors
    /// When there is none.
    pub fn leader(&self) -> Result<String> {
        let format = "{{.Hostname}} {{.ManagerStatus}}";
        let lines = self.shoal(&["node", "ls", "--format", format])?.lines()?;
        let leader = lines.iter().find_map(|line| line.strip_suffix(" Leader"));
        leader.map(str::to_owned).with_context(|| format!("no leader in {lines:?}"))
    }

    /// All tasks of a service, old ones too.
    ///
    /// # Errors
    /// What the command printed.
    pub fn tasks(&self, service: &str) -> Result<Vec<Task>> {
        let args = ["service", "ps", "--no-trunc", "--format", TASK_FORMAT, service];
        self.shoal(&args)?.lines()?.iter().map(|line| parse_task(line)).collect()
    }

    /// The tasks of a service that run.
    ///
    /// # Errors
    /// What the command printed.
    pub fn running_tasks(&self, service: &str) -> Result<Vec<Task>> {
        Ok(self.tasks(service)?.into_iter().filter(Task::is_running).collect())
    }

    /// Waits until exactly so many tasks of a service run; gives them.
    ///
    /// # Errors
    /// When they do not in time.
    pub fn wait_for_running(
        &self,
        service: &str,
        count: usize,
        deadline: Duration,
    ) -> Result<Vec<Task>> {
        wait_for(&format!("{count} running tasks of {service}"), deadline, || {
            let tasks = self.tasks(service)?;
            let running: Vec<Task> =
                tasks.iter().filter(|task| task.is_running()).cloned().collect();
            let others = tasks.iter().any(|task| task.desired == "Running" && !task.is_running());
            if running.len() != count || others {
                bail!("{tasks:#?}");
            }
            Ok(Some(running))
        })
    }

    /// How many running tasks each node has.
    ///
    /// # Errors
    /// What the command printed.
    pub fn spread(&self, service: &str) -> Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        for task in self.running_tasks(service)? {
            *counts.entry(task.node).or_insert(0) += 1;
        }
        Ok(counts)
    }
}

const TASK_FORMAT: &str = "{{.ID}}\t{{.Name}}\t{{.Node}}\t{{.DesiredState}}\t\
                           {{.CurrentState}}\t{{.Error}}";

fn parse_task(line: &str) -> Result<Task> {
    let cells: Vec<&str> = line.split('\t').collect();
    let [id, name, node, desired, state, error] = cells[..] else {
        bail!("`service ps` printed `{line}`")
    };
    Ok(Task {
        id: id.to_owned(),
        name: name.trim_start_matches(" \\_ ").to_owned(),
        node: node.to_owned(),
        desired: desired.to_owned(),
        state: state.split(' ').next().unwrap_or_default().to_owned(),
        error: error.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_service_ps_is_read() {
        let line = "abc\t \\_ web.1\th1\tShutdown\tFailed 3 seconds ago\t\"exit\"";
        let task = parse_task(line).unwrap();
        assert_eq!((task.name.as_str(), task.state.as_str()), ("web.1", "Failed"));
        assert!(!task.is_running());
        assert!(parse_task("x").is_err());
    }
}
