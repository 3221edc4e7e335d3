//! What a service and its new tasks are given: virtual addresses, ports, addresses.
//!
//! Owns: the wanted endpoint of a service, the attachments of its new tasks, and why they wait.
//! Does not know: where tasks go. Invariant: the endpoint is given before the tasks, and a task is
//! given everything at once or nothing.

use base::Timestamp;
use state::{Author, Change, ChangeSet, Plan, Resting, Snapshot};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use types::{
    Attachment, Endpoint, EndpointMode, Family, Network, NetworkAttachment, NetworkDriver,
    NetworkId, PortProtocol, PortSpec, PublishMode, Revision, Service, ServiceId, Slot, Task,
    TaskId, TaskNetwork, VirtualAddress, limits,
};

use crate::give::Given;
use crate::{network, reason};

/// Tasks attached by one plan: each is a change of its own.
const ATTACHED_PER_PLAN_MAX: usize = 2_000;
/// Tasks admitted by one plan that need nothing.
const ADMITTED_PER_PLAN_MAX: usize = 20_000;

/// Why something cannot be given now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lack {
    pub(crate) code: &'static str,
    pub(crate) text: String,
    /// A network that could be made larger.
    full: Option<(NetworkId, Family)>,
}

impl Lack {
    fn new(code: &'static str, text: String) -> Self {
        Self { code, text, full: None }
    }
}

pub(crate) fn decide(view: &Snapshot, now: Timestamp, id: ServiceId) -> Plan {
    let mut plan = Plan::default();
    let mut given = Given::new(view, now);
    let service = view.service(id);
    if let Some(service) = service {
        match endpoint(view, now, service, &mut given) {
            Ok(wanted) if wanted.as_ref() != service.endpoint.as_deref() => {
                let endpoint = wanted.map(Arc::new);
                let change = Change::SetEndpoint { service: id, endpoint };
                plan.atoms.push(ChangeSet::one(Author::Allocator, change));
                plan.more = true;
                return plan;
            }
            Ok(_) => {}
            Err(lack) => {
                let count = view.fresh_tasks(id).count();
                lacking(&mut plan, view, now, service, &lack, count);
                return plan;
            }
        }
    }
    admit(view, now, id, &mut given, &mut plan);
    plan
}

/// Tries to make a full network larger; else says why the service waits.
fn lacking(
    plan: &mut Plan,
    view: &Snapshot,
    now: Timestamp,
    service: &Service,
    lack: &Lack,
    count: usize,
) {
    let larger = lack.full.and_then(|(id, family)| {
        let network = view.network(id)?;
        network::extend(view, network, family)
    });
    if let Some(atom) = larger {
        plan.atoms.push(atom);
        plan.more = true;
        return;
    }
    reason::set(plan, now, service, count, lack.code, &lack.text);
    // What rests is free again by itself; everything else comes with an event.
    if let Some(at) = view.next_rested(now) {
        plan.wake(at);
    }
}

/// The endpoint that a service should have; `None`: none.
fn endpoint(
    view: &Snapshot,
    now: Timestamp,
    service: &Service,
    given: &mut Given<'_>,
) -> Result<Option<Endpoint>, Lack> {
    let spec = &service.spec;
    let old = service.endpoint.as_deref();
    let mut vips = Vec::new();
    if spec.endpoint_mode() == EndpointMode::Vip {
        for (id, attached) in spec.networks().filter(|(id, _)| !id.is_predefined()) {
            let network = usable(view, id)?;
            if network.spec.driver == NetworkDriver::Overlay {
                let known = old.and_then(|old| old.vip(id));
                vips.push(vip(network, attached, known, given)?);
            }
        }
    }
    let mut ports = Vec::new();
    let mut taken: BTreeSet<(PortProtocol, u16)> = BTreeSet::new();
    for asked in spec.ports() {
        let port = match (asked.mode, asked.published) {
            (PublishMode::Ingress, 0) => dynamic_port(view, now, service, asked, &taken)?,
            _ => asked.clone(),
        };
        if let Some(other) = foreign(view, service.id, &port) {
            let (number, protocol) = (port.published, port.protocol.name());
            let text = format!("port {number}/{protocol} is not free yet: service {other} has it");
            return Err(Lack::new("port-taken", text));
        }
        taken.insert((port.protocol, port.published));
        ports.push(port);
    }
    let is_empty = vips.is_empty() && ports.is_empty();
    Ok((!is_empty).then_some(Endpoint { vips, ports }))
}

