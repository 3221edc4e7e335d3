//! The parts of one network, in the order of their last changes.
//!
//! Owns: the parts, when each changed, what is gone, whom new connections may go to.
//! Does not know: how a part is derived from the store.
//! Invariant: every part, and every removal that a session may not have heard of, stands in the
//! log exactly once, at its last change.

use std::collections::BTreeMap;

use state::Snapshot;
use types::{DirectoryUpdate, NetworkPart, NodeId, PeerPart, ServiceId, ServicePart, TaskId};

use super::parts;

/// Removals remembered for sessions that have not heard of them; a session that missed an older
/// one is told everything anew.
const REMOVALS_MAX: usize = 50_000;

/// What a change was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Network,
    Peer(NodeId),
    Service(ServiceId),
    Endpoint(TaskId),
}

/// A part with the number of its last change.
#[derive(Debug)]
struct Kept<T> {
    at: u64,
    part: T,
}

/// Of a task, what decides about new connections; its addresses and names are read when told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) node: NodeId,
    /// Of the node; zero: it has none, or is gone, and nothing leads there.
    pub(crate) number: u32,
    pub(crate) service: Option<ServiceId>,
    /// It runs and is to go on running.
    pub(crate) running: bool,
    /// Its node is silent.
    pub(crate) suspected: bool,
}

/// Of one service: how many could serve, and how many of them are on silent nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    running: u32,
    suspected: u32,
}

impl Counts {
    /// All that could serve are on silent nodes: then silence does not count.
    fn all_suspected(self) -> bool {
        self.running == self.suspected
    }
}

/// One network.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    network: Option<Kept<NetworkPart>>,
    peers: BTreeMap<NodeId, Kept<Option<PeerPart>>>,
    services: BTreeMap<ServiceId, Kept<ServicePart>>,
    endpoints: BTreeMap<TaskId, Kept<Entry>>,
    counts: BTreeMap<Option<ServiceId>, Counts>,
    tasks_on: BTreeMap<NodeId, u32>,
    gone: BTreeMap<Key, u64>,
    log: BTreeMap<u64, Key>,
    floor: u64,
    last: u64,
}

impl Journal {
    pub(crate) fn members(&self) -> impl Iterator<Item = NodeId> {
        self.peers.keys().copied()
    }

