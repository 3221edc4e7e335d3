//! The data path of a node: what changes cost, and what packets cost.
//!
//! Owns: hosts in network namespaces, a hand-made VXLAN bridge and a hand-made route beside ours.
//! Does not know: clusters. Invariant: ours and the peer's take turns in one run, on the same wire,
//! with the same programs at both ends.

mod by_hand;
pub(crate) mod rig;
mod traffic;

use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netd::{Client, Container, Forward};
use network::DataPath;
use ports::network::{ContainerNetwork, Network};
use tokio::sync::oneshot;
use types::{Attachment, DirectoryUpdate, EndpointPart, ServicePart};

use self::rig::{Host, Rig, address, id, network_part};
use crate::figure::{Figure, median};

/// Changes: a full load, one backend swapped, a service grown and shrunk, one remote endpoint, one
/// container connected; beside some of them the least that makes the same packets pass, by hand.
pub async fn changes(rounds: usize) -> Result<Vec<Figure>> {
    let mut all: Vec<(Row, Vec<f64>, Vec<f64>)> = Vec::new();
    for _ in 0..rounds {
        for (number, row) in one_round().await?.into_iter().enumerate() {
            if all.len() == number {
                all.push((row, Vec::new(), Vec::new()));
            }
            if let Some((_, ours, peers)) = all.get_mut(number) {
                ours.push(row.ours);
                peers.extend(row.peer.map(|(value, _)| value));
            }
        }
    }
    let figure = |(Row { name, unit, peer, .. }, ours, peers): (Row, Vec<f64>, Vec<f64>)| Figure {
        name: format!("network: {name}"),
        unit,
        ours: median(&ours),
        peer: peer.map(|(_, name)| (median(&peers), name)),
        rounds,
    };
    Ok(all.into_iter().map(figure).collect())
}

/// Of one round.
#[derive(Debug, Clone, Copy)]
struct Row {
    name: &'static str,
    unit: &'static str,
    ours: f64,
    peer: Option<(f64, &'static str)>,
}

impl Row {
    fn new(name: &'static str, unit: &'static str, ours: f64) -> Self {
        Self { name, unit, ours, peer: None }
    }

    fn beside(self, peer: f64, name: &'static str) -> Self {
        Self { peer: Some((peer, name)), ..self }
    }
}

async fn one_round() -> Result<Vec<Row>> {
    let rig = Rig::new()?;
    let host = Host::open(&rig, 1).await?;
    let mut told = host.told(&[network_part(1)]);
    for number in 0..SERVICES {
        told.services.push(service(number));
        told.endpoints.extend((0..BACKENDS).map(|backend| endpoint(number, backend)));
    }
    let before = kernel_mebibytes()?;
    let begin = Instant::now();
    host.path.update(told.clone()).await?;
    let load = begin.elapsed().as_secs_f64() * 1e3;
    let memory = (kernel_mebibytes()? - before).max(0.0);
    let swap = swaps(&host).await?;
    let (grow, shrink) = growth(&host).await?;
    let remote = remotes(&host).await?;
    let [apart, at_once] = containers(&host).await?;
    host.path.remove_all().await?;
    let routes = by_hand::routes(SERVICES * BACKENDS)? / 1e3;
    let route = by_hand::routes(REMOTES)? / f64::from(REMOTES);
    let container = "a container on one network connected, its names served, p50";
    Ok(vec![
        Row::new("10,000 services x 10, loaded from nothing", "ms", load)
            .beside(routes, "ip -batch, routes alone"),
        Row::new("memory of the kernel for them", "MiB", memory),
        Row::new("one endpoint swapped beside them, p50", "us", swap),
        Row::new("one service grown beside them, p50", "us", grow),
        Row::new("one service shrunk beside them, p50", "us", shrink),
        Row::new("one of 1,000 remote endpoints", "us", remote).beside(route, "ip -batch"),
        Row::new(container, "us", apart).beside(by_hand::container()?, "ip, links alone"),
        Row::new("the same, one right after another, p50", "us", at_once),
    ])
}

/// What the kernel has for itself and cannot give back at once: sets are in it, and caches not.
fn kernel_mebibytes() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let kibibytes = |key: &str| -> Result<f64> {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let value = value.and_then(|value| value.trim().strip_suffix(" kB"));
        Ok(value.with_context(|| format!("no {key} in /proc/meminfo"))?.parse()?)
    };
    Ok((kibibytes("SUnreclaim")? + kibibytes("VmallocUsed")?) / 1024.0)
}

