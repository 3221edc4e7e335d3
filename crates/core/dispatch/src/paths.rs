//! What is wrong between the nodes, made of what each of them says.
//!
//! Owns: the words, and what one node's view says of another's.
//! Does not know: how a path is measured; who asks.
//! Invariant: every path between two members of a network is judged, also when one of them said
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use state::Snapshot;
use types::{
    BadPath, Condition, ConditionCode, Network, NetworkCheck, NetworkId, NodeId, NodeState,
    PathCheck, PathTrouble, TunnelCheck, encryption_port, limits,
};

/// What became of the question to one node.
pub type Answer = Result<NetworkCheck, String>;

/// The path from a node to a peer; without a peer, the node's own part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathVerdict {
    pub node: NodeId,
    pub peer: Option<NodeId>,
    pub found: Option<PathCheck>,
    /// Empty: it is as it should be.
    pub problem: String,
}

/// Nodes that take part in a network: the ingress network is everybody's.
#[must_use]
pub fn members(view: &Snapshot, network: &Network) -> BTreeSet<NodeId> {
    match network.spec.ingress {
        true => view.nodes().filter(|node| node.number != 0).map(|node| node.id).collect(),
        false => view.nodes_on_network(network.id).map(|(node, _)| node).collect(),
    }
}

/// Where a node's packets should come from.
#[must_use]
pub fn data_path_address(view: &Snapshot, node: NodeId) -> Option<IpAddr> {
    let node = view.node(node)?;
    node.description.data_path.address.or_else(|| node.status.address.parse().ok())
}

/// Judges all paths of a network. `answers` has every member that was asked; one that is down was
/// not.
#[must_use]
pub fn judge_paths(
    view: &Snapshot,
    network: &Network,
    answers: &BTreeMap<NodeId, Answer>,
) -> Vec<PathVerdict> {
    let members = members(view, network);
    let judge = Judge { view, answers };
    let mut all = Vec::new();
    for node in &members {
        let (node, mut own) = (*node, Vec::new());
        match answers.get(&node) {
            None => own.push("it is down".to_owned()),
            Some(Err(problem)) => own.push(problem.clone()),
            Some(Ok(check)) => {
                own.extend(check.problems.iter().cloned());
                own.extend(judge.strangers(check));
            }
        }
        let verdict = |problem: String| PathVerdict { node, peer: None, found: None, problem };
        all.extend(own.into_iter().map(verdict));
        let Some(Ok(check)) = answers.get(&node) else { continue };
        let found: BTreeMap<NodeId, &PathCheck> =
            check.paths.iter().map(|path| (path.node, path)).collect();
        for peer in members.iter().copied().filter(|peer| *peer != node) {
            let found = found.get(&peer).copied();
            let problem = judge.path(node, peer, found);
            all.push(PathVerdict { node, peer: Some(peer), found: found.cloned(), problem });
        }
    }
    all
}

struct Judge<'a> {
    view: &'a Snapshot,
    answers: &'a BTreeMap<NodeId, Answer>,
}

