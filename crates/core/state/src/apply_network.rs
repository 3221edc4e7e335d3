//! Applies changes of networks, and what is given out on them.
//!
//! Owns: what may be given to whom, and the cursors of the circles.
//! Does not know: how what is given was chosen; that is the allocator's.
//! Invariant: an address, a port and an identifier have one holder; who asks for the one that
//! somebody else has is refused whole.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use types::{
    Attachment, Endpoint, ErrorCode, Fault, Network, NetworkId, NetworkSpec, PortSpec, PublishMode,
    Service, ServiceId, ServiceSpec, Subnet, TaskId, TaskNetwork, TaskState, TaskStatus, limits,
    nets_overlap,
};

use crate::apply::{Refusal, Stamp, born, missing, touch};
use crate::{Change, Event, Holder, Resting, Snapshot};

/// Where the circle of a subnet goes on: network, place among its subnets, offset.
pub(crate) type Cursors = BTreeMap<(NetworkId, usize), u64>;

impl Snapshot {
    pub(crate) fn apply_network_change(
        &mut self,
        stamp: Stamp,
        change: &Change,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        match change {
            Change::CreateNetwork { id, spec } => self.create_network(stamp, *id, spec, events),
            Change::RemoveNetwork(id) => self.remove_network(stamp, *id, events),
            Change::AllocateNetwork { id, vni, mtu, subnets } => {
                self.allocate_network(stamp, *id, (*vni, *mtu), subnets, events)
            }
            Change::SetEndpoint { service, endpoint } => {
                self.set_endpoint(stamp, *service, endpoint.as_ref(), events)
            }
            Change::AttachTasks(list) => self.attach_tasks(stamp, list, events),
            Change::ConnectTask { task, connection } => {
                self.connect_task(stamp, *task, connection, events)
            }
            Change::DisconnectTask { task, network } => {
                self.disconnect_task(stamp, *task, *network, events)
            }
            _ => Ok(()),
        }
    }

    fn create_network(
        &mut self,
        stamp: Stamp,
        id: NetworkId,
        spec: &Arc<NetworkSpec>,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        types::check_network_spec(spec).map_err(Refusal::Invalid)?;
        if id.is_predefined() || self.net.networks.contains_key(&id) {
            return Err(Refusal::Exists { what: format!("network {id}") });
        }
        if self.net.networks.len() >= limits::NETWORKS_MAX {
            return Err(Refusal::Full { what: "networks", max: limits::NETWORKS_MAX });
        }
        let name: Arc<str> = spec.name.to_lowercase().into();
        if self.net.names.contains_key(&name) {
            let message = format!("network with name {} already exists", spec.name);
            return Err(conflict("name", message));
        }
        if let (true, Some(known)) = (spec.ingress, self.net.ingress) {
            let message = format!("ingress network ({known}) is already present");
            return Err(conflict("--ingress", message));
        }
        self.check_subnets_asked(spec)?;
        self.net.names.insert(name, id);
        if spec.ingress {
            self.net.ingress = Some(id);
            let wanting = self.services.values().filter(|service| service.spec.needs_ingress());
            for service in wanting {
                self.net.users.insert((id, service.id));
            }
        }
        let network = Network {
            id,
            meta: born(stamp),
            spec: Arc::clone(spec),
            vni: 0,
            mtu: 0,
            subnets: Vec::new(),
        };
        self.net.networks.insert(id, Arc::new(network));
        events.push(Event::Network(id));
        Ok(())
    }

    /// A subnet or identifier that another network has, or asks for.
    fn check_subnets_asked(&self, spec: &NetworkSpec) -> Result<(), Refusal> {
        for network in self.net.networks.values() {
            let asked = spec.ipam.iter().filter_map(|pool| pool.subnet);
            for wanted in asked.filter(|_| !may_share(spec, &network.spec)) {
                if let Some(other) = nets_of(network).find(|net| nets_overlap(*net, wanted)) {
                    let name = &network.spec.name;
                    let message =
                        format!("subnet {wanted} overlaps with subnet {other} of network {name}");
                    return Err(conflict("--subnet", message));
                }
            }
            let theirs = network.spec.vni().or((network.vni != 0).then_some(network.vni));
            if spec.vni().is_some() && spec.vni() == theirs {
                let (key, name) = (NetworkSpec::VNI, &network.spec.name);
                return Err(conflict("--opt", format!("{key} is that of network {name} already")));
            }
        }
        Ok(())
    }

