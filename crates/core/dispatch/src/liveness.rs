//! Which nodes have not been heard of for too long.
//!
//! Owns: one deadline per node, in leader memory: heartbeats never go through Raft.
//! Does not know: clocks; times are monotonic and come in as arguments.
//! Invariant: a new leader gives every node a full grace before it calls it down.

use std::collections::{BTreeMap, BTreeSet};

use base::Millis;
use types::NodeId;

/// Deadlines, in time since an arbitrary start.
#[derive(Debug, Default)]
pub struct Liveness {
    deadlines: BTreeMap<NodeId, Millis>,
    order: BTreeSet<(Millis, NodeId)>,
}

impl Liveness {
    /// The node was heard of, or is watched from now on: it is down after `grace`.
    pub fn heard(&mut self, node: NodeId, now: Millis, grace: Millis) {
        let deadline = Millis(now.0.saturating_add(grace.0));
        if let Some(old) = self.deadlines.insert(node, deadline) {
            self.order.remove(&(old, node));
        }
        self.order.insert((deadline, node));
    }

    /// Watches a node that is not watched yet.
    pub fn watch(&mut self, node: NodeId, now: Millis, grace: Millis) {
        if !self.deadlines.contains_key(&node) {
            self.heard(node, now, grace);
        }
    }

    pub fn forget(&mut self, node: NodeId) {
        if let Some(deadline) = self.deadlines.remove(&node) {
            self.order.remove(&(deadline, node));
        }
    }

    /// Nodes whose deadline has passed; they are watched no more until heard of again.
    pub fn expire(&mut self, now: Millis) -> Vec<NodeId> {
        let mut down = Vec::new();
        while let Some((deadline, node)) = self.order.first().copied() {
            if deadline > now {
                break;
            }
            self.forget(node);
            down.push(node);
        }
        down
    }

    /// When to call `expire` next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.order.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use testkit::node_id;

    use super::*;

    #[test]
    fn a_node_that_stays_silent_expires_once() {
        let mut live = Liveness::default();
        live.heard(node_id("a"), Millis(0), Millis(100));
        live.heard(node_id("b"), Millis(0), Millis(100));
        live.heard(node_id("a"), Millis(50), Millis(100));
        assert_eq!(live.next_deadline(), Some(Millis(100)));
        assert_eq!(live.expire(Millis(100)), vec![node_id("b")]);
        assert_eq!(live.expire(Millis(149)), vec![]);
        assert_eq!(live.expire(Millis(150)), vec![node_id("a")]);
        assert_eq!(live.next_deadline(), None);
    }

    #[test]
    fn watching_does_not_prolong_a_deadline() {
        let mut live = Liveness::default();
        live.watch(node_id("a"), Millis(0), Millis(10));
        live.watch(node_id("a"), Millis(9), Millis(10));
        assert_eq!(live.expire(Millis(10)), vec![node_id("a")]);
    }
}
