//! Ports of nodes that tasks publish for themselves: each is had once a node and address.
//!
//! Owns: who has which, of the snapshot and of the plan that is made.
//! Does not know: ports of the mesh, which the store keeps apart from these.
//! Invariant: it is looked at only for templates that publish such ports; all others cost nothing.

use std::collections::BTreeMap;

use state::Snapshot;
use types::{PortProtocol, PortSpec, Revision};

use crate::nodes::Nodes;

/// By port: the nodes that have it taken, and on which address or interface.
#[derive(Default)]
pub(crate) struct HostPorts {
    taken: Option<Taken>,
}

impl HostPorts {
    /// Whether a task of this template finds its ports free on the node.
    pub(crate) fn free(
        &mut self,
        view: &Snapshot,
        nodes: &Nodes<'_>,
        revision: &Revision,
        at: usize,
    ) -> bool {
        if fixed(&revision.host_ports).next().is_none() {
            return true;
        }
        let taken = self.taken.get_or_insert_with(|| read(view, nodes));
        fixed(&revision.host_ports).all(|port| {
            let held = taken.get(&(port.protocol, port.published)).and_then(|held| held.get(&at));
            let meets =
                |other: &String| other.is_empty() || port.host.is_empty() || *other == port.host;
            !held.is_some_and(|held| held.iter().any(meets))
        })
    }

    /// Counts one more task on the node.
    pub(crate) fn take(&mut self, revision: &Revision, at: usize) {
        // Nobody has asked yet: the placement is not known to the snapshot, but nothing that is
        // asked about was placed before the first question.
        let Some(taken) = &mut self.taken else { return };
        hold(taken, &revision.host_ports, at);
    }
}

type Taken = BTreeMap<(PortProtocol, u16), BTreeMap<usize, Vec<String>>>;

/// Ports that are the same on each node; one that each node chooses is always free.
fn fixed(ports: &[PortSpec]) -> impl Iterator<Item = &PortSpec> {
    ports.iter().filter(|port| port.published != 0)
}

fn hold(taken: &mut Taken, ports: &[PortSpec], at: usize) {
    for port in fixed(ports) {
        let nodes = taken.entry((port.protocol, port.published)).or_default();
        nodes.entry(at).or_default().push(port.host.clone());
    }
}

fn read(view: &Snapshot, nodes: &Nodes<'_>) -> Taken {
    let mut taken = Taken::new();
    let publishing = view.revisions().filter(|r| fixed(&r.host_ports).next().is_some());
    for revision in publishing {
        let tasks = view.tasks_of_service(revision.service);
        let tasks = tasks.filter(|task| task.revision == revision.number && task.holds_resources());
        for at in tasks.filter_map(|task| nodes.number(task.node?)) {
            hold(&mut taken, &revision.host_ports, at);
        }
    }
    taken
}
