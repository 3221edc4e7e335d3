//! Choosing nodes for the tasks of one group.
//!
//! Owns: the order of nodes (without rejections, fewest tasks of the service, image at hand, fewest
//! tasks), spreading over labels, and confirming the nodes of global tasks.
//! Invariant: after each single placement every node is in the place that the order says.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use state::Snapshot;
use types::{Labels, NodeId, TaskId, TaskState};

use crate::Group;
use crate::filter::{Allowed, Filters, Misses};
use crate::nodes::{Nodes, value_at};
use crate::ports::HostPorts;

/// A node's place in the order, packed so that one comparison of integers decides; the least goes
/// first. From the highest bit: whether a task of this very template was rejected or failed there,
/// the active tasks of the service, whether the image is missing, all tasks, the node's number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u128);

impl Rank {
    const OWN: u32 = 65;
    const TASKS: u32 = 32;

    fn new(burnt: bool, own: u32, lacks_image: bool, tasks: u32, at: u32) -> Self {
        let own = u128::from(own) << Self::OWN;
        let lacks_image = u128::from(lacks_image) << 64;
        let tasks = u128::from(tasks) << Self::TASKS;
        Self(u128::from(burnt) << 97 | own | lacks_image | tasks | u128::from(at))
    }

    fn own(self) -> u32 {
        (self.0 >> Self::OWN) as u32
    }

    fn at(self) -> usize {
        self.0 as u32 as usize
    }

    /// The same node with one task more.
    fn placed(self) -> Self {
        Self(self.0 + (1 << Self::OWN) + (1 << Self::TASKS))
    }
}

