//! The one loop that drives all deciders.
//!
//! Owns: marking keys dirty, the working copy, packing plans into proposals, wake-up times.
//! Does not know: what any decider decides.
//! Invariant: keys are decided on the last applied snapshot plus every plan made since, through the
//! same `apply`; whenever that may differ from what the managers applied, the copy is rebuilt.

use std::collections::{BTreeMap, BTreeSet};

use base::{IdSource, Millis, Timestamp};
use ports::store::{ProposeError, Store};
use ports::{Batch, Clock, Cursor};
use state::{ChangeSet, Ctx, Decider, Event, Plan, Proposal, Snapshot, Stamp};
use tokio::sync::watch;

use crate::options::{ATOMS_PER_PROPOSAL_MAX, KEYS_PER_TURN_MAX, Timing};

/// Why the loop turned.
enum Cause {
    Shutdown,
    Leadership,
    Changes(Batch),
    Timer,
}

/// Drives the deciders while this manager leads; returns on shutdown.
pub async fn run<S: Store, C: Clock>(
    store: S,
    clock: C,
    ids: IdSource,
    timing: Timing,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut leadership = store.leadership();
    let mut turn = Turn::new(store, clock, ids, timing);
    loop {
        let leads = leadership.borrow_and_update().is_leader;
        turn.set_leading(leads);
        let at = turn.next_turn();
        let (clock, changes) = (turn.clock.clone(), &mut turn.changes);
        let cause = tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => Cause::Shutdown,
            _ = leadership.changed() => Cause::Leadership,
            batch = changes.next() => Cause::Changes(batch),
            () = clock.sleep_until(at), if leads => Cause::Timer,
        };
        match cause {
            Cause::Shutdown | Cause::Changes(Batch::Closed) => return,
            Cause::Leadership => continue,
            Cause::Changes(batch) => turn.mark(&batch),
            Cause::Timer => {}
        }
        if leads {
            turn.decide_all().await;
        }
    }
}

/// Dirty keys and wake-up times of one decider.
struct Queue<D: Decider> {
    dirty: BTreeSet<D::Key>,
    wakes: Wakes<D::Key>,
}

impl<D: Decider> Default for Queue<D> {
    fn default() -> Self {
        Self { dirty: BTreeSet::new(), wakes: Wakes::default() }
    }
}

impl<D: Decider> Queue<D> {
    fn mark_due(&mut self, now: Timestamp) {
        while let Some(key) = self.wakes.take_due(now) {
            self.dirty.insert(key);
        }
    }
}

/// One time per key, in the order of the times.
#[derive(Debug)]
struct Wakes<K> {
    times: BTreeMap<K, Timestamp>,
    order: BTreeSet<(Timestamp, K)>,
}

impl<K> Default for Wakes<K> {
    fn default() -> Self {
        Self { times: BTreeMap::new(), order: BTreeSet::new() }
    }
}

impl<K: Ord + Copy> Wakes<K> {
    /// The time of a key, in place of the one it had.
    fn set(&mut self, key: K, at: Option<Timestamp>) {
        if let Some(old) = self.times.remove(&key) {
            self.order.remove(&(old, key));
        }
        if let Some(at) = at {
            self.times.insert(key, at);
            self.order.insert((at, key));
        }
    }

    /// A key whose time has come; it has none from then on.
    fn take_due(&mut self, now: Timestamp) -> Option<K> {
        let (_, key) = *self.order.first().filter(|(at, _)| *at <= now)?;
        self.set(key, None);
        Some(key)
    }

    fn next(&self) -> Option<Timestamp> {
        self.order.first().map(|(at, _)| *at)
    }
}

/// A proposal under way, and what to look at again when it is refused.
struct Turn<S, C> {
    store: S,
    clock: C,
    ids: IdSource,
    timing: Timing,
    changes: Cursor,
    leading: bool,
    copy: Snapshot,
    allocator: Queue<allocator::Allocator>,
    orchestrator: Queue<orchestrator::Orchestrator>,
    orphans: Queue<dispatch::Orphans>,
    scheduler: Queue<scheduler::Scheduler>,
    next_scan: Millis,
    retry_at: Option<Millis>,
}