impl Judge<'_> {
    fn path(&self, node: NodeId, peer: NodeId, found: Option<&PathCheck>) -> String {
        if !self.answers.contains_key(&peer) {
            return format!("node {} is down", self.name(peer));
        }
        let Some(found) = found else {
            return match data_path_address(self.view, peer) {
                None => "the address of its data path is not known yet".to_owned(),
                Some(_) => "it is missing among the peers; it is told within seconds".to_owned(),
            };
        };
        if let Some(tunnel) = &found.tunnel
            && let Some(problem) = self.tunnel(node, peer, found, tunnel)
        {
            return problem;
        }
        if found.answered == 0 {
            return self.silence(node, peer);
        }
        if found.passes < found.wanted {
            let (passes, wanted) = (found.passes, found.wanted);
            return format!(
                "wrong MTU: packets over {passes} bytes do not pass, containers send up to \
                 {wanted}; raise the MTU of the links between, or make the network with \
                 --opt com.docker.network.driver.mtu={passes}"
            );
        }
        match found.loss_percent() {
            percent if percent >= LOSS_PERCENT_MIN => format!("{percent} % of packets are lost"),
            _ => String::new(),
        }
    }

    /// What the tunnel says of an encrypted path; `None`: nothing is wrong with it.
    fn tunnel(
        &self,
        node: NodeId,
        peer: NodeId,
        found: &PathCheck,
        tunnel: &TunnelCheck,
    ) -> Option<String> {
        // The size of packets is told with what helps.
        if found.answered > 0 && found.passes < found.wanted {
            return None;
        }
        if !tunnel.trouble.is_empty() {
            return Some(tunnel.trouble.clone());
        }
        if found.answered > 0 {
            return None;
        }
        let (own, other) = (self.name(node), self.name(peer));
        let keys = |of: NodeId| self.view.node(of)?.description.data_path.encryption.as_ref();
        for (of, name) in [(node, &own), (peer, &other)] {
            if keys(of).is_none_or(|said| said.keys.is_empty()) {
                return Some(format!("no handshake: {name} has not said a key yet"));
            }
        }
        let Some(age) = tunnel.handshake_age else {
            for (at, name, from) in [(peer, &other, &own), (node, &own, &other)] {
                if self.drops_between(at, node, peer, &WRONG_KEY_DROPS) {
                    return Some(format!(
                        "wrong key: {name} drops what {from} sends, because it is not encrypted \
                         with the key that the managers know of it; restart the daemon of {from}"
                    ));
                }
            }
            let ports = self.view.cluster().map(|cluster| cluster.encryption_ports);
            let ports = ports.unwrap_or(limits::ENCRYPTION_PORTS_DEFAULT);
            let port = encryption_port(ports, tunnel.generation);
            let (own, other) = (self.address(node), self.address(peer));
            return Some(format!(
                "no handshake: UDP port {port} is blocked between {own} and {other}, one way or \
                 both"
            ));
        };
        Some(format!(
            "no answer through the tunnel, though its last handshake is {} s old: see what {other} \
             says of its own part",
            age.0 / 1_000
        ))
    }

    /// Whether one of the two dropped packets of the other for one of these causes.
    fn drops_between(&self, at: NodeId, node: NodeId, peer: NodeId, causes: &[&str]) -> bool {
        let other = if at == node { peer } else { node };
        let Some(Ok(check)) = self.answers.get(&at) else { return false };
        let of = |path: &&PathCheck| path.node == other;
        let tunnel = check.paths.iter().find(of).and_then(|path| path.tunnel.as_ref());
        tunnel.is_some_and(|tunnel| {
            causes.iter().any(|cause| tunnel.drops.get(*cause).is_some_and(|count| *count > 0))
        })
    }

    /// Nothing came back: the other side may have seen what became of it.
    fn silence(&self, node: NodeId, peer: NodeId) -> String {
        for (sender, receiver) in [(node, peer), (peer, node)] {
            let seen = self.strangers_at(receiver);
            if !seen.is_empty() {
                let (from, at, own) =
                    (self.name(sender), self.name(receiver), self.address(sender));
                return format!(
                    "NAT between the nodes: {at} sees packets from {seen}, which is no node's \
                     address, and none from {own} of {from}; give {from} a --data-path-addr that \
                     nobody translates"
                );
            }
        }
        let port = self.view.cluster().map_or(0, |cluster| cluster.data_path_port);
        let port = if port == 0 { u32::from(limits::DATA_PATH_PORT_DEFAULT) } else { port };
        let (own, other) = (self.address(node), self.address(peer));
        format!("no answer: UDP port {port} is blocked between {own} and {other}, one way or both")
    }

    fn strangers_at(&self, node: NodeId) -> String {
        match self.answers.get(&node) {
            Some(Ok(check)) => joined(&check.strangers),
            _ => String::new(),
        }
    }

    /// Packets from hosts that are no nodes, where no silent peer explains them.
    fn strangers(&self, check: &NetworkCheck) -> Option<String> {
        let seen = joined(&check.strangers);
        let explained = check.paths.iter().any(|path| path.answered == 0);
        (!seen.is_empty() && !explained).then(|| {
            format!("packets of this network come from {seen}, which is no node's address: dropped")
        })
    }

    fn name(&self, node: NodeId) -> String {
        self.view.node(node).map_or_else(|| node.to_string(), |node| node.hostname().to_owned())
    }

    fn address(&self, node: NodeId) -> String {
        let address = data_path_address(self.view, node);
        address.map_or_else(|| self.name(node), |address| address.to_string())
    }
}

fn joined(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What a node says of its paths, in words; `None`: nothing is wrong. Peers that are known to be
/// away say nothing about paths: leave them out.
#[must_use]
pub fn path_condition(view: &Snapshot, bad: &[BadPath]) -> Option<Condition> {
    let texts: BTreeSet<String> = bad.iter().filter_map(|bad| path_words(view, bad)).collect();
    let (count, shown) = (texts.len(), texts.iter().take(SHOWN_MAX).cloned());
    let mut shown: Vec<String> = shown.collect();
    if count > SHOWN_MAX {
        shown.push(format!("and {} more", count - SHOWN_MAX));
    }
    let message = shown.join("; ");
    (count > 0).then_some(Condition::new(ConditionCode::PeerPath, message))
}

/// The same words each time, as long as it is the same.
fn path_words(view: &Snapshot, bad: &BadPath) -> Option<String> {
    let peer = view.node(bad.node)?.hostname().to_owned();
    let network = view.network(bad.network)?.spec.name.clone();
    Some(format!("{peer} ({network}): {}", trouble_words(bad.trouble)))
}

/// What is wrong with the paths of one network, each with the name of the peer.
#[must_use]
pub fn paths_on(view: &Snapshot, network: &Network, bad: &[BadPath]) -> Vec<String> {
    let members = members(view, network);
    let on = bad.iter().filter(|bad| concerns(bad, network.id, &members));
    let words = |bad: &BadPath| {
        let peer = view.node(bad.node)?.hostname().to_owned();
        Some(format!("{peer}: {}", trouble_words(bad.trouble)))
    };
    on.filter_map(words).collect()
}

/// Whether a path of a network, which has these members, is as bad. A peer that is silent where it
/// is watched is so on all networks: its node says nothing of the others then.
pub(crate) fn concerns(bad: &BadPath, network: NetworkId, members: &BTreeSet<NodeId>) -> bool {
    bad.network == network || (bad.trouble == PathTrouble::Silent && members.contains(&bad.node))
}

pub(crate) fn trouble_words(trouble: PathTrouble) -> String {
    match trouble {
        PathTrouble::Silent => "no answer over the data path".to_owned(),
        PathTrouble::TooLarge(bytes) => format!("packets of {bytes} bytes do not pass"),
    }
}

/// Whether the managers know that a node is down.
#[must_use]
pub fn is_down(view: &Snapshot, node: NodeId) -> bool {
    view.node(node).is_none_or(|node| node.status.state == NodeState::Down)
}

/// Causes of drops that say that the other side has another key than it said.
const WRONG_KEY_DROPS: [&str; 2] = ["wrong-key", "unknown-peer"];

/// Of a hundred: fewer are chance, or a node that was busy.
const LOSS_PERCENT_MIN: u32 = 3;

/// Paths that a condition names.
const SHOWN_MAX: usize = 4;
