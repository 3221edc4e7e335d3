//! The indexes of networks, kept by every change of a service, a task or a network.
//!
//! Owns: how entries follow from the records, and what begins to rest.
//! Invariant: `reindex…(old, new)` leaves exactly what a fresh derivation from the tables would.

use std::net::IpAddr;

use base::Timestamp;
use types::{
    Attachment, ConditionCode, NetworkId, Node, NodeId, NodeState, Service, Task, TaskState, limits,
};

use crate::networks::Networks;
use crate::{Holder, Resting};

impl Networks {
    /// Takes what `old` wants and holds out of every index and puts that of `new` in.
    pub(crate) fn reindex_service(&mut self, old: Option<&Service>, new: Option<&Service>) {
        let same_spec =
            matches!((old, new), (Some(a), Some(b)) if std::sync::Arc::ptr_eq(&a.spec, &b.spec));
        if let Some(service) = old {
            if !same_spec {
                self.wanted(service, false);
            }
            self.given(service, false);
        }
        if let Some(service) = new {
            if !same_spec {
                self.wanted(service, true);
            }
            self.given(service, true);
        }
    }

    /// What the spec asks for.
    fn wanted(&mut self, service: &Service, add: bool) {
        let (spec, id) = (&service.spec, service.id);
        let ingress = self.ingress.filter(|_| spec.needs_ingress());
        for network in spec.networks().map(|(network, _)| network).chain(ingress) {
            match add {
                true => drop(self.users.insert((network, id))),
                false => drop(self.users.remove(&(network, id))),
            }
        }
        for (network, one) in spec.networks() {
            for address in one.addresses.iter().chain(&one.vips) {
                match add {
                    true => drop(self.fixed.insert((network, *address), id)),
                    false => drop(self.fixed.remove(&(network, *address))),
                }
            }
        }
        for port in spec.ports().iter().filter(|port| port.published != 0) {
            let key = (port.protocol, port.published, port.mode, id);
            match add {
                true => drop(self.asked_ports.insert(key)),
                false => drop(self.asked_ports.remove(&key)),
            }
        }
    }

    /// What it was given.
    fn given(&mut self, service: &Service, add: bool) {
        for (network, address) in service.held().flat_map(addresses_of) {
            self.hold(network, address, Holder::Service(service.id), add);
        }
        for port in service.endpoint.iter().flat_map(|endpoint| endpoint.mesh_ports()) {
            let key = (port.protocol, port.published);
            match add {
                true => drop(self.mesh_ports.insert(key, service.id)),
                false => drop(self.mesh_ports.remove(&key)),
            }
        }
    }

    fn hold(&mut self, network: NetworkId, address: IpAddr, holder: Holder, add: bool) {
        match add {
            true => drop(self.held.insert((network, address), holder)),
            false => drop(self.held.remove(&(network, address))),
        }
    }

    /// Puts a task's addresses and presence in their places.
    pub(crate) fn reindex_task(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let none = |task: Option<&Task>| task.is_none_or(|task| task.network.is_none());
        if none(old) && none(new) {
            return;
        }
        let same = |a: &Task, b: &Task| {
            a.network == b.network
                && a.node == b.node
                && a.status.state.is_terminal() == b.status.state.is_terminal()
        };
        if matches!((old, new), (Some(a), Some(b)) if same(a, b)) {
            return;
        }
        old.into_iter().for_each(|task| self.take_part(task, false));
        new.into_iter().for_each(|task| self.take_part(task, true));
    }

    fn take_part(&mut self, task: &Task, add: bool) {
        for one in task.held() {
            for (network, address) in addresses_of(one) {
                self.hold(network, address, Holder::Task(task.id), add);
            }
            let fresh = match add {
                true => self.attached.insert((one.network, task.id)).is_none(),
                false => self.attached.remove(&(one.network, task.id)).is_some(),
            };
            if let (Some(node), true) = (task.node, fresh) {
                self.count_present(one.network, node, add);
            }
        }
    }

    fn count_present(&mut self, network: NetworkId, node: NodeId, add: bool) {
        let key = (network, node);
        let count = self.present.get(&key).copied().unwrap_or(0);
        let count = if add { count.saturating_add(1) } else { count.saturating_sub(1) };
        match count {
            0 => drop(self.present.remove(&key)),
            count => drop(self.present.insert(key, count)),
        }
    }

    /// What `old` held and `new` does not begins to rest.
    pub(crate) fn rest_of_task(&mut self, now: Timestamp, old: &Task, new: Option<&Task>) {
        if old.network.is_none() || new.is_some_and(|new| new.status.state <= TaskState::Running) {
            return;
        }
        for (network, address) in old.held().flat_map(addresses_of) {
            self.rest_now(now, Resting::Address(network, address));
        }
    }

    /// The same of a service.
    pub(crate) fn rest_of_service(&mut self, now: Timestamp, old: &Service, new: Option<&Service>) {
        let kept = |network, address| {
            let mut held = new.into_iter().flat_map(Service::held).flat_map(addresses_of);
            held.any(|other| other == (network, address))
        };
        for (network, address) in old.held().flat_map(addresses_of) {
            if !kept(network, address) {
                self.rest_now(now, Resting::Address(network, address));
            }
        }
        for port in old.endpoint.iter().flat_map(|endpoint| endpoint.mesh_ports()) {
            let mut ports = new.and_then(|new| new.endpoint.as_ref()).into_iter();
            let same = |other: &types::PortSpec| {
                (other.protocol, other.published) == (port.protocol, port.published)
            };
            let kept = ports.any(|endpoint| endpoint.mesh_ports().any(same));
            let dynamic = (limits::MESH_PORT_MIN..=limits::MESH_PORT_MAX).contains(&port.published);
            if dynamic && !kept {
                self.rest_now(now, Resting::Port(port.protocol, port.published));
            }
        }
    }

    /// Keeps which nodes are behind; `new` is what the node is now.
    pub(crate) fn reindex_node(&mut self, id: NodeId, new: Option<&Node>) {
        let behind = |node: &Node| {
            node.status.state != NodeState::Down && node.status.has(ConditionCode::DataPathBehind)
        };
        match new.is_some_and(behind) {
            true => drop(self.behind.insert(id)),
            false => drop(self.behind.remove(&id)),
        }
    }

    /// Something is free from now on; what has rested long enough is forgotten.
    pub(crate) fn rest_now(&mut self, now: Timestamp, what: Resting) {
        while let Some((until, past)) = self.resting_until.get_min().copied()
            && until <= now
            && self.behind.is_empty()
        {
            self.resting_until.remove(&(until, past));
            self.resting.remove(&past);
        }
        self.rest(what, now + limits::REST_PERIOD);
    }

    pub(crate) fn rest(&mut self, what: Resting, until: Timestamp) {
        if let Some(before) = self.resting.insert(what, until) {
            self.resting_until.remove(&(before, what));
        }
        self.resting_until.insert((until, what));
    }

    /// Somebody holds it again.
    pub(crate) fn wake(&mut self, what: Resting) {
        if let Some(until) = self.resting.remove(&what) {
            self.resting_until.remove(&(until, what));
        }
    }
}

fn addresses_of(one: &Attachment) -> impl Iterator<Item = (NetworkId, IpAddr)> + use<> {
    let network = one.network;
    let one = *one;
    one.v4.map(IpAddr::V4).into_iter().chain(one.v6.map(IpAddr::V6)).map(move |at| (network, at))
}
