//! What is known of the tunnels, for those who watch this node.
//!
//! Owns: whose a peer of a device is, and how old what was seen of it is by now.
//! Does not know: who reads it, names of metrics.
//! Invariant: a peer is a node that is told of now: of one that is gone nothing is said.

use std::collections::BTreeMap;
use std::io;

use types::{NetworkId, NodeId};

use crate::encryption::{EncryptionStatus, PeerStatus, TunnelSeen, TunnelStatus, TunnelTo};
use crate::node::Node;
use crate::tables::host::{CLEAR_IN, CLEAR_OUT};
use crate::tables::tunnel::STRANGE;

impl Node {
    pub(crate) fn encryption_status(&self) -> EncryptionStatus {
        let count = |counter: &'static str| {
            self.encryption.counted.get(counter).map_or(0, |(count, _)| *count)
        };
        EncryptionStatus {
            backend: self.encryption.backend,
            sends_with: self.encryption.judged.sends_with,
            tunnels: self.encryption.seen.iter().map(|seen| self.tunnel_status(seen)).collect(),
            clear_in: count(CLEAR_IN),
            clear_out: count(CLEAR_OUT),
            strange: count(STRANGE),
        }
    }

    fn tunnel_status(&self, tunnel: &TunnelSeen) -> TunnelStatus {
        let (generation, passed) = (tunnel.generation, self.encryption.seen_at.elapsed());
        let seen: BTreeMap<_, _> = tunnel.peers.iter().map(|peer| (peer.key, peer)).collect();
        let peer = |(number, node): (&u32, &netplan::TunnelNode)| {
            let mut seen = (*seen.get(node.encryption.keys.get(&generation)?)?).clone();
            seen.handshake_age = seen.handshake_age.map(|age| age.saturating_add(passed));
            let used = self.encryption.judged.uses.get(number) == Some(&generation);
            Some(PeerStatus { node: node.node, name: node.name.clone(), used, seen })
        };
        TunnelStatus {
            generation,
            peers: self.encryption.nodes.iter().filter_map(peer).collect(),
            drops: tunnel.drops.clone(),
            works: tunnel.failure.is_none(),
        }
    }

    /// The tunnels to nodes of a network, as they are now.
    pub(crate) fn tunnels_to(
        &mut self,
        network: NetworkId,
        nodes: Vec<NodeId>,
    ) -> io::Result<Vec<TunnelTo>> {
        let numbers = self.look_at_ends(network)?;
        let tunnel = |id: NodeId| {
            let number = *numbers.get(&id)?;
            let node = self.encryption.nodes.get(&number)?;
            let (name, address) = (node.name.clone(), node.address);
            Some(TunnelTo { node: id, name, address, check: self.check_tunnel(number, None) })
        };
        Ok(nodes.into_iter().filter_map(tunnel).collect())
    }
}
