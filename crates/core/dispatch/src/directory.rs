//! What each node must know of the networks that it takes part in.
//!
//! Owns: which parts there are, when each last changed, which node takes part in what.
//! Does not know: sessions, messages; a session brings the memory of what it was told.
//! Invariant: after `update`, a session knows exactly the parts of its node's networks.
//!
//! Leader memory, derived from the snapshot and kept up by events: each network has a journal of
//! what changed in which order, so that telling a node costs what changed, whatever there is.

mod journal;
mod parts;

use std::collections::{BTreeMap, BTreeSet};

use state::{Event, Snapshot};
use types::{DirectoryUpdate, NetworkId, NodeId, OwnPart, ServiceId, TaskId};

use self::journal::Journal;

/// The parts of all networks, and who takes part.
#[derive(Debug, Default)]
pub struct Directory {
    /// Raft index of the state that it was derived from.
    index: u64,
    /// Counts the changes of parts.
    sequence: u64,
    journals: BTreeMap<NetworkId, Journal>,
    /// The network of the mesh, which every node takes part in.
    ingress: Option<NetworkId>,
    services: BTreeMap<ServiceId, BTreeSet<NetworkId>>,
    tasks: BTreeMap<TaskId, Vec<NetworkId>>,
    memberships: BTreeMap<NodeId, BTreeSet<NetworkId>>,
    /// Of the nodes that have one: endpoints of their tasks are told with it.
    numbers: BTreeMap<NodeId, u32>,
    /// Nodes whose silence counts: their tasks get no new connections while others can.
    suspected: BTreeSet<NodeId>,
    /// Of the keys that nodes should have: part of what each is told of itself.
    generation: u32,
    /// Networks that changed since they were last asked for.
    touched: BTreeSet<NetworkId>,
    /// The same of nodes: what they are, or what they take part in.
    touched_nodes: BTreeSet<NodeId>,
}

/// What one session was told.
#[derive(Debug, Default)]
pub struct Heard {
    any: bool,
    own: Option<OwnPart>,
    /// The change up to which each network was told.
    networks: BTreeMap<NetworkId, u64>,
}

impl Directory {
    /// Derives everything anew. What sessions were told before does not count any more.
    pub fn rebuild(&mut self, view: &Snapshot) {
        let suspected = std::mem::take(&mut self.suspected);
        *self = Self { index: view.index(), sequence: self.sequence, ..Self::default() };
        self.suspected = suspected;
        self.generation = generation(view);
        for network in view.networks() {
            self.refresh_network(view, network.id);
        }
        for node in view.nodes() {
            self.refresh_node(view, node.id);
        }
        for service in view.services() {
            self.refresh_service(view, service.id);
        }
        for task in view.tasks() {
            self.refresh_task(view, task.id);
        }
    }

    /// Takes in what an event touched.
    pub fn mark(&mut self, view: &Snapshot, event: &Event) {
        self.index = view.index();
        match event {
            Event::Network(id) => self.refresh_network(view, *id),
            Event::Service(id) => self.refresh_service(view, *id),
            Event::Node(id) => self.refresh_node(view, *id),
            Event::Task { task, .. } => self.refresh_task(view, *task),
            Event::Cluster => self.refresh_cluster(view),
        }
    }

    /// Nodes to which something may have to be told since the last call.
    pub fn take_touched(&mut self) -> BTreeSet<NodeId> {
        let mut nodes = std::mem::take(&mut self.touched_nodes);
        for network in std::mem::take(&mut self.touched) {
            if let Some(journal) = self.journals.get(&network) {
                nodes.extend(journal.members());
            }
        }
        nodes
    }

    /// Nodes that take part in a network.
    pub fn members(&self, network: NetworkId) -> impl Iterator<Item = NodeId> {
        self.journals.get(&network).into_iter().flat_map(Journal::members)
    }

    /// Networks on which others may send to a task.
    #[must_use]
    pub fn networks_of(&self, task: TaskId) -> &[NetworkId] {
        self.tasks.get(&task).map_or(&[], Vec::as_slice)
    }

    /// Nodes whose silence counts.
    #[must_use]
    pub fn suspected(&self) -> BTreeSet<NodeId> {
        self.suspected.clone()
    }

    /// Raft index of the state that it was derived from.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// A node is silent, or is heard again.
    pub fn suspect(&mut self, view: &Snapshot, node: NodeId, suspected: bool) {
        let changed = match suspected {
            true => self.suspected.insert(node),
            false => self.suspected.remove(&node),
        };
        if !changed {
            return;
        }
        let tasks: Vec<TaskId> = view.tasks_on_node(node).map(|task| task.id).collect();
        for task in tasks {
            self.refresh_task(view, task);
        }
    }

