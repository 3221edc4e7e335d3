//! One decision about one service, step by step.
//!
//! Owns: the order of the steps, and gathering what they want into one atom.
//! Invariant: a plan is bounded; when a bound is met it asks to go on at once.

use std::collections::{BTreeMap, BTreeSet};

use base::{IdSource, Timestamp};
use state::{Author, Change, ChangeSet, Ctx, Plan, Snapshot};
use types::{
    NodeId, Reason, Revision, Service, SlotKey, Tally, Task, TaskId, TaskState, UpdateStatus,
};

use crate::slots::{SlotView, slots_of};
use crate::{reap, reason, restart, update, wanted};

/// Tasks that one plan touches at most: one log entry stays small and is applied in milliseconds.
pub(crate) const TASKS_PER_PLAN_MAX: usize = 5_000;

/// What the steps share, and what they want.
pub(crate) struct Turn<'a> {
    pub view: &'a Snapshot,
    pub now: Timestamp,
    pub service: &'a Service,
    pub revision: &'a Revision,
    pub history_limit: i64,
    budget: usize,
    create: BTreeMap<(TaskState, SlotKey), ()>,
    desire: BTreeMap<TaskState, BTreeSet<TaskId>>,
    delete: BTreeSet<TaskId>,
    tallies: BTreeMap<SlotKey, Option<Tally>>,
    update: Option<Option<UpdateStatus>>,
    reason: Option<Option<Reason>>,
    pub plan: Plan,
}

pub(crate) fn decide_service(ctx: &mut Ctx<'_>, service: &Service) -> Plan {
    let Some(revision) = ctx.view.revision(service.id, service.revision).cloned() else {
        return Plan::default(); // cannot be: a service holds its revision
    };
    let mut turn = Turn {
        view: ctx.view,
        now: ctx.now,
        service,
        revision: &revision,
        history_limit: ctx.view.cluster().map_or(0, |c| c.spec.task_history_limit),
        budget: TASKS_PER_PLAN_MAX,
        create: BTreeMap::new(),
        desire: BTreeMap::new(),
        delete: BTreeSet::new(),
        tallies: BTreeMap::new(),
        update: None,
        reason: None,
        plan: Plan::default(),
    };
    let slots = slots_of(ctx.view, service.id);
    let kept = wanted::decide_slots(&mut turn, &slots);
    for slot in &kept {
        restart::decide_slot(&mut turn, slot);
    }
    update::decide_update(&mut turn, &kept);
    reap::decide_history(&mut turn, &slots);
    reason::decide_reason(&mut turn, &kept);
    turn.finish(ctx.ids)
}

impl Turn<'_> {
    /// Takes one task from the plan's budget; `false` when it is used up.
    fn spend(&mut self) -> bool {
        if self.budget == 0 {
            self.plan.more = true;
            return false;
        }
        self.budget -= 1;
        true
    }

    /// Whether something was decided about this task already.
    pub(crate) fn is_told(&self, task: TaskId) -> bool {
        self.desire.values().any(|tasks| tasks.contains(&task))
    }

    /// Whether a task is to be made in this slot.
    pub(crate) fn is_created(&self, slot: SlotKey) -> bool {
        self.create.range((TaskState::New, slot)..).any(|((_, key), ())| *key == slot)
    }

    pub(crate) fn create(&mut self, slot: SlotKey, desired: TaskState) -> bool {
        let spent = self.spend();
        if spent {
            self.create.insert((desired, slot), ());
        }
        spent
    }

    /// Raises the desired state of a task.
    pub(crate) fn desire(&mut self, task: &Task, desired: TaskState) -> bool {
        if task.desired >= desired {
            return true;
        }
        let spent = self.spend();
        if spent {
            self.desire.entry(desired).or_default().insert(task.id);
        }
        spent
    }

    /// Replaces the current task of a slot: the old one stops, the new one waits for it.
    pub(crate) fn replace(&mut self, slot: SlotKey, old: &Task, desired: TaskState) -> bool {
        self.budget > 1 && self.create(slot, desired) && self.desire(old, TaskState::Shutdown) || {
            self.plan.more = true;
            false
        }
    }

    pub(crate) fn delete(&mut self, task: TaskId) {
        if self.spend() {
            self.delete.insert(task);
        }
    }

    pub(crate) fn set_tally(&mut self, slot: SlotKey, tally: Option<Tally>) {
        self.tallies.insert(slot, tally);
    }

    pub(crate) fn set_update(&mut self, status: Option<UpdateStatus>) {
        if self.service.update != status {
            self.update = Some(status);
        }
    }

    pub(crate) fn set_reason(&mut self, reason: Option<Reason>) {
        self.reason = Some(reason);
    }

    pub(crate) fn note(&mut self, code: &'static str, text: String) {
        self.plan.note(code, Some(self.service.id), text);
    }

    fn finish(mut self, ids: &mut IdSource) -> Plan {
        let mut changes = Vec::new();
        for desired in [TaskState::Ready, TaskState::Running] {
            changes.extend(self.creation(desired, ids));
        }
        for (desired, tasks) in self.desire {
            changes.push(Change::DesireTasks { desired, tasks: tasks.into_iter().collect() });
        }
        if !self.delete.is_empty() {
            changes.push(Change::RemoveTasks(self.delete.into_iter().collect()));
        }
        let service = self.service.id;
        for (slot, tally) in self.tallies {
            changes.push(Change::SetTally { service, slot, tally });
        }
        if let Some(status) = self.update {
            changes.push(Change::SetUpdateStatus { id: service, status });
        }
        if let Some(reason) = self.reason {
            let decider = Author::Orchestrator.name().to_owned();
            changes.push(Change::SetReason { service, decider, reason });
        }
        if !changes.is_empty() {
            self.plan.atoms.push(ChangeSet { author: Author::Orchestrator, changes });
        }
        self.plan
    }

    fn creation(&self, desired: TaskState, ids: &mut IdSource) -> Option<Change> {
        let mut slots: Vec<(u32, u32)> = Vec::new();
        let mut nodes: Vec<NodeId> = Vec::new();
        for ((_, key), ()) in self.create.iter().filter(|((d, _), ())| *d == desired) {
            match key {
                SlotKey::Node(node) => nodes.push(*node),
                SlotKey::Replica(number) => match slots.last_mut() {
                    Some((_, last)) if *last + 1 == *number => *last = *number,
                    _ => slots.push((*number, *number)),
                },
            }
        }
        if slots.is_empty() && nodes.is_empty() {
            return None;
        }
        let (service, revision) = (self.service.id, self.revision.number);
        let seed = ids.mint().as_u128();
        Some(Change::CreateTasks { service, revision, seed, desired, slots, nodes })
    }
}

/// The slots that stay, for the later steps.
pub(crate) type Kept<'a> = Vec<&'a SlotView<'a>>;
