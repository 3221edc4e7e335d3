//! Applies connections of running tasks to further networks.
//!
//! Owns: who may be connected to what, and that what is let go of rests.
//! Does not know: who asked. Invariant: a connection is gone with its task, and its addresses are
//! held as any other's.

use std::net::IpAddr;

use types::{
    Connection, ErrorCode, Fault, NetworkDriver, NetworkId, Slot, Task, TaskId, TaskState, limits,
};

use crate::apply::{Refusal, Stamp, missing};
use crate::apply_network::{Cursors, check_apart, conflict};
use crate::{Event, Resting, Snapshot};

impl Snapshot {
    pub(crate) fn connect_task(
        &mut self,
        stamp: Stamp,
        id: TaskId,
        connection: &Connection,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let network = connection.attachment.network;
        self.check_connection(id, network)?;
        types::check_aliases("--alias", &connection.aliases).map_err(Refusal::Invalid)?;
        let mut cursors = Cursors::new();
        self.check_attachment(id, &connection.attachment, &mut cursors)?;
        self.with_task(stamp, id, events, |task| {
            let given = task.network.get_or_insert_default();
            given.connected.push(connection.clone());
        })?;
        self.move_cursors(&cursors);
        Ok(())
    }

    fn check_connection(&self, id: TaskId, network: NetworkId) -> Result<(), Refusal> {
        let task = self.task(id).ok_or_else(|| missing("task", &id))?;
        let known = self.network(network).ok_or_else(|| missing("network", &network))?;
        let name = &known.spec.name;
        let running = TaskState::Running;
        if task.status.state != running || task.desired > running {
            let (state, wanted) = (task.status.state.name(), running.name());
            return Err(Refusal::WrongState { task: id, state, wanted });
        }
        if known.spec.driver != NetworkDriver::Overlay || !known.spec.attachable {
            let message = format!("network {name} not manually attachable");
            return Err(Refusal::Invalid(Fault::new(ErrorCode::PermissionDenied, message)));
        }
        let container = self.container_name(task);
        if task.held().any(|one| one.network == network) {
            let message =
                format!("endpoint with name {container} already exists in network {name}");
            return Err(conflict("", message));
        }
        let others = task.held().filter_map(|one| self.network(one.network));
        check_apart(known, others.map(|other| &**other))?;
        if task.held().count() >= limits::NETWORKS_PER_CONTAINER_MAX {
            let max = limits::NETWORKS_PER_CONTAINER_MAX;
            return Err(Refusal::Full { what: "networks of a container", max });
        }
        Ok(())
    }

    pub(crate) fn disconnect_task(
        &mut self,
        stamp: Stamp,
        id: TaskId,
        network: NetworkId,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let task = self.task(id).ok_or_else(|| missing("task", &id))?;
        let given = task.network.as_deref();
        let Some(connection) = given.and_then(|given| given.connection(network)).cloned() else {
            return Err(missing("connection to network", &network));
        };
        let held: Vec<IpAddr> = match task.status.state.is_terminal() {
            // They rest since then, or are somebody else's by now.
            true => Vec::new(),
            false => connection.attachment.addresses().collect(),
        };
        self.with_task(stamp, id, events, |task| {
            if let Some(given) = &mut task.network {
                given.connected.retain(|one| one.attachment.network != network);
            }
        })?;
        for address in held {
            self.net.rest_now(stamp.time, Resting::Address(network, address));
        }
        Ok(())
    }

    /// Why a network cannot be removed: a container that was connected is named as its user knows
    /// it.
    pub(crate) fn in_use_by(&self, name: &str, network: NetworkId, task: &Task) -> String {
        let connected = task.network.as_deref().and_then(|given| given.connection(network));
        match connected {
            Some(_) => {
                let container = self.container_name(task);
                format!("network {name} is in use by container {container}")
            }
            None => format!("network {name} is in use by task {}", task.id),
        }
    }

    /// `web.1.<id>`, as its node calls it.
    fn container_name(&self, task: &Task) -> String {
        let service = self
            .service(task.service)
            .map_or_else(|| task.service.to_string(), |service| service.spec.name.clone());
        match (task.slot, task.node) {
            (Slot::Node, Some(node)) => format!("{service}.{node}.{}", task.id),
            (slot, _) => format!("{service}.{}.{}", slot.number(), task.id),
        }
    }
}