    /// Sessions that were told less have missed removals.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn mtu(&self) -> u32 {
        self.network.as_ref().map_or(0, |kept| kept.part.mtu)
    }

    pub(crate) fn tasks_on(&self, node: NodeId) -> u32 {
        self.tasks_on.get(&node).copied().unwrap_or(0)
    }

    pub(crate) fn set_network(&mut self, part: NetworkPart, at: u64) -> bool {
        let old = self.network.as_ref();
        if old.is_some_and(|kept| kept.part == part) {
            return false;
        }
        self.log(Key::Network, old.map(|kept| kept.at), at);
        self.network = Some(Kept { at, part });
        true
    }

    /// A member whose address is not known yet is none that others could be told of.
    pub(crate) fn set_peer(&mut self, node: NodeId, part: Option<PeerPart>, at: u64) -> bool {
        let old = self.peers.get(&node);
        if old.is_some_and(|kept| kept.part == part) {
            return false;
        }
        self.log(Key::Peer(node), old.map(|kept| kept.at), at);
        self.peers.insert(node, Kept { at, part });
        true
    }

    pub(crate) fn remove_peer(&mut self, node: NodeId, at: u64) -> bool {
        let Some(old) = self.peers.remove(&node) else { return false };
        self.log_gone(Key::Peer(node), old.at, at);
        true
    }

    pub(crate) fn set_service(
        &mut self,
        id: ServiceId,
        part: Option<ServicePart>,
        at: u64,
    ) -> bool {
        let old = self.services.get(&id);
        if old.map(|kept| &kept.part) == part.as_ref() {
            return false;
        }
        let before = old.map(|kept| kept.at);
        match (part, before) {
            (Some(part), _) => {
                self.log(Key::Service(id), before, at);
                self.services.insert(id, Kept { at, part });
            }
            (None, Some(before)) => {
                self.services.remove(&id);
                self.log_gone(Key::Service(id), before, at);
            }
            (None, None) => {}
        }
        true
    }

    pub(crate) fn set_endpoint(&mut self, id: TaskId, entry: Entry, at: u64) -> bool {
        let old = self.endpoints.get(&id).map(|kept| (kept.at, kept.part));
        if old.is_some_and(|(_, part)| part == entry) {
            return false;
        }
        self.log(Key::Endpoint(id), old.map(|(at, _)| at), at);
        self.endpoints.insert(id, Kept { at, part: entry });
        let old = old.map(|(_, part)| part);
        if old.map(|part| part.node) != Some(entry.node) {
            old.inspect(|part| self.count_task(part.node, -1));
            self.count_task(entry.node, 1);
        }
        self.recount(old, Some(entry));
        true
    }

    /// The node that it was on, when it was there.
    pub(crate) fn remove_endpoint(&mut self, id: TaskId, at: u64) -> Option<NodeId> {
        let old = self.endpoints.remove(&id)?;
        self.log_gone(Key::Endpoint(id), old.at, at);
        self.count_task(old.part.node, -1);
        self.recount(Some(old.part), None);
        Some(old.part.node)
    }

    fn count_task(&mut self, node: NodeId, by: i32) {
        let count = self.tasks_on.entry(node).or_default();
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            self.tasks_on.remove(&node);
        }
    }

    /// Counts a change of one task; when that changes whether silence counts, all tasks of the
    /// service on silent nodes have changed.
    fn recount(&mut self, old: Option<Entry>, new: Option<Entry>) {
        let Some(service) = old.or(new).map(|entry| entry.service) else { return };
        let counts = self.counts.entry(service).or_default();
        let before = *counts;
        if let Some(entry) = old.filter(|entry| entry.running) {
            counts.running -= 1;
            counts.suspected -= u32::from(entry.suspected);
        }
        if let Some(entry) = new.filter(|entry| entry.running) {
            counts.running += 1;
            counts.suspected += u32::from(entry.suspected);
        }
        let now = *counts;
        if now == Counts::default() {
            self.counts.remove(&service);
        }
        let concerned = before.suspected.max(now.suspected) > 0;
        if concerned && before.all_suspected() != now.all_suspected() {
            self.log_suspected(service);
        }
    }

    fn log_suspected(&mut self, service: Option<ServiceId>) {
        let concerned = |entry: &Entry| entry.service == service && entry.suspected;
        let tasks: Vec<(TaskId, u64)> = self
            .endpoints
            .iter()
            .filter(|(_, kept)| concerned(&kept.part))
            .map(|(id, kept)| (*id, kept.at))
            .collect();
        for (id, before) in tasks {
            let at = self.last + 1;
            self.log(Key::Endpoint(id), Some(before), at);
            if let Some(kept) = self.endpoints.get_mut(&id) {
                kept.at = at;
            }
        }
    }

    fn serves(&self, entry: &Entry) -> bool {
        let counts = self.counts.get(&entry.service).copied().unwrap_or_default();
        entry.running && (!entry.suspected || counts.all_suspected())
    }

    fn log(&mut self, key: Key, before: Option<u64>, at: u64) {
        if let Some(before) = before.or_else(|| self.gone.remove(&key)) {
            self.log.remove(&before);
        }
        self.log.insert(at, key);
        self.last = self.last.max(at);
    }

    fn log_gone(&mut self, key: Key, before: u64, at: u64) {
        self.log(key, Some(before), at);
        self.gone.insert(key, at);
        if self.gone.len() > REMOVALS_MAX {
            self.forget_oldest();
        }
    }

    /// Forgets the older half, so that it is not done again at once.
    fn forget_oldest(&mut self) {
        let mut ages: Vec<(u64, Key)> = self.gone.iter().map(|(key, at)| (*at, *key)).collect();
        ages.sort_unstable();
        for (at, key) in ages.into_iter().take(REMOVALS_MAX / 2) {
            self.gone.remove(&key);
            self.log.remove(&at);
            self.floor = at;
        }
    }

    /// Appends what a node that was told up to `told` does not know; `None`: it knows nothing.
    pub(crate) fn tell(
        &self,
        view: &Snapshot,
        node: NodeId,
        told: Option<u64>,
        update: &mut DirectoryUpdate,
    ) {
        let Some(network) = &self.network else { return };
        let (id, from) = (network.part.id, told.map_or(0, |told| told + 1));
        if network.part.driver.is_of_nodes() {
            // Who is on it elsewhere is nothing to this node.
            update.networks.extend((network.at >= from).then(|| network.part.clone()));
            return;
        }
        for key in self.log.range(from..).map(|(_, key)| *key) {
            match key {
                Key::Network => {
                    update.networks.extend(self.network.as_ref().map(|kept| kept.part.clone()));
                }
                Key::Peer(peer) if peer == node => {}
                Key::Peer(peer) => match self.peers.get(&peer).map(|kept| &kept.part) {
                    Some(Some(part)) => update.peers.push(part.clone()),
                    // Its address is not known, or it is gone.
                    _ if told.is_some() => update.removed_peers.push((id, peer)),
                    _ => {}
                },
                Key::Service(service) => match self.services.get(&service) {
                    Some(kept) => update.services.push(kept.part.clone()),
                    None if told.is_some() => update.removed_services.push((id, service)),
                    None => {}
                },
                Key::Endpoint(task) => {
                    let entry = self.endpoints.get(&task).map(|kept| kept.part);
                    let part = entry
                        .and_then(|entry| parts::endpoint(view, id, task, self.serves(&entry)));
                    match part {
                        Some(part) => update.endpoints.push(part),
                        None if told.is_some() => update.removed_endpoints.push((id, task)),
                        None => {}
                    }
                }
            }
        }
    }
}
