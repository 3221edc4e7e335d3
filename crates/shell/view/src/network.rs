//! `Network`.
//!
//! Owns: the shape of a network. Does not know: who is on it; it is told.
//! Invariant: what the managers gave it (identifier, MTU) stands among its options, as docker's.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use types::{LocalNetwork, Network, NetworkSpec, Subnet, TunnelCheck};

use crate::json::{Object, map, time};

/// A network of the cluster.
#[must_use]
pub fn network(network: &Network) -> Value {
    let spec = &network.spec;
    let mut options = spec.options.clone();
    if network.vni != 0 {
        options.insert(NetworkSpec::VNI.to_owned(), network.vni.to_string());
        options.insert(NetworkSpec::MTU.to_owned(), network.mtu.to_string());
    }
    let created = time(network.meta.created);
    shown(&network.id.to_string(), created, "swarm", spec, &network.subnets, &options)
}

/// A network as one node knows it: its own, or one of the cluster that it takes part in.
#[must_use]
pub fn node_network(network: &LocalNetwork, swarm: bool) -> Value {
    let (scope, created) = (if swarm { "swarm" } else { "local" }, time(network.created));
    let (id, spec) = (network.id.to_string(), &network.spec);
    shown(&id, created, scope, spec, &network.subnets, &spec.options)
}

fn shown(
    id: &str,
    created: Value,
    scope: &str,
    spec: &NetworkSpec,
    subnets: &[Subnet],
    options: &BTreeMap<String, String>,
) -> Value {
    let config: Vec<Value> = subnets
        .iter()
        .map(|subnet| {
            let range = subnet.range.map(|range| range.to_string());
            let asked = spec.ipam.iter().find(|pool| pool.subnet == Some(subnet.net));
            let aux: BTreeMap<String, String> = asked
                .into_iter()
                .flat_map(|pool| &pool.aux)
                .map(|(name, address)| (name.clone(), address.to_string()))
                .collect();
            let one = Object::new()
                .with("Subnet", subnet.net.to_string())
                .filled("IPRange", range.as_deref().unwrap_or_default())
                .with("Gateway", subnet.gateway.to_string());
            match aux.is_empty() {
                true => one.into(),
                false => one.with("AuxiliaryAddresses", map(&aux)).into(),
            }
        })
        .collect();
    Object::new()
        .with("Name", spec.name.as_str())
        .with("Id", id)
        .with("Created", created)
        .with("Scope", scope)
        .with("Driver", spec.driver.name())
        .with("EnableIPv4", spec.ipv4)
        .with("EnableIPv6", spec.wants(types::Family::V6))
        .with("IPAM", json!({ "Driver": "default", "Options": null, "Config": config }))
        .with("Internal", spec.internal)
        .with("Attachable", spec.attachable)
        .with("Ingress", spec.ingress)
        .with("ConfigFrom", json!({ "Network": spec.config_from }))
        .with("ConfigOnly", spec.config_only)
        .with("Containers", json!({}))
        .with("Options", map(options))
        .with("Labels", map(&spec.labels))
        .into()
}

/// Who is at the other end of a tunnel.
#[derive(Clone, Debug)]
pub struct TunnelFacts {
    pub node: String,
    pub name: String,
    pub address: String,
}

/// The tunnel from a node to another one of an encrypted network.
#[must_use]
pub fn tunnel(to: &TunnelFacts, check: &TunnelCheck) -> Value {
    let drops: serde_json::Map<String, Value> =
        check.drops.iter().map(|(cause, count)| (cause.clone(), (*count).into())).collect();
    Object::new()
        .with("NodeID", to.node.as_str())
        .with("Name", to.name.as_str())
        .with("IP", to.address.as_str())
        .with("Encryption", check.backend.name())
        .with("Generation", check.generation)
        // There was none, or none that still counts: null.
        .with("HandshakeAgeMs", check.handshake_age.map_or(Value::Null, |age| age.0.into()))
        .with("SentBytes", check.sent_bytes)
        .with("ReceivedBytes", check.received_bytes)
        .with("Drops", drops)
        .with("Problem", check.trouble.as_str())
        .into()
}

#[cfg(test)]
mod tests {
    use base::Millis;
    use types::EncryptionBackend;

    use super::*;

    #[test]
    fn a_tunnel_has_numbers_and_null_without_a_handshake() {
        let to = TunnelFacts { node: "7x".into(), name: "n7".into(), address: "192.0.2.7".into() };
        let mut check = TunnelCheck {
            backend: EncryptionBackend::UserSpace,
            generation: 2,
            handshake_age: Some(Millis(1_500)),
            sent_bytes: 10,
            received_bytes: 20,
            drops: [("wrong-key".to_owned(), 3)].into(),
            trouble: String::new(),
        };
        let mut want = json!({
            "NodeID": "7x", "Name": "n7", "IP": "192.0.2.7", "Encryption": "user-space",
            "Generation": 2, "HandshakeAgeMs": 1500, "SentBytes": 10, "ReceivedBytes": 20,
            "Drops": { "wrong-key": 3 }, "Problem": "",
        });
        assert_eq!(tunnel(&to, &check), want);
        check.handshake_age = None;
        want["HandshakeAgeMs"] = Value::Null;
        assert_eq!(tunnel(&to, &check), want);
    }
}
