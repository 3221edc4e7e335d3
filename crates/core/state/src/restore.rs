//! Builds a state from the records of a stored snapshot.
//!
//! Owns: the order in which records become tables and indexes, and the check of their references.
//! Invariant: what it returns is a state that `apply` could have made, or an error.

use std::net::IpAddr;
use std::sync::Arc;

use base::Timestamp;
use types::{
    Cluster, Network, NetworkId, Node, NodeId, Revision, Service, ServiceId, SlotKey, Tally, Task,
    TaskId,
};

use crate::apply_encryption::{encryption, is_of_generation};
use crate::{Holder, Resting, Snapshot};

/// Collects records in any order.
#[derive(Debug, Default)]
pub struct Restore {
    state: Snapshot,
    tasks: Vec<Task>,
}

/// The records do not fit together: the snapshot is damaged, take another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("service name {name} occurs twice")]
    NameTwice { name: String },
    #[error("task {task} occurs twice")]
    TaskTwice { task: TaskId },
    #[error("task {task} refers to revision {revision} of service {service}, which is not there")]
    RevisionMissing { task: TaskId, service: ServiceId, revision: u64 },
    #[error("service {service} has no current revision")]
    CurrentRevisionMissing { service: ServiceId },
    #[error("network name {name} occurs twice")]
    NetworkTwice { name: String },
    #[error("VXLAN network identifier {vni} is given twice")]
    VniTwice { vni: u32 },
    #[error("address {address} of network {network} is held twice")]
    AddressTwice { network: NetworkId, address: IpAddr },
    #[error("node {node} has a key of encrypted networks that another one has, too")]
    NetworkKeyTwice { node: NodeId },
    #[error("node {node} has keys of encrypted networks of another generation than the cluster")]
    NetworkKeyGeneration { node: NodeId },
    #[error("port {port} is published twice")]
    PortTwice { port: u16 },
}

impl Restore {
    #[must_use]
    pub fn new(index: u64, time: Timestamp) -> Self {
        Self { state: Snapshot { index, time, ..Snapshot::default() }, tasks: Vec::new() }
    }

    pub fn cluster(&mut self, cluster: Cluster) {
        self.state.cluster = Some(Arc::new(cluster));
    }

    pub fn node(&mut self, node: Node) {
        self.state.net.reindex_node(node.id, Some(&node));
        self.state.nodes.insert(node.id, Arc::new(node));
    }

    pub fn service(&mut self, service: Service) {
        self.state.services.insert(service.id, Arc::new(service));
    }

    pub fn revision(&mut self, revision: Revision) {
        self.state.revisions.insert((revision.service, revision.number), Arc::new(revision));
    }

    pub fn task(&mut self, task: Task) {
        self.tasks.push(task);
    }

    pub fn tally(&mut self, service: ServiceId, slot: SlotKey, tally: Tally) {
        self.state.tallies.insert((service, slot), Arc::new(tally));
    }

    pub fn removed(&mut self, node: NodeId, until: Timestamp) {
        self.state.removed.insert(node, until);
    }

    pub fn network(&mut self, network: Network) {
        self.state.net.networks.insert(network.id, Arc::new(network));
    }

    pub fn resting(&mut self, what: Resting, until: Timestamp) {
        self.state.net.rest(what, until);
    }

    /// Checks the references and derives the indexes.
    pub fn finish(mut self) -> Result<Snapshot, RestoreError> {
        self.finish_nodes()?;
        self.finish_networks()?;
        self.finish_services()?;
        self.finish_tasks()?;
        Ok(self.state)
    }

    fn finish_nodes(&mut self) -> Result<(), RestoreError> {
        let (nodes, generation) = (self.state.nodes.clone(), self.state.generation());
        for node in nodes.values() {
            let Some(said) = encryption(node) else { continue };
            if !is_of_generation(said, generation) {
                return Err(RestoreError::NetworkKeyGeneration { node: node.id });
            }
            if said.keys.values().any(|key| self.state.node_of_network_key(key).is_some()) {
                return Err(RestoreError::NetworkKeyTwice { node: node.id });
            }
            self.state.reindex_keys(None, Some(node));
        }
        Ok(())
    }

    fn finish_networks(&mut self) -> Result<(), RestoreError> {
        let networks: Vec<Arc<Network>> = self.state.net.networks.values().cloned().collect();
        for network in networks {
            let name = network.spec.name.to_lowercase();
            if self.state.net.names.insert(name.as_str().into(), network.id).is_some() {
                return Err(RestoreError::NetworkTwice { name });
            }
            let vni = network.vni;
            if vni != 0 && self.state.net.vnis.insert(vni, network.id).is_some() {
                return Err(RestoreError::VniTwice { vni });
            }
            if network.spec.ingress {
                self.state.net.ingress = Some(network.id);
            }
        }
        Ok(())
    }

    fn finish_services(&mut self) -> Result<(), RestoreError> {
        let services: Vec<Arc<Service>> = self.state.services.values().cloned().collect();
        for service in services {
            self.check_free(service.held(), Holder::Service(service.id))?;
            let net = &mut self.state.net;
            let mut ports = service.endpoint.iter().flat_map(|endpoint| endpoint.mesh_ports());
            if let Some(twice) =
                ports.find(|port| net.mesh_ports.contains_key(&(port.protocol, port.published)))
            {
                return Err(RestoreError::PortTwice { port: twice.published });
            }
            net.reindex_service(None, Some(&service));
        }
        for service in self.state.services.values() {
            let name = service.spec.name.to_lowercase();
            if self.state.names.insert(name.as_str().into(), service.id).is_some() {
                return Err(RestoreError::NameTwice { name });
            }
            if !self.state.revisions.contains_key(&(service.id, service.revision)) {
                return Err(RestoreError::CurrentRevisionMissing { service: service.id });
            }
        }
        Ok(())
    }

    fn finish_tasks(&mut self) -> Result<(), RestoreError> {
        for task in std::mem::take(&mut self.tasks) {
            let (service, revision) = (task.service, task.revision);
            if !self.state.revisions.contains_key(&(service, revision)) {
                return Err(RestoreError::RevisionMissing { task: task.id, service, revision });
            }
            self.check_free(task.held(), Holder::Task(task.id))?;
            self.state.reindex(None, Some(&task));
            if let Some(twice) = self.state.tasks.insert(task.id, Arc::new(task)) {
                return Err(RestoreError::TaskTwice { task: twice.id });
            }
        }
        Ok(())
    }

    fn check_free<'a>(
        &self,
        held: impl Iterator<Item = &'a types::Attachment>,
        holder: Holder,
    ) -> Result<(), RestoreError> {
        let addresses = held.flat_map(|one| one.addresses().map(|address| (one.network, address)));
        for (network, address) in addresses {
            if self.state.holder(network, address).is_some_and(|other| other != holder) {
                return Err(RestoreError::AddressTwice { network, address });
            }
        }
        Ok(())
    }
}
