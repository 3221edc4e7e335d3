//! Snapshots in the language of fixtures, drawn from a seed.
//!
//! Owns: what is worth drawing: nodes in every state, services of every kind, tasks in every state
//! that such a cluster can be found in, and some that it hardly can.
//! Invariant: one seed gives one text.

use std::fmt::Write as _;

use base::IdSource;

const NODES: [&str; 5] = ["a", "b", "c", "d", "e"];
const SERVICES: [&str; 3] = ["web", "db", "log"];

struct Draw(IdSource);

impl Draw {
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.0.below(of.len() as u64) as usize]
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.0.below(100) < percent
    }
}

pub(crate) fn snapshot(seed: u128) -> String {
    let mut draw = Draw(IdSource::new(seed));
    let mut text = String::from("now 12:00:00\n");
    let _ = writeln!(text, "limit {}", draw.one(&["0", "1", "5"]));
    let nodes = 1 + draw.0.below(NODES.len() as u64) as usize;
    for name in &NODES[..nodes] {
        let state = draw.one(&["ready", "ready", "ready", "ready", "down", "unknown"]);
        let availability = draw.one(&["", "", "", "", "drain", "pause"]);
        let cpu = draw.one(&["1", "2", "8"]);
        let zone = draw.one(&["x", "y"]);
        let since = draw.one(&["10s", "86399s", "90000s"]);
        let _ = writeln!(
            text,
            "node {name} {state} {availability} cpu={cpu} mem=2GiB label.zone={zone} since={since}"
        );
    }
    for name in &SERVICES[..1 + draw.0.below(SERVICES.len() as u64) as usize] {
        service(&mut draw, &mut text, name);
    }
    text
}

fn service(draw: &mut Draw, text: &mut String, name: &str) {
    let global = draw.chance(25);
    let mode = match global {
        true => "global".to_owned(),
        false => format!("replicas={}", draw.0.below(7)),
    };
    let _ = write!(text, "service {name} {mode}");
    for (percent, word) in [
        (25, "constraint=node.labels.zone==x"),
        (15, "spread=node.labels.zone"),
        (15, "max=2"),
        (40, "reserve.cpu=0.5"),
        (20, "reserve.mem=512MiB"),
        (25, "restart=on-failure"),
        (10, "restart=none"),
        (40, "delay=5s"),
        (25, "attempts=2"),
        (10, "window=30s"),
    ] {
        if draw.chance(percent) {
            let _ = write!(text, " {word}");
        }
    }
    text.push('\n');
    let changed = draw.chance(30);
    if changed {
        let change = draw.one(&["image=other", "reserve.cpu=1", "constraint=node.labels.zone==y"]);
        let _ = writeln!(text, "change {name} {change}");
    }
    for _ in 0..draw.0.below(10) {
        task(draw, text, name, global, changed);
    }
    if !global && draw.chance(30) {
        let resume = draw.one(&["11:59:00", "12:00:04"]);
        let _ = writeln!(text, "tally {name}.1 attempts={} resume={resume}", draw.0.below(6));
    }
    if draw.chance(10) {
        let _ = writeln!(text, "gone {name}");
    }
}

fn task(draw: &mut Draw, text: &mut String, name: &str, global: bool, changed: bool) {
    let node = draw.one(&["a", "b", "c", "lost"]);
    let state = draw.one(&[
        "new",
        "pending",
        "assigned",
        "accepted",
        "preparing",
        "ready",
        "starting",
        "running",
        "running",
        "running",
        "complete",
        "shutdown",
        "failed",
        "rejected",
        "orphaned",
    ]);
    let slot = match global {
        true => node.to_owned(),
        false => (1 + draw.0.below(6)).to_string(),
    };
    let placed = !global && !matches!(state, "new" | "pending");
    let place = if placed { format!("@{node}") } else { String::new() };
    let desired = draw.one(&["running", "running", "running", "ready", "shutdown", "remove"]);
    let revision = if changed && draw.chance(60) { "rev=old" } else { "" };
    let age = draw.one(&["1s", "20s", "100s"]);
    let _ =
        writeln!(text, "task {name}.{slot} {place} {state} desired={desired} {revision} age={age}");
}
