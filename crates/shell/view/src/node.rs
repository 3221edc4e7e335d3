//! `Node`.
//!
//! Owns: the shape of a node. Does not know: who leads; it is told.
//! Invariant: `ManagerStatus` is there on managers only.

use base::Timestamp;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use types::{Node, NodeEncryption};

use crate::json::{Object, map, time};

/// What is known of a node besides its record.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeFacts<'a> {
    pub leader: bool,
    /// Of managers only.
    pub reachable: Option<bool>,
    /// What is wrong with it, such as a clock that is ahead.
    pub conditions: &'a [String],
    /// For what is said of its certificate.
    pub now: Timestamp,
}

/// How a node's certificate stands, in docker's words where docker has one.
#[must_use]
pub fn tls_status(node: &Node, now: Timestamp) -> &'static str {
    match node.certificate_expires {
        Timestamp::ZERO => "Unknown",
        expires if expires <= now => "Expired",
        // It is for another role than the node is to have.
        _ if node.role != node.spec.role => "Needs Rotation",
        _ => "Ready",
    }
}

#[must_use]
pub fn node(node: &Node, facts: NodeFacts<'_>) -> Value {
    let description = &node.description;
    let spec = Object::new()
        .filled("Name", node.spec.name.as_str())
        .with("Labels", map(&node.spec.labels))
        .with("Role", node.spec.role.name())
        .with("Availability", node.spec.availability.name());
    let described = Object::new()
        .with("Hostname", node.hostname())
        .with(
            "Platform",
            json!({
                "Architecture": description.platform.architecture, "OS": description.platform.os,
            }),
        )
        .with(
            "Resources",
            json!({
                "NanoCPUs": description.resources.cpu_nanos,
                "MemoryBytes": description.resources.memory_bytes,
            }),
        )
        .with(
            "Engine",
            Object::new()
                .with("EngineVersion", description.engine_version.as_str())
                .filled("Labels", map(&description.engine_labels)),
        );
    let described = described
        .filled("Encryption", description.data_path.encryption.as_ref().map(node_encryption));
    let status = Object::new()
        .with("State", node.status.state.name())
        .filled("Message", node.status.message.as_str())
        .with("Addr", node.status.address.as_str());
    let manager = node.manager.as_ref().map(|manager| {
        let reachability = match facts.reachable {
            Some(true) => "reachable",
            Some(false) => "unreachable",
            None => "unknown",
        };
        Object::new()
            .filled("Leader", facts.leader)
            .with("Reachability", reachability)
            .with("Addr", manager.address.as_str())
            .build()
    });
    Object::new()
        .with("ID", node.id.to_string())
        .meta(&node.meta)
        .with("Spec", spec)
        .with("Description", described)
        .with("Status", status)
        .filled("ManagerStatus", manager)
        .filled("Conditions", facts.conditions.to_vec())
        .with("TLSStatus", tls_status(node, facts.now))
        .filled(
            "CertificateExpiresAt",
            if node.certificate_expires.0 == 0 {
                Value::Null
            } else {
                time(node.certificate_expires)
            },
        )
        .build()
}

/// A node's end of encrypted networks; keys are public halves.
#[must_use]
pub fn node_encryption(said: &NodeEncryption) -> Value {
    let keys: serde_json::Map<String, Value> = said
        .keys
        .iter()
        .map(|(generation, key)| (generation.to_string(), STANDARD.encode(key.0).into()))
        .collect();
    Object::new()
        .with("Backend", said.backend.name())
        .with("Keys", keys)
        .with("SendsWith", said.sends_with)
        .with("UDPSegmentation", said.udp_segmentation)
        .build()
}

#[cfg(test)]
mod tests {
    use base::Id;
    use types::{
        EncryptionBackend, ManagerStatus, Meta, NetworkKey, NodeDescription, NodeId, NodeRole,
        NodeSpec, NodeStatus,
    };

    use super::*;

    fn sample() -> Node {
        Node {
            id: NodeId(Id::from_u128(1).unwrap()),
            meta: Meta::default(),
            spec: NodeSpec::default(),
            description: NodeDescription { hostname: "a".into(), ..NodeDescription::default() },
            status: NodeStatus::default(),
            role: NodeRole::Worker,
            manager: None,
            number: 1,
            certificate_expires: Timestamp(0),
        }
    }

    #[test]
    fn the_certificate_is_judged_by_its_end_and_its_role() {
        for (expires, wanted, text) in [
            (0, NodeRole::Worker, "Unknown"),
            (1_000, NodeRole::Worker, "Expired"),
            (1_001, NodeRole::Worker, "Ready"),
            (1_001, NodeRole::Manager, "Needs Rotation"),
            (999, NodeRole::Manager, "Expired"),
        ] {
            let mut node = sample();
            node.certificate_expires = Timestamp(expires);
            node.spec.role = wanted;
            assert_eq!(tls_status(&node, Timestamp(1_000)), text, "{expires} {wanted:?}");
        }
    }

    #[test]
    fn the_end_of_encrypted_networks_is_shown_once_it_is_said() {
        let mut sample = sample();
        assert_eq!(node(&sample, NodeFacts::default())["Description"].get("Encryption"), None);
        sample.description.data_path.encryption = Some(NodeEncryption {
            backend: EncryptionBackend::Kernel,
            keys: [(1, NetworkKey([7; 32])), (2, NetworkKey([0xfb; 32]))].into(),
            sends_with: 1,
            udp_segmentation: true,
        });
        assert_eq!(
            node(&sample, NodeFacts::default())["Description"]["Encryption"],
            json!({
                "Backend": "kernel",
                "Keys": {
                    "1": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
                    "2": "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=",
                },
                "SendsWith": 1, "UDPSegmentation": true,
            })
        );
    }

    #[test]
    fn only_managers_have_a_manager_status() {
        let mut sample = sample();
        let shown = node(&sample, NodeFacts::default());
        assert_eq!(shown.get("ManagerStatus"), None);
        assert_eq!(
            shown["Spec"],
            json!({ "Labels": {}, "Role": "worker", "Availability": "active" })
        );
        sample.manager = Some(ManagerStatus { raft_id: 1, address: "1.2.3.4:2377".into() });
        let facts = NodeFacts { leader: true, reachable: Some(true), ..NodeFacts::default() };
        assert_eq!(
            node(&sample, facts)["ManagerStatus"],
            json!({ "Leader": true, "Reachability": "reachable", "Addr": "1.2.3.4:2377" })
        );
    }
}
