//! Applies change sets, guarding what must always hold.
//!
//! Owns: every mutation of the state, and every reason to refuse one.
//! Does not know: where a change set comes from, beyond its author's tag.
//! Invariant: a refused atom leaves no trace, and every manager refuses the same ones.

use std::sync::Arc;

use base::{IdSource, Timestamp};
use types::{
    Cluster, ClusterSpec, ErrorCode, Fault, Meta, Node, NodeId, NodeSpec, ServiceId, Slot, Task,
    TaskId, TaskState, TaskStatus, limits,
};

use crate::change::{Change, ChangeSet};
use crate::{Event, Proposal, Snapshot};

/// Where and when a change lands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Raft index of the entry.
    pub index: u64,
    /// Store time: never before the state's.
    pub time: Timestamp,
}

/// Why an atom was refused. Nothing of it has landed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Decided on a state gone by: decide again.
    #[error("{what} does not exist")]
    Missing { what: String },
    #[error("name conflicts with an existing object: service {name} already exists")]
    NameTaken { name: String },
    #[error("{what} exists already")]
    Exists { what: String },
    /// Read the object again, then retry.
    #[error("update out of sequence: {what} has changed meanwhile")]
    OutOfDate { what: String },
    /// Decided on a state gone by: decide again.
    #[error("task {task} is {state}, not {wanted}")]
    WrongState { task: TaskId, state: &'static str, wanted: &'static str },
    /// A bug: this author does not write this field.
    #[error("{author} may not make this change")]
    NotTheWriter { author: &'static str },
    /// The cluster is as large as it may get.
    #[error("the cluster has {max} {what} already, no more are allowed")]
    Full { what: &'static str, max: usize },
    /// Decided on a state gone by: decide again. A user: choose another one.
    #[error("{what} is held by {by} already")]
    Taken { what: String, by: String },
    /// A bug, or decided on a state gone by: decide again.
    #[error("{what} cannot be given out: {why}")]
    Unfit { what: String, why: &'static str },
    /// What the API's checks would have refused.
    #[error("{0}")]
    Invalid(Fault),
}

impl Refusal {
    /// The same for a user.
    #[must_use]
    pub fn to_fault(&self) -> Fault {
        let code = match self {
            Self::Missing { .. } => ErrorCode::NotFound,
            Self::NameTaken { .. } | Self::Exists { .. } | Self::Taken { .. } => {
                ErrorCode::Conflict
            }
            Self::OutOfDate { .. } | Self::WrongState { .. } => ErrorCode::OutOfDate,
            Self::NotTheWriter { .. } | Self::Unfit { .. } => ErrorCode::Internal,
            Self::Full { .. } => ErrorCode::FailedPrecondition,
            Self::Invalid(fault) => return fault.clone(),
        };
        Fault::new(code, self.to_string())
    }
}

impl Snapshot {
    /// Applies each atom of a proposal; an atom that is refused leaves no trace, the others land.
    pub fn apply_proposal(
        &mut self,
        index: u64,
        proposal: &Proposal,
        events: &mut Vec<Event>,
    ) -> Vec<Result<(), Refusal>> {
        let stamp = Stamp { index, time: proposal.time.max(self.time) };
        let results = proposal.atoms.iter().map(|atom| self.apply(stamp, atom, events)).collect();
        self.index = self.index.max(index);
        self.time = stamp.time;
        results
    }

    /// Applies one atom. Events are appended only when it lands.
    pub fn apply(
        &mut self,
        stamp: Stamp,
        atom: &ChangeSet,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let mut next = self.clone();
        let before = events.len();
        for change in &atom.changes {
            if !atom.author.may_make(change) {
                events.truncate(before);
                return Err(Refusal::NotTheWriter { author: atom.author.name() });
            }
            if let Err(refusal) = next.apply_one(stamp, change, events) {
                events.truncate(before);
                return Err(refusal);
            }
        }
        next.index = stamp.index.max(self.index);
        next.time = stamp.time.max(self.time);
        *self = next;
        Ok(())
    }

    fn apply_one(
        &mut self,
        stamp: Stamp,
        change: &Change,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        match change {
            Change::CreateCluster(cluster) => self.create_cluster(stamp, cluster, events),
            Change::UpdateCluster { expect, spec } => {
                self.update_cluster(stamp, *expect, spec, events)
            }
            Change::AddAddressPools(pools) => self.add_pools(stamp, pools, events),
            Change::RotateNetworkKey { expect } => self.rotate_network_key(stamp, *expect, events),
            Change::SetJoinTokens { worker, manager } => self.with_cluster(stamp, events, |c| {
                c.worker_token.clone_from(worker);
                c.manager_token.clone_from(manager);
            }),
            Change::CreateNode(node) => self.create_node(stamp, node, events),
            Change::UpdateNode { id, expect, spec } => {
                self.update_node(stamp, *id, *expect, spec, events)
            }
            Change::DescribeNode { id, description } => {
                self.describe_node(stamp, *id, description, events)
            }
            Change::SetNodeStatus { id, status } => {
                self.with_node(stamp, *id, events, |n| n.take_status(status, stamp.time))
            }
            Change::SetNodeRole { id, role } => {
                self.with_node(stamp, *id, events, |n| n.role = *role)
            }
            Change::SetNodeManager { id, manager } => {
                self.with_node(stamp, *id, events, |n| n.manager.clone_from(manager))
            }
            Change::SetNodeNumber { id, number } => self.set_number(stamp, *id, *number, events),
            Change::SetNodeCertificate { id, expires } => {
                self.with_node(stamp, *id, events, |n| n.certificate_expires = *expires)
            }
            Change::RemoveNode(id) => self.remove_node(stamp, *id, events),
            other => self.apply_service_change(stamp, other, events),
        }
    }

    fn apply_service_change(
        &mut self,
        stamp: Stamp,
        change: &Change,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        match change {
            Change::CreateService { id, spec } => self.create_service(stamp, *id, spec, events),
            Change::UpdateService { id, expect, spec } => {
                self.update_service(stamp, *id, *expect, spec, events)
            }
            Change::RemoveService(id) => self.remove_service(stamp, *id, events),
            Change::SetUpdateStatus { id, status } => {
                self.with_service(stamp, *id, events, |s| s.update.clone_from(status))
            }
            Change::SetReason { service, decider, reason } => {
                self.set_reason(stamp, *service, decider, reason.as_ref(), events)
            }
            Change::CreateTasks { service, revision, seed, desired, slots, nodes } => {
                let batch = Batch { service: *service, revision: *revision, desired: *desired };
                self.create_tasks(stamp, batch, *seed, slots, nodes, events)
            }
            Change::AdmitTasks(ids) => ids.iter().try_for_each(|id| {
                self.move_task(stamp, *id, (TaskState::New, TaskState::Pending), None, events)
            }),
            Change::AssignTasks(pairs) => pairs.iter().try_for_each(|(id, node)| {
                self.node(*node).ok_or_else(|| missing("node", node))?;
                let step = (TaskState::Pending, TaskState::Assigned);
                self.move_task(stamp, *id, step, Some(*node), events)
            }),
            Change::DesireTasks { desired, tasks } => tasks.iter().try_for_each(|id| {
                self.with_task(stamp, *id, events, |t| t.desired = t.desired.max(*desired))
            }),
            Change::ReportTasks(reports) => {
                reports.iter().for_each(|(id, status)| self.report(stamp, *id, status, events));
                Ok(())
            }
            Change::RemoveTasks(ids) => {
                ids.iter().try_for_each(|id| self.remove_task(stamp, *id, events))
            }
            Change::SetTally { service, slot, tally } => {
                self.set_tally(*service, *slot, tally.as_ref());
                Ok(())
            }
            other => self.apply_network_change(stamp, other, events),
        }
    }

    fn create_cluster(
        &mut self,
        stamp: Stamp,
        cluster: &Cluster,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        if self.cluster.is_some() {
            return Err(Refusal::Exists { what: "the cluster".into() });
        }
        self.cluster = Some(Arc::new(Cluster { meta: born(stamp), ..cluster.clone() }));
        events.push(Event::Cluster);
        Ok(())
    }

    fn update_cluster(
        &mut self,
        stamp: Stamp,
        expect: u64,
        spec: &ClusterSpec,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let found = self.cluster.as_ref().map(|c| c.meta.spec_version);
        check_version("the cluster", found, expect)?;
        self.with_cluster(stamp, events, |c| {
            c.spec.clone_from(spec);
            c.meta.spec_version = stamp.index;
        })
    }

    fn add_pools(
        &mut self,
        stamp: Stamp,
        pools: &[String],
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let known = self.cluster.as_ref().map(|c| (c.address_pools.clone(), c.address_pool_mask));
        let (mut all, mask) = known.unwrap_or_default();
        all.extend_from_slice(pools);
        types::check_address_pools(&all, mask).map_err(Refusal::Invalid)?;
        self.with_cluster(stamp, events, |c| c.address_pools = all)
    }

    pub(crate) fn with_cluster(
        &mut self,
        stamp: Stamp,
        events: &mut Vec<Event>,
        change: impl FnOnce(&mut Cluster),
    ) -> Result<(), Refusal> {
        let what = || Refusal::Missing { what: "the cluster".into() };
        let mut cluster = (**self.cluster.as_ref().ok_or_else(what)?).clone();
        change(&mut cluster);
        touch(&mut cluster.meta, stamp);
        self.cluster = Some(Arc::new(cluster));
        events.push(Event::Cluster);
        Ok(())
    }

    fn create_node(
        &mut self,
        stamp: Stamp,
        node: &Node,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        if self.nodes.contains_key(&node.id) || self.is_removed(node.id) {
            return Err(Refusal::Exists { what: format!("node {}", node.id) });
        }
        if self.nodes.len() >= limits::NODES_MAX {
            return Err(Refusal::Full { what: "nodes", max: limits::NODES_MAX });
        }
        let mut node = Node { meta: born(stamp), ..node.clone() };
        let encryption = node.description.data_path.encryption.take();
        node.description.data_path.encryption = encryption.and_then(|e| self.fitting(node.id, e));
        self.net.reindex_node(node.id, Some(&node));
        self.reindex_keys(None, Some(&node));
        let id = node.id;
        self.nodes.insert(id, Arc::new(node));
        events.push(Event::Node(id));
        Ok(())
    }

    fn update_node(
        &mut self,
        stamp: Stamp,
        id: NodeId,
        expect: u64,
        spec: &NodeSpec,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        types::check_node_spec(spec).map_err(Refusal::Invalid)?;
        let found = self.nodes.get(&id).map(|n| n.meta.spec_version);
        check_version(&format!("node {id}"), found, expect)?;
        self.with_node(stamp, id, events, |n| {
            n.spec.clone_from(spec);
            n.meta.spec_version = stamp.index;
        })
    }

    pub(crate) fn with_node(
        &mut self,
        stamp: Stamp,
        id: NodeId,
        events: &mut Vec<Event>,
        change: impl FnOnce(&mut Node),
    ) -> Result<(), Refusal> {
        let old = Arc::clone(self.nodes.get(&id).ok_or_else(|| missing("node", &id))?);
        let mut node = (*old).clone();
        change(&mut node);
        touch(&mut node.meta, stamp);
        self.net.reindex_node(id, Some(&node));
        self.reindex_keys(Some(&old), Some(&node));
        self.nodes.insert(id, Arc::new(node));
        events.push(Event::Node(id));
        Ok(())
    }

    fn set_number(
        &mut self,
        stamp: Stamp,
        id: NodeId,
        number: u32,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        if self.nodes.values().any(|n| n.number == number && n.id != id) {
            return Err(Refusal::Exists { what: format!("node number {number}") });
        }
        self.with_cluster(stamp, events, |c| c.next_node_number = number.wrapping_add(1))?;
        self.with_node(stamp, id, events, |n| n.number = number)
    }

    fn remove_node(
        &mut self,
        stamp: Stamp,
        id: NodeId,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let node = self.nodes.remove(&id).ok_or_else(|| missing("node", &id))?;
        self.net.reindex_node(id, None);
        self.reindex_keys(Some(&node), None);
        let past: Vec<NodeId> = self
            .removed
            .iter()
            .filter(|(_, until)| **until < stamp.time)
            .map(|(id, _)| *id)
            .collect();
        for id in past {
            self.removed.remove(&id);
        }
        self.removed.insert(id, stamp.time + limits::REMOVED_NODE_MEMORY);
        events.push(Event::Node(id));
        Ok(())
    }

    fn create_tasks(
        &mut self,
        stamp: Stamp,
        batch: Batch,
        seed: u128,
        slots: &[(u32, u32)],
        nodes: &[NodeId],
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let key = (batch.service, batch.revision);
        if !self.services.contains_key(&batch.service) || !self.revisions.contains_key(&key) {
            return Err(missing("service or revision", &batch.service));
        }
        let mut ids = IdSource::new(seed);
        for slot in slots.iter().flat_map(|(first, last)| *first..=*last) {
            self.create_task(stamp, batch, ids.mint(), (Slot::Replica(slot), None), events)?;
        }
        for node in nodes {
            self.node(*node).ok_or_else(|| missing("node", node))?;
            self.create_task(stamp, batch, ids.mint(), (Slot::Node, Some(*node)), events)?;
        }
        Ok(())
    }

    fn create_task(
        &mut self,
        stamp: Stamp,
        batch: Batch,
        id: base::Id,
        (slot, node): (Slot, Option<NodeId>),
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        if self.tasks.len() >= limits::TASKS_MAX {
            return Err(Refusal::Full { what: "tasks", max: limits::TASKS_MAX });
        }
        let task = Task {
            id: TaskId(id),
            meta: born(stamp),
            service: batch.service,
            revision: batch.revision,
            slot,
            node,
            desired: batch.desired,
            status: TaskStatus { at: stamp.time, ..TaskStatus::default() },
            network: None,
        };
        if self.tasks.contains_key(&task.id) {
            return Err(Refusal::Exists { what: format!("task {}", task.id) });
        }
        self.store_task(None, task, events);
        Ok(())
    }

    /// One step of a task before its node has accepted it.
    fn move_task(
        &mut self,
        stamp: Stamp,
        id: TaskId,
        (from, to): (TaskState, TaskState),
        node: Option<NodeId>,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let old = self.tasks.get(&id).ok_or_else(|| missing("task", &id))?;
        if old.status.state != from || (node.is_some() && old.node.is_some_and(|n| Some(n) != node))
        {
            let state = old.status.state.name();
            return Err(Refusal::WrongState { task: id, state, wanted: from.name() });
        }
        self.with_task(stamp, id, events, |task| {
            task.node = task.node.or(node);
            task.status = TaskStatus { state: to, at: stamp.time, ..TaskStatus::default() };
        })
    }

    pub(crate) fn with_task(
        &mut self,
        stamp: Stamp,
        id: TaskId,
        events: &mut Vec<Event>,
        change: impl FnOnce(&mut Task),
    ) -> Result<(), Refusal> {
        let old = Arc::clone(self.tasks.get(&id).ok_or_else(|| missing("task", &id))?);
        let mut task = (*old).clone();
        change(&mut task);
        touch(&mut task.meta, stamp);
        self.net.rest_of_task(stamp.time, &old, Some(&task));
        self.store_task(Some(&old), task, events);
        Ok(())
    }

    fn store_task(&mut self, old: Option<&Task>, task: Task, events: &mut Vec<Event>) {
        self.reindex(old, Some(&task));
        events.push(Event::Task { task: task.id, service: task.service, node: task.node });
        self.tasks.insert(task.id, Arc::new(task));
    }

    /// A report that is older than what is known says nothing new; one that repeats it neither.
    fn report(&mut self, stamp: Stamp, id: TaskId, status: &TaskStatus, events: &mut Vec<Event>) {
        let known = self.tasks.get(&id).map(|task| &task.status);
        let news = known.is_some_and(|k| {
            status.state > k.state
                || (status.state == k.state && !k.state.is_terminal() && status != k)
        });
        if news {
            // Cannot fail: the task has just been looked up.
            let _ = self.with_task(stamp, id, events, |task| task.status.clone_from(status));
        }
    }

    fn remove_task(
        &mut self,
        stamp: Stamp,
        id: TaskId,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let task = self.tasks.remove(&id).ok_or_else(|| missing("task", &id))?;
        self.net.rest_of_task(stamp.time, &task, None);
        self.reindex(Some(&task), None);
        self.release_revision((task.service, task.revision));
        events.push(Event::Task { task: id, service: task.service, node: task.node });
        Ok(())
    }
}

/// What the tasks of one `CreateTasks` have in common.
#[derive(Clone, Copy)]
struct Batch {
    service: ServiceId,
    revision: u64,
    desired: TaskState,
}

pub(crate) fn born(stamp: Stamp) -> Meta {
    let (at, index) = (stamp.time, stamp.index);
    Meta { created: at, updated: at, version: index, spec_version: index }
}

pub(crate) fn touch(meta: &mut Meta, stamp: Stamp) {
    meta.updated = stamp.time;
    meta.version = stamp.index;
}

pub(crate) fn missing(kind: &str, id: &impl std::fmt::Display) -> Refusal {
    Refusal::Missing { what: format!("{kind} {id}") }
}

pub(crate) fn check_version(what: &str, found: Option<u64>, expect: u64) -> Result<(), Refusal> {
    match found {
        None => Err(Refusal::Missing { what: what.to_owned() }),
        Some(version) if version != expect => Err(Refusal::OutOfDate { what: what.to_owned() }),
        Some(_) => Ok(()),
    }
}
