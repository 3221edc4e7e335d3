//! Runs the benchmarks and prints ours beside the peer's.
//!
//! Owns: the list of benchmarks, the table, and `target/bench.jsonl`.
//! Does not know: how anything is measured. Invariant: ours and the peer's are measured in one run.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bench::raft::Commits;
use bench::{Figure, create, dns, etcd, network, raft, reach, scheduler, takeover, tunnel};
use clap::Parser;
use serde_json::json;
use tikv_jemallocator::Jemalloc;

/// The allocator of `shoal`, so that what is measured is what runs.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Measures, and writes what was measured to target/bench.jsonl.
#[derive(Parser)]
struct Args {
    /// Which ones: scheduler, raft, failover, create, takeover, network, dns, reach, tunnel;
    /// all without a name
    names: Vec<String>,
    /// Seconds of each measurement of the log
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Rounds of each measurement; the median is shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Trials of a killed leader, and of a task that is to be reached
    #[arg(long, default_value_t = 20)]
    trials: usize,
    /// Prints the bytes of a running task and ends: a process of its own, whose heap is untouched
    #[arg(long, hide = true)]
    bytes_per_task: bool,
    /// Is one node's daemon of the tunnel, until its input ends
    #[arg(long, hide = true)]
    tunnel_node: Option<String>,
}