    fn remove_network(
        &mut self,
        stamp: Stamp,
        id: NetworkId,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let network = Arc::clone(self.network(id).ok_or_else(|| missing("network", &id))?);
        let name = &network.spec.name;
        if let Some(service) = self.services_on_network(id).next() {
            let service = &service.spec.name;
            let message = match network.spec.ingress {
                true => format!(
                    "ingress network cannot be removed because service {service} depends on it"
                ),
                false => format!("network {name} is in use by service {service}"),
            };
            return Err(conflict("", message));
        }
        if let Some(task) = self.tasks_on_network(id).next() {
            return Err(conflict("", self.in_use_by(name, id, task)));
        }
        self.net.networks.remove(&id);
        self.net.names.remove(name.to_lowercase().as_str());
        if self.net.ingress == Some(id) {
            self.net.ingress = None;
        }
        if network.vni != 0 {
            self.net.vnis.remove(&network.vni);
            self.net.rest_now(stamp.time, Resting::Vni(network.vni));
        }
        events.push(Event::Network(id));
        Ok(())
    }

    fn allocate_network(
        &mut self,
        stamp: Stamp,
        id: NetworkId,
        (vni, mtu): (u32, u32),
        subnets: &[Subnet],
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let old = Arc::clone(self.network(id).ok_or_else(|| missing("network", &id))?);
        let unfit = |what: String, why| Err(Refusal::Unfit { what, why });
        if !(1..=limits::VNI_MAX).contains(&vni) || (old.vni != 0 && old.vni != vni) {
            return unfit(format!("identifier {vni}"), "it is out of range, or not the network's");
        }
        if let Some(other) = self.net.vnis.get(&vni).filter(|other| **other != id) {
            let (what, by) = (format!("identifier {vni}"), format!("network {other}"));
            return Err(Refusal::Taken { what, by });
        }
        let kept = old.subnets.iter().map(|subnet| subnet.net);
        if !kept.eq(subnets.iter().take(old.subnets.len()).map(|subnet| subnet.net)) {
            return unfit(format!("subnets of network {id}"), "those given before must stay");
        }
        if subnets.is_empty() || subnets.len() > limits::SUBNETS_PER_NETWORK_MAX {
            return unfit(format!("subnets of network {id}"), "there are none, or too many");
        }
        for (nth, subnet) in subnets.iter().enumerate().skip(old.subnets.len()) {
            self.check_subnet(&old, subnet, &subnets[..nth])?;
        }
        if old.vni == 0 {
            self.net.vnis.insert(vni, id);
            self.net.wake(Resting::Vni(vni));
            if old.spec.vni().is_none() {
                self.move_cluster_cursors(|cluster| cluster.next_vni = vni.wrapping_add(1));
            }
        }
        let mut network = (*old).clone();
        network.subnets.extend(subnets.iter().skip(old.subnets.len()).cloned());
        (network.vni, network.mtu) = (vni, mtu);
        touch(&mut network.meta, stamp);
        self.net.networks.insert(id, Arc::new(network));
        events.push(Event::Network(id));
        Ok(())
    }

    fn check_subnet(&self, own: &Network, new: &Subnet, before: &[Subnet]) -> Result<(), Refusal> {
        let what = || format!("subnet {}", new.net);
        if new.net != new.net.trunc() || !new.net.contains(&new.gateway) {
            return Err(Refusal::Unfit {
                what: what(),
                why: "it is not a subnet with its gateway",
            });
        }
        if before.iter().any(|other| nets_overlap(other.net, new.net)) {
            return Err(Refusal::Taken { what: what(), by: format!("network {}", own.id) });
        }
        let others = self.net.networks.values().filter(|network| network.id != own.id);
        // What was not asked for by name is chosen where nobody is.
        let asked = own.spec.ipam.iter().any(|pool| pool.subnet == Some(new.net));
        for network in others.filter(|other| !(asked && may_share(&own.spec, &other.spec))) {
            if nets_of(network).any(|net| nets_overlap(net, new.net)) {
                return Err(Refusal::Taken { what: what(), by: format!("network {}", network.id) });
            }
        }
        Ok(())
    }