/// The other service that still has a port of the mesh.
fn foreign(view: &Snapshot, own: ServiceId, port: &PortSpec) -> Option<ServiceId> {
    let holder = match port.mode {
        PublishMode::Ingress => view.mesh_port(port.protocol, port.published),
        PublishMode::Host => None,
    };
    holder.filter(|other| *other != own)
}

fn usable(view: &Snapshot, id: NetworkId) -> Result<&Network, Lack> {
    let network = view.network(id).map(Arc::as_ref);
    let Some(network) = network else {
        return Err(Lack::new("no-network", format!("network {id} does not exist")));
    };
    let waits = network.spec.driver == NetworkDriver::Overlay && !network.is_allocated();
    match waits {
        true => {
            let name = &network.spec.name;
            Err(Lack::new(
                "no-subnet",
                format!("network {name} has no subnet: the pools are used up"),
            ))
        }
        false => Ok(network),
    }
}

fn vip(
    network: &Network,
    attached: &NetworkAttachment,
    known: Option<&VirtualAddress>,
    given: &mut Given<'_>,
) -> Result<VirtualAddress, Lack> {
    let mut vip = Attachment::bare(network.id);
    for family in families(network) {
        let fixed = attached.vips.iter().find(|address| Family::of(**address) == family).copied();
        let kept = known.and_then(|known| known.addresses().find(|a| Family::of(*a) == family));
        let address = match (fixed, kept) {
            (Some(fixed), kept) if kept == Some(fixed) || given.take(network.id, fixed) => fixed,
            (Some(fixed), _) => return Err(not_free(network, fixed)),
            (None, Some(kept)) => kept,
            (None, None) => given.next(network, family).ok_or_else(|| full(network, family))?,
        };
        vip.set(address);
    }
    Ok(vip)
}

/// Families that a network has addresses of.
fn families(network: &Network) -> impl Iterator<Item = Family> {
    let has = |family: &Family| network.subnets.iter().any(|subnet| subnet.family() == *family);
    Family::ALL.into_iter().filter(has).collect::<Vec<_>>().into_iter()
}

fn full(network: &Network, family: Family) -> Lack {
    let name = &network.spec.name;
    let text = format!("network {name} has no free {} address left", family.name());
    Lack { full: Some((network.id, family)), ..Lack::new("network-full", text) }
}

fn not_free(network: &Network, address: IpAddr) -> Lack {
    let name = &network.spec.name;
    Lack::new("address-taken", format!("address {address} of network {name} is not free yet"))
}

/// The number that a port was given before, or the next free one of the circle.
fn dynamic_port(
    view: &Snapshot,
    now: Timestamp,
    service: &Service,
    asked: &PortSpec,
    taken: &BTreeSet<(PortProtocol, u16)>,
) -> Result<PortSpec, Lack> {
    let protocol = asked.protocol;
    let free_here = |number: u16| !taken.contains(&(protocol, number));
    let given = service.endpoint.iter().flat_map(|endpoint| endpoint.mesh_ports());
    let same = |port: &&PortSpec| {
        PortSpec { published: 0, ..(*port).clone() } == *asked && free_here(port.published)
    };
    if let Some(known) = given.into_iter().find(same) {
        return Ok(known.clone());
    }
    let (min, max) = (limits::MESH_PORT_MIN, limits::MESH_PORT_MAX);
    let cluster = view.cluster();
    let next = cluster.and_then(|cluster| cluster.next_ports.get(&protocol)).copied();
    let next = next.unwrap_or(min).clamp(min, max);
    let free = |number: &u16| {
        let rests = view.rests(Resting::Port(protocol, *number), now);
        let own = protocol == PortProtocol::Udp
            && cluster.is_some_and(|cluster| cluster.owner_of_udp_port(*number).is_some());
        free_here(*number)
            && !own
            && view.mesh_port(protocol, *number).is_none()
            && view.asking_for_port(protocol, *number).next().is_none()
            && !rests
    };
    let number = (next..=max).chain(min..next).find(free).ok_or_else(|| {
        let text = format!("no {} port is left between {min} and {max}", protocol.name());
        Lack::new("no-port", text)
    })?;
    Ok(PortSpec { published: number, ..asked.clone() })
}