fn service(number: u32) -> ServicePart {
    ServicePart {
        network: id(1001),
        service: id(1_000_000 + u128::from(number)),
        name: format!("service{number}"),
        aliases: Vec::new(),
        mode: types::EndpointMode::Vip,
        v4: Some(Ipv4Addr::from_bits(VIRTUAL + number)),
        v6: None,
        ports: Vec::new(),
    }
}

fn endpoint(service: u32, backend: u32) -> EndpointPart {
    let number = service * 64 + backend;
    EndpointPart {
        network: id(1001),
        task: id(10_000_000 + u128::from(number)),
        service: Some(id(1_000_000 + u128::from(service))),
        node: id(900),
        number: 900,
        v4: Some(Ipv4Addr::from_bits(TASKS + number)),
        v6: None,
        names: Vec::new(),
        serving: true,
    }
}

/// Microseconds of one update, in the middle.
async fn timed(host: &Host, updates: Vec<DirectoryUpdate>) -> Result<f64> {
    let mut times = Vec::new();
    for update in updates {
        let begin = Instant::now();
        host.path.update(update).await?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&times))
}

/// The task of a slot fails and another one stands there: two endpoints change.
async fn swaps(host: &Host) -> Result<f64> {
    let swap = |number: u32| DirectoryUpdate {
        endpoints: vec![
            EndpointPart { serving: false, ..endpoint(number, 3) },
            endpoint(number, 40),
        ],
        ..DirectoryUpdate::default()
    };
    timed(host, (0..CHANGES).map(swap).collect()).await
}

async fn growth(host: &Host) -> Result<(f64, f64)> {
    let grow = |number: u32| DirectoryUpdate {
        endpoints: vec![endpoint(1000 + number, 50)],
        ..DirectoryUpdate::default()
    };
    let shrink = |number: u32| DirectoryUpdate {
        endpoints: vec![EndpointPart { serving: false, ..endpoint(1000 + number, 4) }],
        ..DirectoryUpdate::default()
    };
    let grown = timed(host, (0..CHANGES).map(grow).collect()).await?;
    Ok((grown, timed(host, (0..CHANGES).map(shrink).collect()).await?))
}

async fn remotes(host: &Host) -> Result<f64> {
    let part = |number: u32| EndpointPart { service: None, ..endpoint(SERVICES + 1, number) };
    let update = DirectoryUpdate {
        endpoints: (0..REMOTES).map(part).collect(),
        ..DirectoryUpdate::default()
    };
    Ok(timed(host, vec![update]).await? / f64::from(REMOTES))
}

/// Containers that come as a node starts them, and others one right after another.
async fn containers(host: &Host) -> Result<[f64; 2]> {
    // This very program is netd too.
    let options = netd::Options::new(host.dir.path().to_owned(), "bench".into());
    let names = Client::connect_or_start(options).await?;
    let apart = connections(host, &names, 0..CONTAINERS, PROCESS_START).await?;
    let at_once = connections(host, &names, CONTAINERS..2 * CONTAINERS, Duration::ZERO).await?;
    names.stop().await?;
    Ok([apart, at_once])
}

/// Microseconds of one, in the middle.
async fn connections(
    host: &Host,
    names: &Client,
    numbers: Range<u32>,
    pause: Duration,
) -> Result<f64> {
    let mut times = Vec::new();
    for number in numbers {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let wanted = ContainerNetwork {
            id: format!("container{number}"),
            hostname: "container".into(),
            attachments: vec![Attachment {
                network: id(1001),
                v4: Some(Ipv4Addr::from_bits(OWN + number)),
                v6: None,
            }],
            ..ContainerNetwork::default()
        };
        let served = Container {
            id: wanted.id.clone(),
            netns: host.path.netns(&wanted.id),
            networks: vec![id(1001)],
            forward: Forward::None,
        };
        // The daemon has a task for each, too.
        let connected = connect(host.path.clone(), names.clone(), wanted, served);
        times.push(tokio::spawn(connected).await??.as_secs_f64() * 1e6);
    }
    Ok(median(&times))
}

