//! The nodes as one plan sees them: dense, with what the plan itself has placed counted in.
//!
//! Owns: room, counts and the order by load.
//! Invariant: after `refile`, `by_load` holds each node that takes tasks once, under its current
//! number of tasks.

use std::collections::BTreeSet;
use std::iter::Peekable;

use state::Snapshot;
use types::{Node, NodeId, Resources};

/// One node.
pub(crate) struct Candidate<'a> {
    pub node: &'a Node,
    pub ready: bool,
    pub tasks: u32,
    cpu_free: u64,
    memory_free: u64,
    /// The number of tasks under which it stands in the order by load.
    filed: u32,
}

impl Candidate<'_> {
    pub(crate) fn has_room(&self, wanted: &Resources) -> bool {
        self.cpu_free >= wanted.cpu_nanos && self.memory_free >= wanted.memory_bytes
    }
}

/// All nodes, by their number in this plan; in the order of their ids.
pub(crate) struct Nodes<'a> {
    pub list: Vec<Candidate<'a>>,
    /// Nodes that take tasks, the least loaded first; made when it is first asked for.
    by_load: Option<BTreeSet<(u32, usize)>>,
    /// Nodes that got tasks since they were filed.
    moved: Vec<usize>,
}

impl<'a> Nodes<'a> {
    pub(crate) fn of(view: &'a Snapshot) -> Self {
        let mut usages = view.usages().peekable();
        let candidate = |node: &'a std::sync::Arc<Node>| {
            let usage = value_at(&mut usages, node.id).unwrap_or_default();
            let has = &node.description.resources;
            Candidate {
                node,
                ready: node.takes_tasks(),
                tasks: usage.tasks,
                cpu_free: has.cpu_nanos.saturating_sub(usage.cpu_nanos),
                memory_free: has.memory_bytes.saturating_sub(usage.memory_bytes),
                filed: usage.tasks,
            }
        };
        let list: Vec<Candidate<'a>> = view.nodes().map(candidate).collect();
        Self { list, by_load: None, moved: Vec::new() }
    }

    pub(crate) fn number(&self, id: NodeId) -> Option<usize> {
        self.list.binary_search_by_key(&id, |candidate| candidate.node.id).ok()
    }

    /// At most `count` nodes that are allowed and have room, the least loaded first.
    pub(crate) fn least_loaded(
        &mut self,
        count: usize,
        held: &Resources,
        allowed: &[bool],
    ) -> Vec<usize> {
        self.refile();
        let order = self.by_load.iter().flatten().map(|(_, at)| *at);
        order.filter(|at| allowed[*at] && self.list[*at].has_room(held)).take(count).collect()
    }

    /// Brings the order up to date. Groups that keep an order of their own never pay for this one.
    fn refile(&mut self) {
        let Some(by_load) = &mut self.by_load else {
            self.list.iter_mut().for_each(|candidate| candidate.filed = candidate.tasks);
            let ready = self.list.iter().enumerate().filter(|(_, c)| c.ready);
            self.by_load = Some(ready.map(|(at, c)| (c.filed, at)).collect());
            return;
        };
        for at in self.moved.drain(..) {
            let candidate = &mut self.list[at];
            if by_load.remove(&(candidate.filed, at)) {
                by_load.insert((candidate.tasks, at));
            }
            candidate.filed = candidate.tasks;
        }
    }

    /// Counts one more task on the node.
    pub(crate) fn place(&mut self, at: usize, held: &Resources) {
        let candidate = &mut self.list[at];
        if self.by_load.is_some() && candidate.filed == candidate.tasks {
            self.moved.push(at);
        }
        candidate.tasks += 1;
        candidate.cpu_free = candidate.cpu_free.saturating_sub(held.cpu_nanos);
        candidate.memory_free = candidate.memory_free.saturating_sub(held.memory_bytes);
    }
}

/// What `sorted` holds for `id`, when it is asked for ids in their order.
pub(crate) fn value_at<T: Copy>(
    sorted: &mut Peekable<impl Iterator<Item = (NodeId, T)>>,
    id: NodeId,
) -> Option<T> {
    while sorted.next_if(|(other, _)| *other < id).is_some() {}
    sorted.next_if(|(other, _)| *other == id).map(|(_, value)| value)
}
