//! One stream of TCP through a line.
//!
//! Owns: who sends, and what is read of it.
//! Does not know: what the line is made of. Invariant: what is counted arrived, and was paid for by
//! the daemons in the same time.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use super::node::Node;
use super::space::Space;
use super::{PATIENCE, in_path};

/// What one stream did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    /// Gb/s.
    pub(super) rate: f64,
    /// Gb for each second of processor time of the sender's daemon.
    pub(super) per_core_sent: f64,
    pub(super) per_core_received: f64,
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// A loop of ours with Linux's own congestion control, cubic: the timers of one that paces are
    /// charged to whoever runs, and would be measured too.
    Usual,
    /// The program that is known for it, with the congestion control of this host.
    Iperf,
}

impl Sender {
    /// Those that there are here.
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self::Usual];
        if in_path(IPERF).is_some() {
            all.push(Self::Iperf);
        } else {
            println!("tunnel: no stream of {IPERF}, since it is not there");
        }
        all
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Usual => USUAL.to_owned(),
            Self::Iperf => format!("{IPERF}, {}", hosts_congestion_control()),
        }
    }

    /// One stream from the first to the second.
    pub(super) fn flow(self, spaces: &[Space; 2], to: IpAddr, nodes: &[Node; 2]) -> Result<Flow> {
        match self {
            Self::Usual => flow_of_ours(spaces, to, nodes),
            Self::Iperf => flow_of_iperf(spaces, to, nodes),
        }
    }
}

/// New namespaces begin with it.
fn hosts_congestion_control() -> String {
    let read = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    read.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// For a time after a beginning.
fn flow_of_ours(spaces: &[Space; 2], to: IpAddr, nodes: &[Node; 2]) -> Result<Flow> {
    let listener = spaces[1].enter(move || Ok(TcpListener::bind((to, 0))?))?;
    let there = listener.local_addr()?;
    let (measure, measured) = std::sync::mpsc::sync_channel(0);
    let sender = spaces[0].try_clone()?;
    let sending = std::thread::spawn(move || {
        sender.enter(move || {
            let mut stream = TcpStream::connect_timeout(&there, PATIENCE)?;
            setsockopt(&stream, sockopt::TcpCongestion, &OsString::from(USUAL))?;
            let chunk = vec![7; 1 << 20];
            // Until the receiver goes.
            while stream.write_all(&chunk).is_ok() {}
            Ok(())
        })
    });
    let receiving = std::thread::spawn(move || -> Result<(f64, f64)> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = vec![0; 1 << 20];
        let mut read = |limit: Duration| -> Result<(f64, f64)> {
            let (begun, mut bytes) = (Instant::now(), 0);
            while begun.elapsed() < limit {
                bytes += stream.read(&mut buffer)?;
            }
            Ok((bytes as f64 * BITS / GIGA, begun.elapsed().as_secs_f64()))
        };
        read(WARM)?;
        measure.send(())?;
        let measured = read(TIME)?;
        measure.send(())?;
        Ok(measured)
    });
    let ended = "the stream ended early";
    measured.recv().context(ended)?;
    let before = times(nodes)?;
    measured.recv().context(ended)?;
    let after = times(nodes)?;
    let joined = receiving.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
    let (gigabits, seconds) = joined?;
    sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    Ok(flow(gigabits, seconds, before, after))
}

/// With its beginning.
fn flow_of_iperf(spaces: &[Space; 2], to: IpAddr, nodes: &[Node; 2]) -> Result<Flow> {
    let to = to.to_string();
    let mut server = Command::new(IPERF);
    server.args(["-s", "-1", "-B", &to, "--forceflush"]);
    server.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let server = spaces[1].enter(move || Ok(Server(server.spawn()?)));
    let mut server = server.context("iperf3 does not start")?;
    server.await_readiness()?;
    let before = times(nodes)?;
    let mut client = Command::new(IPERF);
    client.args(["-c", &to, "-J", "-t", &TIME.as_secs().to_string()]);
    let output = spaces[0].enter(move || Ok(client.stdin(Stdio::null()).output()?))?;
    let after = times(nodes)?;
    let said: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("iperf3 says no JSON")?;
    if let Some(error) = said["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let received = &said["end"]["sum_received"];
    let number = |name: &str| received[name].as_f64().with_context(|| format!("no {name}"));
    Ok(flow(number("bytes")? * BITS / GIGA, number("seconds")?, before, after))
}

/// Ends when it is dropped.
struct Server(Child);

impl Server {
    fn await_readiness(&mut self) -> Result<()> {
        let output = self.0.stdout.as_mut().context("iperf3 has no output")?;
        let mut said = Vec::new();
        while !said.windows(READY.len()).any(|part| part == READY.as_bytes()) {
            let mut part = [0; 256];
            let count = output.read(&mut part)?;
            if count == 0 {
                bail!("iperf3 ends at once");
            }
            said.extend_from_slice(&part[..count]);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn times(nodes: &[Node; 2]) -> Result<[f64; 2]> {
    Ok([nodes[0].cpu_seconds()?, nodes[1].cpu_seconds()?])
}

fn flow(gigabits: f64, seconds: f64, before: [f64; 2], after: [f64; 2]) -> Flow {
    Flow {
        rate: gigabits / seconds,
        per_core_sent: gigabits / (after[0] - before[0]),
        per_core_received: gigabits / (after[1] - before[1]),
    }
}

const USUAL: &str = "cubic";
const IPERF: &str = "iperf3";
/// What its server says when it takes connections.
const READY: &str = "Server listening";
const TIME: Duration = Duration::from_secs(3);
/// Until the window has grown.
const WARM: Duration = Duration::from_millis(500);
const BITS: f64 = 8.0;
const GIGA: f64 = 1e9;
