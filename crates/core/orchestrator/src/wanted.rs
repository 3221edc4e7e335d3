//! Which slots a service should have.
//!
//! Owns: the count of replicas, the nodes of a global service, what goes when there are too many.
//! Does not know: why a task ended. Invariant: scaling down takes from the most crowded node first.

use std::collections::BTreeMap;

use types::{Availability, NodeId, NodeState, Revision, ServiceMode, SlotKey, TaskState};

use crate::slots::SlotView;
use crate::turn::{Kept, TASKS_PER_PLAN_MAX, Turn};

/// Makes and removes slots; returns those that stay.
pub(crate) fn decide_slots<'a>(
    turn: &mut Turn<'_>,
    slots: &'a BTreeMap<SlotKey, SlotView<'a>>,
) -> Kept<'a> {
    let live: Kept<'a> = slots.values().filter(|slot| slot.current().is_some()).collect();
    match turn.service.spec.mode {
        ServiceMode::Replicated(replicas) => decide_replicated(turn, live, replicas),
        ServiceMode::Global => decide_global(turn, live),
        // Refused by the API of this version.
        ServiceMode::ReplicatedJob(_) | ServiceMode::GlobalJob => live,
    }
}

fn decide_replicated<'a>(turn: &mut Turn<'_>, live: Kept<'a>, replicas: u64) -> Kept<'a> {
    let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
    if live.len() > wanted {
        return scale_down(turn, live, wanted);
    }
    let missing = wanted - live.len();
    if missing > 0 {
        let taken: std::collections::BTreeSet<SlotKey> = live.iter().map(|slot| slot.key).collect();
        let free = (1..=u32::MAX).map(SlotKey::Replica).filter(|key| !taken.contains(key));
        for key in free.take(missing.min(TASKS_PER_PLAN_MAX + 1)) {
            if !turn.create(key, TaskState::Running) {
                break;
            }
        }
        let name = &turn.service.spec.name;
        turn.note("scaled-up", format!("{name} {} -> {wanted}", live.len()));
    }
    live
}

/// Keeps `wanted` slots: those that do not run go first, then those on crowded nodes, then high
/// numbers.
fn scale_down<'a>(turn: &mut Turn<'_>, live: Kept<'a>, wanted: usize) -> Kept<'a> {
    let had = live.len();
    let mut rank: BTreeMap<Option<NodeId>, usize> = BTreeMap::new();
    // The n-th slot of a node: higher is more crowded. Running ones count first, so they stay.
    let mut order: Vec<(bool, usize, SlotKey, &'a SlotView<'a>)> = Vec::with_capacity(had);
    let (running, idle): (Kept<'a>, Kept<'a>) = live.into_iter().partition(|s| s.is_running());
    for slot in running.into_iter().chain(idle) {
        let nth = rank.entry(slot.current().and_then(|task| task.node)).or_default();
        *nth += 1;
        order.push((!slot.is_running(), *nth, slot.key, slot));
    }
    order.sort_by_key(|(idle, nth, key, _)| (*idle, *nth, *key));
    let surplus = order.split_off(wanted);
    for (_, _, _, slot) in &surplus {
        for task in slot.tasks.iter().filter(|task| task.desired < TaskState::Remove) {
            turn.desire(task, TaskState::Remove);
        }
        turn.set_tally_cleared(slot.key);
    }
    let name = &turn.service.spec.name;
    turn.note("scaled-down", format!("{name} {had} -> {wanted}"));
    order.into_iter().map(|(_, _, _, slot)| slot).collect()
}

fn decide_global<'a>(turn: &mut Turn<'_>, live: Kept<'a>) -> Kept<'a> {
    let revision = turn.revision;
    let mut kept = Kept::with_capacity(live.len());
    for slot in live {
        let SlotKey::Node(id) = slot.key else { continue };
        let stays = turn.view.node(id).is_some_and(|node| {
            node.spec.availability != Availability::Drain && revision.allows(node)
        });
        if stays {
            kept.push(slot);
            continue;
        }
        let to = if turn.view.node(id).is_some() { TaskState::Shutdown } else { TaskState::Remove };
        for task in &slot.tasks {
            turn.desire(task, to);
        }
        turn.set_tally_cleared(slot.key);
    }
    let has: std::collections::BTreeSet<SlotKey> = kept.iter().map(|slot| slot.key).collect();
    let view = turn.view;
    for node in view.nodes() {
        let key = SlotKey::Node(node.id);
        let eligible = node.takes_tasks() && revision.allows(node) && !has.contains(&key);
        if eligible && !turn.create(key, TaskState::Running) {
            break;
        }
    }
    kept
}

impl Turn<'_> {
    pub(crate) fn set_tally_cleared(&mut self, slot: SlotKey) {
        if self.view.tally(self.service.id, slot).is_some() {
            self.set_tally(slot, None);
        }
    }
}

/// Why the current task of a replicated slot cannot stay where it is.
pub(crate) fn is_displaced(
    view: &state::Snapshot,
    node: Option<NodeId>,
    revision: &Revision,
) -> bool {
    let Some(id) = node else { return false };
    match view.node(id) {
        None => true,
        Some(node) if node.is_lost() => true,
        // The constraints of nodes that are not ready are judged when they are.
        Some(node) => node.status.state == NodeState::Ready && !revision.allows(node),
    }
}
