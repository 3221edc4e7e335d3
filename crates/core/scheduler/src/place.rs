//! Choosing nodes for the tasks of one group.
//!
//! Owns: the order of nodes (without rejections, fewest tasks of the service, image at hand, fewest
//! tasks), spreading over labels, and confirming the nodes of global tasks.
//! Invariant: after each single placement every node is in the place that the order says.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use state::Snapshot;
use types::{Labels, NodeId, TaskId, TaskState};

use crate::Group;
use crate::filter::{Allowed, Filters, Misses};
use crate::nodes::Nodes;

/// A node's place in the order; the least goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// A task of this very template was rejected or failed there.
    burnt: bool,
    /// Active tasks of the service.
    own: u32,
    lacks_image: bool,
    tasks: u32,
    at: usize,
}

/// Global tasks come with their node: it is only checked.
pub(crate) fn confirm(
    view: &Snapshot,
    group: &Group<'_>,
    nodes: &mut Nodes<'_>,
    allowed: &Allowed,
    pairs: &mut Vec<(TaskId, NodeId)>,
) -> Option<(usize, Misses)> {
    let held = &group.revision.spec.reservations;
    let (mut count, mut misses) = (0, Misses::default());
    for task in &group.tasks {
        let Some(node) = view.task(*task).and_then(|task| task.node) else { continue };
        let at = nodes.number(node);
        match at.map(|at| (at, &nodes.list[at])) {
            Some((at, candidate)) if allowed.nodes[at] && candidate.has_room(held) => {
                nodes.place(at, held);
                pairs.push((*task, node));
                continue;
            }
            Some((at, candidate)) if candidate.ready && allowed.nodes[at] => misses.resources += 1,
            Some((_, candidate)) if candidate.ready => misses.constraints += 1,
            _ => misses.not_ready += 1,
        }
        count += 1;
    }
    (count > 0).then_some((count, misses))
}

/// Spreads the tasks of a replicated service.
pub(crate) fn spread(
    view: &Snapshot,
    group: &Group<'_>,
    nodes: &mut Nodes<'_>,
    filters: &mut Filters,
    allowed: &Allowed,
    pairs: &mut Vec<(TaskId, NodeId)>,
) -> Option<(usize, Misses)> {
    let spec = &group.revision.spec;
    let images = filters.with_image(nodes, &spec.container.image);
    let uniform = images.iter().all(|has| *has) || !images.iter().any(|has| *has);
    let fresh = view.placed(group.service.id).next().is_none() && !has_history(view, group);
    if fresh
        && uniform
        && spec.placement.spread.is_empty()
        && group.tasks.len() * 2 <= allowed.count
        && walk(group, nodes, allowed, pairs)
    {
        return None;
    }
    let own: BTreeMap<NodeId, u32> = view.placed(group.service.id).collect();
    let burnt = burnt_nodes(view, group);
    let mut tree = Tree::new(spec.placement.spread.len());
    let mut misses = allowed.misses;
    for at in (0..nodes.list.len()).filter(|at| allowed.nodes[*at]) {
        let candidate = &nodes.list[at];
        let rank = Rank {
            burnt: burnt.contains(&candidate.node.id),
            own: own.get(&candidate.node.id).copied().unwrap_or(0),
            lacks_image: !images[at],
            tasks: candidate.tasks,
            at,
        };
        tree.add(&path_of(candidate.node, &spec.placement.spread), rank);
    }
    let mut left = group.tasks.iter();
    while let Some(task) = left.as_slice().first() {
        let Some(rank) = tree.take(|rank| fits(group, nodes, rank, &mut misses)) else {
            return Some((left.as_slice().len(), misses));
        };
        nodes.place(rank.at, &spec.reservations);
        pairs.push((*task, nodes.list[rank.at].node.id));
        tree.put_back(Rank { own: rank.own + 1, tasks: rank.tasks + 1, ..rank });
        left.next();
    }
    None
}

/// A node that no longer fits is counted under what it lacks, and not looked at again.
fn fits(group: &Group<'_>, nodes: &Nodes<'_>, rank: &Rank, misses: &mut Misses) -> bool {
    let spec = &group.revision.spec;
    let max = spec.placement.max_replicas;
    if !nodes.list[rank.at].has_room(&spec.reservations) {
        misses.resources += 1;
        return false;
    }
    if max > 0 && u64::from(rank.own) >= max {
        misses.max_replicas += 1;
        return false;
    }
    true
}