impl<S: Store, C: Clock> Turn<S, C> {
    fn new(store: S, clock: C, ids: IdSource, timing: Timing) -> Self {
        let changes = store.watch();
        Self {
            store,
            clock,
            ids,
            timing,
            changes,
            leading: false,
            copy: Snapshot::default(),
            allocator: Queue::default(),
            orchestrator: Queue::default(),
            orphans: Queue::default(),
            scheduler: Queue::default(),
            next_scan: Millis::ZERO,
            retry_at: None,
        }
    }

    /// A new leader looks at everything; one that no longer leads forgets everything.
    fn set_leading(&mut self, leads: bool) {
        if self.leading == leads {
            return;
        }
        self.leading = leads;
        self.forget();
        self.next_scan = Millis::ZERO;
    }

    fn forget(&mut self) {
        self.allocator = Queue::default();
        self.orchestrator = Queue::default();
        self.orphans = Queue::default();
        self.scheduler = Queue::default();
        self.retry_at = None;
    }

    fn is_dirty(&self) -> bool {
        !(self.allocator.dirty.is_empty()
            && self.orchestrator.dirty.is_empty()
            && self.orphans.dirty.is_empty()
            && self.scheduler.dirty.is_empty())
    }

    /// When to turn without an event.
    fn next_turn(&self) -> Millis {
        let now = self.clock.monotonic();
        if self.is_dirty() {
            return self.retry_at.unwrap_or(now);
        }
        let wakes = [
            self.allocator.wakes.next(),
            self.orchestrator.wakes.next(),
            self.orphans.wakes.next(),
            self.scheduler.wakes.next(),
        ];
        let wall = self.clock.now();
        let wake = wakes.into_iter().flatten().min();
        let wake = wake.map(|at| Millis(now.0.saturating_add(at.since(wall).0)));
        wake.map_or(self.next_scan, |at| at.min(self.next_scan))
    }

    fn mark(&mut self, batch: &Batch) {
        if !self.leading {
            return;
        }
        match batch {
            Batch::Events(batches) => {
                let view = self.store.snapshot();
                for event in batches.iter().flat_map(|events| events.iter()) {
                    self.mark_event(&view, event);
                }
            }
            Batch::Resync | Batch::Closed => self.next_scan = Millis::ZERO,
        }
    }

    fn mark_event(&mut self, view: &Snapshot, event: &Event) {
        allocator::Allocator::mark(view, event, &mut self.allocator.dirty);
        orchestrator::Orchestrator::mark(view, event, &mut self.orchestrator.dirty);
        dispatch::Orphans::mark(view, event, &mut self.orphans.dirty);
        scheduler::Scheduler::mark(view, event, &mut self.scheduler.dirty);
    }

    fn mark_everything(&mut self, view: &Snapshot) {
        allocator::Allocator::mark_all(view, &mut self.allocator.dirty);
        orchestrator::Orchestrator::mark_all(view, &mut self.orchestrator.dirty);
        dispatch::Orphans::mark_all(view, &mut self.orphans.dirty);
        scheduler::Scheduler::mark_all(view, &mut self.scheduler.dirty);
    }

    /// One turn: decides dirty keys on the working copy and proposes what they want.
    async fn decide_all(&mut self) {
        self.retry_at = None;
        let monotonic = self.clock.monotonic();
        self.copy = self.store.snapshot();
        if self.next_scan <= monotonic {
            self.next_scan = Millis(monotonic.0 + self.timing.full_scan_period.0);
            let view = self.copy.clone();
            self.mark_everything(&view);
        }
        let now = self.clock.now().max(self.copy.time());
        self.allocator.mark_due(now);
        self.orchestrator.mark_due(now);
        self.orphans.mark_due(now);
        self.scheduler.mark_due(now);
        let atoms = self.decide_turn(now);
        if !atoms.is_empty() {
            self.propose(now, atoms).await;
        }
    }

