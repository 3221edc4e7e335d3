//! How far nodes are with the keys of encrypted networks that they should have.
//!
//! Owns: which nodes lag, and the words for it. Does not know: how a node changes its key.
//! Invariant: a node that the managers do not hear lags behind nothing: nobody waits for it, and it
//! makes its key when it is back.

use state::Snapshot;
use types::{Node, NodeId, NodeState};

/// A node that has not the keys that it should have, or still has older ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyLag {
    pub node: NodeId,
    pub waits_for: &'static str,
}

/// Where a change of keys stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyProgress {
    pub generation: u32,
    /// Nodes that are ready.
    pub live: usize,
    /// The others.
    pub away: usize,
    /// Of those that are ready, in their order; none: the change is over.
    pub lags: Vec<KeyLag>,
}

/// Two generations are in use at most: whoever still needs the one before must not lose it.
#[must_use]
pub fn key_progress(view: &Snapshot) -> KeyProgress {
    let generation = view.cluster().map_or(1, |cluster| cluster.network_key_generation);
    let mut progress = KeyProgress { generation, ..KeyProgress::default() };
    for node in view.nodes() {
        if node.status.state != NodeState::Ready {
            progress.away += 1;
            continue;
        }
        progress.live += 1;
        let lag = lag(node, generation).map(|waits_for| KeyLag { node: node.id, waits_for });
        progress.lags.extend(lag);
    }
    progress
}

fn lag(node: &Node, generation: u32) -> Option<&'static str> {
    let said = node.description.data_path.encryption.as_ref();
    let Some(said) = said.filter(|said| said.keys.contains_key(&generation)) else {
        return Some("its new key");
    };
    match said.keys.range(..generation).next() {
        None => None,
        Some(_) if said.sends_with < generation => Some("handshakes with the new key"),
        Some(_) => Some("its peers to be done with the old key"),
    }
}

#[cfg(test)]
mod tests {
    use state::{Author, Change};
    use testkit::{apply, fixture, node_id};
    use types::{NetworkKey, NodeEncryption};

    use super::*;

    fn say(view: &mut Snapshot, name: &str, keys: &[u32], sends_with: u32) {
        let id = node_id(name);
        let mut description = view.node(id).unwrap().description.clone();
        let byte = |of: u32| name.as_bytes()[0] ^ u8::try_from(of << 5 & 0xff).unwrap();
        let keys = keys.iter().map(|of| (*of, NetworkKey([byte(*of); 32]))).collect();
        description.data_path.encryption =
            Some(NodeEncryption { keys, sends_with, ..NodeEncryption::default() });
        let description = Box::new(description);
        apply(view, Author::Dispatch, Change::DescribeNode { id, description });
    }

    /// As `node: what it waits for`.
    fn lags(view: &Snapshot) -> Vec<String> {
        let progress = key_progress(view);
        assert_eq!((progress.live, progress.away), (2, 1));
        let name = |id| view.node(id).unwrap().hostname();
        progress.lags.iter().map(|lag| format!("{}: {}", name(lag.node), lag.waits_for)).collect()
    }

    #[test]
    fn a_change_is_over_when_every_live_node_has_one_key_the_new_one() {
        let mut view = fixture("now 12:00:00\nnode a ready\nnode b ready\nnode c down").view;
        assert_eq!(lags(&view), ["a: its new key", "b: its new key"]);
        say(&mut view, "a", &[1], 0);
        say(&mut view, "b", &[1], 1);
        say(&mut view, "c", &[1], 1);
        assert!(lags(&view).is_empty());
        apply(&mut view, Author::Api, Change::RotateNetworkKey { expect: 1 });
        assert_eq!(key_progress(&view).generation, 2);
        assert_eq!(lags(&view), ["a: its new key", "b: its new key"]);
        say(&mut view, "a", &[1, 2], 1);
        assert_eq!(lags(&view), ["a: handshakes with the new key", "b: its new key"]);
        say(&mut view, "a", &[1, 2], 2);
        say(&mut view, "b", &[2], 2);
        assert_eq!(lags(&view), ["a: its peers to be done with the old key"]);
        say(&mut view, "a", &[2], 2);
        assert!(lags(&view).is_empty());
    }
}
