//! Peers that do not answer, while no manager says who lives.
//!
//! Owns: whom new connections are kept from, and what that changes.
//! Does not know: why somebody is suspected, and for how long.
//! Invariant: no service is left without a task that takes connections; what is undone leaves no
//! trace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::limits::SUSPECTS_ONE_IN;
use types::{DirectoryUpdate, EndpointPart, NetworkId, ServiceId};

use crate::directory::Table;
use crate::overlay::addresses;
use crate::paths::{AllPeers, Peer, Peers};
use crate::plan::{All, Planner, Scope};

/// Who of the silent peers is suspected: all or, when they are too many at once, none, since the
/// trouble is then this node's own.
#[must_use]
pub fn suspects(silent: BTreeSet<u32>, peers: usize) -> BTreeSet<u32> {
    // This node is one of those that are watched.
    match silent.len() * SUSPECTS_ONE_IN <= peers + 1 {
        true => silent,
        false => BTreeSet::new(),
    }
}

impl Planner {
    /// Keeps new connections from these nodes, by number, and from no others. The update has the
    /// tasks that take connections now, or do not any more, for those who give out names.
    pub fn set_suspected(&mut self, suspected: BTreeSet<u32>) -> (All, DirectoryUpdate) {
        let (mut all, mut update) = (All::new(), DirectoryUpdate::default());
        let changed: BTreeSet<u32> =
            self.suspected.symmetric_difference(&suspected).copied().collect();
        if changed.is_empty() {
            return (all, update);
        }
        self.suspected.clone_from(&suspected);
        let mut services: Vec<(NetworkId, ServiceId)> = Vec::new();
        let mut departed = Vec::new();
        for (scope, table) in self.tables_mut() {
            let touched: BTreeSet<ServiceId> = table
                .endpoints
                .values()
                .filter(|part| changed.contains(&part.number))
                .filter_map(|part| part.service)
                .collect();
            let before: Vec<EndpointPart> =
                touched.iter().flat_map(|service| table.judged(*service)).collect();
            table.suspected.clone_from(&suspected);
            let now = touched.iter().flat_map(|service| table.judged(*service));
            for (before, now) in before.into_iter().zip(now).filter(|(before, now)| before != now) {
                if before.serving {
                    departed.extend(addresses(now.v4, now.v6).map(|address| (scope, address)));
                }
                update.endpoints.push(now);
            }
            services.extend(touched.into_iter().map(|service| (table.part.id, service)));
        }
        self.departed.extend(departed);
        for (network, service) in services {
            self.spread(network, service, &mut all);
        }
        (self.settle(all), update)
    }

    /// The peers of all networks, for those who look at the paths to them; those of networks that
    /// were not touched are as `before`.
    #[must_use]
    pub fn peers(&self, before: &AllPeers, touched: impl Fn(NetworkId) -> bool) -> AllPeers {
        let mut all = BTreeMap::new();
        for (scope, table) in self.tables() {
            if let Some(known) = before.get(&scope).filter(|_| !touched(table.part.id)) {
                all.insert(scope, Arc::clone(known));
                continue;
            }
            let peer = |part: &types::PeerPart| Peer {
                node: part.node,
                mtu: if part.mtu == 0 { table.part.mtu } else { part.mtu.min(table.part.mtu) },
            };
            let peers = Peers {
                network: table.part.id,
                mtu: table.part.mtu,
                peers: table.peers.values().map(|part| (part.number, peer(part))).collect(),
            };
            all.insert(scope, Arc::new(peers));
        }
        all
    }

    fn tables(&self) -> impl Iterator<Item = (Scope, &Table)> {
        let overlays =
            self.overlays.iter().map(|(id, overlay)| (Scope::Overlay(*id), &overlay.table));
        overlays.chain(self.ingress.iter().map(|table| (Scope::Mesh, table)))
    }

    fn tables_mut(&mut self) -> impl Iterator<Item = (Scope, &mut Table)> {
        let overlays =
            self.overlays.iter_mut().map(|(id, overlay)| (Scope::Overlay(*id), &mut overlay.table));
        overlays.chain(self.ingress.iter_mut().map(|table| (Scope::Mesh, table)))
    }
}

#[cfg(test)]
mod tests;
