//! The leader is lost, and how long it takes until the next write is accepted: with daemons and
//! networks as users have them.
//!
//! Owns: killing and cutting, and the writer. Does not know: Raft.
//! Invariant: a write counts when a manager that is left has acknowledged it, and the next trial
//! begins when all three are there again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use integration::{Host, IMAGE, LONG, Lab, joined, wait_until};

use crate::figure::{Figure, median};

/// Somebody must have taken over by then.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two tries of the writer.
const PERIOD: Duration = Duration::from_millis(20);

type Loss = fn(&Host) -> Result<()>;

/// `trials` of each kind.
///
/// # Errors
/// When nobody takes over, or a manager does not come back.
pub fn measure(trials: usize) -> Result<Vec<Figure>> {
    let lab = joined(3, 0)?;
    let args = ["service", "create", "-d", "--name", "written", "--replicas", "0", IMAGE];
    lab.host(1).shoal(&args)?.ok()?;
    let kinds: [(&str, Loss, Loss); 2] =
        [("killed (kill -9)", Host::kill, Host::start), ("cut off", Host::cut, Host::mend)];
    let mut figures = Vec::new();
    for (what, lose, restore) in kinds {
        let mut waits = Vec::new();
        for trial in 0..trials {
            waits.push(lose_leader(&lab, trial, lose, restore)?);
        }
        let worst = waits.iter().copied().fold(0.0, f64::max);
        for (which, ours) in [("p50", median(&waits)), ("worst", worst)] {
            let name = format!("leader {what} to next accepted write, {which}");
            figures.push(Figure { name, unit: "ms", ours, peer: None, rounds: trials });
        }
    }
    Ok(figures)
}

fn lose_leader(lab: &Lab, trial: usize, lose: Loss, restore: Loss) -> Result<f64> {
    let name = lab.host(1).leader()?;
    let is_leader = |host: &&Host| host.name() == name;
    let leader = lab.hosts().iter().find(is_leader).context("the leader is no host")?;
    let asked = lab.hosts().iter().find(|host| !is_leader(host)).context("no other host")?;
    let begun = Instant::now();
    lose(leader)?;
    let label = format!("trial={trial}");
    let args = ["service", "update", "-d", "--label-add", &label, "written"];
    while asked.shoal(&args)?.code != 0 {
        if begun.elapsed() > LIMIT {
            bail!("nobody took over from {name} within {} s", LIMIT.as_secs());
        }
        // A refusal comes at once, and the ones that elect need the processors too.
        std::thread::sleep(PERIOD);
    }
    let took = begun.elapsed();
    restore(leader)?;
    wait_until("all managers to be there again", LONG, || {
        let format = "{{.Status}} {{.ManagerStatus}}";
        let lines = asked.shoal(&["node", "ls", "--format", format])?.lines()?;
        let well = |line: &&String| *line == "Ready Leader" || *line == "Ready Reachable";
        Ok(lines.iter().filter(well).count() == 3)
    })?;
    // The one that was away may not know yet who leads.
    wait_until("its own view of the leader", LONG, || Ok(lab.host(1).leader().is_ok()))?;
    Ok(took.as_secs_f64() * 1e3)
}
