//! Tasks and their status.
//!
//! Owns: their conversions.
//! Does not know: specs; a task names the revision that it runs.
//! Invariant: a state that this version does not know is refused.

use std::sync::Arc;

use base::Timestamp;
use types::{Fault, HostPort, Slot, Task, TaskState, TaskStatus};

use super::{id, optional_id, required, unknown};
use crate::v1;

impl From<&Task> for v1::Task {
    fn from(task: &Task) -> Self {
        Self {
            id: task.id.to_bytes().to_vec().into(),
            meta: Some(task.meta.into()),
            service: task.service.to_bytes().to_vec().into(),
            revision: task.revision,
            slot: task.slot.number(),
            node: task.node.map(|node| node.to_bytes().to_vec().into()).unwrap_or_default(),
            desired: task.desired as i32,
            status: Some((&task.status).into()),
            network: task.network.as_deref().map(Into::into),
        }
    }
}

impl TryFrom<v1::Task> for Task {
    type Error = Fault;

    fn try_from(task: v1::Task) -> Result<Self, Fault> {
        Ok(Self {
            id: id(&task.id, "task.id")?,
            meta: required(task.meta, "task.meta")?.into(),
            service: id(&task.service, "task.service")?,
            revision: task.revision,
            slot: Slot::from_number(task.slot),
            node: optional_id(&task.node, "task.node")?,
            desired: state(task.desired, "task.desired")?,
            status: required(task.status, "task.status")?.try_into()?,
            network: task.network.map(TryInto::try_into).transpose()?.map(Box::new),
        })
    }
}

impl From<&TaskStatus> for v1::TaskStatus {
    fn from(status: &TaskStatus) -> Self {
        let text = |text: &Option<Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
        Self {
            state: status.state as i32,
            at: status.at.0,
            message: text(&status.message),
            error: text(&status.error),
            pid: status.pid,
            exit_code: status.exit_code,
            oom: status.oom,
            ports: status.ports.iter().flat_map(|ports| ports.iter()).map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::TaskStatus> for TaskStatus {
    type Error = Fault;

    fn try_from(status: v1::TaskStatus) -> Result<Self, Fault> {
        let text = |text: String| (!text.is_empty()).then(|| Arc::from(text));
        let ports = status.ports.into_iter().map(HostPort::try_from);
        let ports = ports.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            state: state(status.state, "task.status.state")?,
            at: Timestamp(status.at),
            message: text(status.message),
            error: text(status.error),
            pid: status.pid,
            exit_code: status.exit_code,
            oom: status.oom,
            ports: (!ports.is_empty()).then(|| Arc::new(ports)),
        })
    }
}

pub(crate) fn state(number: i32, field: &str) -> Result<TaskState, Fault> {
    TaskState::from_number(number).ok_or_else(|| unknown(field, number))
}

#[cfg(test)]
mod tests {
    use base::Id;
    use types::{Meta, NodeId, ServiceId, TaskId};

    use super::*;

    #[test]
    fn a_task_comes_back_as_it_was() {
        let some = Id::from_u128(7).unwrap();
        for state in TaskState::ALL {
            for (slot, node) in [(Slot::Node, Some(NodeId(some))), (Slot::Replica(3), None)] {
                let task = Task {
                    id: TaskId(some),
                    meta: Meta { version: 9, ..Meta::default() },
                    service: ServiceId(some),
                    revision: 4,
                    slot,
                    node,
                    desired: TaskState::Running,
                    status: TaskStatus {
                        state,
                        at: Timestamp(5),
                        error: Some("e".into()),
                        exit_code: Some(0),
                        ports: Some(Arc::new(vec![HostPort {
                            protocol: types::PortProtocol::Udp,
                            target: 53,
                            published: 5353,
                            host: "lo".into(),
                        }])),
                        ..TaskStatus::default()
                    },
                    network: Some(Box::new(types::TaskNetwork {
                        attachments: vec![types::Attachment::bare(types::NetworkId::HOST)],
                        ..types::TaskNetwork::default()
                    })),
                };
                assert_eq!(Task::try_from(v1::Task::from(&task)), Ok(task));
            }
        }
    }

    #[test]
    fn an_unknown_state_is_refused() {
        let message = v1::TaskStatus { state: 77, ..v1::TaskStatus::default() };
        assert_eq!(TaskStatus::try_from(message).unwrap_err().field, "task.status.state");
    }
}
