//! `Network`.
//!
//! Owns: the shape of a network. Does not know: who is on it; it is told.
//! Invariant: what the managers gave it (identifier, MTU) stands among its options, as docker's.

use serde_json::{Value, json};
use types::{Network, NetworkId, NetworkSpec};

use crate::json::{Object, map, time};

/// What a network that every node has is called, with its driver.
pub const PREDEFINED: [(NetworkId, &str, &str); 3] = [
    (NetworkId::BRIDGE, "bridge", "bridge"),
    (NetworkId::HOST, "host", "host"),
    (NetworkId::NONE, "none", "null"),
];

#[must_use]
pub fn network(network: &Network) -> Value {
    let spec = &network.spec;
    let config: Vec<Value> = network
        .subnets
        .iter()
        .map(|subnet| {
            let range = subnet.range.map(|range| range.to_string());
            Object::new()
                .with("Subnet", subnet.net.to_string())
                .filled("IPRange", range.as_deref().unwrap_or_default())
                .with("Gateway", subnet.gateway.to_string())
                .into()
        })
        .collect();
    let mut options = spec.options.clone();
    if network.vni != 0 {
        options.insert(NetworkSpec::VNI.to_owned(), network.vni.to_string());
        options.insert(NetworkSpec::MTU.to_owned(), network.mtu.to_string());
    }
    Object::new()
        .with("Name", spec.name.as_str())
        .with("Id", network.id.to_string())
        .with("Created", time(network.meta.created))
        .with("Scope", "swarm")
        .with("Driver", spec.driver.name())
        .with("EnableIPv4", spec.ipv4)
        .with("EnableIPv6", spec.wants(types::Family::V6))
        .with("IPAM", json!({ "Driver": "default", "Options": null, "Config": config }))
        .with("Internal", spec.internal)
        .with("Attachable", spec.attachable)
        .with("Ingress", spec.ingress)
        .with("ConfigFrom", json!({ "Network": "" }))
        .with("ConfigOnly", false)
        .with("Containers", json!({}))
        .with("Options", map(&options))
        .with("Labels", map(&spec.labels))
        .into()
}
