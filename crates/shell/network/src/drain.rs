//! Leaving: connections that are open still, and flows that must look for another way.
//!
//! Owns: which namespaces track the connections of a container.
//! Does not know: how long anybody may wait.
//! Invariant: a namespace that is not there has no connections.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use netplan::Scope;

use crate::node::Node;
use crate::tracking;

impl Node {
    /// TCP connections to a container that are not closed.
    pub(crate) fn open_connections(&mut self, id: &str) -> io::Result<usize> {
        let mut count = 0;
        for (scope, address) in self.addresses_of(id) {
            let Some(socket) = self.space(scope).and_then(|space| space.tracking()) else {
                continue;
            };
            let connections = tracking::tcp_to(socket, address)?;
            count += connections.iter().filter(|connection| connection.is_open()).count();
        }
        Ok(count)
    }

    /// Flows of datagrams to a container are looked at anew.
    pub(crate) fn forget_flows(&mut self, id: &str) -> io::Result<()> {
        let departed = self.addresses_of(id);
        self.forget(departed)
    }

    /// The same for what left the balancers, of whichever node.
    pub(crate) fn forget(&mut self, departed: Vec<(Scope, IpAddr)>) -> io::Result<()> {
        let mut scopes: BTreeMap<Scope, BTreeSet<IpAddr>> = BTreeMap::new();
        for (scope, address) in departed {
            scopes.entry(scope).or_default().insert(address);
        }
        for (scope, addresses) in scopes {
            if let Some(socket) = self.space(scope).and_then(|space| space.tracking()) {
                tracking::forget_udp(socket, &addresses)?;
            }
        }
        Ok(())
    }

    fn addresses_of(&self, id: &str) -> Vec<(Scope, IpAddr)> {
        let ends = self.planner.containers().get(id).into_iter().flat_map(|c| &c.links);
        ends.flat_map(|end| {
            let scope = end.network.map_or(Scope::Mesh, Scope::Overlay);
            let v6 = end.v6.map(IpAddr::V6);
            end.v4.map(IpAddr::V4).into_iter().chain(v6).map(move |address| (scope, address))
        })
        .collect()
    }
}
