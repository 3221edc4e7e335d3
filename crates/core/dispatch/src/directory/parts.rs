//! The parts of the directory, made of the snapshot.
//!
//! Owns: what of a network, a node, a service and a task others are told.
//! Does not know: who is told what. Invariant: a function of the snapshot.

use std::net::IpAddr;

use state::Snapshot;
use types::{
    EndpointPart, Family, Network, NetworkId, NetworkPart, Node, NodeId, OwnEncryption, OwnPart,
    PeerEncryption, PeerPart, PortPart, PublishMode, Service, ServiceId, ServicePart, Slot, Task,
    TaskId, TaskState, limits,
};

use super::journal::Entry;

/// Characters of a task's id by which it is known, as docker's short ids.
const SHORT_ID_CHARS: usize = 12;

/// `None` until it has a number.
pub(super) fn own(view: &Snapshot, node: NodeId) -> Option<OwnPart> {
    let (cluster, found) = (view.cluster()?, view.node(node)?);
    let data_path_port = u16::try_from(cluster.data_path_port).ok().filter(|port| *port != 0);
    let data_path_port = data_path_port.unwrap_or(limits::DATA_PATH_PORT_DEFAULT);
    let encryption = OwnEncryption {
        generation: cluster.network_key_generation,
        ports: cluster.encryption_ports,
        keepalive: is_translated(found),
    };
    let number = found.number;
    (number != 0).then_some(OwnPart { node, number, data_path_port, encryption })
}

/// Whether somebody translates addresses between a node and the managers: they see another one than
/// it says, and none of a network that it is on itself. One with a network of its own for its data
/// path has both.
fn is_translated(node: &Node) -> bool {
    let path = &node.description.data_path;
    let (Some(said), Ok(seen)) = (path.address, node.status.address.parse::<IpAddr>()) else {
        return false;
    };
    let seen = seen.to_canonical();
    Family::of(seen) == Family::of(said)
        && seen != said
        && !seen.is_loopback()
        && !path.routes.iter().any(|net| net.contains(&seen))
}

/// `None` until it has what tasks need.
pub(super) fn network(network: &Network) -> Option<NetworkPart> {
    network.is_allocated().then(|| NetworkPart {
        id: network.id,
        name: network.spec.name.clone(),
        driver: network.spec.driver,
        vni: network.vni,
        mtu: network.mtu,
        ingress: network.spec.ingress,
        internal: network.spec.internal,
        encrypted: network.spec.is_encrypted(),
        subnets: network.subnets.iter().map(|subnet| (subnet.net, subnet.gateway)).collect(),
        options: network.spec.options.clone(),
        config_from: network.spec.config_from.clone(),
    })
}

/// `None` until its number and the address of its data path are known.
pub(super) fn peer(
    view: &Snapshot,
    network: NetworkId,
    id: NodeId,
    network_mtu: u32,
) -> Option<PeerPart> {
    let node = view.node(id).filter(|node| node.number != 0)?;
    let path = &node.description.data_path;
    let address: IpAddr = match path.address {
        Some(address) => address,
        None => node.status.address.parse().ok()?,
    };
    let spec = &view.network(network)?.spec;
    let inside = path.mtu.saturating_sub(spec.overhead(Family::of(address)));
    let mtu = if path.mtu != 0 && inside < network_mtu { inside } else { 0 };
    let name = node.hostname().to_owned();
    let encryption = path
        .encryption
        .as_ref()
        .filter(|_| spec.is_encrypted())
        .map(|of| PeerEncryption { keys: of.keys.clone(), sends_with: of.sends_with });
    Some(PeerPart { network, node: id, name, number: node.number, address, mtu, encryption })
}

/// One part for each network that a service is known on.
pub(super) fn services(service: &Service, ingress: Option<NetworkId>) -> Vec<ServicePart> {
    let spec = &service.spec;
    let given = service.endpoint.as_deref();
    let mode = spec.endpoint_mode();
    let ports: Vec<PortPart> = given.map(|given| given.ports.clone()).unwrap_or_default();
    let part = |network: NetworkId, aliases: &[String], ports: Vec<PortPart>| {
        let vip = given.and_then(|given| given.vips.iter().find(|vip| vip.network == network));
        ServicePart {
            network,
            service: service.id,
            name: spec.name.clone(),
            aliases: aliases.to_vec(),
            mode,
            v4: vip.and_then(|vip| vip.v4),
            v6: vip.and_then(|vip| vip.v6),
            ports,
        }
    };
    let mut all = Vec::new();
    for attached in &spec.task.networks {
        let Ok(network) = attached.target.parse::<NetworkId>() else { continue };
        if !network.is_predefined() {
            all.push(part(network, &attached.aliases, ports.clone()));
        }
    }
    let in_mesh = |port: &&PortPart| port.mode == PublishMode::Ingress && port.published != 0;
    let mesh: Vec<PortPart> = ports.iter().filter(in_mesh).cloned().collect();
    if let (Some(ingress), false) = (ingress, mesh.is_empty()) {
        all.push(part(ingress, &[], mesh));
    }
    all
}

/// Where a task sits, and whether it serves.
pub(super) struct Seat {
    pub(super) node: NodeId,
    number: u32,
    service: ServiceId,
    running: bool,
    pub(super) networks: Vec<NetworkId>,
}

impl Seat {
    pub(super) fn entry(&self, suspected: bool) -> Entry {
        let Self { node, number, service, running, .. } = *self;
        Entry { node, number, service: Some(service), running, suspected }
    }
}

/// `None` for a task that nobody can send to: without networks, without a node, or over.
pub(super) fn seat(view: &Snapshot, id: TaskId) -> Option<Seat> {
    let task = view.task(id)?;
    let state = task.status.state;
    let given = task.network.as_deref()?;
    if state < TaskState::Assigned || state.is_terminal() {
        return None;
    }
    let networks = given.all().map(|one| one.network).filter(|id| !id.is_predefined());
    let node = task.node?;
    let number = view.node(node).map_or(0, |node| node.number);
    let runs = state == TaskState::Running && task.desired <= TaskState::Running;
    Some(Seat {
        node,
        number,
        service: task.service,
        running: runs && number != 0,
        networks: networks.collect(),
    })
}

pub(super) fn endpoint(
    view: &Snapshot,
    network: NetworkId,
    id: TaskId,
    serving: bool,
) -> Option<EndpointPart> {
    let task = view.task(id)?;
    let given = task.network.as_deref()?;
    let held = given.all().find(|one| one.network == network)?;
    let node = task.node?;
    let connection = given.connection(network);
    let mut names = names(view, task);
    names.extend(connection.into_iter().flat_map(|connection| connection.aliases.clone()));
    Some(EndpointPart {
        network,
        task: id,
        // There its service is nobody.
        service: connection.is_none().then_some(task.service),
        node,
        number: view.node(node).map_or(0, |node| node.number),
        v4: held.v4,
        v6: held.v6,
        names,
        serving,
    })
}

/// Of the container first, since a reverse query is answered with it.
fn names(view: &Snapshot, task: &Task) -> Vec<String> {
    let id = task.id.to_string();
    let short = id[..SHORT_ID_CHARS].to_owned();
    let Some(service) = view.service(task.service) else { return vec![short] };
    let name = match (task.slot, task.node) {
        (Slot::Node, Some(node)) => format!("{}.{node}", service.spec.name),
        (slot, _) => format!("{}.{}", service.spec.name, slot.number()),
    };
    vec![format!("{name}.{id}"), name, short]
}
