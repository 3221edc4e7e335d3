//! Ports of one node: those that the mesh publishes and those of single containers.
//!
//! Owns: which are published, and where each address of the node with a port leads.
//! Does not know: who holds a port of the host; it is told which are not to be had.
//! Invariant: two ports that meet are never held by two containers.

use std::collections::{BTreeMap, BTreeSet};

use types::PortBinding;

use crate::mesh::{bindings_of, is_everywhere, mesh_end, mesh_ports};
use crate::plan::{All, HostPortPlan, Planner, Scope};

impl Planner {
    /// Whether the node has a port already where this one would be.
    #[must_use]
    pub fn is_taken(&self, port: &HostPortPlan, besides: &[HostPortPlan]) -> bool {
        let own = &self.node_addresses;
        let of = |port: &HostPortPlan| bindings_of(port.protocol, port.published, &port.host, own);
        let besides: Vec<PortBinding> = besides.iter().flat_map(of).collect();
        let all = || self.host.bindings.iter().chain(&besides);
        of(port).iter().any(|wanted| all().any(|other| wanted.meets(other)))
    }

    /// Ports that the mesh would publish, were they not a container's of this node already. Which
    /// ports nodes chose for containers is not known where a service is given its own.
    #[must_use]
    pub fn contested(&self) -> BTreeSet<PortBinding> {
        let own = &self.node_addresses;
        let all = self.containers.values().flat_map(|container| &container.host_ports);
        let bindings = all.flat_map(|p| bindings_of(p.protocol, p.published, &p.host, own));
        let singles: BTreeSet<PortBinding> = bindings.collect();
        let numbers: BTreeSet<_> = singles.iter().map(|one| (one.protocol, one.port)).collect();
        let published: Vec<PortBinding> = self
            .ingress
            .iter()
            .flat_map(mesh_ports)
            .filter(|port| numbers.contains(&(port.protocol, port.published)))
            .flat_map(|port| bindings_of(port.protocol, port.published, &port.host, own))
            .collect();
        let meets = |single: &PortBinding| published.iter().any(|other| single.meets(other));
        singles.into_iter().filter(meets).collect()
    }

    /// What depends on the ports and addresses of all.
    pub(crate) fn after_ports(&mut self, all: &mut All) {
        let mut bindings = BTreeSet::new();
        let own = &self.node_addresses;
        for port in self.ingress.iter().flat_map(mesh_ports) {
            bindings.extend(bindings_of(port.protocol, port.published, &port.host, own));
        }
        let narrow: BTreeSet<PortBinding> = self
            .ingress
            .iter()
            .flat_map(mesh_ports)
            .filter(|port| !is_everywhere(&port.host))
            .flat_map(|port| bindings_of(port.protocol, port.published, &port.host, own))
            .collect();
        let mut held = BTreeMap::new();
        for container in self.containers.values() {
            for port in &container.host_ports {
                let bound = bindings_of(port.protocol, port.published, &port.host, own);
                if let Some(end) = mesh_end(container).filter(|_| !port.is_everywhere()) {
                    held.extend(bound.iter().filter_map(|binding| {
                        let to = end.towards(binding.address?)?;
                        Some((*binding, (to, port.target)))
                    }));
                }
                bindings.extend(bound);
            }
        }
        let changes = all.entry(Scope::Host).or_default();
        let addresses = held.keys().filter_map(|binding| binding.address).collect();
        self.host.name_aliases(&addresses, changes);
        self.host.publish(bindings, &held.keys().copied().collect(), &self.unavailable, changes);
        let host = &self.host;
        let held = held.into_iter().map(|(binding, (to, target))| {
            (binding, binding.address.and_then(|address| host.alias(address)), to, target)
        });
        let changes = all.entry(Scope::Mesh).or_default();
        self.mesh.hold(held, changes);
        self.mesh.narrow(&narrow, changes);
        let peers = self.ingress.iter().flat_map(|table| table.peers.values());
        let own = self.node_addresses.values().flatten().copied();
        self.mesh.name_nodes(peers, own, all.entry(Scope::Mesh).or_default());
        self.guard_bridges(all);
    }
}
