//! All deciders together, on generated snapshots: deciding ends, and then nothing is left to
//! decide.
//!
//! Owns: the properties that must hold at each step and at the end.
//! Does not know: the loop that drives the deciders in a manager; this is the plainest one.

#![allow(clippy::unwrap_used)]

mod generate;

use std::collections::{BTreeMap, BTreeSet};

use base::{IdSource, Timestamp};
use state::{Change, ChangeSet, Ctx, Decider, Event, Snapshot, Stamp, verify};
use testkit::fixture;
use types::{ServiceMode, TaskState};

/// Keys decided at one moment before it counts as endless.
const DECISIONS_MAX: usize = 5_000;
/// Moments that are looked at: the first, and the next ones that a plan asked for.
const MOMENTS_MAX: usize = 12;

#[test]
fn deciding_ends_and_then_there_is_nothing_to_decide() {
    let mut moments = 0;
    for seed in 1..=400 {
        let text = generate::snapshot(seed);
        match play(&text) {
            Ok(count) => moments += count,
            Err(problem) => panic!("seed {seed}: {problem}\n{text}"),
        }
    }
    assert!(moments > 600, "time went on in {moments} cases only: nothing is asked for later");
}

/// Lets time go on to where the plans asked for it; gives how often.
fn play(text: &str) -> Result<usize, String> {
    let found = fixture(text);
    let mut board = Board::new(found.view, found.now);
    board.mark_all();
    for moment in 1..=MOMENTS_MAX {
        board.settle()?;
        board.check_settled()?;
        if !board.wait() {
            return Ok(moment);
        }
    }
    Ok(MOMENTS_MAX)
}

/// Dirty keys and wake-up times of one decider.
struct Queue<D: Decider> {
    dirty: BTreeSet<D::Key>,
    wakes: BTreeMap<D::Key, Timestamp>,
}

impl<D: Decider> Queue<D> {
    fn new() -> Self {
        Self { dirty: BTreeSet::new(), wakes: BTreeMap::new() }
    }

    /// Decides the first dirty key.
    fn decide(
        &mut self,
        view: &Snapshot,
        now: Timestamp,
        ids: &mut IdSource,
    ) -> Option<state::Plan> {
        let key = self.dirty.pop_first()?;
        let plan = D::decide(&mut Ctx { view, now, ids }, key);
        self.wakes.remove(&key);
        self.wakes.extend(plan.wake_at.map(|at| (key, at)));
        if plan.more {
            self.dirty.insert(key);
        }
        Some(plan)
    }

    fn wake(&mut self, now: Timestamp) {
        self.dirty.extend(self.wakes.extract_if(.., |_, at| *at <= now).map(|(key, _)| key));
    }

    /// What is left to decide when every key is looked at once more.
    fn left(&self, view: &Snapshot, now: Timestamp, ids: &mut IdSource) -> Result<(), String> {
        let mut keys = BTreeSet::new();
        D::mark_all(view, &mut keys);
        for key in keys {
            let plan = D::decide(&mut Ctx { view, now, ids }, key);
            if !plan.atoms.is_empty() || plan.more {
                return Err(format!("{} {key:?} still wants {:?}", D::NAME, plan.atoms));
            }
            if plan.wake_at.is_some_and(|at| at <= now) {
                return Err(format!("{} {key:?} wakes in the past", D::NAME));
            }
        }
        Ok(())
    }
}

/// The state and those who decide about it.
struct Board {
    view: Snapshot,
    now: Timestamp,
    ids: IdSource,
    orphans: Queue<dispatch::Orphans>,
    orchestrator: Queue<orchestrator::Orchestrator>,
    allocator: Queue<allocator::Allocator>,
    scheduler: Queue<scheduler::Scheduler>,
}

impl Board {
    fn new(view: Snapshot, now: Timestamp) -> Self {
        Self {
            view,
            now,
            ids: IdSource::new(7),
            orphans: Queue::new(),
            orchestrator: Queue::new(),
            allocator: Queue::new(),
            scheduler: Queue::new(),
        }
    }

    fn mark_all(&mut self) {
        dispatch::Orphans::mark_all(&self.view, &mut self.orphans.dirty);
        orchestrator::Orchestrator::mark_all(&self.view, &mut self.orchestrator.dirty);
        allocator::Allocator::mark_all(&self.view, &mut self.allocator.dirty);
        scheduler::Scheduler::mark_all(&self.view, &mut self.scheduler.dirty);
    }

    fn mark(&mut self, event: &Event) {
        dispatch::Orphans::mark(&self.view, event, &mut self.orphans.dirty);
        orchestrator::Orchestrator::mark(&self.view, event, &mut self.orchestrator.dirty);
        allocator::Allocator::mark(&self.view, event, &mut self.allocator.dirty);
        scheduler::Scheduler::mark(&self.view, event, &mut self.scheduler.dirty);
    }

