//! `Task`.
//!
//! Owns: the shape of a task. Does not know: where its spec is kept; it is given.
//! Invariant: `Slot` is left out on tasks of global services, as docker's.

use serde_json::{Value, json};
use types::{HostPort, PublishMode, Task, TaskSpec, TaskState};

use crate::json::{Object, time};
use crate::spec::task_spec;

/// What is known of a task besides its record.
#[derive(Clone, Copy, Debug)]
pub struct TaskFacts<'a> {
    /// The template of the revision that it runs.
    pub spec: &'a TaskSpec,
    /// Why it waits; empty when it does not.
    pub reason: &'a str,
}

#[must_use]
pub fn task(task: &Task, facts: TaskFacts<'_>) -> Value {
    let status = &task.status;
    let started = status.pid != 0 || status.exit_code.is_some();
    let container = Object::new()
        .with("ContainerID", if started { task.id.to_string() } else { String::new() })
        .filled("PID", status.pid)
        .with("ExitCode", status.exit_code.unwrap_or(0))
        .filled("OOMKilled", status.oom);
    let waits = status.state < TaskState::Accepted && !facts.reason.is_empty();
    let error = status.error.as_deref().unwrap_or(if waits { facts.reason } else { "" });
    let shown = Object::new()
        .with("Timestamp", time(status.at))
        .with("State", status.state.name())
        .filled("Message", status.message.as_deref().unwrap_or_default())
        .filled("Err", error)
        .filled("ContainerStatus", if started { container.build() } else { Value::Null })
        .with("PortStatus", port_status(task));
    let slot = task.slot.number();
    Object::new()
        .with("ID", task.id.to_string())
        .meta(&task.meta)
        .with("Labels", json!({}))
        .with("Spec", task_spec(facts.spec))
        .with("ServiceID", task.service.to_string())
        .filled("Slot", slot)
        .filled("NodeID", task.node.map(|node| node.to_string()))
        .with("Status", shown)
        .with("DesiredState", task.desired.name())
        .filled("NetworksAttachments", attachments(task))
        .build()
}

/// Ports of its node that lead to it, with the chosen ones.
fn port_status(task: &Task) -> Value {
    let one = |port: &HostPort| {
        Object::new()
            .with("Protocol", port.protocol.name())
            .with("TargetPort", port.target)
            .with("PublishedPort", port.published)
            .with("PublishMode", PublishMode::Host.name())
            .filled("HostAddress", port.host.as_str())
            .build()
    };
    let ports: Vec<Value> = host_ports(task).map(one).collect();
    Object::new().filled("Ports", ports).build()
}

fn host_ports(task: &Task) -> impl Iterator<Item = &HostPort> {
    task.status.ports.iter().flat_map(|ports| ports.iter())
}

/// The same as a list shows them: `*:8080->80/tcp,*:53->53/udp`.
#[must_use]
pub fn task_ports(task: &Task) -> String {
    let one = |port: &HostPort| {
        let host = if port.host.is_empty() { "*" } else { &port.host };
        format!("{host}:{}->{}/{}", port.published, port.target, port.protocol.name())
    };
    host_ports(task).map(one).collect::<Vec<_>>().join(",")
}

/// Where it is attached, with its addresses; the ingress network last.
fn attachments(task: &Task) -> Vec<Value> {
    let one = |held: &types::Attachment| {
        let addresses: Vec<String> = held.addresses().map(|address| address.to_string()).collect();
        json!({ "Network": { "ID": held.network.to_string() }, "Addresses": addresses })
    };
    task.network.iter().flat_map(|network| network.all()).map(one).collect()
}

#[cfg(test)]
mod tests {
    use base::{Id, Timestamp};
    use types::{Meta, ServiceId, TaskId, TaskStatus};

    use super::*;

    #[test]
    fn a_waiting_task_shows_its_services_reason() {
        let id = Id::from_u128(1).unwrap();
        let mut sample = Task {
            id: TaskId(id),
            meta: Meta::default(),
            service: ServiceId(id),
            revision: 1,
            slot: types::Slot::Replica(2),
            node: None,
            desired: TaskState::Running,
            status: TaskStatus {
                state: TaskState::Pending,
                at: Timestamp(0),
                ..TaskStatus::default()
            },
            network: None,
        };
        let spec = TaskSpec::default();
        let facts = TaskFacts { spec: &spec, reason: "no suitable node" };
        let shown = task(&sample, facts);
        assert_eq!(shown["Status"]["Err"], "no suitable node");
        assert_eq!((&shown["Slot"], shown.get("NodeID")), (&json!(2), None));
        sample.status.state = TaskState::Failed;
        sample.status.exit_code = Some(3);
        let shown = task(&sample, facts);
        assert_eq!(shown["Status"].get("Err"), None);
        assert_eq!(shown["Status"]["ContainerStatus"]["ExitCode"], 3);
        assert_eq!((&shown["Status"]["PortStatus"], task_ports(&sample)), (&json!({}), "".into()));
        let port = |protocol, published, host: &str| HostPort {
            protocol,
            target: 53,
            published,
            host: host.into(),
        };
        sample.status.ports = Some(std::sync::Arc::new(vec![
            port(types::PortProtocol::Tcp, 32_768, ""),
            port(types::PortProtocol::Udp, 53, "10.0.0.1"),
        ]));
        let shown = task(&sample, facts);
        let ports = &shown["Status"]["PortStatus"]["Ports"];
        assert_eq!(
            ports[0],
            json!({
                "Protocol": "tcp", "TargetPort": 53, "PublishedPort": 32_768, "PublishMode": "host",
            })
        );
        assert_eq!(ports[1]["HostAddress"], "10.0.0.1");
        assert_eq!(task_ports(&sample), "*:32768->53/tcp,10.0.0.1:53->53/udp");
    }
}