    fn set_endpoint(
        &mut self,
        stamp: Stamp,
        id: ServiceId,
        endpoint: Option<&Arc<Endpoint>>,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let old = Arc::clone(self.services.get(&id).ok_or_else(|| missing("service", &id))?);
        let mut new = Service { endpoint: endpoint.cloned(), ..(*old).clone() };
        let mut cursors = Cursors::new();
        for vip in new.held() {
            for address in vip.addresses() {
                let place = self.check_address(vip.network, address, Holder::Service(id))?;
                if self.holder(vip.network, address).is_none() {
                    self.note_cursor(&mut cursors, (vip.network, place), address);
                    self.net.wake(Resting::Address(vip.network, address));
                }
            }
        }
        let ports = new.endpoint.clone();
        for port in ports.iter().flat_map(|endpoint| endpoint.mesh_ports()) {
            self.take_mesh_port(&old, port)?;
        }
        self.net.reindex_service(Some(&old), Some(&new));
        self.net.rest_of_service(stamp.time, &old, Some(&new));
        self.move_cursors(&cursors);
        touch(&mut new.meta, stamp);
        self.services.insert(id, Arc::new(new));
        events.push(Event::Service(id));
        Ok(())
    }

    fn take_mesh_port(&mut self, service: &Service, port: &PortSpec) -> Result<(), Refusal> {
        let (protocol, number) = (port.protocol, port.published);
        let what = || format!("port {number}/{}", protocol.name());
        if number == 0 {
            return Err(Refusal::Unfit {
                what: what(),
                why: "the mesh publishes a port by number",
            });
        }
        match self.mesh_port(protocol, number) {
            Some(other) if other != service.id => {
                Err(Refusal::Taken { what: what(), by: format!("service {other}") })
            }
            Some(_) => Ok(()),
            None => {
                self.net.wake(Resting::Port(protocol, number));
                if !service.spec.mesh_ports().any(|asked| asked == port) {
                    self.move_cluster_cursors(|cluster| {
                        cluster.next_ports.insert(protocol, number.wrapping_add(1));
                    });
                }
                Ok(())
            }
        }
    }

    fn attach_tasks(
        &mut self,
        stamp: Stamp,
        list: &[(TaskId, TaskNetwork)],
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let mut cursors = Cursors::new();
        for (id, network) in list {
            let task = self.task(*id).ok_or_else(|| missing("task", id))?;
            if task.status.state != TaskState::New {
                let (state, wanted) = (task.status.state.name(), TaskState::New.name());
                return Err(Refusal::WrongState { task: *id, state, wanted });
            }
            for one in network.all() {
                self.check_attachment(*id, one, &mut cursors)?;
            }
            let mut networks: Vec<NetworkId> = network.all().map(|one| one.network).collect();
            networks.sort_unstable();
            if networks.windows(2).any(|pair| pair[0] == pair[1]) {
                let what = format!("two attachments of task {id}");
                return Err(Refusal::Unfit { what, why: "they are to the same network" });
            }
            self.with_task(stamp, *id, events, |task| {
                let state = TaskState::Pending;
                task.status = TaskStatus { state, at: stamp.time, ..TaskStatus::default() };
                task.network = Some(Box::new(network.clone()));
            })?;
        }
        self.move_cursors(&cursors);
        Ok(())
    }

    pub(crate) fn check_attachment(
        &mut self,
        task: TaskId,
        one: &Attachment,
        cursors: &mut Cursors,
    ) -> Result<(), Refusal> {
        let bare = one.addresses().next().is_none();
        let known = self.network(one.network);
        let of_nodes = known.is_some_and(|network| network.spec.driver.is_of_nodes());
        if bare != (one.network.is_predefined() || of_nodes) {
            let what = format!("attachment to network {}", one.network);
            return Err(Refusal::Unfit { what, why: "an address is missing, or one too much" });
        }
        for address in one.addresses() {
            let place = self.check_address(one.network, address, Holder::Task(task))?;
            self.note_cursor(cursors, (one.network, place), address);
            self.net.wake(Resting::Address(one.network, address));
        }
        Ok(())
    }

