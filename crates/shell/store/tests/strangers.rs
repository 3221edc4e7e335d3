//! Who may speak Raft to a manager: every other caller is refused, call by call.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use futures::stream;
use pki::{Connector, Expected, NodeTls, Role, connector_for};
use support::{Cluster, Node, leader, propose, small_floor};
use tonic::{Code, Status};
use wire::raft_v1::{self as pb, raft_client::RaftClient};

const PROTOCOL: &[u8] = b"shoal-raft";
const CALLS: [&str; 5] = ["append", "heartbeat", "vote", "snapshot", "transfer"];

fn connect(connector: Connector, node: &Node) -> RaftClient<tonic::transport::Channel> {
    RaftClient::new(pki::channel(&node.addr.to_string(), connector).unwrap())
}

fn connector(tls: &Arc<NodeTls>) -> Connector {
    connector_for(tls, Expected::default(), PROTOCOL).unwrap()
}

/// A ballot of a term so high that it would win, were it listened to.
fn ballot() -> Option<pb::Ballot> {
    Some(pb::Ballot { term: 1_000, leader: 2, committed: false })
}

async fn call(
    client: &mut RaftClient<tonic::transport::Channel>,
    name: &str,
    route: Option<pb::Route>,
) -> Result<(), Status> {
    let append = pb::AppendRequest { route, ballot: ballot(), ..Default::default() };
    match name {
        "append" => client.append(stream::iter([append])).await.map(drop),
        "heartbeat" => client.heartbeat(append).await.map(drop),
        "vote" => {
            let vote = pb::VoteRequest { route, ballot: ballot(), ..Default::default() };
            client.vote(vote).await.map(drop)
        }
        "snapshot" => {
            let head = pb::SnapshotHead { route, ballot: ballot(), ..Default::default() };
            let part = Some(pb::snapshot_part::Part::Head(head));
            client.snapshot(stream::iter([pb::SnapshotPart { part }])).await.map(drop)
        }
        _ => {
            let transfer = pb::TransferRequest { route, from: ballot(), ..Default::default() };
            client.transfer(transfer).await.map(drop)
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_right_manager_is_listened_to() {
    let cluster = Cluster::new(small_floor());
    let mut nodes = cluster.managers(2).await;
    let term = nodes[0].store().leadership().borrow().term;
    let target = leader(&nodes).await;
    let (own, other) = (nodes[target].number, nodes[1 - target].number);
    let route = |from, to| Some(pb::Route { from, to });
    let worker = cluster.tls(other, Role::Worker);
    let stranger = cluster.tls(77, Role::Manager);
    let manager = cluster.tls(other, Role::Manager);
    for (who, connector, route, code) in [
        ("worker", connector(&worker), route(other, own), Code::PermissionDenied),
        ("node of another number", connector(&stranger), route(other, own), Code::PermissionDenied),
        ("unknown manager", connector(&stranger), route(77, own), Code::PermissionDenied),
        ("other target", connector(&manager), route(other, 55), Code::FailedPrecondition),
        ("no route", connector(&manager), None, Code::InvalidArgument),
    ] {
        for name in CALLS {
            let mut client = connect(connector.clone(), &nodes[target]);
            let status = call(&mut client, name, route).await.unwrap_err();
            assert_eq!(status.code(), code, "{who} {name}: {status}");
        }
    }
    // Nobody has won an election with that.
    propose(&nodes, "a=1").await;
    assert_eq!(nodes[target].store().leadership().borrow().term, term);
    for node in &mut nodes {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_certificate_or_with_one_of_another_cluster_nothing_is_answered() {
    let cluster = Cluster::new(small_floor());
    let mut nodes = cluster.managers(1).await;
    let foreign = Cluster::new(small_floor()).tls(1, Role::Manager);
    let pinned = pki::Pinned::new(cluster.root.digest()).unwrap();
    for name in CALLS {
        let route = Some(pb::Route { from: 2, to: 1 });
        let mut client = connect(connector(&foreign), &nodes[0]);
        assert!(call(&mut client, name, route).await.is_err(), "{name}");
        // Without certificate it is not Raft's protocol either: no such service there.
        let mut client = connect(pinned.connector(), &nodes[0]);
        assert!(call(&mut client, name, route).await.is_err(), "{name}");
    }
    for node in &mut nodes {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_messages_are_refused_and_change_nothing() {
    let cluster = Cluster::new(small_floor());
    let mut nodes = cluster.managers(2).await;
    let target = leader(&nodes).await;
    let (own, other) = (nodes[target].number, nodes[1 - target].number);
    let route = Some(pb::Route { from: other, to: own });
    let manager = cluster.tls(other, Role::Manager);
    let mut client = connect(connector(&manager), &nodes[target]);
    let entries = vec![vec![9u8; 40].into()];
    let append = pb::AppendRequest { route, ballot: ballot(), entries, ..Default::default() };
    let status = client.heartbeat(append).await.unwrap_err();
    assert!(status.message().contains("cannot be read"), "{status}");
    let vote = pb::VoteRequest { route, ..Default::default() };
    let status = client.vote(vote).await.unwrap_err();
    assert!(status.message().contains("lacks ballot"), "{status}");
    propose(&nodes, "a=1").await;
    for node in &mut nodes {
        node.kill().await;
    }
}
