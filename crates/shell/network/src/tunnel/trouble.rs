//! What is wrong with the tunnel, in words.
//!
//! Owns: counters of packets in clear, what is said of the tunnel to each peer.
//! Does not know: who reads it.
//! Invariant: what is counted here was dropped; nothing is said of a tunnel that works.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use base::Millis;
use netplan::{Scope, TunnelNode, link};
use types::{NetworkId, NodeId, PathCheck, TunnelCheck, encryption_port};

use crate::encryption::{PeerSeen, TunnelSeen};
use crate::node::Node;
use crate::tables::host::{CLEAR_IN, CLEAR_OUT};
use crate::tables::tunnel::STRANGE;

impl Node {
    /// Packets of encrypted networks that were not encrypted, as long as there were some lately.
    pub(crate) fn clear_text(&mut self) -> io::Result<Vec<String>> {
        let counts = self.host.counts()?;
        let mut all = Vec::new();
        for (counter, text) in [
            (CLEAR_IN, "unencrypted packets of encrypted networks come to this host"),
            (CLEAR_OUT, "unencrypted packets of encrypted networks would leave this host"),
        ] {
            if self.has_risen(counter, counts.get(counter).copied().unwrap_or_default()) {
                all.push(format!("{text}: they are dropped"));
            }
        }
        self.count_strange()?;
        Ok(all)
    }

    /// Packets that came through the tunnel for a network that their sender is not on, and whether
    /// there were some lately.
    fn count_strange(&mut self) -> io::Result<(u64, bool)> {
        let Some(space) = self.spaces.get_mut(&Scope::Tunnel) else { return Ok((0, false)) };
        let strange = space.counts()?.get(STRANGE).copied().unwrap_or_default();
        Ok((strange, self.has_risen(STRANGE, strange)))
    }

    /// Whether a counter went up lately.
    fn has_risen(&mut self, counter: &'static str, now: u64) -> bool {
        let known = self.encryption.counted.entry(counter).or_default();
        // A table that was made anew begins at nothing.
        if now > known.0 {
            known.1 = Some(Instant::now());
        }
        known.0 = now;
        known.1.is_some_and(|at| at.elapsed() < RISEN_PERIOD)
    }
}

impl Node {
    /// Adds what is seen of the tunnel to the peers of an encrypted network.
    pub(crate) fn check_tunnels(
        &mut self,
        network: NetworkId,
        mut paths: Vec<PathCheck>,
    ) -> io::Result<Vec<PathCheck>> {
        let numbers = self.look_at_ends(network)?;
        for path in &mut paths {
            let number = numbers.get(&path.node).copied();
            path.tunnel = number.map(|number| self.check_tunnel(number, Some(path)));
        }
        Ok(paths)
    }

    /// Looks at the tunnel; answers the numbers of the nodes at its other ends. Of a network that
    /// is not encrypted there are none.
    pub(super) fn look_at_ends(&mut self, network: NetworkId) -> io::Result<BTreeMap<NodeId, u32>> {
        let part = self.planner.network(network).or(self.planner.ingress());
        if !part.is_some_and(|part| part.id == network && part.encrypted) {
            return Ok(BTreeMap::new());
        }
        self.look_at_tunnel(true)?;
        Ok(self.encryption.nodes.iter().map(|(number, node)| (node.node, *number)).collect())
    }

    /// `path`: what was measured of it, when something was.
    pub(super) fn check_tunnel(&self, number: u32, path: Option<&PathCheck>) -> TunnelCheck {
        let mut check = TunnelCheck {
            backend: self.encryption.backend.unwrap_or_default(),
            ..TunnelCheck::default()
        };
        let Some(node) = self.encryption.nodes.get(&number) else { return check };
        let Some(generation) = self.encryption.judged.uses.get(&number).copied() else {
            check.trouble = self.keyless(node);
            return check;
        };
        check.generation = generation;
        let tunnel = self.encryption.seen.iter().find(|seen| seen.generation == generation);
        let key = node.encryption.keys.get(&generation);
        let peer = tunnel.and_then(|tunnel| tunnel.peers.iter().find(|p| Some(&p.key) == key));
        if let Some(peer) = peer {
            let age = peer.handshake_age.filter(|age| *age < SESSION_LIFE);
            check.handshake_age = age.map(Millis::from_duration);
            (check.sent_bytes, check.received_bytes) = (peer.sent_bytes, peer.received_bytes);
            check.drops.clone_from(&peer.drops);
        }
        check.trouble = self.trouble(node, generation, (tunnel, peer), path);
        check
    }