    /// The place of the subnet that an address is given out of, when `holder` may have it.
    fn check_address(
        &self,
        network: NetworkId,
        address: IpAddr,
        holder: Holder,
    ) -> Result<usize, Refusal> {
        let known = self.network(network).ok_or_else(|| missing("network", &network))?;
        let what = || format!("address {address} of network {}", known.spec.name);
        match self.holder(network, address) {
            Some(Holder::Service(id)) if holder != Holder::Service(id) => {
                return Err(Refusal::Taken { what: what(), by: format!("service {id}") });
            }
            Some(Holder::Task(id)) if holder != Holder::Task(id) => {
                return Err(Refusal::Taken { what: what(), by: format!("task {id}") });
            }
            _ => {}
        }
        let place = known.subnets.iter().position(|subnet| subnet.may_hold(address));
        place.ok_or_else(|| Refusal::Unfit {
            what: what(),
            why: "it is in no subnet, or is one's gateway or end",
        })
    }

    /// The circle goes on behind what was taken out of it; fixed addresses are not of the circle.
    fn note_cursor(
        &self,
        cursors: &mut Cursors,
        (network, place): (NetworkId, usize),
        address: IpAddr,
    ) {
        if self.fixed_for(network, address).is_some() {
            return;
        }
        let subnet = self.network(network).and_then(|known| known.subnets.get(place));
        if let Some((subnet, offset)) = subnet.and_then(|s| Some((s, s.offset_of(address)?))) {
            cursors.insert((network, place), (offset + 1) % subnet.size());
        }
    }

    /// Where a circle goes on concerns nobody: no event, no new version.
    pub(crate) fn move_cursors(&mut self, cursors: &Cursors) {
        for ((id, place), offset) in cursors {
            let Some(known) = self.net.networks.get(id) else { continue };
            let mut network = (**known).clone();
            if let Some(subnet) = network.subnets.get_mut(*place) {
                subnet.cursor = *offset;
            }
            self.net.networks.insert(*id, Arc::new(network));
        }
    }

    fn move_cluster_cursors(&mut self, change: impl FnOnce(&mut types::Cluster)) {
        if let Some(known) = &self.cluster {
            let mut cluster = (**known).clone();
            change(&mut cluster);
            self.cluster = Some(Arc::new(cluster));
        }
    }

    /// What a service asks for must be there, and not somebody else's.
    pub(crate) fn check_uses(&self, id: ServiceId, spec: &ServiceSpec) -> Result<(), Refusal> {
        for one in &spec.task.networks {
            let missing = || {
                Refusal::Invalid(Fault {
                    code: ErrorCode::NotFound,
                    ..Fault::invalid("--network", format!("network {} not found", one.target))
                })
            };
            let network = one.network().ok_or_else(missing)?;
            if network.is_predefined() {
                continue;
            }
            let known = self.network(network).ok_or_else(missing)?;
            if known.spec.ingress {
                let name = &known.spec.name;
                return Err(Refusal::Invalid(Fault::invalid(
                    "--network",
                    format!(
                        "Service cannot be explicitly attached to the ingress network \"{name}\""
                    ),
                )));
            }
            for address in one.addresses.iter().chain(&one.vips) {
                self.check_fixed(id, known, *address)?;
            }
            let before = spec.networks().take_while(|(other, _)| *other != network);
            let others = before.filter_map(|(other, _)| self.network(other));
            check_apart(known, others.map(|other| &**other))?;
        }
        if spec.needs_ingress() && self.net.ingress.is_none() {
            return Err(Refusal::Invalid(Fault {
                field: "--publish".into(),
                ..Fault::new(
                    ErrorCode::FailedPrecondition,
                    "service needs ingress network, but no ingress network is present",
                )
            }));
        }
        spec.ports().iter().try_for_each(|port| self.check_port(id, port))
    }

