//! What stands on a service because of what nodes say of ports and paths.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::collections::BTreeMap;
use std::sync::Arc;

use base::Id;
use dispatch::Hindrances;
use state::{Author, Change, Snapshot};
use testkit::{apply, fixture, node_id, service_id};
use types::{
    Attachment, BadPath, Condition, ConditionCode, EndpointSpec, NetworkAttachment, NetworkId,
    NetworkSpec, NodeId, NodeState, PathTrouble, PortBinding, PortProtocol, PortSpec, PublishMode,
    Subnet, TaskId, TaskNetwork,
};

const BACK: NetworkId = NetworkId(Id::from_u128(77).unwrap());

/// Two tasks of web on the network back, on the nodes a and b; c has none, and db is elsewhere.
fn view() -> Snapshot {
    let mut view = fixture(
        "now 12:00:00
         node a ready
         node b ready
         node c ready
         service db replicas=1
         service web replicas=2
         task db.1 @c running
         task web.1 @a new
         task web.2 @b new",
    )
    .view;
    let spec = NetworkSpec { name: "back".into(), ipv4: true, ..NetworkSpec::default() };
    apply(&mut view, Author::Api, Change::CreateNetwork { id: BACK, spec: Arc::new(spec) });
    let subnets = vec![Subnet::new("10.0.0.0/16".parse().unwrap(), None, None)];
    let change = Change::AllocateNetwork { id: BACK, vni: 4_096, mtu: 1_450, subnets };
    apply(&mut view, Author::Allocator, change);
    let old = Arc::clone(view.service(service_id("web")).unwrap());
    let mut spec = (*old.spec).clone();
    let target = BACK.to_string();
    spec.task.networks.push(NetworkAttachment { target, ..NetworkAttachment::default() });
    let change =
        Change::UpdateService { id: old.id, expect: old.meta.spec_version, spec: Arc::new(spec) };
    apply(&mut view, Author::Api, change);
    let tasks: Vec<TaskId> = view.tasks_of_service(old.id).map(|task| task.id).collect();
    for (number, task) in (10..).zip(tasks) {
        let v4 = Some([10, 0, 0, number].into());
        let attachments = vec![Attachment { network: BACK, v4, v6: None }];
        let network = TaskNetwork { attachments, ..TaskNetwork::default() };
        apply(&mut view, Author::Allocator, Change::AttachTasks(vec![(task, network)]));
    }
    view
}

fn hold(view: &mut Snapshot, node: &str, address: Option<&str>, state: NodeState) {
    let node = Arc::clone(view.node(node_id(node)).unwrap());
    let address = address.map(|address| address.parse().unwrap());
    let ports = vec![PortBinding { protocol: PortProtocol::Tcp, port: 8_080, address }];
    let condition = Condition { ports, ..Condition::new(ConditionCode::PortTaken, "words") };
    let status = types::NodeStatus { state, conditions: vec![condition], ..node.status.clone() };
    apply(view, Author::Dispatch, Change::SetNodeStatus { id: node.id, status });
}

fn port(mode: PublishMode, host: &str) -> PortSpec {
    let host = host.to_owned();
    PortSpec { target: 80, published: 8_080, mode, host, ..PortSpec::default() }
}

/// Codes, counts and words, for a service that publishes these ports.
fn said(
    view: &Snapshot,
    service: &str,
    ports: &[PortSpec],
    bad: &[(&str, BadPath)],
) -> Vec<String> {
    let mut service = (**view.service(service_id(service)).unwrap()).clone();
    let endpoint = EndpointSpec { ports: ports.to_vec(), ..EndpointSpec::default() };
    Arc::make_mut(&mut service.spec).endpoint = Some(endpoint);
    let mut all: BTreeMap<NodeId, Vec<BadPath>> = BTreeMap::new();
    bad.iter().for_each(|(node, bad)| all.entry(node_id(node)).or_default().push(*bad));
    let reasons = Hindrances::new(view, all).reasons(&service);
    reasons.iter().map(|one| format!("{} {}: {}", one.code, one.count, one.message)).collect()
}

const HELD: &str = "not published where a program of the host holds the port: 8080/tcp on";

#[test]
fn a_held_port_of_the_mesh_names_every_live_node_and_one_of_tasks_those_with_tasks() {
    let mut view = self::view();
    let mesh = [port(PublishMode::Ingress, "")];
    assert!(said(&view, "web", &mesh, &[]).is_empty());
    for node in ["a", "c"] {
        hold(&mut view, node, None, NodeState::Ready);
    }
    hold(&mut view, "b", None, NodeState::Down);
    assert_eq!(said(&view, "web", &mesh, &[]), [format!("port-taken 2: {HELD} a, c")]);
    assert!(said(&view, "db", &[], &[]).is_empty(), "it publishes nothing");
    let host = [port(PublishMode::Host, "")];
    assert_eq!(said(&view, "web", &host, &[]), [format!("port-taken 1: {HELD} a")]);
}

#[test]
fn a_port_of_one_address_is_another_than_that_of_all() {
    for (host, held, concerns) in [
        ("192.0.2.1", Some("192.0.2.1"), true),
        ("192.0.2.1", Some("192.0.2.2"), false),
        ("192.0.2.1", None, false),
        ("[fd00::1]", Some("fd00::1"), true),
        ("eth1", Some("192.0.2.1"), true),
        ("eth1", None, false),
        ("", Some("192.0.2.1"), false),
        ("0.0.0.0", None, true),
    ] {
        let mut view = self::view();
        hold(&mut view, "a", held, NodeState::Ready);
        let told = said(&view, "web", &[port(PublishMode::Ingress, host)], &[]);
        assert_eq!(!told.is_empty(), concerns, "{host} {held:?}");
    }
}

#[test]
fn bad_paths_concern_services_with_tasks_at_an_end_of_them() {
    let view = self::view();
    let bad = |node, network, trouble| BadPath { network, node: node_id(node), trouble };
    let silent = |node| bad(node, BACK, PathTrouble::Silent);
    assert_eq!(
        said(&view, "web", &[], &[("a", silent("b")), ("b", silent("a"))]),
        ["bad-path 2: not reached from everywhere: a - b (back): no answer over the data path"]
    );
    let large = bad("b", BACK, PathTrouble::TooLarge(1_450));
    let told = said(&view, "web", &[], &[("a", large)]);
    assert!(told[0].ends_with("a - b (back): packets of 1450 bytes do not pass"), "{told:?}");
    // Where the peer is watched on another network, silence is one of all; sizes are of one.
    let other = NetworkId(Id::from_u128(78).unwrap());
    let elsewhere = [("a", bad("b", other, PathTrouble::Silent))];
    assert_eq!(said(&view, "web", &[], &elsewhere).len(), 1);
    let elsewhere = [("a", bad("b", other, PathTrouble::TooLarge(1_450)))];
    assert!(said(&view, "web", &[], &elsewhere).is_empty());
    let absent = [("a", bad("c", other, PathTrouble::Silent))];
    assert!(said(&view, "web", &[], &absent).is_empty(), "c is not on it");
    assert!(said(&view, "db", &[], &[("a", silent("c"))]).is_empty(), "it is not on that network");
}