/// Global tasks come with their node: it is only checked.
pub(crate) fn confirm(
    view: &Snapshot,
    group: &Group<'_>,
    nodes: &mut Nodes<'_>,
    allowed: &Allowed,
    ports: &mut HostPorts,
    pairs: &mut Vec<(TaskId, NodeId)>,
) -> Option<(usize, Misses)> {
    let held = &group.revision.spec.reservations;
    let (mut count, mut misses) = (0, Misses::default());
    for task in group.tasks {
        let Some(node) = view.task(*task).and_then(|task| task.node) else { continue };
        let at = nodes.number(node);
        match at.map(|at| (at, &nodes.list[at])) {
            Some((at, candidate)) if allowed.nodes[at] && candidate.has_room(held) => {
                if !ports.free(view, nodes, group.revision, at) {
                    misses.host_ports += 1;
                    count += 1;
                    continue;
                }
                nodes.place(at, held);
                ports.take(group.revision, at);
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
    ports: &mut HostPorts,
    pairs: &mut Vec<(TaskId, NodeId)>,
) -> Option<(usize, Misses)> {
    let spec = &group.revision.spec;
    let images = filters.with_image(nodes, &spec.container.image);
    let fresh = view.placed(group.service.id).next().is_none() && !has_history(view, group);
    if fresh
        && images.uniform
        && spec.placement.spread.is_empty()
        && group.revision.host_ports.is_empty()
        && group.tasks.len() * 2 <= allowed.count
        && walk(group, nodes, allowed, pairs)
    {
        return None;
    }
    let mut tree = plant(view, group, nodes, allowed, &images.has);
    let mut misses = allowed.misses;
    for (done, task) in group.tasks.iter().enumerate() {
        let fits = |rank: Rank| {
            fits(group, nodes, rank, &mut misses)
                && free(view, group, nodes, ports, rank, &mut misses)
        };
        let Some(at) = tree.place(fits) else {
            return Some((group.tasks.len() - done, misses));
        };
        nodes.place(at, &spec.reservations);
        ports.take(group.revision, at);
        pairs.push((*task, nodes.list[at].node.id));
    }
    None
}

/// The nodes that are allowed, in order.
fn plant(
    view: &Snapshot,
    group: &Group<'_>,
    nodes: &Nodes<'_>,
    allowed: &Allowed,
    has_image: &[bool],
) -> Tree {
    let descriptors = &group.revision.spec.placement.spread;
    let mut placed = view.placed(group.service.id).peekable();
    let burnt = burnt_nodes(view, group);
    let mut tree = Tree::new(descriptors.len(), allowed.count);
    for (at, candidate) in nodes.list.iter().enumerate() {
        let own = value_at(&mut placed, candidate.node.id).unwrap_or(0);
        if !allowed.nodes[at] {
            continue;
        }
        let burnt = burnt.contains(&candidate.node.id);
        let number = u32::try_from(at).unwrap_or(u32::MAX);
        let rank = Rank::new(burnt, own, !has_image[at], candidate.tasks, number);
        tree.add(path_of(candidate.node, descriptors), rank);
    }
    tree.order();
    tree
}

/// A node that no longer fits is counted under what it lacks, and not looked at again.
fn fits(group: &Group<'_>, nodes: &Nodes<'_>, rank: Rank, misses: &mut Misses) -> bool {
    let spec = &group.revision.spec;
    let max = spec.placement.max_replicas;
    if !nodes.list[rank.at()].has_room(&spec.reservations) {
        misses.resources += 1;
        return false;
    }
    if max > 0 && u64::from(rank.own()) >= max {
        misses.max_replicas += 1;
        return false;
    }
    true
}

/// A node whose ports are taken is counted and not looked at again.
fn free(
    view: &Snapshot,
    group: &Group<'_>,
    nodes: &Nodes<'_>,
    ports: &mut HostPorts,
    rank: Rank,
    misses: &mut Misses,
) -> bool {
    let free = ports.free(view, nodes, group.revision, rank.at());
    misses.host_ports += usize::from(!free);
    free
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
    let chosen = nodes.least_loaded(group.tasks.len(), held, &allowed.nodes);
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
fn path_of<'a>(
    node: &'a types::Node,
    descriptors: &'a [String],
) -> impl Iterator<Item = &'a str> + 'a {
    let value = |labels: &'a Labels, key: &str| labels.get(key).map_or("", String::as_str);
    let one = move |descriptor: &'a String| {
        let lower = descriptor.to_ascii_lowercase();
        match lower.starts_with("node.labels.") {
            true => value(&node.spec.labels, &descriptor["node.labels.".len()..]),
            false => value(&node.description.engine_labels, &descriptor["engine.labels.".len()..]),
        }
    };
    descriptors.iter().map(one)
}

/// Nodes grouped by the values of labels, level by level; without preferences, one leaf.
struct Tree {
    depth: usize,
    branches: Vec<Branch>,
}

#[derive(Default)]
struct Branch {
    /// Tasks of the service below.
    tasks: u64,
    children: BTreeMap<String, usize>,
    /// The children that still have nodes, the one with the fewest tasks first.
    poorest: BinaryHeap<Reverse<(u64, usize)>>,
    /// A leaf's nodes.
    nodes: BinaryHeap<Reverse<Rank>>,
}

impl Tree {
    fn new(depth: usize, nodes: usize) -> Self {
        let leaf = if depth == 0 { nodes } else { 0 };
        let root = Branch { nodes: BinaryHeap::with_capacity(leaf), ..Branch::default() };
        Self { depth, branches: vec![root] }
    }

    fn add<'a>(&mut self, path: impl Iterator<Item = &'a str>, rank: Rank) {
        let mut at = 0;
        for value in path {
            self.branches[at].tasks += u64::from(rank.own());
            at = match self.branches[at].children.get(value) {
                Some(child) => *child,
                None => {
                    let child = self.branches.len();
                    self.branches.push(Branch::default());
                    self.branches[at].children.insert(value.to_owned(), child);
                    child
                }
            };
        }
        self.branches[at].tasks += u64::from(rank.own());
        self.branches[at].nodes.push(Reverse(rank));
    }

    /// Puts the branches in order, when all nodes have been added.
    fn order(&mut self) {
        for at in 0..self.branches.len() {
            let children = self.branches[at].children.values();
            let counted = children.map(|child| Reverse((self.branches[*child].tasks, *child)));
            self.branches[at].poorest = counted.collect();
        }
    }

    /// Counts a task on the first node in order that `fits`, and gives the node's number. Those
    /// before it do not fit the group any more and are dropped.
    fn place(&mut self, mut fits: impl FnMut(Rank) -> bool) -> Option<usize> {
        self.place_below(0, 0, &mut fits)
    }

    fn place_below(
        &mut self,
        at: usize,
        level: usize,
        fits: &mut impl FnMut(Rank) -> bool,
    ) -> Option<usize> {
        if level == self.depth {
            return place_on_first(&mut self.branches[at].nodes, fits);
        }
        while let Some(Reverse((tasks, child))) = self.branches[at].poorest.pop() {
            if let Some(node) = self.place_below(child, level + 1, fits) {
                self.branches[at].poorest.push(Reverse((tasks + 1, child)));
                return Some(node);
            }
        }
        None
    }
}

fn place_on_first(
    nodes: &mut BinaryHeap<Reverse<Rank>>,
    fits: &mut impl FnMut(Rank) -> bool,
) -> Option<usize> {
    while let Some(mut first) = nodes.peek_mut() {
        let rank = first.0;
        if fits(rank) {
            *first = Reverse(rank.placed());
            return Some(rank.at());
        }
        PeekMut::pop(first);
    }
    None
}
