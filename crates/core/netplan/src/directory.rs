//! What the managers said of the networks, as tables.
//!
//! Owns: the parts of each network, and what an update touches.
//! Does not know: what is made of them.
//! Invariant: a full update leaves exactly its own parts.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use types::{
    DirectoryUpdate, EndpointPart, NetworkId, NetworkPart, NodeId, PeerPart, ServiceId,
    ServicePart, TaskId,
};

/// The parts of one network.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) part: NetworkPart,
    pub(crate) peers: BTreeMap<NodeId, PeerPart>,
    pub(crate) services: BTreeMap<ServiceId, ServicePart>,
    pub(crate) endpoints: BTreeMap<TaskId, EndpointPart>,
    of_service: BTreeMap<ServiceId, BTreeSet<TaskId>>,
    /// Numbers of nodes that new connections are kept from while there are others.
    pub(crate) suspected: BTreeSet<u32>,
}

impl Table {
    pub(crate) fn new(part: NetworkPart) -> Self {
        Self {
            part,
            peers: BTreeMap::new(),
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            of_service: BTreeMap::new(),
            suspected: BTreeSet::new(),
        }
    }

    pub(crate) fn endpoints_of(
        &self,
        service: ServiceId,
    ) -> impl Iterator<Item = &EndpointPart> + '_ {
        let tasks = self.of_service.get(&service);
        tasks.into_iter().flatten().filter_map(|task| self.endpoints.get(task))
    }

    pub(crate) fn is_suspected(&self, part: &EndpointPart) -> bool {
        self.suspected.contains(&part.number)
    }

    /// Suspicion does not count for a service that would have nobody left.
    pub(crate) fn counts_all(&self, service: ServiceId) -> bool {
        let mut serving = self.endpoints_of(service).filter(|part| part.serving);
        self.suspected.is_empty() || serving.all(|part| self.is_suspected(part))
    }

    /// The tasks of a service as they take new connections.
    pub(crate) fn judged(&self, service: ServiceId) -> Vec<EndpointPart> {
        let all = self.counts_all(service);
        let judged = |part: &EndpointPart| EndpointPart {
            serving: part.serving && (all || !self.is_suspected(part)),
            ..part.clone()
        };
        self.endpoints_of(service).map(judged).collect()
    }

    pub(crate) fn remove_endpoint(&mut self, task: TaskId) -> Option<EndpointPart> {
        let gone = self.endpoints.remove(&task)?;
        if let Some(service) = gone.service
            && let Some(tasks) = self.of_service.get_mut(&service)
        {
            tasks.remove(&task);
            if tasks.is_empty() {
                self.of_service.remove(&service);
            }
        }
        Some(gone)
    }

    /// Answers what was there before.
    pub(crate) fn put_endpoint(&mut self, part: EndpointPart) -> Option<EndpointPart> {
        let before = self.remove_endpoint(part.task);
        if let Some(service) = part.service {
            self.of_service.entry(service).or_default().insert(part.task);
        }
        self.endpoints.insert(part.task, part);
        before
    }
}

/// A full update as an increment: with the removal of all that it does not name.
pub(crate) fn as_increment<'a>(
    tables: &BTreeMap<NetworkId, &Table>,
    update: &'a DirectoryUpdate,
) -> Cow<'a, DirectoryUpdate> {
    if !update.full || tables.is_empty() {
        return Cow::Borrowed(update);
    }
    let mut all = DirectoryUpdate::default();
    let networks: BTreeSet<NetworkId> = update.networks.iter().map(|part| part.id).collect();
    let peers: BTreeSet<(NetworkId, NodeId)> =
        update.peers.iter().map(|part| (part.network, part.node)).collect();
    let services: BTreeSet<(NetworkId, ServiceId)> =
        update.services.iter().map(|part| (part.network, part.service)).collect();
    let endpoints: BTreeSet<(NetworkId, TaskId)> =
        update.endpoints.iter().map(|part| (part.network, part.task)).collect();
    for (id, table) in tables {
        if !networks.contains(id) {
            all.removed_networks.push(*id);
            continue;
        }
        let gone = table.peers.keys().map(|node| (*id, *node));
        all.removed_peers.extend(gone.filter(|key| !peers.contains(key)));
        let gone = table.services.keys().map(|service| (*id, *service));
        all.removed_services.extend(gone.filter(|key| !services.contains(key)));
        let gone = table.endpoints.keys().map(|task| (*id, *task));
        all.removed_endpoints.extend(gone.filter(|key| !endpoints.contains(key)));
    }
    if all.is_empty() {
        return Cow::Borrowed(update);
    }
    let mut whole = update.clone();
    whole.removed_networks.extend(all.removed_networks);
    whole.removed_peers.extend(all.removed_peers);
    whole.removed_services.extend(all.removed_services);
    whole.removed_endpoints.extend(all.removed_endpoints);
    Cow::Owned(whole)
}
