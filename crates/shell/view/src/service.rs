//! `Service`.
//!
//! Owns: the shape of a service. Does not know: its tasks; their numbers are given.
//! Invariant: `Version.Index` is the index of the last change by a user, so that a status report
//! never makes an update out of date.

use serde_json::{Value, json};
use types::{PortSpec, Service, UpdateState, UpdateStatus};

use crate::json::{Object, time};
use crate::spec::{endpoint, port, service_spec};

/// What is known of a service besides its record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    pub running: u64,
    pub desired: u64,
    pub completed: u64,
}

/// A service with its numbers of tasks and the reasons why it is not as wanted.
#[must_use]
pub fn service(service: &Service, facts: ServiceFacts) -> Value {
    let reasons: Vec<Value> = service
        .reasons
        .iter()
        .map(|reason| {
            let since = (reason.since != base::Timestamp::default()).then(|| time(reason.since));
            Object::new()
                .with("Decider", reason.decider.as_str())
                .with("Code", reason.code.as_str())
                .with("Message", reason.message.as_str())
                .with("Count", reason.count)
                .filled("Since", since)
                .build()
        })
        .collect();
    let status = json!({
        "RunningTasks": facts.running, "DesiredTasks": facts.desired,
        "CompletedTasks": facts.completed,
    });
    Object::new()
        .with("ID", service.id.to_string())
        .meta(&service.meta)
        .with("Spec", service_spec(&service.spec))
        .filled("PreviousSpec", service.previous.as_deref().map(service_spec))
        .with("Endpoint", given(service))
        .filled("UpdateStatus", service.update.as_ref().map(update_status))
        .with("ServiceStatus", status)
        .filled("Reasons", reasons)
        .build()
}

/// What was asked for and what was given.
fn given(service: &Service) -> Value {
    let asked = service.spec.endpoint.as_ref().map_or(json!({}), endpoint);
    let object = Object::new().with("Spec", asked);
    let Some(given) = service.endpoint.as_deref() else { return object.build() };
    let ports: Vec<Value> = given.ports.iter().map(port).collect();
    let vips: Vec<Value> = given
        .vips
        .iter()
        .flat_map(|vip| {
            let network = vip.network.to_string();
            let addresses: Vec<String> = vip.addresses().map(|a| a.to_string()).collect();
            addresses
                .into_iter()
                .map(move |address| json!({ "NetworkID": network.clone(), "Addr": address }))
        })
        .collect();
    object.filled("Ports", ports).filled("VirtualIPs", vips).build()
}

/// Ports of the mesh as a list shows them, by protocol and number, neighbours as a range:
/// `*:8080-8081->80-81/tcp, *:53->53/udp`.
#[must_use]
pub fn published_ports(service: &Service) -> String {
    let given = service.endpoint.iter().flat_map(|endpoint| endpoint.mesh_ports());
    let mut ports: Vec<&PortSpec> = given.collect();
    ports.sort_by_key(|port| (port.protocol.name(), &port.host, port.published, port.target));
    let continues = |a: &&PortSpec, b: &&PortSpec| {
        (a.protocol, &a.host) == (b.protocol, &b.host)
            && a.published.checked_add(1) == Some(b.published)
            && a.target.checked_add(1) == Some(b.target)
    };
    let text = |run: &[&PortSpec]| {
        let (first, last) = (run[0], run[run.len() - 1]);
        let host = if first.host.is_empty() { "*" } else { &first.host };
        let range = |from: u16, to: u16| match from == to {
            true => from.to_string(),
            false => format!("{from}-{to}"),
        };
        let published = range(first.published, last.published);
        let target = range(first.target, last.target);
        format!("{host}:{published}->{target}/{}", first.protocol.name())
    };
    ports.chunk_by(continues).map(text).collect::<Vec<_>>().join(", ")
}

