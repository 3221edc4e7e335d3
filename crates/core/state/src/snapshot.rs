//! The tables, and how they are read.
//!
//! Owns: every table and its reading access. A clone is cheap: it shares everything.
//! Does not know: how a table is changed; that is `apply` and `index`.
//! Invariant: indexes are functions of the tables; `verify` derives them afresh and compares.

use std::sync::Arc;

use base::Timestamp;
use imbl::{OrdMap, OrdSet};
use types::{
    Cluster, NetworkKey, Node, NodeId, Revision, Service, ServiceId, Slot, SlotKey, Tally, Task,
    TaskId,
};

use crate::index::Usage;
use crate::networks::Networks;

/// The whole state at one index. Cloning it costs some sixty counters, whatever its size.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub(crate) index: u64,
    pub(crate) time: Timestamp,
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) nodes: OrdMap<NodeId, Arc<Node>>,
    pub(crate) services: OrdMap<ServiceId, Arc<Service>>,
    pub(crate) revisions: OrdMap<(ServiceId, u64), Arc<Revision>>,
    pub(crate) tasks: OrdMap<TaskId, Arc<Task>>,
    pub(crate) tallies: OrdMap<(ServiceId, SlotKey), Arc<Tally>>,
    /// Nodes that were removed: their certificates are refused until then.
    pub(crate) removed: OrdMap<NodeId, Timestamp>,
    pub(crate) names: OrdMap<Arc<str>, ServiceId>,
    pub(crate) by_service: OrdSet<(ServiceId, Slot, TaskId)>,
    pub(crate) by_node: OrdSet<(NodeId, TaskId)>,
    pub(crate) fresh: OrdSet<(ServiceId, TaskId)>,
    pub(crate) pending: OrdSet<(ServiceId, u64, TaskId)>,
    pub(crate) usage: OrdMap<NodeId, Usage>,
    pub(crate) placed: OrdMap<(ServiceId, NodeId), u32>,
    pub(crate) revision_users: OrdMap<(ServiceId, u64), u32>,
    /// Who has which key of encrypted networks.
    pub(crate) network_keys: OrdMap<NetworkKey, NodeId>,
    pub(crate) net: Networks,
}

impl Snapshot {
    /// Raft index of the last change.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Store time of the last change; never goes back.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        self.time
    }

    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Whether the node was removed, so that its certificate counts no more.
    #[must_use]
    pub fn is_removed(&self, id: NodeId) -> bool {
        self.removed.contains_key(&id)
    }

    pub fn removed_nodes(&self) -> impl Iterator<Item = (NodeId, Timestamp)> {
        self.removed.iter().map(|(id, until)| (*id, *until))
    }

    #[must_use]
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(&id)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    #[must_use]
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Names are unique without regard to case.
    #[must_use]
    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        let id = self.names.get(name.to_lowercase().as_str())?;
        self.services.get(id)
    }

    #[must_use]
    pub fn revision(&self, service: ServiceId, number: u64) -> Option<&Arc<Revision>> {
        self.revisions.get(&(service, number))
    }

    pub fn revisions_of(&self, service: ServiceId) -> impl Iterator<Item = &Arc<Revision>> {
        self.revisions.range((service, 0)..=(service, u64::MAX)).map(|(_, revision)| revision)
    }

    pub fn revisions(&self) -> impl Iterator<Item = &Arc<Revision>> {
        self.revisions.values()
    }

    #[must_use]
    pub fn task(&self, id: TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(&id)
    }

    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    #[must_use]
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// Tasks of a service, also of one that is gone, by slot.
    pub fn tasks_of_service(&self, service: ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        let first = (service, Slot::Replica(0), TaskId::MIN);
        let last = (service, Slot::Node, TaskId::MAX);
        self.by_service.range(first..=last).filter_map(|(_, _, id)| self.tasks.get(id))
    }

    /// Services that have tasks, also those that are gone.
    #[must_use]
    pub fn next_service_with_tasks(&self, after: Option<ServiceId>) -> Option<ServiceId> {
        use std::ops::Bound::{Excluded, Unbounded};
        let key = match after {
            None => self.by_service.get_min(),
            Some(id) => {
                let last = (id, Slot::Node, TaskId::MAX);
                self.by_service.range((Excluded(last), Unbounded)).next()
            }
        };
        key.map(|(service, _, _)| *service)
    }

    pub fn tasks_on_node(&self, node: NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.by_node
            .range((node, TaskId::MIN)..=(node, TaskId::MAX))
            .filter_map(|(_, id)| self.tasks.get(id))
    }

    /// Nodes that tasks refer to, also those that are gone.
    #[must_use]
    pub fn next_node_with_tasks(&self, after: Option<NodeId>) -> Option<NodeId> {
        use std::ops::Bound::{Excluded, Unbounded};
        let key = match after {
            None => self.by_node.get_min(),
            Some(id) => self.by_node.range((Excluded((id, TaskId::MAX)), Unbounded)).next(),
        };
        key.map(|(node, _)| *node)
    }

    /// Tasks that are New, of one service.
    pub fn fresh_tasks(&self, service: ServiceId) -> impl Iterator<Item = TaskId> {
        self.fresh.range((service, TaskId::MIN)..=(service, TaskId::MAX)).map(|(_, id)| *id)
    }

    /// Services that have tasks in state New.
    pub fn fresh_services(&self) -> impl Iterator<Item = ServiceId> {
        let mut last = None;
        self.fresh
            .iter()
            .map(|(service, _)| *service)
            .filter(move |service| last.replace(*service) != Some(*service))
    }

    /// Tasks that wait for a node, grouped: all of one (service, revision) in a row.
    pub fn pending_tasks(&self) -> impl Iterator<Item = (ServiceId, u64, TaskId)> {
        self.pending.iter().copied()
    }

    /// The same, beginning behind `after`.
    pub fn pending_after(
        &self,
        after: (ServiceId, u64, TaskId),
    ) -> impl Iterator<Item = (ServiceId, u64, TaskId)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.pending.range((Excluded(after), Unbounded)).copied()
    }

    #[must_use]
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// What the tasks of a node hold of it.
    #[must_use]
    pub fn usage(&self, node: NodeId) -> Usage {
        self.usage.get(&node).copied().unwrap_or_default()
    }

    /// What the tasks of nodes hold of them, in the order of the nodes' ids.
    pub fn usages(&self) -> impl Iterator<Item = (NodeId, Usage)> {
        self.usage.iter().map(|(node, usage)| (*node, *usage))
    }

    /// Active tasks of a service by node, in the order of the nodes' ids.
    pub fn placed(&self, service: ServiceId) -> impl Iterator<Item = (NodeId, u32)> {
        self.placed
            .range((service, NodeId::MIN)..=(service, NodeId::MAX))
            .map(|((_, node), count)| (*node, *count))
    }

    #[must_use]
    pub fn tally(&self, service: ServiceId, slot: SlotKey) -> Option<&Arc<Tally>> {
        self.tallies.get(&(service, slot))
    }

    pub fn tallies(&self) -> impl Iterator<Item = (ServiceId, SlotKey, &Arc<Tally>)> {
        self.tallies.iter().map(|((service, slot), tally)| (*service, *slot, tally))
    }

    pub fn tallies_of_service(
        &self,
        service: ServiceId,
    ) -> impl Iterator<Item = (SlotKey, &Arc<Tally>)> {
        let first = (service, SlotKey::Replica(0));
        let last = (service, SlotKey::Node(NodeId::MAX));
        self.tallies.range(first..=last).map(|((_, slot), tally)| (*slot, tally))
    }
}
