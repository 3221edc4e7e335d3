//! What the managers say, taken into the plan of a node.
//!
//! Owns: the order in which the parts of an update are taken, and what each of them touches.
//! Does not know: containers; whether a change was carried out.
//! Invariant: an update that is taken in two steps leads where it does in one.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use types::{
    DirectoryUpdate, NetworkDriver, NetworkId, NetworkPart, PeerPart, ServiceId, ServicePart,
    TaskId,
};

use crate::directory::{Table, as_increment};
use crate::overlay::{Fabric, addresses, has_virtual_address};
use crate::plan::{All, LocalContainer, Overlay, Planner, Scope};
use crate::state::{RouteKey, RouteTo};
use crate::tunnel::{Membership, is_shared, memberships};

/// An update of which services and endpoints are still to be taken.
#[derive(Debug)]
pub struct Begun<'a> {
    update: Cow<'a, DirectoryUpdate>,
    renumbered: bool,
    all: All,
}

impl Begun<'_> {
    /// The namespace was made as wanted so far.
    pub fn note_done(&mut self, scope: Scope) {
        self.all.remove(&scope);
    }
}

/// See [`Planner::finish`].
pub const ROUTES_AT_ONCE: usize = 4096;

impl Planner {
    /// Takes what the managers say.
    pub fn update(&mut self, update: &DirectoryUpdate) -> All {
        let begun = self.begin(update);
        self.finish(begun, |_, _| {})
    }