    /// What a session must be told now; counts as told. `None`: nothing.
    pub fn update(
        &self,
        view: &Snapshot,
        node: NodeId,
        heard: &mut Heard,
    ) -> Option<DirectoryUpdate> {
        let none = BTreeSet::new();
        let wanted = self.memberships.get(&node).unwrap_or(&none);
        let missed = |(id, told): (&NetworkId, &u64)| {
            self.journals.get(id).is_some_and(|journal| *told < journal.floor())
        };
        if !heard.any || heard.networks.iter().any(missed) {
            *heard = Heard { any: true, ..Heard::default() };
            let mut update = DirectoryUpdate { full: true, ..DirectoryUpdate::default() };
            self.gather(view, node, wanted, heard, &mut update);
            return Some(update);
        }
        let mut update = DirectoryUpdate::default();
        let left: Vec<NetworkId> =
            heard.networks.keys().filter(|id| !wanted.contains(id)).copied().collect();
        for id in left {
            heard.networks.remove(&id);
            update.removed_networks.push(id);
        }
        self.gather(view, node, wanted, heard, &mut update);
        (!update.is_empty()).then_some(update)
    }

    fn gather(
        &self,
        view: &Snapshot,
        node: NodeId,
        wanted: &BTreeSet<NetworkId>,
        heard: &mut Heard,
        update: &mut DirectoryUpdate,
    ) {
        update.index = self.index;
        let own = parts::own(view, node);
        if own != heard.own {
            heard.own.clone_from(&own);
            update.own = own;
        }
        for id in wanted {
            let Some(journal) = self.journals.get(id) else { continue };
            let told = heard.networks.insert(*id, self.sequence);
            journal.tell(view, node, told, update);
        }
    }

    fn refresh_network(&mut self, view: &Snapshot, id: NetworkId) {
        let part = view.network(id).and_then(|network| parts::network(network));
        let Some(part) = part else {
            if self.journals.remove(&id).is_some() {
                let left = self.leave_all(id);
                self.touched_nodes.extend(left);
            }
            if self.ingress == Some(id) {
                self.ingress = None;
            }
            return;
        };
        let ingress = part.ingress;
        let is_new = !self.journals.contains_key(&id);
        self.sequence += 1;
        let journal = self.journals.entry(id).or_default();
        if journal.set_network(part, self.sequence) {
            self.touched.insert(id);
        }
        if ingress && self.ingress != Some(id) {
            self.ingress = Some(id);
            let nodes: Vec<NodeId> = view.nodes().map(|node| node.id).collect();
            nodes.into_iter().for_each(|node| self.refresh_node(view, node));
        }
        if is_new {
            // What refers to it may have been seen before it.
            let users = view.services_on_network(id);
            let services: Vec<ServiceId> = users.map(|service| service.id).collect();
            services.into_iter().for_each(|service| self.refresh_service(view, service));
        }
    }

    fn refresh_cluster(&mut self, view: &Snapshot) {
        let generation = generation(view);
        if std::mem::replace(&mut self.generation, generation) != generation {
            self.touched_nodes.extend(view.nodes().map(|node| node.id));
        }
    }

    fn leave_all(&mut self, network: NetworkId) -> Vec<NodeId> {
        let mut left = Vec::new();
        for (node, networks) in &mut self.memberships {
            if networks.remove(&network) {
                left.push(*node);
            }
        }
        left
    }

    fn refresh_node(&mut self, view: &Snapshot, id: NodeId) {
        self.touched_nodes.insert(id);
        let is_there = view.node(id).is_some_and(|node| node.number != 0);
        if let Some(ingress) = self.ingress {
            match is_there {
                true => self.join(view, ingress, id),
                false => self.leave(ingress, id),
            }
        }
        for network in self.memberships.get(&id).cloned().unwrap_or_default() {
            let part = parts::peer(view, network, id, self.mtu_of(network));
            let Some(journal) = self.journals.get_mut(&network) else { continue };
            self.sequence += 1;
            if journal.set_peer(id, part, self.sequence) {
                self.touched.insert(network);
            }
        }
        if !is_there {
            self.suspected.remove(&id);
        }
        self.renumber(view, id);
    }