    /// Decides until no key is dirty.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..DECISIONS_MAX {
            let (view, now, ids) = (self.view.clone(), self.now, &mut self.ids);
            let plan = None
                .or_else(|| self.orphans.decide(&view, now, ids))
                .or_else(|| self.orchestrator.decide(&view, now, ids))
                .or_else(|| self.allocator.decide(&view, now, ids))
                .or_else(|| self.scheduler.decide(&view, now, ids));
            let Some(plan) = plan else { return Ok(()) };
            for atom in plan.atoms {
                self.apply(&atom)?;
            }
        }
        Err(format!("{DECISIONS_MAX} decisions and no end"))
    }

    fn apply(&mut self, atom: &ChangeSet) -> Result<(), String> {
        let before = self.view.clone();
        let stamp = Stamp { index: before.index() + 1, time: self.now };
        let mut events = Vec::new();
        let applied = self.view.apply(stamp, atom, &mut events);
        applied.map_err(|refusal| format!("{atom:?} is refused: {refusal}"))?;
        verify(&self.view)?;
        check_forward(&before, &self.view)?;
        atom.changes.iter().try_for_each(|change| check_placed(&self.view, change))?;
        events.iter().for_each(|event| self.mark(event));
        Ok(())
    }

    fn check_settled(&mut self) -> Result<(), String> {
        let (view, now, ids) = (&self.view, self.now, &mut self.ids);
        self.orphans.left(view, now, ids)?;
        self.orchestrator.left(view, now, ids)?;
        self.allocator.left(view, now, ids)?;
        self.scheduler.left(view, now, ids)?;
        check_counts(view)
    }

    /// Goes to the next time that a plan has asked for; `false` when there is none.
    fn wait(&mut self) -> bool {
        let next = [
            self.orphans.wakes.values().min(),
            self.orchestrator.wakes.values().min(),
            self.allocator.wakes.values().min(),
            self.scheduler.wakes.values().min(),
        ];
        let Some(at) = next.into_iter().flatten().min().copied() else { return false };
        self.now = self.now.max(at);
        self.orphans.wake(self.now);
        self.orchestrator.wake(self.now);
        self.allocator.wake(self.now);
        self.scheduler.wake(self.now);
        true
    }
}

/// No state and no wish of a task goes back, and no task changes its place.
fn check_forward(before: &Snapshot, after: &Snapshot) -> Result<(), String> {
    for old in before.tasks() {
        let Some(new) = after.task(old.id) else { continue };
        let moved = old.node.is_some() && old.node != new.node;
        let back = new.status.state < old.status.state || new.desired < old.desired;
        if moved || back || new.slot != old.slot || new.revision != old.revision {
            return Err(format!("a task went back from {old:?} to {new:?}"));
        }
    }
    match after.time() < before.time() || after.index() < before.index() {
        true => Err("time went back".into()),
        false => Ok(()),
    }
}

/// What was just placed fits: in the node, under the limit of the service, within its rules.
fn check_placed(view: &Snapshot, change: &Change) -> Result<(), String> {
    let Change::AssignTasks(pairs) = change else { return Ok(()) };
    for (task, node) in pairs {
        let (task, node) = (view.task(*task).unwrap(), view.node(*node).unwrap());
        let revision = view.revision(task.service, task.revision).unwrap();
        let (usage, has) = (view.usage(node.id), &node.description.resources);
        let wants = &revision.spec.reservations;
        if wants.cpu_nanos > 0 && usage.cpu_nanos > has.cpu_nanos
            || wants.memory_bytes > 0 && usage.memory_bytes > has.memory_bytes
        {
            return Err(format!("{} was placed on {}, which is full", task.id, node.hostname()));
        }
        if !node.takes_tasks() || !revision.allows(node) {
            return Err(format!("{} was placed on {} against rules", task.id, node.hostname()));
        }
        let max = revision.spec.placement.max_replicas;
        let own = view.placed(task.service).find(|(id, _)| *id == node.id).map_or(0, |(_, n)| n);
        let replicated = view
            .service(task.service)
            .is_some_and(|service| matches!(service.spec.mode, ServiceMode::Replicated(_)));
        if replicated && max > 0 && u64::from(own) > max {
            return Err(format!("{own} tasks of one service on {}, not {max}", node.hostname()));
        }
    }
    Ok(())
}

/// Each service has as many slots as it should, each with one task that is wanted.
fn check_counts(view: &Snapshot) -> Result<(), String> {
    for service in view.services() {
        let mut slots = BTreeMap::new();
        for task in view.tasks_of_service(service.id) {
            if task.desired <= TaskState::Running {
                *slots.entry(task.slot_key().unwrap()).or_insert(0) += 1;
            }
        }
        if let Some((slot, count)) = slots.iter().find(|(_, count)| **count > 1) {
            return Err(format!("{} wants {count} tasks in {slot:?}", service.spec.name));
        }
        let want = match service.spec.mode {
            ServiceMode::Replicated(count) => count,
            _ => continue,
        };
        if slots.len() as u64 != want {
            return Err(format!("{} has {} slots, not {want}", service.spec.name, slots.len()));
        }
    }
    Ok(())
}