    fn check_fixed(
        &self,
        id: ServiceId,
        network: &Network,
        address: IpAddr,
    ) -> Result<(), Refusal> {
        let name = &network.spec.name;
        let subnets = &network.subnets;
        if !subnets.is_empty() && !subnets.iter().any(|subnet| subnet.may_hold(address)) {
            let nets: Vec<String> = subnets.iter().map(|subnet| subnet.net.to_string()).collect();
            let message = format!("{address} is no address for tasks on network {name}");
            let hint = format!("the network has {}", nets.join(", "));
            return Err(Refusal::Invalid(Fault::invalid("--network", message).hint(hint)));
        }
        let by = self.fixed_for(network.id, address).filter(|other| *other != id);
        let by = by.or(match self.holder(network.id, address) {
            Some(Holder::Service(other)) => Some(other),
            Some(Holder::Task(task)) => self.task(task).map(|task| task.service),
            None => None,
        });
        match by.filter(|other| *other != id) {
            Some(other) => {
                let message = format!(
                    "address {address} of network {name} belongs to service {} already",
                    self.service_title(other)
                );
                Err(conflict("--network", message))
            }
            None => Ok(()),
        }
    }

    /// A port of the mesh excludes any other use of it; those of mode host share nodes as they can.
    fn check_port(&self, id: ServiceId, port: &PortSpec) -> Result<(), Refusal> {
        if port.published == 0 {
            return Ok(());
        }
        let mut asking = self.asking_for_port(port.protocol, port.published);
        let clash = |mode| mode == PublishMode::Ingress || port.mode == PublishMode::Ingress;
        let asked = asking.find(|(mode, other)| *other != id && clash(*mode));
        let given = || {
            let owner = self.mesh_port(port.protocol, port.published)?;
            let service = self.services.get(&owner).filter(|_| owner != id)?;
            // A port that the spec no longer asks for is on its way to be free.
            let dynamic = service.spec.mesh_ports().any(|asked| asked.published == 0);
            dynamic.then_some((PublishMode::Ingress, owner))
        };
        let Some((mode, other)) = asked.or_else(given) else { return Ok(()) };
        let how = match mode {
            PublishMode::Ingress => "as an ingress port",
            PublishMode::Host => "as a host-published port",
        };
        let number = port.published;
        let title = self.service_title(other);
        let message = format!("port '{number}' is already in use by service {title} {how}");
        Err(conflict("--publish", message))
    }

    fn service_title(&self, id: ServiceId) -> String {
        self.services
            .get(&id)
            .map_or_else(|| id.to_string(), |service| format!("'{}' ({id})", service.spec.name))
    }
}

/// Subnets that a network has or asks for.
fn nets_of(network: &Network) -> impl Iterator<Item = IpNet> {
    let given = network.subnets.iter().map(|subnet| subnet.net);
    given.chain(network.spec.ipam.iter().filter_map(|pool| pool.subnet))
}

/// Whether both were made to be allowed to have the same subnets.
fn may_share(one: &NetworkSpec, other: &NetworkSpec) -> bool {
    one.may_overlap() && other.may_overlap()
}

/// A container that is on two networks could not say which of them an address is on.
pub(crate) fn check_apart<'a>(
    network: &Network,
    mut others: impl Iterator<Item = &'a Network>,
) -> Result<(), Refusal> {
    if !network.spec.may_overlap() {
        return Ok(());
    }
    let meets = |other: &&Network| {
        nets_of(network).any(|own| nets_of(other).any(|net| nets_overlap(own, net)))
    };
    match others.find(meets) {
        None => Ok(()),
        Some(other) => {
            let (one, two) = (&network.spec.name, &other.spec.name);
            let message = format!(
                "networks {one} and {two} have overlapping subnets: no task can be on both"
            );
            Err(conflict("--network", message))
        }
    }
}

pub(crate) fn conflict(field: &str, message: String) -> Refusal {
    Refusal::Invalid(Fault { field: field.into(), ..Fault::new(ErrorCode::Conflict, message) })
}
