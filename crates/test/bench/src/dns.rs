//! Names: what a full directory costs the resolver, and how many questions it answers how fast.
//!
//! Owns: a container whose names netd serves, one of docker's on a network of its own, and the
//! questions that are sent to both.
//! Does not know: the resolver's code. Invariant: ours and the peer's are asked by the same code,
//! through the rules that lead 127.0.0.11:53 to the resolver, and each runs on one processor.
//!
//! Both ends go before other work where that is allowed, so that it is not measured too.

mod asker;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use integration::{IMAGE, program};
use netd::{Client, Container, Forward};
use ports::network::{ContainerNetwork, Network};
use types::{Attachment, DirectoryUpdate, EndpointMode, EndpointPart, ServicePart};

pub(crate) use self::asker::question;
use self::asker::{Asked, latencies, rate};
use crate::docker::Docker;
use crate::figure::{Figure, MEBI, median};
use crate::network::rig::{Host, Rig, address, id, network_part, open};

/// All figures, with docker's resolver beside ours when its daemon can be started.
///
/// # Errors
/// When our side cannot be measured; a peer that cannot be is left out with its reason.
pub async fn measure(rounds: usize) -> Result<Vec<Figure>> {
    let rig = Rig::new()?;
    let ours = Ours::start(&rig).await?;
    let mut figures = ours.directory(rounds).await?;
    let peer = Peer::start();
    if let Err(reason) = &peer {
        println!("dns: no peer: {reason:#}");
    }
    let own = Asked::of((0..NAMES).map(|n| question(&format!("service-{}", n * 97 % SERVICES))));
    let theirs = Asked::of([question(PEER_NAME)]);
    for (name, unit, measured) in MEASUREMENTS {
        let (mut values, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            values.push(measured(&ours.namespace, &own)?);
            if let Ok(peer) = &peer {
                peers.push(measured(&peer.namespace, &theirs)?);
            }
        }
        let peer = (!peers.is_empty()).then(|| (median(&peers), "docker"));
        figures.push(Figure { name: name.into(), unit, ours: median(&values), peer, rounds });
    }
    ours.stop().await?;
    Ok(figures)
}

type Measured = fn(&File, &Asked) -> Result<f64>;

const MEASUREMENTS: [(&str, &str, Measured); 3] = [
    ("dns: questions of one container, asker on the other core", "1/s", |namespace, asked| {
        rate(namespace, asked, OTHER_CORE)
    }),
    ("dns: one question at a time on the same core, p50", "us", |namespace, asked| {
        latencies(namespace, asked, SERVER_CORE).map(|times| percentile(&times, 50))
    }),
    ("dns: one question at a time on the same core, p99", "us", |namespace, asked| {
        latencies(namespace, asked, SERVER_CORE).map(|times| percentile(&times, 99))
    }),
];

/// Of sorted nanoseconds, in microseconds.
fn percentile(times: &[u64], percent: usize) -> f64 {
    times[(times.len() - 1) * percent / 100] as f64 / 1e3
}

/// A host with one container, and the process that answers it.
struct Ours {
    host: Host,
    client: Client,
    namespace: File,
    pid: u32,
    idle: f64,
}

impl Ours {
    async fn start(rig: &Rig) -> Result<Self> {
        let host = Host::open(rig, 1).await?;
        host.path.update(host.told(&[network_part(1)])).await?;
        let attachment =
            Attachment { network: id(NETWORK), v4: Some(Ipv4Addr::from_bits(OWN)), v6: None };
        let wanted = ContainerNetwork {
            id: CONTAINER.into(),
            hostname: CONTAINER.into(),
            attachments: vec![attachment],
            ..ContainerNetwork::default()
        };
        let netns = host.path.attach(&wanted).await?.netns;
        // This very program is netd too.
        let options = netd::Options::new(host.dir.path().to_owned(), "bench".into());
        let client = Client::connect_or_start(options).await?;
        let port = client
            .serve(Container {
                id: CONTAINER.into(),
                netns: netns.clone(),
                networks: vec![id(NETWORK)],
                forward: Forward::None,
            })
            .await?;
        host.path.set_resolver(CONTAINER, port).await?;
        let pid = client.status().await?.pid;
        let (namespace, idle) = (open(&netns)?, resident(pid)?);
        Ok(Self { host, client, namespace, pid, idle })
    }