    /// Why there is no common key.
    fn keyless(&self, node: &TunnelNode) -> String {
        let own = self.encryption.keys.iter().flat_map(BTreeMap::keys).copied().max();
        match own {
            None => "this node has no key of its own for encrypted networks yet".to_owned(),
            Some(own) if node.doubles.contains(&own) => {
                "the node has the key of another one, which alone is led to: it has to make one \
                 of its own"
                    .to_owned()
            }
            Some(own) => format!("the node has published no key of generation {own} yet"),
        }
    }

    fn trouble(
        &self,
        node: &TunnelNode,
        generation: u32,
        (tunnel, peer): (Option<&TunnelSeen>, Option<&PeerSeen>),
        path: Option<&PathCheck>,
    ) -> String {
        let device = link::tunnel(generation);
        let Some(tunnel) = tunnel else {
            return format!("nobody serves the device {device} of this node");
        };
        if let Some(failure) = &tunnel.failure {
            return format!("the device {device} of this node does not work: {failure}");
        }
        let Some(peer) = peer else {
            return format!("the device {device} of this node does not know the peer yet");
        };
        let ports = self.planner.own().map(|own| own.encryption.ports);
        let port = encryption_port(ports.unwrap_or_default(), generation);
        let wrong: u64 =
            ["wrong-key", "unknown-peer"].iter().filter_map(|cause| tunnel.drops.get(*cause)).sum();
        if peer.handshake_age.is_none_or(|age| age >= SESSION_LIFE) {
            let doubt = match wrong {
                0 => format!("is UDP port {port} closed at {} or at this node?", node.address),
                _ => format!(
                    "{wrong} messages with other keys than the published ones were dropped here: \
                     does it, or this node, use a key that was replaced?"
                ),
            };
            return format!("no handshake with it: {doubt}");
        }
        if let Some(path) = path.filter(|path| path.answered > 0 && path.passes < path.wanted) {
            return format!(
                "packets of {} bytes do not pass, of {} they do: the link's own size, encrypted, \
                 is more than the way between the nodes takes",
                path.wanted, path.passes
            );
        }
        String::new()
    }

    /// How devices and namespace differ from what they should be, in words.
    pub(crate) fn tunnel_problems(&mut self) -> io::Result<Vec<String>> {
        let Some(wanted) = self.planner.wanted(Scope::Tunnel) else { return Ok(Vec::new()) };
        let Some(space) = self.spaces.get_mut(&Scope::Tunnel) else {
            return Ok(vec!["the namespace of encrypted networks is missing".to_owned()]);
        };
        let changes = space.differences(wanted)?;
        let mut all = Vec::new();
        if !changes.is_empty() {
            let count = changes.len();
            all.push(format!(
                "{count} things of the tunnel are not as wanted; they are mended within seconds"
            ));
        }
        let keys = self.encryption.keys.iter().flat_map(BTreeMap::keys);
        for name in keys.map(|generation| link::tunnel(*generation)) {
            if space.index_of(name)?.is_none() {
                all.push(format!("the device {name} of encrypted networks is missing"));
            }
        }
        let (strange, lately) = self.count_strange()?;
        if lately {
            all.push(format!(
                "{strange} packets came through the tunnel from nodes that are not on the network \
                 that they named: dropped"
            ));
        }
        Ok(all)
    }
}

/// No session lives longer.
const SESSION_LIFE: Duration = Duration::from_secs(180);

/// For so long after the last one it is said.
const RISEN_PERIOD: Duration = Duration::from_secs(300);
