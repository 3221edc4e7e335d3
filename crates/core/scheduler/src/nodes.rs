//! The nodes as one plan sees them: dense, with what the plan itself has placed counted in.
//!
//! Owns: room, counts and the order by load. Invariant: `by_load` holds each node once, under its
//! current number of tasks.

use std::collections::{BTreeMap, BTreeSet};

use state::Snapshot;
use types::{Node, NodeId, Resources};

/// One node.
pub(crate) struct Candidate<'a> {
    pub node: &'a Node,
    pub ready: bool,
    pub tasks: u32,
    cpu_free: u64,
    memory_free: u64,
}

impl Candidate<'_> {
    pub(crate) fn has_room(&self, wanted: &Resources) -> bool {
        self.cpu_free >= wanted.cpu_nanos && self.memory_free >= wanted.memory_bytes
    }
}

/// All nodes, by their number in this plan.
pub(crate) struct Nodes<'a> {
    pub list: Vec<Candidate<'a>>,
    by_id: BTreeMap<NodeId, usize>,
    /// Nodes that take tasks, the least loaded first.
    by_load: BTreeSet<(u32, usize)>,
}

impl<'a> Nodes<'a> {
    pub(crate) fn of(view: &'a Snapshot) -> Self {
        let candidate = |node: &'a std::sync::Arc<Node>| {
            let usage = view.usage(node.id);
            let has = &node.description.resources;
            Candidate {
                node,
                ready: node.takes_tasks(),
                tasks: usage.tasks,
                cpu_free: has.cpu_nanos.saturating_sub(usage.cpu_nanos),
                memory_free: has.memory_bytes.saturating_sub(usage.memory_bytes),
            }
        };
        let list: Vec<Candidate<'a>> = view.nodes().map(candidate).collect();
        let by_id = list.iter().enumerate().map(|(at, c)| (c.node.id, at)).collect();
        let ready = list.iter().enumerate().filter(|(_, c)| c.ready);
        let by_load = ready.map(|(at, c)| (c.tasks, at)).collect();
        Self { list, by_id, by_load }
    }

    pub(crate) fn number(&self, id: NodeId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// Nodes that take tasks, the least loaded first.
    pub(crate) fn by_load(&self) -> impl Iterator<Item = usize> {
        self.by_load.iter().map(|(_, at)| *at)
    }

    /// Counts one more task on the node.
    pub(crate) fn place(&mut self, at: usize, held: &Resources) {
        let candidate = &mut self.list[at];
        let moved = candidate.ready && self.by_load.remove(&(candidate.tasks, at));
        candidate.tasks += 1;
        candidate.cpu_free = candidate.cpu_free.saturating_sub(held.cpu_nanos);
        candidate.memory_free = candidate.memory_free.saturating_sub(held.memory_bytes);
        if moved {
            self.by_load.insert((candidate.tasks, at));
        }
    }
}