/// Admits new tasks: those that need nothing in bulk, the others with what they are given.
fn admit(view: &Snapshot, now: Timestamp, id: ServiceId, given: &mut Given<'_>, plan: &mut Plan) {
    let (mut plain, mut attached) = (Vec::new(), Vec::new());
    let (mut lack, mut waiting) = (None, 0);
    let mut known: Option<&Arc<Revision>> = None;
    for task in view.fresh_tasks(id) {
        if plain.len() >= ADMITTED_PER_PLAN_MAX || attached.len() >= ATTACHED_PER_PLAN_MAX {
            plan.more = true;
            break;
        }
        let Some(task) = view.task(task) else { continue };
        if known.is_none_or(|known| known.number != task.revision) {
            known = view.revision(id, task.revision);
        }
        let Some(revision) = known.filter(|revision| revision.needs_network()) else {
            plain.push(task.id);
            continue;
        };
        match attach(view, task, revision, given) {
            Ok(network) => attached.push((task.id, network)),
            Err(why) => {
                waiting += 1;
                lack.get_or_insert(why);
            }
        }
    }
    put(plan, plain, attached);
    match (lack, view.service(id)) {
        (Some(lack), Some(service)) => lacking(plan, view, now, service, &lack, waiting),
        (None, Some(service)) if !plan.more => reason::clear(plan, service),
        _ => {}
    }
}

fn put(plan: &mut Plan, plain: Vec<TaskId>, attached: Vec<(TaskId, TaskNetwork)>) {
    if !plain.is_empty() {
        plan.atoms.push(ChangeSet::one(Author::Allocator, Change::AdmitTasks(plain)));
    }
    if !attached.is_empty() {
        plan.atoms.push(ChangeSet::one(Author::Allocator, Change::AttachTasks(attached)));
    }
}

fn attach(
    view: &Snapshot,
    task: &Task,
    revision: &Revision,
    given: &mut Given<'_>,
) -> Result<TaskNetwork, Lack> {
    let mut all = TaskNetwork::default();
    for wanted in &revision.spec.networks {
        let Some(id) = wanted.network() else { continue };
        let attachment = match id.is_predefined() {
            true => Attachment::bare(id),
            false => addresses(usable(view, id)?, Some((wanted, task.slot)), given)?,
        };
        all.attachments.push(attachment);
    }
    if revision.mesh {
        let ingress = view.ingress().map(|network| network.id);
        let id = ingress
            .ok_or_else(|| Lack::new("no-ingress", "no ingress network is present".to_owned()))?;
        all.mesh = Some(addresses(usable(view, id)?, None, given)?);
    }
    Ok(all)
}

fn addresses(
    network: &Network,
    fixed: Option<(&NetworkAttachment, Slot)>,
    given: &mut Given<'_>,
) -> Result<Attachment, Lack> {
    let mut attachment = Attachment::bare(network.id);
    for family in families(network) {
        let fixed = fixed.and_then(|(wanted, slot)| wanted.address_of(slot, family));
        let address = match fixed {
            Some(fixed) if given.take(network.id, fixed) => fixed,
            Some(fixed) => return Err(not_free(network, fixed)),
            None => given.next(network, family).ok_or_else(|| full(network, family))?,
        };
        attachment.set(address);
    }
    Ok(attachment)
}
