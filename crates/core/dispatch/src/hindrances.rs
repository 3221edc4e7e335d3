//! What nodes say that keeps a service from being reached: ports that others hold, bad paths.
//!
//! Owns: which services that concerns, and the words.
//! Does not know: how a port is reserved, how a path is looked at.
//! Invariant: derived from what is known now, never stored: a reason is gone with its cause.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use base::Timestamp;
use state::{Author, Snapshot};
use types::{
    BadPath, ConditionCode, Network, NetworkId, Node, NodeId, NodeState, PortBinding, PortProtocol,
    PortSpec, PublishMode, Reason, Service, Task,
};

use crate::paths::{concerns, members, trouble_words};

/// A port of a node.
type Held<'a> = (&'a Arc<Node>, &'a PortBinding);

/// Everything of the kind that is known of a cluster.
pub struct Hindrances<'a> {
    view: &'a Snapshot,
    /// Ports that programs of hosts hold, and where.
    taken: BTreeMap<(PortProtocol, u16), Vec<Held<'a>>>,
    /// What each node says of its paths.
    bad: BTreeMap<NodeId, Vec<BadPath>>,
}

impl<'a> Hindrances<'a> {
    #[must_use]
    pub fn new(view: &'a Snapshot, bad: BTreeMap<NodeId, Vec<BadPath>>) -> Self {
        let mut taken: BTreeMap<_, Vec<Held<'_>>> = BTreeMap::new();
        for node in view.nodes().filter(|node| node.status.state != NodeState::Down) {
            let conditions = node.status.conditions.iter();
            for condition in conditions.filter(|one| one.code == ConditionCode::PortTaken) {
                for binding in &condition.ports {
                    let key = (binding.protocol, binding.port);
                    taken.entry(key).or_default().push((node, binding));
                }
            }
        }
        Self { view, taken, bad }
    }

    /// Why a service is not reached everywhere, beside what stands on it.
    #[must_use]
    pub fn reasons(&self, service: &Service) -> Vec<Reason> {
        self.ports(service).into_iter().chain(self.paths(service)).collect()
    }

    fn ports(&self, service: &Service) -> Option<Reason> {
        let given = service.endpoint.as_deref();
        let ports = given.map_or_else(|| service.spec.ports(), |given| &given.ports);
        let (mut texts, mut all) = (Vec::new(), BTreeSet::new());
        for port in ports {
            let nodes = self.holders(service, port);
            if nodes.is_empty() {
                continue;
            }
            let (number, protocol) = (port.published, port.protocol.name());
            let names = shortened(nodes.iter().map(|node| node.hostname().to_owned()), ", ");
            texts.push(format!("{number}/{protocol} on {names}"));
            all.extend(nodes.iter().map(|node| node.id));
        }
        let message = format!(
            "not published where a program of the host holds the port: {}",
            shortened(texts.iter().cloned(), "; ")
        );
        (!texts.is_empty()).then(|| reason("port-taken", message, all.len()))
    }

    /// Nodes on which this service's port is somebody else's: for a port of the mesh any node.
    fn holders(&self, service: &Service, port: &PortSpec) -> Vec<&'a Arc<Node>> {
        let found = self.taken.get(&(port.protocol, port.published));
        let mut nodes: Vec<&Arc<Node>> = Vec::new();
        for (node, binding) in found.into_iter().flatten() {
            let concerns = is_bound_to(port, binding)
                && (port.mode == PublishMode::Ingress || self.runs_on(service, node.id));
            if concerns && nodes.last().is_none_or(|last| last.id != node.id) {
                nodes.push(node);
            }
        }
        nodes
    }

    fn runs_on(&self, service: &Service, node: NodeId) -> bool {
        self.active(service).any(|task| task.node == Some(node))
    }

    fn active(&self, service: &Service) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        self.view.tasks_of_service(service.id).filter(|task| task.is_active())
    }

    /// Bad paths from or to its tasks.
    fn paths(&self, service: &Service) -> Option<Reason> {
        if self.bad.is_empty() {
            return None;
        }
        let mut places: BTreeMap<(NetworkId, NodeId), usize> = BTreeMap::new();
        for task in self.active(service) {
            let Some(node) = task.node else { continue };
            for attached in task.held() {
                *places.entry((attached.network, node)).or_default() += 1;
            }
        }
        let networks: BTreeSet<NetworkId> = places.keys().map(|(network, _)| *network).collect();
        let (mut texts, mut ends) = (BTreeSet::new(), BTreeSet::new());
        for network in networks.into_iter().filter_map(|id| self.view.network(id)) {
            let members = members(self.view, network);
            for (node, bad) in self.bad.iter().filter(|(node, _)| members.contains(node)) {
                for bad in bad.iter().filter(|bad| concerns(bad, network.id, &members)) {
                    let mut both = vec![(network.id, *node), (network.id, bad.node)];
                    both.retain(|place| places.contains_key(place));
                    if !both.is_empty() {
                        texts.extend(self.path_words(network, *node, bad));
                        ends.extend(both);
                    }
                }
            }
        }
        let count = ends.iter().filter_map(|place| places.get(place)).sum();
        let message =
            format!("not reached from everywhere: {}", shortened(texts.iter().cloned(), "; "));
        (!texts.is_empty()).then(|| reason("bad-path", message, count))
    }

    /// The same from both ends.
    fn path_words(&self, network: &Network, node: NodeId, bad: &BadPath) -> Option<String> {
        let mut names = [node, bad.node].map(|id| Some(self.view.node(id)?.hostname()));
        names.sort_unstable();
        let [Some(one), Some(other)] = names else { return None };
        let network = &network.spec.name;
        Some(format!("{one} - {other} ({network}): {}", trouble_words(bad.trouble)))
    }
}

fn reason(code: &str, message: String, count: usize) -> Reason {
    Reason {
        decider: Author::Dispatch.name().into(),
        code: code.into(),
        message,
        count: count as u64,
        since: Timestamp::default(),
    }
}

/// A link's addresses only its node knows.
fn is_bound_to(port: &PortSpec, binding: &PortBinding) -> bool {
    let wanted = port.host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    let wanted = wanted.filter(|address| !address.is_unspecified());
    match (wanted, binding.address) {
        (Some(wanted), bound) => bound == Some(wanted),
        (None, bound) => bound.is_some() == is_link(&port.host),
    }
}

/// Neither nothing nor an address.
fn is_link(host: &str) -> bool {
    !host.is_empty() && host.trim_matches(['[', ']']).parse::<IpAddr>().is_err()
}

fn shortened(all: impl ExactSizeIterator<Item = String>, between: &str) -> String {
    let count = all.len();
    let mut shown: Vec<String> = all.take(SHOWN_MAX).collect();
    if count > SHOWN_MAX {
        shown.push(format!("and {} more", count - SHOWN_MAX));
    }
    shown.join(between)
}

/// Ports, nodes or paths that a reason names.
const SHOWN_MAX: usize = 4;
