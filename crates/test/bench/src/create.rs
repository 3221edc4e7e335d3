//! From `service create` to all replicas running, on one host with the programs as users have them.
//!
//! Owns: the cluster of one host that is measured, and what its daemon and shims use meanwhile.
//! Does not know: the peer beyond that it creates services too.
//! Invariant: ours and the peer's are timed by the same stopwatch: the command line program
//! creates, and is asked again and again until it lists as many running tasks as were wanted.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use integration::{Host, IMAGE, joined};

use crate::docker::Docker;
use crate::figure::{Figure, MEBI, median};

/// Replicas of the services that are created.
const SIZES: [usize; 2] = [1, 50];
/// Containers that are started one after the other.
const STARTS: usize = 20;
/// Nothing that is measured may take longer.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks; what a look costs is part of both sides.
const PERIOD: Duration = Duration::from_millis(5);
/// A daemon that has just begun still gives memory back.
const IDLE: Duration = Duration::from_secs(10);

/// Something that creates services of one image and lists them.
pub(crate) trait Swarm {
    /// Returns as soon as the service is stored.
    fn create(&self, name: &str, replicas: usize) -> Result<()>;
    fn running(&self, name: &str) -> Result<usize>;
    /// Returns when nothing of it runs any more.
    fn remove(&self, name: &str) -> Result<()>;
}

/// All figures of one host, with Docker Swarm beside them when it is installed.
///
/// # Errors
/// When our side cannot be measured; a peer that cannot be is left out with its reason.
pub fn measure(rounds: usize) -> Result<Vec<Figure>> {
    let lab = joined(1, 0)?;
    let ours = Ours { host: lab.host(1) };
    let mut figures = idle(ours.host)?;
    let docker = Docker::start(lab.folder());
    if let Err(reason) = &docker {
        println!("create: no peer: {reason:#}");
    }
    for replicas in SIZES {
        let (mut own, mut peers) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let name = format!("r{replicas}-{round}");
            own.push(time(&ours, &name, replicas)?);
            if let Ok(docker) = &docker {
                peers.push(time(docker, &name, replicas)?);
            }
        }
        let name = format!("service create to {replicas} running, one host");
        let peer = (!peers.is_empty()).then(|| (median(&peers), "docker swarm"));
        figures.push(Figure { name, unit: "ms", ours: median(&own), peer, rounds });
    }
    figures.push(starts(ours.host)?);
    figures.push(shims(&ours, docker.as_ref().ok())?);
    Ok(figures)
}

/// Milliseconds from the command to the last running replica; the service is removed afterwards.
fn time(swarm: &impl Swarm, name: &str, replicas: usize) -> Result<f64> {
    let begun = Instant::now();
    swarm.create(name, replicas)?;
    until(&format!("{replicas} running tasks"), || Ok(swarm.running(name)? == replicas))?;
    let took = begun.elapsed();
    swarm.remove(name)?;
    Ok(took.as_secs_f64() * 1e3)
}

pub(crate) fn until(what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !look()? {
        if begun.elapsed() > LIMIT {
            bail!("{what}: not within {} s", LIMIT.as_secs());
        }
        std::thread::sleep(PERIOD);
    }
    Ok(())
}

struct Ours<'a> {
    host: &'a Host,
}

impl Swarm for Ours<'_> {
    fn create(&self, name: &str, replicas: usize) -> Result<()> {
        let count = replicas.to_string();
        let args = ["service", "create", "-d", "--name", name, "--replicas", &count, IMAGE];
        self.host.shoal(&args)?.ok().map(drop)
    }

    fn running(&self, name: &str) -> Result<usize> {
        let args = ["service", "ps", "--format", "{{.CurrentState}}", name];
        let lines = self.host.shoal(&args)?.lines()?;
        Ok(lines.iter().filter(|line| line.starts_with("Running")).count())
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.host.shoal(&["service", "rm", name])?.ok()?;
        until("the end of its containers", || {
            let args = ["info", "--format", "{{.ContainersRunning}}"];
            Ok(self.host.shoal(&args)?.ok()?.trim() == "0")
        })
    }
}

