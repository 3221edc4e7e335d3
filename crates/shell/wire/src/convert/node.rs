//! Nodes: spec, description, status.
//!
//! Owns: their conversions.
//! Does not know: which of them leads or answers.
//! Invariant: a node that goes out and comes back is the same.

use base::Timestamp;
use types::{
    Availability, Condition, ConditionCode, Fault, ManagerStatus, Node, NodeDescription, NodeRole,
    NodeSpec, NodeState, NodeStatus,
};

use super::{id, required, unknown};
use crate::v1;

impl From<&Node> for v1::Node {
    fn from(node: &Node) -> Self {
        Self {
            id: node.id.to_bytes().to_vec().into(),
            meta: Some(node.meta.into()),
            spec: Some((&node.spec).into()),
            description: Some((&node.description).into()),
            status: Some((&node.status).into()),
            role: node.role as i32,
            manager: node.manager.as_ref().map(Into::into),
            number: node.number,
            certificate_expires_at: node.certificate_expires.0,
        }
    }
}

impl TryFrom<v1::Node> for Node {
    type Error = Fault;

    fn try_from(node: v1::Node) -> Result<Self, Fault> {
        Ok(Self {
            id: id(&node.id, "node.id")?,
            meta: required(node.meta, "node.meta")?.into(),
            spec: required(node.spec, "node.spec")?.try_into()?,
            description: node.description.map(Into::into).unwrap_or_default(),
            status: node.status.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            role: role(node.role, "node.role")?,
            manager: node.manager.map(Into::into),
            number: node.number,
            certificate_expires: Timestamp(node.certificate_expires_at),
        })
    }
}

impl From<&ManagerStatus> for v1::ManagerStatus {
    fn from(manager: &ManagerStatus) -> Self {
        Self { raft_id: manager.raft_id, address: manager.address.clone() }
    }
}

impl From<v1::ManagerStatus> for ManagerStatus {
    fn from(manager: v1::ManagerStatus) -> Self {
        Self { raft_id: manager.raft_id, address: manager.address }
    }
}

impl From<&NodeSpec> for v1::NodeSpec {
    fn from(spec: &NodeSpec) -> Self {
        Self {
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            role: spec.role as i32,
            availability: spec.availability as i32,
        }
    }
}

impl TryFrom<v1::NodeSpec> for NodeSpec {
    type Error = Fault;

    fn try_from(spec: v1::NodeSpec) -> Result<Self, Fault> {
        Ok(Self {
            name: spec.name,
            labels: spec.labels,
            role: role(spec.role, "node.spec.role")?,
            availability: availability(spec.availability, "node.spec.availability")?,
        })
    }
}

impl From<&NodeDescription> for v1::NodeDescription {
    fn from(description: &NodeDescription) -> Self {
        Self {
            hostname: description.hostname.clone(),
            platform: Some((&description.platform).into()),
            resources: Some((&description.resources).into()),
            engine_version: description.engine_version.clone(),
            engine_labels: description.engine_labels.clone(),
            images: description.images.clone(),
            data_path: Some((&description.data_path).into()),
        }
    }
}

impl From<v1::NodeDescription> for NodeDescription {
    fn from(description: v1::NodeDescription) -> Self {
        Self {
            hostname: description.hostname,
            platform: description.platform.map(Into::into).unwrap_or_default(),
            resources: description.resources.map(Into::into).unwrap_or_default(),
            engine_version: description.engine_version,
            engine_labels: description.engine_labels,
            images: description.images,
            data_path: description.data_path.map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<&NodeStatus> for v1::NodeStatus {
    fn from(status: &NodeStatus) -> Self {
        Self {
            state: status.state as i32,
            message: status.message.clone(),
            address: status.address.clone(),
            conditions: status.conditions.iter().map(Into::into).collect(),
            since: status.since.0,
        }
    }
}

impl From<&Condition> for v1::Condition {
    fn from(condition: &Condition) -> Self {
        Self {
            code: condition.code as i32,
            message: condition.message.clone(),
            ports: condition.ports.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Condition> for Condition {
    type Error = Fault;

    fn try_from(condition: v1::Condition) -> Result<Self, Fault> {
        let field = "node.status.conditions.code";
        let code = ConditionCode::from_number(condition.code);
        let code = code.ok_or_else(|| unknown(field, condition.code))?;
        let ports = condition.ports.into_iter().map(TryInto::try_into);
        Ok(Self { code, message: condition.message, ports: ports.collect::<Result<_, Fault>>()? })
    }
}

impl TryFrom<v1::NodeStatus> for NodeStatus {
    type Error = Fault;

    fn try_from(status: v1::NodeStatus) -> Result<Self, Fault> {
        let state = match status.state {
            0 | 1 => NodeState::Unknown,
            2 => NodeState::Down,
            3 => NodeState::Ready,
            4 => NodeState::Disconnected,
            other => return Err(unknown("node.status.state", other)),
        };
        Ok(Self {
            state,
            message: status.message,
            address: status.address,
            conditions: status
                .conditions
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            since: Timestamp(status.since),
        })
    }
}

/// A role by its number; unset is none.
///
/// # Errors
/// Names `field` when the number is not known.
pub(crate) fn role(number: i32, field: &str) -> Result<NodeRole, Fault> {
    match number {
        1 => Ok(NodeRole::Worker),
        2 => Ok(NodeRole::Manager),
        other => Err(unknown(field, other)),
    }
}

/// An availability by its number; unset is active.
fn availability(number: i32, field: &str) -> Result<Availability, Fault> {
    match number {
        0 | 1 => Ok(Availability::Active),
        2 => Ok(Availability::Pause),
        3 => Ok(Availability::Drain),
        other => Err(unknown(field, other)),
    }
}

#[cfg(test)]
mod tests {
    use base::Id;
    use types::{Labels, Meta, NodeId, Platform, PortBinding, PortProtocol, Resources};

    use super::*;

    #[test]
    fn a_node_comes_back_as_it_was() {
        let node = Node {
            id: NodeId(Id::from_u128(7).unwrap()),
            meta: Meta { spec_version: 3, ..Meta::default() },
            spec: NodeSpec {
                labels: Labels::from([("a".into(), "b".into())]),
                role: NodeRole::Manager,
                availability: Availability::Drain,
                ..NodeSpec::default()
            },
            description: NodeDescription {
                platform: Platform { architecture: "x86_64".into(), os: "linux".into() },
                resources: Resources { cpu_nanos: 2, ..Resources::default() },
                images: vec!["a:1".into()],
                ..NodeDescription::default()
            },
            status: NodeStatus {
                state: NodeState::Down,
                conditions: vec![Condition {
                    code: ConditionCode::DiskFull,
                    message: "disk full below /x".into(),
                    ports: vec![
                        PortBinding {
                            protocol: PortProtocol::Udp,
                            port: 53,
                            address: Some([192, 0, 2, 1].into()),
                        },
                        PortBinding { protocol: PortProtocol::Tcp, port: 80, address: None },
                    ],
                }],
                since: Timestamp(9),
                ..NodeStatus::default()
            },
            role: NodeRole::Worker,
            manager: Some(ManagerStatus { raft_id: 4, address: "a:1".into() }),
            number: 5,
            certificate_expires: Timestamp(6),
        };
        assert_eq!(Node::try_from(v1::Node::from(&node)), Ok(node.clone()));
        let strange = v1::Node { role: 9, ..v1::Node::from(&node) };
        assert_eq!(Node::try_from(strange).unwrap_err().field, "node.role");
    }
}