/// One measurement.
struct Row {
    name: String,
    unit: &'static str,
    ours: f64,
    peer: Option<(f64, &'static str)>,
    rounds: usize,
}

impl From<Figure> for Row {
    fn from(figure: Figure) -> Self {
        let Figure { name, unit, ours, peer, rounds } = figure;
        Self { name, unit, ours, peer, rounds }
    }
}

const BENCHMARKS: [&str; 9] =
    ["scheduler", "raft", "failover", "create", "takeover", "network", "dns", "reach", "tunnel"];

fn main() -> Result<()> {
    // The benchmark of names starts this program as the resolver.
    netd::run_if_netd();
    let args = Args::parse();
    if args.bytes_per_task {
        println!("{}", scheduler::bytes_per_running_task(10_000, 10, 100_000));
        return Ok(());
    }
    if let Some(node) = &args.tunnel_node {
        return tunnel::run_node(node);
    }
    if let Some(unknown) = args.names.iter().find(|name| !BENCHMARKS.contains(&name.as_str())) {
        bail!("`{unknown}` is not a benchmark: {}", BENCHMARKS.join(", "));
    }
    let wanted = |name: &str| args.names.is_empty() || args.names.iter().any(|n| n == name);
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    print_head();
    if wanted("scheduler") {
        show(measure_scheduler(args.rounds)?)?;
    }
    if wanted("raft") {
        show(runtime.block_on(measure_raft(&args))?)?;
    }
    if wanted("failover") {
        show([runtime.block_on(measure_failover(args.trials))?])?;
    }
    if wanted("create") {
        show(create::measure(args.rounds)?)?;
    }
    if wanted("takeover") {
        show(takeover::measure(args.trials)?)?;
    }
    if wanted("network") {
        show(runtime.block_on(network::changes(args.rounds))?)?;
        show(runtime.block_on(network::packets(args.rounds))?)?;
    }
    if wanted("dns") {
        show(runtime.block_on(dns::measure(args.rounds))?)?;
    }
    if wanted("reach") {
        show(reach::measure(args.trials)?)?;
    }
    if wanted("tunnel") {
        show(tunnel::measure(args.rounds)?)?;
    }
    println!("load {}", load());
    Ok(())
}

fn measure_scheduler(rounds: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let shapes = [
        ("1000 nodes x 100000 services of 1", 1_000, 100_000, 1),
        ("10000 nodes x 1000000 replicas of 10 services", 10_000, 10, 100_000),
    ];
    for (name, nodes, services, replicas) in shapes {
        let view = scheduler::pending(nodes, services, replicas);
        let runs: Vec<scheduler::Placed> =
            (0..rounds).map(|_| scheduler::place_all(view.clone(), 20_000)).collect();
        let median = |value: fn(&scheduler::Placed) -> f64| {
            let mut all: Vec<f64> = runs.iter().map(value).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let row = |name: String, unit, ours| Row { name, unit, ours, peer: None, rounds };
        rows.push(row(format!("scheduler {name}"), "placements/s", median(|p| p.rate())));
        let apply = median(|p| p.applying.as_secs_f64() * 1e6 / p.tasks as f64);
        rows.push(row(format!("apply of the same, {name}"), "us/placement", apply));
    }
    let itself = std::env::current_exe().context("cannot find this program")?;
    let output = Command::new(itself).arg("--bytes-per-task").output();
    let output = output.context("cannot start a process to measure memory in")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let ours = text.trim().parse().with_context(|| format!("not a number of bytes: `{text}`"))?;
    let name = "memory of a running task, all told".into();
    rows.push(Row { name, unit: "bytes", ours, peer: None, rounds: 1 });
    Ok(rows)
}

async fn measure_raft(args: &Args) -> Result<Vec<Row>> {
    let time = Duration::from_secs(args.seconds);
    let mut rows = Vec::new();
    for clients in [1, 500] {
        let (mut ours, mut peers): (Vec<Commits>, Vec<Commits>) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            let dir = tempfile::tempdir()?;
            ours.push(raft::commits(dir.path(), clients, time).await?);
            if etcd::is_installed() {
                let dir = tempfile::tempdir()?;
                peers.push(etcd::commits(dir.path(), clients, time).await?);
            }
        }
        type Value = fn(&Commits) -> f64;
        let values: [(&str, &'static str, Value); 2] = [
            ("commits", "1/s", |c| c.per_second),
            ("commit p50", "ms", |c| c.p50.as_secs_f64() * 1e3),
        ];
        for (what, unit, value) in values {
            let median = |runs: &[Commits]| {
                let mut all: Vec<f64> = runs.iter().map(value).collect();
                all.sort_by(f64::total_cmp);
                all.get(all.len() / 2).copied()
            };
            rows.push(Row {
                name: format!("raft {what}, {clients} clients, 3 members, 1 KiB"),
                unit,
                ours: median(&ours).context("no round was made")?,
                peer: median(&peers).map(|value| (value, "etcd")),
                rounds: args.rounds,
            });
        }
    }
    Ok(rows)
}

async fn measure_failover(trials: usize) -> Result<Row> {
    let dir = tempfile::tempdir()?;
    let mut waits = raft::failover(dir.path(), trials).await?;
    waits.sort_unstable();
    let p50 = waits.get(waits.len() / 2).context("no trial was made")?;
    let ours = p50.as_secs_f64() * 1e3;
    let name = "leader lost to next accepted write, p50".into();
    Ok(Row { name, unit: "ms", ours, peer: None, rounds: trials })
}

fn print_head() {
    println!(
        "{:<NAME_WIDTH$} {:>14} {:>14} {:>8} {:>7}  unit",
        "benchmark", "ours", "peer", "ratio", "rounds"
    );
}

/// As soon as they are known: a later benchmark may miss something that it needs.
fn show(rows: impl IntoIterator<Item = impl Into<Row>>) -> Result<()> {
    let rows: Vec<Row> = rows.into_iter().map(Into::into).collect();
    for row in &rows {
        let (peer, ratio) = match row.peer {
            Some((peer, name)) => (format!("{peer:.2} {name}"), format!("{:.2}", row.ours / peer)),
            None => ("-".into(), "-".into()),
        };
        let ours = format!("{:.2}", row.ours);
        println!(
            "{:<NAME_WIDTH$} {ours:>14} {peer:>14} {ratio:>8} {:>7}  {}",
            row.name, row.rounds, row.unit
        );
    }
    append(&rows)
}

fn append(rows: &[Row]) -> Result<()> {
    let path = Path::new("target/bench.jsonl");
    let file = OpenOptions::new().create(true).append(true).open(path);
    let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
    let (load, commit) = (load(), commit());
    for row in rows {
        let line = json!({
            "name": row.name, "unit": row.unit, "ours": row.ours,
            "peer": row.peer.map(|(value, _)| value), "peer_name": row.peer.map(|(_, name)| name),
            "rounds": row.rounds, "load": load, "commit": commit,
        });
        writeln!(file, "{line}")?;
    }
    Ok(())
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_default()
}

/// Of the longest name.
const NAME_WIDTH: usize = 78;