/// A small group of a service that has nothing yet: the least loaded nodes that fit, one task each.
/// `false`, with nothing placed, when there are too few.
fn walk(
    group: &Group<'_>,
    nodes: &mut Nodes<'_>,
    allowed: &Allowed,
    pairs: &mut Vec<(TaskId, NodeId)>,
) -> bool {
    let held = &group.revision.spec.reservations;
    let fit = nodes.by_load().filter(|at| allowed.nodes[*at] && nodes.list[*at].has_room(held));
    let chosen: Vec<usize> = fit.take(group.tasks.len()).collect();
    if chosen.len() < group.tasks.len() {
        return false;
    }
    for (task, at) in group.tasks.iter().zip(chosen) {
        nodes.place(at, held);
        pairs.push((*task, nodes.list[at].node.id));
    }
    true
}

fn has_history(view: &Snapshot, group: &Group<'_>) -> bool {
    view.tallies_of_service(group.service.id).next().is_some()
}

/// Nodes where a task of this template was rejected or failed: tried last.
fn burnt_nodes(view: &Snapshot, group: &Group<'_>) -> BTreeSet<NodeId> {
    if !has_history(view, group) {
        return BTreeSet::new();
    }
    let ended_badly = |state| matches!(state, TaskState::Rejected | TaskState::Failed);
    view.tasks_of_service(group.service.id)
        .filter(|t| t.revision == group.revision.number && ended_badly(t.status.state))
        .filter_map(|task| task.node)
        .collect()
}

/// The values of the labels that are spread over, in order.
fn path_of(node: &types::Node, descriptors: &[String]) -> Vec<String> {
    let value = |labels: &Labels, key: &str| labels.get(key).cloned().unwrap_or_default();
    let one = |descriptor: &String| {
        let lower = descriptor.to_ascii_lowercase();
        match lower.starts_with("node.labels.") {
            true => value(&node.spec.labels, &descriptor["node.labels.".len()..]),
            false => value(&node.description.engine_labels, &descriptor["engine.labels.".len()..]),
        }
    };
    descriptors.iter().map(one).collect()
}

/// Nodes grouped by the values of labels, level by level; without preferences, one leaf.
struct Tree {
    depth: usize,
    branches: Vec<Branch>,
    /// The path that the last taken node was found on.
    trail: Vec<usize>,
}

#[derive(Default)]
struct Branch {
    /// Tasks of the service below.
    tasks: u64,
    children: BTreeMap<String, usize>,
    heap: BinaryHeap<Reverse<Rank>>,
}

impl Tree {
    fn new(depth: usize) -> Self {
        Self { depth, branches: vec![Branch::default()], trail: Vec::new() }
    }

    fn add(&mut self, path: &[String], rank: Rank) {
        let mut at = 0;
        for value in path {
            self.branches[at].tasks += u64::from(rank.own);
            at = match self.branches[at].children.get(value) {
                Some(child) => *child,
                None => {
                    let child = self.branches.len();
                    self.branches.push(Branch::default());
                    self.branches[at].children.insert(value.clone(), child);
                    child
                }
            };
        }
        self.branches[at].tasks += u64::from(rank.own);
        self.branches[at].heap.push(Reverse(rank));
    }

    /// The first node in order that `fits`; the others that came before it are dropped.
    fn take(&mut self, mut fits: impl FnMut(&Rank) -> bool) -> Option<Rank> {
        self.trail.clear();
        self.take_below(0, 0, &mut fits)
    }

    fn take_below(
        &mut self,
        at: usize,
        level: usize,
        fits: &mut impl FnMut(&Rank) -> bool,
    ) -> Option<Rank> {
        self.trail.push(at);
        if level == self.depth {
            while let Some(Reverse(rank)) = self.branches[at].heap.pop() {
                if fits(&rank) {
                    return Some(rank);
                }
            }
        } else {
            let mut children: Vec<usize> = self.branches[at].children.values().copied().collect();
            children.sort_by_key(|child| (self.branches[*child].tasks, *child));
            for child in children {
                if let Some(rank) = self.take_below(child, level + 1, fits) {
                    return Some(rank);
                }
            }
        }
        self.trail.pop();
        None
    }

    /// Puts the last taken node back, with one task more.
    fn put_back(&mut self, rank: Rank) {
        for at in &self.trail {
            self.branches[*at].tasks += 1;
        }
        if let Some(leaf) = self.trail.last() {
            self.branches[*leaf].heap.push(Reverse(rank));
        }
    }
}
