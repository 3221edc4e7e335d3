//! Keys of encrypted networks: what a node may say of its own, and how they are changed.
//!
//! Owns: which of a node's keys are taken, the index of who has which, and the generation.
//! Does not know: when keys should be changed; what a key is good for.
//! Invariant: a key is one node's, and of the cluster's generation or of the one before. What a
//! node says of itself may be a lie; it must not do harm to others.

use std::sync::Arc;

use types::{Cluster, NetworkKey, Node, NodeDescription, NodeEncryption, NodeId, limits};

use crate::apply::{Refusal, Stamp};
use crate::{Event, Snapshot};

impl Snapshot {
    /// The node that has a key.
    #[must_use]
    pub fn node_of_network_key(&self, key: &NetworkKey) -> Option<NodeId> {
        self.network_keys.get(key).copied()
    }

    pub(crate) fn describe_node(
        &mut self,
        stamp: Stamp,
        id: NodeId,
        description: &NodeDescription,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let mut description = description.clone();
        let encryption = description.data_path.encryption.take();
        description.data_path.encryption = encryption.and_then(|said| self.fitting(id, said));
        self.with_node(stamp, id, events, |node| node.description = description)
    }

    /// What is taken of what a node says of its end. Keys of other generations are passed over: the
    /// node is told the present one and makes another. With a key of somebody else nothing is: its
    /// peers would no longer tell the two apart.
    pub(crate) fn fitting(&self, id: NodeId, said: NodeEncryption) -> Option<NodeEncryption> {
        let taken = |key: &NetworkKey| {
            self.node_of_network_key(key).is_some_and(|other| other != id) || *key == NO_KEY
        };
        let fitting = fitting_generation(said, self.generation());
        (!fitting.keys.values().any(taken)).then_some(fitting)
    }

    /// Keys of the next generation are wanted; those before the present one go.
    pub(crate) fn rotate_network_key(
        &mut self,
        stamp: Stamp,
        expect: u32,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let found = self.cluster.as_ref().map(|cluster| cluster.network_key_generation);
        let found = found.ok_or_else(|| Refusal::Missing { what: "the cluster".into() })?;
        if found != expect {
            return Err(Refusal::OutOfDate { what: "the key of encrypted networks".into() });
        }
        let full = || Refusal::Full { what: "generations of keys", max: u32::MAX as usize };
        let next = expect.checked_add(1).ok_or_else(full)?;
        self.with_cluster(stamp, events, |cluster| cluster.network_key_generation = next)?;
        let late =
            |node: &&Arc<Node>| encryption(node).is_some_and(|said| !is_of_generation(said, next));
        let late: Vec<NodeId> = self.nodes.values().filter(late).map(|node| node.id).collect();
        for id in late {
            self.with_node(stamp, id, events, |node| {
                let path = &mut node.description.data_path;
                path.encryption = path.encryption.take().map(|said| fitting_generation(said, next));
            })?;
        }
        Ok(())
    }

    /// Keeps who has which key.
    pub(crate) fn reindex_keys(&mut self, old: Option<&Node>, new: Option<&Node>) {
        let (was, is) = (old.and_then(encryption), new.and_then(encryption));
        if was.map(|said| &said.keys) == is.map(|said| &said.keys) {
            return;
        }
        for key in was.iter().flat_map(|said| said.keys.values()) {
            self.network_keys.remove(key);
        }
        let Some(node) = new else { return };
        for key in is.iter().flat_map(|said| said.keys.values()) {
            self.network_keys.insert(*key, node.id);
        }
    }

    pub(crate) fn generation(&self) -> u32 {
        self.cluster.as_ref().map_or(1, |cluster: &Arc<Cluster>| cluster.network_key_generation)
    }
}

pub(crate) fn encryption(node: &Node) -> Option<&NodeEncryption> {
    node.description.data_path.encryption.as_ref()
}

/// Without what is not of these times.
fn fitting_generation(mut said: NodeEncryption, generation: u32) -> NodeEncryption {
    said.keys.retain(|of, _| is_current(*of, generation));
    if !said.keys.contains_key(&said.sends_with) {
        said.sends_with = 0;
    }
    said
}

pub(crate) fn is_of_generation(said: &NodeEncryption, generation: u32) -> bool {
    said.keys.keys().all(|of| is_current(*of, generation))
        && (said.sends_with == 0 || said.keys.contains_key(&said.sends_with))
}

/// So many generations that a node has a port for each.
fn is_current(of: u32, generation: u32) -> bool {
    let before = limits::NETWORK_KEYS_PER_NODE_MAX as u32 - 1;
    of > 0 && (generation.saturating_sub(before)..=generation).contains(&of)
}

/// Of all zeros; it is a point of no use, and nobody's.
const NO_KEY: NetworkKey = NetworkKey([0; NetworkKey::LENGTH]);
