//! The leader hangs for half a minute and goes on: nothing that was acknowledged is lost, and what
//! runs twice meanwhile ends with its first report.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::{
    Host, IMAGE, LONG, Lab, SHORT, Sample, Task, containers, joined, wait_for, wait_until, watched,
};

/// Longer than every election and than the grace of a node that is silent.
const HANG: Duration = Duration::from_secs(30);
/// From going on until nothing runs twice: a new session and its first report, with time for a
/// loaded machine; a heartbeat has 5 s.
const SURPLUS_MAX: Duration = Duration::from_secs(8);

#[test]
fn a_leader_that_hangs_loses_nothing_and_runs_nothing_twice_for_long() {
    let lab = joined(3, 0).unwrap();
    for (name, replicas) in [("web", "6"), ("gone", "3")] {
        let args = ["service", "create", "-d", "--name", name, "--replicas", replicas, IMAGE];
        lab.host(1).shoal(&args).unwrap().ok().unwrap();
    }
    lab.host(1).wait_for_running("web", 6, LONG).unwrap();
    lab.host(1).wait_for_running("gone", 3, LONG).unwrap();
    let before = lab.host(1).running_tasks("web").unwrap();
    let name = lab.host(1).leader().unwrap();
    let hung = lab.hosts().iter().find(|host| host.name() == name).unwrap();

    let (samples, hang) = watched(lab.hosts(), || hang(&lab, hung)).unwrap();

    let slots = hang.slots.clone();
    check_doubles(&samples, &slots, &hang, hung);
    check_others_undisturbed(&samples, &before, hung);
    check_kept(&lab, &hang.acknowledged);
}

/// What happened while the leader hung.
struct Hang {
    from: Instant,
    to: Instant,
    /// Services whose creation was acknowledged.
    acknowledged: BTreeSet<String>,
    /// The slot of each task that was ever listed.
    slots: BTreeMap<String, String>,
}

fn hang(lab: &Lab, hung: &Host) -> Result<Hang> {
    let asked = lab.hosts().iter().find(|host| host.name() != hung.name()).expect("three hosts");
    let writers = Writers::default();
    let (from, to) = thread::scope(|scope| {
        // One asks the leader itself, before, while and after it hangs.
        for host in lab.hosts() {
            scope.spawn(|| writers.write(host));
        }
        let times =
            (|| {
                wait_until("the first writes", SHORT, || Ok(writers.count() >= 5))?;
                let from = Instant::now();
                hung.freeze()?;
                wait_for("another leader", LONG, || {
                    Ok((asked.leader()? != hung.name()).then_some(()))
                })?;
                let written = writers.count();
                wait_until("writes without it", SHORT, || Ok(writers.count() > written))?;
                asked.shoal(&["service", "rm", "gone"])?.ok()?;
                wait_until("its tasks to run elsewhere", LONG, || {
                    let spread = asked.spread("web")?;
                    Ok(!spread.contains_key(hung.name()) && spread.values().sum::<usize>() == 6)
                })?;
                // The time is the point.
                thread::sleep((from + HANG).saturating_duration_since(Instant::now()));
                hung.thaw()?;
                let to = Instant::now();
                wait_until("nothing to run twice", LONG, || {
                    let ids: usize =
                        lab.hosts().iter().map(|h| containers(h).map_or(9, |c| c.len())).sum();
                    ensure!(ids == 6, "{ids} containers");
                    Ok(true)
                })?;
                asked.wait_for_nodes(3, LONG)?;
                asked.wait_for_running("web", 6, LONG)?;
                Ok::<_, anyhow::Error>((from, to))
            })();
        writers.end.store(true, Ordering::Relaxed);
        times
    })?;
    let tasks = asked.tasks("web")?.into_iter();
    let slots = tasks.map(|task| (task.id, task.name)).collect();
    let acknowledged = writers.acknowledged.into_inner().unwrap();
    Ok(Hang { from, to, acknowledged, slots })
}

/// Callers that create services one after the other, each at one manager.
#[derive(Default)]
struct Writers {
    end: AtomicBool,
    number: AtomicU32,
    acknowledged: Mutex<BTreeSet<String>>,
}

impl Writers {
    fn write(&self, host: &Host) {
        while !self.end.load(Ordering::Relaxed) {
            let name = format!("w{}", self.number.fetch_add(1, Ordering::Relaxed));
            let args = ["service", "create", "-d", "--name", &name, "--replicas", "0", IMAGE];
            // A refusal says that nothing is promised.
            if host.shoal(&args).is_ok_and(|answer| answer.code == 0) {
                self.acknowledged.lock().unwrap().insert(name);
            }
        }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }
}

/// Never two containers of a slot, but for one that a daemon which hangs could not stop.
fn check_doubles(samples: &[Sample], slots: &BTreeMap<String, String>, hang: &Hang, hung: &Host) {
    let mut last = None;
    for sample in samples {
        let doubled = sample.doubled(slots);
        for (slot, hosts) in &doubled {
            assert_eq!(hosts.len(), 2, "{slot} on {hosts:?}");
            assert!(hosts.iter().any(|host| host == hung.name()), "{slot} on {hosts:?}");
            assert!(sample.at > hang.from, "{slot} on {hosts:?} while nothing hung");
            last = Some(sample.at);
        }
    }
    let last = last.expect("the tasks of the host that hung ran elsewhere, and there too");
    let surplus = last.saturating_duration_since(hang.to);
    assert!(surplus < SURPLUS_MAX, "a slot ran twice for {surplus:?} after the host went on");
    println!("{} samples; twice for {surplus:?} after going on", samples.len());
}

/// The containers of the other hosts ran in each sample: nobody stopped or replaced them.
fn check_others_undisturbed(samples: &[Sample], before: &[Task], hung: &Host) {
    for task in before.iter().filter(|task| task.node != hung.name()) {
        let is_missing = |sample: &&Sample| !sample.tasks[&task.node].contains(&task.id);
        let missing: Vec<&Sample> = samples.iter().filter(is_missing).collect();
        assert!(
            missing.is_empty(),
            "{task:?} did not run all along: not in {} of {} samples, first {:?}, last {:?}",
            missing.len(),
            samples.len(),
            missing.first(),
            missing.last()
        );
    }
}

/// Every manager, the one that hung too, has what was acknowledged, and not what was removed.
fn check_kept(lab: &Lab, acknowledged: &BTreeSet<String>) {
    for host in lab.hosts() {
        let what = format!("all that was acknowledged on {}", host.name());
        wait_until(&what, SHORT, || {
            let names = host.shoal(&["service", "ls", "--format", "{{.Name}}"])?.lines()?;
            let names: BTreeSet<String> = names.into_iter().collect();
            let lost: Vec<&String> = acknowledged.difference(&names).collect();
            ensure!(lost.is_empty(), "lost: {lost:?}");
            ensure!(names.contains("web") && !names.contains("gone"), "{names:?}");
            Ok(true)
        })
        .unwrap();
    }
    println!("{} acknowledged writes are there", acknowledged.len());
}
