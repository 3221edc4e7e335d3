//! `shoal network inspect`.
//!
//! Owns: the shape of what is shown: docker's. Does not know: who was asked.
//! Invariant: containers and tunnels are those of this node, peers and services those of the whole
//! cluster.

use serde_json::{Value as Json, json};
use types::{Fault, NodeEncryption};
use wire::v1;

use super::Known;
use crate::commands::id_text;
use crate::error::CliError;

pub(super) fn shown(known: Known, verbose: bool) -> Result<Json, CliError> {
    match known {
        Known::Node(here) => node(*here),
        Known::Cluster(there, here) => {
            let mut shown = cluster(*there, verbose)?;
            if let (Some(here), Some(object)) = (here, shown.as_object_mut()) {
                object.insert("Containers".into(), containers(&here));
                if object.contains_key(TUNNELS) {
                    object.insert(TUNNELS.into(), tunnels(&here)?);
                }
            }
            Ok(shown)
        }
    }
}

const TUNNELS: &str = "Tunnels";

fn senseless(fault: &Fault) -> CliError {
    CliError::failed(format!("the daemon's answer makes no sense: {fault}"))
}

fn node(here: v1::NodeNetworkView) -> Result<Json, CliError> {
    let network = here.network.clone().unwrap_or_default();
    let network: types::LocalNetwork = network.try_into().map_err(|fault| senseless(&fault))?;
    let is_encrypted = here.swarm && network.spec.is_encrypted();
    let mut shown = view::node_network(&network, here.swarm);
    if let Some(object) = shown.as_object_mut() {
        object.insert("Containers".into(), containers(&here));
        if is_encrypted {
            object.insert(TUNNELS.into(), tunnels(&here)?);
        }
    }
    Ok(shown)
}

/// From this node to the others of an encrypted network, in the order of their names.
fn tunnels(here: &v1::NodeNetworkView) -> Result<Json, CliError> {
    let one = |tunnel: &v1::NetworkTunnel| {
        let check = tunnel.tunnel.clone().unwrap_or_default();
        let check = check.try_into().map_err(|fault| senseless(&fault))?;
        let facts = view::TunnelFacts {
            node: id_text(&tunnel.node),
            name: tunnel.name.clone(),
            address: tunnel.address.clone(),
        };
        Ok(view::tunnel(&facts, &check))
    };
    let mut sorted: Vec<&v1::NetworkTunnel> = here.tunnels.iter().collect();
    sorted.sort_by(|a, b| (&a.name, &a.node).cmp(&(&b.name, &b.node)));
    sorted.into_iter().map(one).collect()
}

/// Of this node, by id, as docker shows them.
fn containers(here: &v1::NodeNetworkView) -> Json {
    let one = |container: &v1::NetworkContainer| {
        let address = |v6: bool| {
            let mut all = container.addresses.iter();
            all.find(|text| text.contains(':') == v6).cloned().unwrap_or_default()
        };
        let value = json!({
            "Name": container.name,
            "EndpointID": container.id,
            "MacAddress": container.hardware,
            "IPv4Address": address(false),
            "IPv6Address": address(true),
        });
        (container.id.clone(), value)
    };
    Json::Object(here.containers.iter().map(one).collect())
}

fn cluster(answer: v1::NetworkView, verbose: bool) -> Result<Json, CliError> {
    let network = answer.network.clone().unwrap_or_default();
    let network: types::Network = network.try_into().map_err(|fault| senseless(&fault))?;
    let mut shown = view::network(&network);
    if let (true, Some(object)) = (network.spec.is_encrypted(), shown.as_object_mut()) {
        // Of a node that is not on it there are none.
        object.insert(TUNNELS.into(), json!([]));
    }
    if verbose && let Some(object) = shown.as_object_mut() {
        object.insert("Peers".into(), peers(&answer));
        object.insert("Services".into(), services(&answer));
    }
    Ok(shown)
}

fn peers(answer: &v1::NetworkView) -> Json {
    let peer = |peer: &v1::NetworkPeer| {
        let health = if peer.problems.is_empty() { "healthy" } else { "unhealthy" };
        let mut shown = json!({
            "Name": peer.name,
            "IP": peer.address,
            "Health": health,
            "Problems": peer.problems,
        });
        let said = peer.encryption.clone().and_then(|said| NodeEncryption::try_from(said).ok());
        if let (Some(said), Some(object)) = (said, shown.as_object_mut()) {
            object.insert("Encryption".into(), view::node_encryption(&said));
        }
        shown
    };
    answer.peers.iter().map(peer).collect()
}

/// As docker's verbose form: by name, with virtual addresses, ports and tasks.
fn services(answer: &v1::NetworkView) -> Json {
    let mut all = serde_json::Map::new();
    for service in &answer.services {
        let tasks: Vec<Json> = answer
            .tasks
            .iter()
            .filter(|task| task.service == service.service)
            .map(|task| {
                json!({
                    "Name": task.name,
                    "EndpointID": id_text(&task.task),
                    "EndpointIP": task.addresses.first(),
                    "Info": { "Host IP": task.node_address, "Node": task.node_name },
                })
            })
            .collect();
        let ports: Vec<String> = service
            .ports
            .iter()
            .map(|port| format!("Target: {}, Publish: {}", port.target, port.published))
            .collect();
        let value = json!({
            "VIP": service.vips.first().cloned().unwrap_or_default(),
            "VIPs": service.vips, "Ports": ports, "Tasks": tasks,
        });
        all.insert(service.name.clone(), value);
    }
    Json::Object(all)
}