    /// Endpoints lead to the number of their node: with another one, or none, they are told again.
    fn renumber(&mut self, view: &Snapshot, id: NodeId) {
        let number = view.node(id).map_or(0, |node| node.number);
        let before = match number {
            0 => self.numbers.remove(&id),
            number => self.numbers.insert(id, number),
        };
        if before.unwrap_or_default() == number {
            return;
        }
        let tasks = view.tasks_on_node(id).map(|task| task.id);
        let known: Vec<TaskId> = tasks.filter(|task| self.tasks.contains_key(task)).collect();
        known.into_iter().for_each(|task| self.refresh_task(view, task));
    }

    fn mtu_of(&self, network: NetworkId) -> u32 {
        self.journals.get(&network).map_or(0, Journal::mtu)
    }

    fn refresh_service(&mut self, view: &Snapshot, id: ServiceId) {
        let parts = view.service(id).map(|service| parts::services(service, self.ingress));
        let parts = parts.unwrap_or_default();
        let wanted: BTreeSet<NetworkId> = parts
            .iter()
            .map(|part| part.network)
            .filter(|network| self.journals.contains_key(network))
            .collect();
        let old = self.services.get(&id).cloned().unwrap_or_default();
        for network in old.difference(&wanted) {
            self.record(*network, |journal, at| journal.set_service(id, None, at));
        }
        for part in parts.into_iter().filter(|part| wanted.contains(&part.network)) {
            self.record(part.network, |journal, at| journal.set_service(id, Some(part), at));
        }
        match wanted.is_empty() {
            true => self.services.remove(&id),
            false => self.services.insert(id, wanted),
        };
    }

    fn refresh_task(&mut self, view: &Snapshot, id: TaskId) {
        let seat = parts::seat(view, id);
        let wanted = seat.as_ref().map(|seat| seat.networks.clone()).unwrap_or_default();
        let old = self.tasks.get(&id).cloned().unwrap_or_default();
        for network in old.iter().filter(|network| !wanted.contains(network)) {
            let gone = self.record(*network, |journal, at| journal.remove_endpoint(id, at));
            if let Some(node) = gone {
                self.leave_if_idle(*network, node);
            }
        }
        if let Some(seat) = seat {
            for network in &wanted {
                self.join(view, *network, seat.node);
                let suspected = self.suspected.contains(&seat.node);
                self.record(*network, |journal, at| {
                    journal.set_endpoint(id, seat.entry(suspected), at)
                });
            }
        }
        match wanted.is_empty() {
            true => self.tasks.remove(&id),
            false => self.tasks.insert(id, wanted),
        };
    }

    /// Makes a change in one journal, with the next number.
    fn record<T: Changed>(
        &mut self,
        network: NetworkId,
        change: impl FnOnce(&mut Journal, u64) -> T,
    ) -> T {
        let Some(journal) = self.journals.get_mut(&network) else { return T::default() };
        self.sequence += 1;
        let changed = change(journal, self.sequence);
        // A change of one part may have made changes of others.
        self.sequence = self.sequence.max(journal.last());
        if changed.changed() {
            self.touched.insert(network);
        }
        changed
    }

    fn join(&mut self, view: &Snapshot, network: NetworkId, node: NodeId) {
        if !self.journals.contains_key(&network)
            || !self.memberships.entry(node).or_default().insert(network)
        {
            return;
        }
        self.touched_nodes.insert(node);
        let part = parts::peer(view, network, node, self.mtu_of(network));
        self.record(network, |journal, at| journal.set_peer(node, part, at));
    }

    fn leave(&mut self, network: NetworkId, node: NodeId) {
        let was = self.memberships.get_mut(&node).is_some_and(|all| all.remove(&network));
        if was {
            self.touched_nodes.insert(node);
            self.record(network, |journal, at| journal.remove_peer(node, at));
        }
        if self.memberships.get(&node).is_some_and(BTreeSet::is_empty) {
            self.memberships.remove(&node);
        }
    }

    /// A node whose last task on a network is gone takes no part in it any more.
    fn leave_if_idle(&mut self, network: NetworkId, node: NodeId) {
        let idle = self.journals.get(&network).is_some_and(|journal| journal.tasks_on(node) == 0);
        if idle && self.ingress != Some(network) {
            self.leave(network, node);
        }
    }
}

fn generation(view: &Snapshot) -> u32 {
    view.cluster().map_or(0, |cluster| cluster.network_key_generation)
}

/// The result of a change in a journal: whether there was one.
trait Changed: Default {
    fn changed(&self) -> bool;
}

impl Changed for bool {
    fn changed(&self) -> bool {
        *self
    }
}

/// The node that an endpoint was on.
impl Changed for Option<NodeId> {
    fn changed(&self) -> bool {
        self.is_some()
    }
}