fn update_status(status: &UpdateStatus) -> Value {
    let ended = matches!(status.state, UpdateState::Completed | UpdateState::RollbackCompleted);
    let object =
        Object::new().with("State", status.state.name()).with("StartedAt", time(status.started));
    let object = if ended { object.with("CompletedAt", time(status.completed)) } else { object };
    object.with("Message", status.message.as_str()).build()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base::{Id, Timestamp};
    use types::{
        ContainerSpec, Labels, Meta, Reason, Secret, ServiceId, ServiceMode, ServiceSpec, TaskSpec,
    };

    use super::*;

    #[test]
    fn neighbouring_ports_are_shown_as_a_range() {
        use types::{
            Endpoint,
            PortProtocol::{Tcp, Udp},
            PublishMode,
        };
        let port = |protocol, published, target, host: &str| PortSpec {
            protocol,
            published,
            target,
            host: host.into(),
            ..PortSpec::default()
        };
        let ports = vec![
            port(Udp, 53, 53, ""),
            port(Tcp, 8081, 81, ""),
            port(Tcp, 8080, 80, ""),
            port(Tcp, 8082, 90, ""),
            port(Tcp, 8083, 91, "192.0.2.1"),
            PortSpec { mode: PublishMode::Host, ..port(Tcp, 8084, 92, "") },
        ];
        let endpoint = Some(Arc::new(Endpoint { vips: Vec::new(), ports }));
        let service = Service { endpoint, ..sample() };
        let expected = "*:8080-8081->80-81/tcp, *:8082->90/tcp, 192.0.2.1:8083->91/tcp, \
                        *:53->53/udp";
        assert_eq!(published_ports(&service), expected);
    }

    fn sample() -> Service {
        let container = ContainerSpec {
            image: "nginx:1".into(),
            registry_auth: Secret("hidden".into()),
            ..ContainerSpec::default()
        };
        let mut task = TaskSpec { container, ..TaskSpec::default() };
        task.limits.memory_bytes = 64;
        task.placement.spread = vec!["node.labels.zone".into()];
        Service {
            id: ServiceId(Id::from_u128(36).unwrap()),
            meta: Meta { version: 9, spec_version: 7, ..Meta::default() },
            spec: Arc::new(ServiceSpec {
                name: "web".into(),
                labels: Labels::new(),
                task,
                mode: ServiceMode::Replicated(3),
                update: None,
                rollback: None,
                endpoint: None,
            }),
            previous: None,
            revision: 7,
            update: None,
            reasons: vec![Reason {
                decider: "scheduler".into(),
                code: "no-suitable-node".into(),
                message: "no node".into(),
                count: 2,
                since: Timestamp(1_000),
            }],
            endpoint: None,
        }
    }

    #[test]
    fn a_service_has_dockers_shape() {
        let facts = ServiceFacts { running: 1, desired: 3, completed: 0 };
        let expected = json!({
            "ID": "0000000000000000000000010",
            "Version": { "Index": 7 },
            "CreatedAt": "1970-01-01T00:00:00.000Z",
            "UpdatedAt": "1970-01-01T00:00:00.000Z",
            "Spec": {
                "Name": "web",
                "Labels": {},
                "TaskTemplate": {
                    "ContainerSpec": { "Image": "nginx:1" },
                    "Resources": { "Limits": { "MemoryBytes": 64 }, "Reservations": {} },
                    "RestartPolicy": {
                        "Condition": "any", "Delay": 5_000_000_000_u64, "MaxAttempts": 0,
                    },
                    "Placement": {
                        "Preferences": [{ "Spread": { "SpreadDescriptor": "node.labels.zone" } }],
                    },
                    "ForceUpdate": 0,
                    "Runtime": "container",
                },
                "Mode": { "Replicated": { "Replicas": 3 } },
            },
            "Endpoint": { "Spec": {} },
            "ServiceStatus": { "RunningTasks": 1, "DesiredTasks": 3, "CompletedTasks": 0 },
            "Reasons": [{
                "Decider": "scheduler", "Code": "no-suitable-node", "Message": "no node",
                "Count": 2, "Since": "1970-01-01T00:00:01.000Z",
            }],
        });
        let shown = service(&sample(), facts);
        assert_eq!(shown, expected);
        assert!(!shown.to_string().contains("hidden"));
    }
}