    /// What 10,000 services with 10 tasks each cost, and a change beside them.
    async fn directory(&self, rounds: usize) -> Result<Vec<Figure>> {
        let (mut loads, mut swaps) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let full = full();
            let begun = Instant::now();
            self.client.update(&full).await?;
            loads.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        let used = resident(self.pid)?;
        confine(self.pid, SERVER_CORE)?;
        for number in 0..SWAPS {
            let swap = swap(number);
            let begun = Instant::now();
            self.client.update(&swap).await?;
            swaps.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        let figure = |name: &str, unit, ours, rounds| Figure {
            name: format!("dns: {name}"),
            unit,
            ours,
            peer: None,
            rounds,
        };
        Ok(vec![
            figure("resident memory of the resolver without names", "MiB", self.idle, 1),
            figure("10,000 services x 10, loaded from nothing", "ms", median(&loads), rounds),
            figure("resident memory of the resolver with them", "MiB", used, 1),
            figure("one endpoint swapped, told and answered, p50", "us", median(&swaps), 1),
        ])
    }

    async fn stop(self) -> Result<()> {
        self.client.stop().await?;
        self.host.path.remove_all().await?;
        self.host.dir.close()?;
        Ok(())
    }
}

fn full() -> DirectoryUpdate {
    DirectoryUpdate {
        full: true,
        networks: vec![network_part(1)],
        services: (0..SERVICES).map(service).collect(),
        endpoints: (0..SERVICES * TASKS).map(|number| endpoint(number, number)).collect(),
        ..DirectoryUpdate::default()
    }
}

fn service(number: u32) -> ServicePart {
    ServicePart {
        network: id(NETWORK),
        service: id(u128::from(SERVICE + number)),
        name: format!("service-{number}"),
        aliases: Vec::new(),
        mode: EndpointMode::Vip,
        v4: Some(Ipv4Addr::from_bits(VIRTUAL + number)),
        v6: None,
        ports: Vec::new(),
    }
}

/// The task `task` in the place of `number`.
fn endpoint(number: u32, task: u32) -> EndpointPart {
    let (service, slot) = (number / TASKS, number % TASKS + 1);
    // As long as real ones are.
    let identity = u128::from(task + 1).wrapping_mul(SPREAD);
    let name = format!("service-{service}.{slot}.{}", id::<base::Id>(identity));
    EndpointPart {
        network: id(NETWORK),
        task: id(identity),
        service: Some(id(u128::from(SERVICE + service))),
        node: id(900),
        number: 900,
        v4: Some(Ipv4Addr::from_bits(ADDRESSES + task)),
        v6: None,
        names: vec![name, format!("service-{service}.{slot}")],
        serving: true,
    }
}

/// A task is gone and another one stands in its place.
fn swap(number: u32) -> DirectoryUpdate {
    let gone = endpoint(number, number);
    DirectoryUpdate {
        removed_endpoints: vec![(gone.network, gone.task)],
        endpoints: vec![endpoint(number, SERVICES * TASKS + number)],
        ..DirectoryUpdate::default()
    }
}

/// A container of docker's, on a network that names are answered on.
struct Peer {
    namespace: File,
    _docker: Docker,
}

impl Peer {
    fn start() -> Result<Self> {
        let archives = tempfile::tempdir()?;
        let archive = archives.path().join("whoami.tar");
        let whoami = program("whoami", "WHOAMI_BIN", true)?;
        let status = Command::new(whoami).arg("image").arg(&archive).status()?;
        if !status.success() {
            bail!("the image cannot be made: {status}");
        }
        let docker = Docker::start(archives.path())?;
        docker.docker(&["network", "create", "names"])?;
        docker.docker(&["run", "-d", "--network", "names", "--name", PEER_NAME, IMAGE])?;
        let pid = docker.docker(&["inspect", "-f", "{{.State.Pid}}", PEER_NAME])?;
        confine(docker.pid()?, SERVER_CORE)?;
        let namespace = open(Path::new(&format!("/proc/{}/ns/net", pid.trim())))?;
        Ok(Self { namespace, _docker: docker })
    }
}

/// Keeps all threads of a process on one core, before other work there.
fn confine(pid: u32, core: usize) -> Result<()> {
    let (text, core) = (pid.to_string(), core.to_string());
    let status = Command::new("taskset").args(["-a", "-c", "-p", &core, &text]).output()?.status;
    if !status.success() {
        bail!("process {pid} cannot be kept on core {core}: {status}");
    }
    for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        prefer(&thread.file_name().to_string_lossy());
    }
    Ok(())
}

/// Before other work; where that is not allowed the figures are of a machine with its other work.
/// Not with real-time priority: a Go program that has it can keep others from what it waits for.
fn prefer(thread: &str) {
    // Where each session is a group of its own, the group's place is what counts among others.
    drop(fs::write(format!("/proc/{thread}/autogroup"), "-20"));
    drop(Command::new("renice").args(["-n", "-20", "-p", thread]).output());
}

/// MiB of memory that a process has.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)).context("no resident size")?;
    Ok(kib.parse::<f64>()? * 1024.0 / MEBI)
}

const SERVER_CORE: usize = 0;
const OTHER_CORE: usize = 1;

const CONTAINER: &str = "asker";
const PEER_NAME: &str = "target";
const NETWORK: u128 = 1001;
const SERVICE: u32 = 1_000_000;
const SERVICES: u32 = 10_000;
const TASKS: u32 = 10;
/// Names that are asked for in turn.
const NAMES: u32 = 1_000;
const SWAPS: u32 = 1_000;
/// Odd: different numbers stay different.
const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// In the subnet of the network.
const VIRTUAL: u32 = address(10, 1, 0, 0);
const OWN: u32 = address(10, 2, 0, 1);
const ADDRESSES: u32 = address(10, 16, 0, 0);

/// What is measured at a time.
const MEASURED: Duration = Duration::from_secs(2);