    /// Takes the networks and who is on them: what is wanted after it has all of the update but its
    /// services and endpoints, the new ones and those that it removes. Whether a network balances
    /// is settled by it.
    #[must_use = "services and endpoints are taken by finishing it"]
    pub fn begin<'a>(&mut self, update: &'a DirectoryUpdate) -> Begun<'a> {
        let mut tables: BTreeMap<NetworkId, &Table> =
            self.overlays.iter().map(|(id, overlay)| (*id, &overlay.table)).collect();
        tables.extend(self.ingress.iter().map(|table| (table.part.id, table)));
        let update = as_increment(&tables, update);
        let mut all = All::new();
        let before = self.own.as_ref().map(|own| own.number);
        if update.own.is_some() {
            self.own.clone_from(&update.own);
            self.guard_ports(&mut all);
        }
        let renumbered = self.own.as_ref().map(|own| own.number) != before;
        self.take_away(&update, &mut all);
        for part in &update.networks {
            self.put_network(part, &mut all);
        }
        if renumbered {
            let parts: Vec<NetworkPart> = self.networks().chain(self.ingress()).cloned().collect();
            for part in parts {
                self.put_network(&part, &mut all);
            }
        }
        for part in &update.services {
            self.prepare_for(part, &mut all);
        }
        for peer in &update.peers {
            self.put_peer(peer, &mut all);
        }
        Begun { update, renumbered, all }
    }

    /// Takes services and endpoints. As soon as a namespace has [`ROUTES_AT_ONCE`] new routes,
    /// `hand_over` may take them away: they are to be laid in the order in which they were taken,
    /// and before what is answered is carried out.
    pub fn finish(
        &mut self,
        begun: Begun<'_>,
        hand_over: impl FnMut(Scope, &mut Vec<(RouteKey, RouteTo)>),
    ) -> All {
        let Begun { update, renumbered, mut all } = begun;
        let (services, tasks) = self.put_parts(&update, renumbered, &mut all, hand_over);
        // What one service leaves another one may get.
        for (network, service) in &services {
            self.withdraw(*network, *service, &mut all);
        }
        for (network, service) in services {
            self.spread(network, service, &mut all);
        }
        let own = self.own.as_ref().map(|own| own.number);
        for task in tasks {
            let changes = all.entry(Scope::Mesh).or_default();
            self.mesh.open_targets(self.ingress.as_ref(), task, own, changes);
        }
        if touches_ports(&update) {
            self.after_ports(&mut all);
        }
        self.settle(all)
    }

    /// Peers and networks that went; endpoints and services go with their parts.
    fn take_away(&mut self, update: &DirectoryUpdate, all: &mut All) {
        for id in &update.removed_networks {
            self.remove_network(*id, all);
        }
        for (network, node) in &update.removed_peers {
            let Some((scope, table, fabric)) = self.side(*network) else { continue };
            let Some(peer) = table.peers.remove(node) else { continue };
            let membership = Membership::of(&table.part, &peer);
            fabric.remove_peer(peer.number, all.entry(scope).or_default());
            if !is_shared(table, &membership) {
                self.dismiss_peer(&membership, all);
            }
        }
    }

    fn remove_network(&mut self, id: NetworkId, all: &mut All) {
        let table = match self.overlays.remove(&id) {
            Some(overlay) => {
                all.remove(&Scope::Overlay(id));
                overlay.table
            }
            None if self.ingress.as_ref().is_some_and(|table| table.part.id == id) => {
                let Some(table) = self.ingress.take() else { return };
                self.leave_ingress(&table, all);
                table
            }
            None => return,
        };
        for peer in memberships(&table) {
            self.dismiss_peer(&peer, all);
        }
        self.close_network(&table.part, all);
    }

    /// The mesh namespace outlives the ingress network: everything of it goes one by one.
    fn leave_ingress(&mut self, table: &Table, all: &mut All) {
        let changes = all.entry(Scope::Mesh).or_default();
        let empty = Table::new(table.part.clone());
        for service in table.services.keys() {
            self.mesh.withdraw(&empty, *service, changes);
        }
        for part in table.endpoints.values() {
            self.mesh.open_targets(None, part.task, None, changes);
            self.mesh.fabric.remove_remote(part, changes);
        }
        for peer in table.peers.values() {
            self.mesh.fabric.remove_peer(peer.number, changes);
        }
        self.mesh.fabric.lift(&table.part.subnets, changes);
        self.mesh.fabric.leave(changes);
        self.mesh.set_return(false, changes);
    }

    fn put_network(&mut self, part: &NetworkPart, all: &mut All) {
        if part.driver != NetworkDriver::Overlay {
            return;
        }
        let Some(own) = self.own.as_ref().map(|own| own.number) else { return };
        if part.ingress && self.ingress.as_ref().is_none_or(|table| table.part.id != part.id) {
            if let Some(before) = self.ingress.as_ref().map(|table| table.part.id) {
                self.remove_network(before, all);
            }
            self.ingress = Some(Table::new(part.clone()));
        } else if !part.ingress && !self.overlays.contains_key(&part.id) {
            let (table, fabric) = (Table::new(part.clone()), Fabric::default());
            let overlay = Overlay { table, fabric, virtuals: BTreeMap::new() };
            self.overlays.insert(part.id, overlay);
            self.readmit(part.id, all);
        }
        let suspected = self.suspected.clone();
        let Some((scope, table, fabric)) = self.side(part.id) else { return };
        table.suspected = suspected;
        let earlier = memberships(table);
        let before = std::mem::replace(&mut table.part, part.clone());
        let peers = memberships(table);
        let changes = all.entry(scope).or_default();
        let gone: Vec<_> = before
            .subnets
            .iter()
            .filter(|subnet| !part.subnets.contains(subnet))
            .copied()
            .collect();
        fabric.lift(&gone, changes);
        fabric.lay(part, own, changes);
        for (peer, to) in table.peers.values().zip(&peers) {
            fabric.add_peer(peer, to.destination(), changes);
        }
        if scope == Scope::Mesh {
            self.mesh.set_return(true, changes);
        }
        if (before.vni, before.encrypted) != (part.vni, part.encrypted) {
            for peer in &earlier {
                self.dismiss_peer(peer, all);
            }
            self.close_network(&before, all);
        }
        self.open_network(part, own, all);
        for peer in &peers {
            self.admit_peer(peer, all);
        }
    }

    /// A network balances from its first virtual address on.
    fn prepare_for(&mut self, part: &ServicePart, all: &mut All) {
        let Some((scope, _, fabric)) = self.side(part.network) else { return };
        if !fabric.is_balanced() && has_virtual_address(part) {
            fabric.balance(all.entry(scope).or_default());
        }
    }

    /// Containers that were there before their network was.
    fn readmit(&mut self, network: NetworkId, all: &mut All) {
        let containers: Vec<LocalContainer> = self.containers.values().cloned().collect();
        for end in containers.iter().flat_map(|container| &container.links) {
            if end.network == Some(network) {
                self.admit(end, false, all);
            }
        }
    }

    fn put_peer(&mut self, peer: &PeerPart, all: &mut All) {
        let Some((scope, table, fabric)) = self.side(peer.network) else { return };
        let changes = all.entry(scope).or_default();
        let before = table.peers.insert(peer.node, peer.clone());
        if let Some(before) = before.as_ref().filter(|before| before.number != peer.number) {
            fabric.remove_peer(before.number, changes);
        }
        let membership = Membership::of(&table.part, peer);
        fabric.add_peer(peer, membership.destination(), changes);
        let before = before.map(|before| Membership::of(&table.part, &before));
        if let Some(before) = before.filter(|before| !is_shared(table, before)) {
            self.dismiss_peer(&before, all);
        }
        self.admit_peer(&membership, all);
    }

    /// Services and endpoints: their routes at once; what is balanced is answered, and which tasks
    /// of the ingress network may be others.
    fn put_parts(
        &mut self,
        update: &DirectoryUpdate,
        renumbered: bool,
        all: &mut All,
        mut hand_over: impl FnMut(Scope, &mut Vec<(RouteKey, RouteTo)>),
    ) -> (BTreeSet<(NetworkId, ServiceId)>, BTreeSet<TaskId>) {
        let mut services: BTreeSet<(NetworkId, ServiceId)> = BTreeSet::new();
        let mut tasks = BTreeSet::new();
        let mut departed = Vec::new();
        let ingress = self.ingress().map(|part| part.id);
        for (network, task) in &update.removed_endpoints {
            let Some((scope, table, fabric)) = self.side(*network) else { continue };
            let Some(gone) = table.remove_endpoint(*task) else { continue };
            fabric.remove_remote(&gone, all.entry(scope).or_default());
            if gone.serving {
                departed.extend(addresses(gone.v4, gone.v6).map(|a| (scope, a)));
            }
            services.extend(gone.service.map(|service| (*network, service)));
            tasks.extend((Some(*network) == ingress).then_some(*task));
        }
        for key in &update.removed_services {
            let Some((_, table, _)) = self.side(key.0) else { continue };
            table.services.remove(&key.1);
            services.insert(*key);
        }
        for part in &update.services {
            let Some((_, table, _)) = self.side(part.network) else { continue };
            table.services.insert(part.service, part.clone());
            services.insert((part.network, part.service));
        }
        self.leave_places(update, all);
        for part in &update.endpoints {
            let Some((scope, table, fabric)) = self.side(part.network) else { continue };
            let changes = all.entry(scope).or_default();
            if let Some(before) = table.put_endpoint(part.clone()) {
                if before.serving && !part.serving {
                    departed.extend(addresses(before.v4, before.v6).map(|a| (scope, a)));
                }
                services.extend(before.service.map(|service| (part.network, service)));
            }
            fabric.add_remote(part, changes);
            if changes.routes.len() >= ROUTES_AT_ONCE {
                hand_over(scope, &mut changes.routes);
            }
            services.extend(part.service.map(|service| (part.network, service)));
            tasks.extend((Some(part.network) == ingress).then_some(part.task));
        }
        self.departed.extend(departed);
        if let Some(table) = &self.ingress {
            let id = table.part.id;
            let touched = services.iter().filter(|(network, _)| *network == id);
            tasks.extend(touched.flat_map(|(_, s)| table.endpoints_of(*s).map(|part| part.task)));
            if renumbered {
                tasks.extend(table.endpoints.keys());
            }
        }
        (services, tasks)
    }

    /// Endpoints that have other addresses now leave those that they had, before others get them.
    fn leave_places(&mut self, update: &DirectoryUpdate, all: &mut All) {
        for part in &update.endpoints {
            let Some((scope, table, fabric)) = self.side(part.network) else { continue };
            if let Some(before) = table.endpoints.get(&part.task)
                && (before.v4, before.v6, before.number) != (part.v4, part.v6, part.number)
            {
                fabric.remove_remote(before, all.entry(scope).or_default());
            }
        }
    }

    /// Takes from a service what it has no more.
    fn withdraw(&mut self, network: NetworkId, service: ServiceId, all: &mut All) {
        if let Some(overlay) = self.overlays.get_mut(&network) {
            let Overlay { table, fabric, virtuals } = overlay;
            let Some(before) = virtuals.get(&service) else { return };
            let changes = all.entry(Scope::Overlay(network)).or_default();
            fabric.withdraw_service(table, service, before, changes);
        } else if let Some(table) = self.ingress.as_ref().filter(|t| t.part.id == network) {
            self.mesh.withdraw(table, service, all.entry(Scope::Mesh).or_default());
        }
    }

    pub(crate) fn spread(&mut self, network: NetworkId, service: ServiceId, all: &mut All) {
        if let Some(overlay) = self.overlays.get_mut(&network) {
            let Overlay { table, fabric, virtuals } = overlay;
            let changes = all.entry(Scope::Overlay(network)).or_default();
            let now = fabric.spread_service(table, service, changes);
            match now.is_empty() {
                true => virtuals.remove(&service),
                false => virtuals.insert(service, now),
            };
        } else if let Some(table) = self.ingress.as_ref().filter(|t| t.part.id == network) {
            self.mesh.publish(table, service, all.entry(Scope::Mesh).or_default());
        }
    }
}

/// It may change which ports are published, or the addresses of nodes.
fn touches_ports(update: &DirectoryUpdate) -> bool {
    !(update.services.is_empty()
        && update.removed_services.is_empty()
        && update.peers.is_empty()
        && update.removed_peers.is_empty()
        && update.networks.is_empty()
        && update.removed_networks.is_empty())
}

#[cfg(test)]
mod tests;
