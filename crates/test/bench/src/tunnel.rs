//! The encrypted tunnel in user space, beside `boringtun-cli`.
//!
//! Owns: which lines are compared, and how often. Does not know: clusters, how packets are cut.
//! Invariant: ours and the peer's take turns in one run, on wires made alike, with the same
//! programs at both ends; each engine is a process of its own, as it is on a node.

mod lines;
mod node;
mod rotation;
mod space;
mod stream;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use self::lines::{Containers, Hosts};
pub use self::node::run as run_node;
use self::node::{Kind, Node};
use self::stream::{Flow, Sender};
use crate::figure::{Figure, median};

/// All of them.
pub fn measure(rounds: usize) -> Result<Vec<Figure>> {
    let peer = find_peer();
    let mut figures = Vec::new();
    let mut wires = vec![Wire::Segments];
    if in_path("ethtool").is_some() {
        wires.push(Wire::Packets);
    } else {
        println!("tunnel: no underlay that takes packets, since ethtool is not there");
    }
    let senders = Sender::all();
    for wire in wires {
        figures.extend(host_to_host(rounds, wire, &senders, peer.as_ref())?);
        figures.extend(containers(rounds, wire, &senders)?);
    }
    figures.push(first_packet(rounds.max(FIRST_PACKETS))?);
    figures.push(rotation(rounds)?);
    figures.extend(many_peers()?);
    Ok(figures)
}

/// Whether the underlay segments UDP, or each packet is really made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Segments,
    Packets,
}

impl Wire {
    fn name(self) -> &'static str {
        match self {
            Self::Segments => "underlay segments UDP",
            Self::Packets => "underlay takes packets",
        }
    }
}

/// The program that users have for this; not a part of ours, so it may be absent.
fn find_peer() -> Option<PathBuf> {
    let own = PathBuf::from("target/peers/bin").join(PEER);
    let found = if own.is_file() { Some(own) } else { in_path(PEER) };
    if found.is_none() {
        println!(
            "tunnel: no {PEER} beside ours, since it is not there: \
             cargo install {PEER} --root target/peers"
        );
    }
    found
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn host_to_host(
    rounds: usize,
    wire: Wire,
    senders: &[Sender],
    peer: Option<&PathBuf>,
) -> Result<Vec<Figure>> {
    let (mut ours, mut theirs): (Vec<Vec<Flow>>, Vec<Vec<Flow>>) = (Vec::new(), Vec::new());
    let (mut added, mut added_theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let hosts = Hosts::lay(&Kind::Ours, wire)?;
        ours.push(senders.iter().map(|sender| hosts.stream(*sender)).collect::<Result<_>>()?);
        added.push(hosts.added_round_trip()?);
        drop(hosts);
        if let Some(program) = peer {
            let hosts = Hosts::lay(&Kind::Peer(program.clone()), wire)?;
            theirs.push(senders.iter().map(|sender| hosts.stream(*sender)).collect::<Result<_>>()?);
            added_theirs.push(hosts.added_round_trip()?);
        }
    }
    let what = format!("host to host, {}", wire.name());
    let mut figures = rates(senders, &ours, &theirs, &what);
    let name = format!("tunnel: added round trip, {what}");
    figures.push(figure(name, "ms", &added, &added_theirs, rounds));
    Ok(figures)
}

fn containers(rounds: usize, wire: Wire, senders: &[Sender]) -> Result<Vec<Figure>> {
    let mut flows = Vec::new();
    for _ in 0..rounds {
        let line = Containers::lay(wire)?;
        flows.push(senders.iter().map(|sender| line.stream(*sender)).collect::<Result<_>>()?);
    }
    let what = format!("container to container, {}", wire.name());
    Ok(rates(senders, &flows, &[], &what))
}

/// Of what each sender did in each round.
fn rates(senders: &[Sender], ours: &[Vec<Flow>], theirs: &[Vec<Flow>], line: &str) -> Vec<Figure> {
    type Value = fn(&Flow) -> f64;
    let values: [(&str, &'static str, Value); 3] = [
        ("one stream", "Gb/s", |flow| flow.rate),
        ("of the sender's daemon", "Gb/s/core", |flow| flow.per_core_sent),
        ("of the receiver's daemon", "Gb/s/core", |flow| flow.per_core_received),
    ];
    let mut figures = Vec::new();
    for (at, sender) in senders.iter().enumerate() {
        for (what, unit, value) in values {
            let of = |flows: &[Vec<Flow>]| -> Vec<f64> {
                flows.iter().filter_map(|round| round.get(at)).map(value).collect()
            };
            let name = format!("tunnel: {what} ({}), {line}", sender.name());
            figures.push(figure(name, unit, &of(ours), &of(theirs), ours.len()));
        }
    }
    figures
}

fn figure(name: String, unit: &'static str, ours: &[f64], theirs: &[f64], rounds: usize) -> Figure {
    let peer = (!theirs.is_empty()).then(|| (median(theirs), PEER));
    Figure { name, unit, ours: median(ours), peer, rounds }
}

/// From the order to add a peer until the answer to a packet sent to it, the handshake included.
fn first_packet(rounds: usize) -> Result<Figure> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        times.push(Hosts::first_packet()?);
    }
    let name = "tunnel: first packet and its answer after a peer is added".to_owned();
    Ok(figure(name, "ms", &times, &[], rounds))
}

/// Of all rounds together: one lost datagram is one too many.
fn rotation(rounds: usize) -> Result<Figure> {
    let mut all = rotation::Passed::default();
    for _ in 0..rounds {
        let passed = rotation::change_keys()?;
        all.sent += passed.sent;
        all.lost += passed.lost;
    }
    let name = format!("tunnel: keys changed 300 ms apart, of {} at 2 x 100 Mb/s lost", all.sent);
    Ok(Figure { name, unit: "datagrams", ours: all.lost as f64, peer: None, rounds })
}

/// What 1,000 peers cost who say nothing.
fn many_peers() -> Result<Vec<Figure>> {
    let space = space::Space::new()?;
    let mut node = Node::start(&Kind::Ours, &space, &space, 1)?;
    std::thread::sleep(SETTLE);
    let before = node.memory_kib()?;
    node.add_silent_peers(PEERS)?;
    std::thread::sleep(SETTLE);
    let memory = (node.memory_kib()? - before) / 1024.0;
    let busy = node.cpu_seconds()?;
    std::thread::sleep(IDLE);
    let busy = (node.cpu_seconds()? - busy) / IDLE.as_secs_f64() * 100.0;
    let row = |name: &str, unit, ours| Figure {
        name: format!("tunnel: {PEERS} peers, {name}"),
        unit,
        ours,
        peer: None,
        rounds: 1,
    };
    Ok(vec![row("memory", "MiB", memory), row("idle", "% of a core", busy)])
}

/// Waits until something is so.
fn await_that(what: &str, mut so: impl FnMut() -> bool) -> Result<()> {
    let limit = std::time::Instant::now() + PATIENCE;
    while !so() {
        if std::time::Instant::now() > limit {
            return Err(anyhow::anyhow!("not so in {PATIENCE:?}")).context(what.to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

const PEER: &str = "boringtun-cli";
const PEERS: usize = 1000;
const SETTLE: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(20);
const FIRST_PACKETS: usize = 9;