/// Links, addresses, routes, rules and the resolver, side by side as the daemon does it.
async fn connect(
    path: DataPath,
    names: Client,
    wanted: ContainerNetwork,
    served: Container,
) -> Result<Duration> {
    let begin = Instant::now();
    let (begun, laid) = oneshot::channel();
    let port = async {
        laid.await?;
        anyhow::Ok(names.serve(served).await?)
    };
    let (attached, port) = tokio::join!(path.attach_telling(&wanted, begun), port);
    attached?;
    path.set_resolver(&wanted.id, port?).await?;
    Ok(begin.elapsed())
}

/// Packets: an overlay beside a hand-made VXLAN bridge, the mesh beside a hand-made route and a
/// mesh that hides the client, and many services beside one.
pub async fn packets(rounds: usize) -> Result<Vec<Figure>> {
    let rig = Rig::new()?;
    let lines = traffic::Lines::lay(&rig).await?;
    let mut figures = Vec::new();
    for (name, ours, peer, peer_name) in lines.comparisons() {
        let name = format!("network: {name}, a new connection and its answer");
        let measure = traffic::microseconds_per_connection;
        figures.push(beside(name, "us", (ours, peer), peer_name, rounds, measure)?);
    }
    let pair = lines.overlay_and_bridge();
    let name = "network: overlay between hosts, a round trip".into();
    let measure = traffic::microseconds_per_round_trip;
    figures.push(beside(name, "us", pair, "VXLAN bridge", rounds, measure)?);
    let name = "network: overlay between hosts, a gibibyte by one connection".into();
    let measure = traffic::milliseconds_per_gibibyte;
    figures.push(beside(name, "ms", pair, "VXLAN bridge", rounds, measure)?);
    figures.extend(crowded(&lines, rounds).await?);
    lines.take_up().await.context("the lines cannot be taken up")?;
    Ok(figures)
}

fn beside(
    name: String,
    unit: &'static str,
    (ours, peer): (&traffic::Line, &traffic::Line),
    peer_name: &'static str,
    rounds: usize,
    measure: impl Fn(&traffic::Line) -> Result<f64>,
) -> Result<Figure> {
    let (mut own, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        own.push(measure(ours)?);
        theirs.push(measure(peer)?);
    }
    Ok(Figure { name, unit, ours: median(&own), peer: Some((median(&theirs), peer_name)), rounds })
}

/// A virtual address beside thousands, and alone: they come and go in each round.
async fn crowded(lines: &traffic::Lines, rounds: usize) -> Result<Vec<Figure>> {
    let (host, line) = lines.client_side();
    let (mut few, mut many) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for _ in 0..rounds {
        few.0.push(traffic::microseconds_per_connection(line)?);
        few.1.push(traffic::microseconds_per_round_trip(line)?);
        let mut crowd = DirectoryUpdate::default();
        for number in 0..CROWD {
            crowd.services.push(service(number));
            crowd.endpoints.push(endpoint(number, 1));
        }
        host.path.update(crowd.clone()).await?;
        many.0.push(traffic::microseconds_per_connection(line)?);
        many.1.push(traffic::microseconds_per_round_trip(line)?);
        let mut gone = DirectoryUpdate::default();
        gone.removed_services.extend(crowd.services.iter().map(|one| (one.network, one.service)));
        gone.removed_endpoints.extend(crowd.endpoints.iter().map(|one| (one.network, one.task)));
        host.path.update(gone).await?;
    }
    let figure = |what: &str, many: &[f64], few: &[f64]| Figure {
        name: format!("network: virtual address beside 5,000 others, {what}"),
        unit: "us",
        ours: median(many),
        peer: Some((median(few), "one service")),
        rounds,
    };
    Ok(vec![
        figure("a new connection and its answer", &many.0, &few.0),
        figure("a round trip", &many.1, &few.1),
    ])
}

/// In 10.0.0.0/8, the subnet of the network.
const VIRTUAL: u32 = address(10, 1, 0, 0);
const OWN: u32 = address(10, 2, 0, 1);
const TASKS: u32 = address(10, 16, 0, 0);

const SERVICES: u32 = 10_000;
const BACKENDS: u32 = 10;
const CHANGES: u32 = 60;
const REMOTES: u32 = 1_000;
const CONTAINERS: u32 = 50;
/// What a container's process takes at least, before the next one is connected.
const PROCESS_START: Duration = Duration::from_millis(20);
const CROWD: u32 = 5_000;