    /// Lets every decider decide its dirty keys, in the order of the pipeline, until none is left
    /// or the turn is full.
    fn decide_turn(&mut self, now: Timestamp) -> Vec<ChangeSet> {
        let mut atoms = Vec::new();
        for _ in 0..KEYS_PER_TURN_MAX {
            if atoms.len() >= ATOMS_PER_PROPOSAL_MAX {
                break;
            }
            let decided = self.decide_one::<dispatch::Orphans>(|t| &mut t.orphans, now, &mut atoms)
                || self.decide_one::<orchestrator::Orchestrator>(
                    |t| &mut t.orchestrator,
                    now,
                    &mut atoms,
                )
                || self.decide_one::<allocator::Allocator>(|t| &mut t.allocator, now, &mut atoms)
                || self.decide_one::<scheduler::Scheduler>(|t| &mut t.scheduler, now, &mut atoms);
            if !decided {
                break;
            }
        }
        atoms
    }

    /// Decides the first dirty key of one decider; `false` when it has none.
    fn decide_one<D: Decider>(
        &mut self,
        queue: fn(&mut Self) -> &mut Queue<D>,
        now: Timestamp,
        atoms: &mut Vec<ChangeSet>,
    ) -> bool {
        let Some(key) = queue(self).dirty.pop_first() else { return false };
        let view = self.copy.clone();
        let mut ctx = Ctx { view: &view, now, ids: &mut self.ids };
        let plan = D::decide(&mut ctx, key);
        trace_plan::<D>(key, &plan);
        let queue = queue(self);
        queue.wakes.set(key, plan.wake_at);
        if plan.more {
            queue.dirty.insert(key);
        }
        for atom in plan.atoms {
            self.try_out::<D>(now, atom, atoms);
        }
        true
    }

    /// Applies an atom to the working copy; one that is refused there would be refused everywhere.
    fn try_out<D: Decider>(&mut self, now: Timestamp, atom: ChangeSet, atoms: &mut Vec<ChangeSet>) {
        let stamp = Stamp { index: self.copy.index() + 1, time: now };
        let mut events = Vec::new();
        match self.copy.apply(stamp, &atom, &mut events) {
            Ok(()) => {
                let view = self.copy.clone();
                events.iter().for_each(|event| self.mark_event(&view, event));
                atoms.push(atom);
            }
            Err(refusal) => {
                tracing::error!(decider = D::NAME, %refusal, "plan refused on its own snapshot");
            }
        }
    }

    async fn propose(&mut self, now: Timestamp, atoms: Vec<ChangeSet>) {
        let proposal = Proposal { time: now, atoms };
        match self.store.propose(proposal).await {
            Ok(applied) => {
                let refused = applied.results.iter().filter(|result| result.is_err()).count();
                if refused > 0 {
                    // Somebody else's entry landed in between: everything is looked at again.
                    tracing::debug!(refused, "atoms were refused, looking again");
                    self.next_scan = Millis::ZERO;
                }
            }
            Err(ProposeError::NotLeader { .. }) => self.forget(),
            Err(error) => {
                tracing::warn!(%error, "decisions could not be stored, trying again");
                self.next_scan = Millis::ZERO;
                let wait = self.timing.retry_period;
                self.retry_at = Some(Millis(self.clock.monotonic().0 + wait.0));
            }
        }
    }
}

fn trace_plan<D: Decider>(key: D::Key, plan: &Plan) {
    if plan.atoms.is_empty() && plan.notes.is_empty() {
        return;
    }
    let notes = plan.notes.iter().map(|note| note.text.as_str()).collect::<Vec<_>>().join("; ");
    tracing::debug!(decider = D::NAME, ?key, atoms = plan.atoms.len(), notes, "decided");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_come_in_order_and_once() {
        let mut wakes: Wakes<u32> = Wakes::default();
        for (key, at) in [(1, 30), (2, 10), (3, 20), (2, 25), (4, 10)] {
            wakes.set(key, Some(Timestamp(at)));
        }
        wakes.set(4, None);
        assert_eq!(wakes.next(), Some(Timestamp(20)));
        assert_eq!(wakes.take_due(Timestamp(19)), None);
        let mut due = Vec::new();
        while let Some(key) = wakes.take_due(Timestamp(25)) {
            due.push(key);
        }
        assert_eq!(due, [3, 2]);
        assert_eq!((wakes.next(), wakes.times.len()), (Some(Timestamp(30)), 1));
    }
}