/// What a daemon that manages and works uses while nothing happens.
fn idle(host: &Host) -> Result<Vec<Figure>> {
    std::thread::sleep(IDLE);
    let used = host.usage()?.bytes as f64 / MEBI;
    let name = "resident memory of an idle daemon, manager and worker".into();
    Ok(vec![Figure { name, unit: "MiB", ours: used, peer: None, rounds: 1 }])
}

/// From the assignment's arrival to running, by the daemon's own log, one container at a time.
fn starts(host: &Host) -> Result<Figure> {
    let ours = Ours { host };
    ours.create("starts", 0)?;
    for count in 1..=STARTS {
        host.shoal(&["service", "scale", "-d", &format!("starts={count}")])?.ok()?;
        until("one more running task", || Ok(ours.running("starts")? == count))?;
    }
    let ids: Vec<String> = host.tasks("starts")?.into_iter().map(|task| task.id).collect();
    let log = host.log();
    let moment = |id: &str, state: &str| {
        let state = format!("state=\"{state}\"");
        let line = log.lines().find(|line| line.contains(id) && line.contains(&state));
        seconds_of_day(line.with_context(|| format!("task {id} was never {state}"))?)
    };
    let mut waits = Vec::new();
    for id in &ids {
        let wait = moment(id, "running")? - moment(id, "accepted")?;
        // Midnight may lie between.
        waits.push(wait.rem_euclid(24.0 * 3_600.0) * 1e3);
    }
    ours.remove("starts")?;
    let name = "container start, assignment to running, p50".into();
    Ok(Figure { name, unit: "ms", ours: median(&waits), peer: None, rounds: STARTS })
}

/// The time of day at the head of a line of the log: `2026-01-01T12:00:00.000000Z`.
fn seconds_of_day(line: &str) -> Result<f64> {
    let time = line.split(['T', 'Z']).nth(1).context("a line without a time")?;
    let parts: Vec<f64> = time.split(':').map(str::parse).collect::<Result<_, _>>()?;
    let [hours, minutes, seconds] = parts[..] else { bail!("`{time}` is not a time of day") };
    Ok(hours * 3_600.0 + minutes * 60.0 + seconds)
}

/// The share of memory of what stands between one container and the daemon, among fifty.
fn shims(ours: &Ours<'_>, docker: Option<&Docker>) -> Result<Figure> {
    let count = SIZES[1];
    let measured = |swarm: &dyn Swarm, folder: &Path, word: &str| {
        swarm.create("shims", count)?;
        until("its containers", || Ok(swarm.running("shims")? == count))?;
        let shares = shares(folder, word)?;
        swarm.remove("shims")?;
        Ok::<_, anyhow::Error>(median(&shares))
    };
    let own = measured(ours, ours.host.folder(), "shim")?;
    let peer = match docker {
        Some(docker) => {
            let folder = docker.folder();
            Some((measured(docker, folder, "containerd-shim")?, "containerd-shim"))
        }
        None => None,
    };
    let name = "proportional memory of a shim, p50 of 50".into();
    Ok(Figure { name, unit: "MiB", ours: own, peer, rounds: count })
}

/// Proportional set sizes, in MiB, of the processes of `folder` that are shims.
fn shares(folder: &Path, word: &str) -> Result<Vec<f64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut words = line.split('\0');
        let is_shim = words.any(|one| one.rsplit('/').next().is_some_and(|n| n.starts_with(word)));
        if !is_shim || !line.contains(&*folder.to_string_lossy()) {
            continue;
        }
        let rollup = fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
        let share = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        if let Some(kib) = share.and_then(|text| text.split_whitespace().next()) {
            found.push(kib.parse::<f64>()? * 1024.0 / MEBI);
        }
    }
    if found.is_empty() {
        bail!("no process `{word}` of {}", folder.display());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_log_are_read() {
        let line = "2026-11-22T01:02:03.500000Z DEBUG agent::task: task moved";
        assert_eq!(seconds_of_day(line).expect("a time"), 3_723.5);
        assert!(seconds_of_day("no time").is_err());
    }
}
