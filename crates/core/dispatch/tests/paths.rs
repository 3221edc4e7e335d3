//! What is said of paths between nodes, made of what each of them has found.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base::{Id, Millis};
use dispatch::{Answer, judge_paths, path_condition, paths_on};
use state::{Author, Change, Snapshot};
use testkit::{apply, fixture, node_id};
use types::limits::ENCRYPTION_PORTS_DEFAULT;
use types::{
    BadPath, ConditionCode, NetworkCheck, NetworkId, NetworkKey, NetworkSpec, NodeEncryption,
    NodeId, PathCheck, PathTrouble, Subnet, TunnelCheck, encryption_port,
};

const NETWORK: NetworkId = NetworkId(Id::from_u128(77).unwrap());

/// Three nodes at 192.0.2.1, .2 and .3, all of them on the ingress network.
fn view() -> Snapshot {
    let mut view = fixture(
        "now 12:00:00
         node a ready
         node b ready
         node c ready",
    )
    .view;
    for (number, name) in (1..).zip(["a", "b", "c"]) {
        let node = view.node(node_id(name)).unwrap();
        let (id, mut status) = (node.id, node.status.clone());
        status.address = format!("192.0.2.{number}");
        apply(&mut view, Author::Dispatch, Change::SetNodeStatus { id, status });
    }
    let spec =
        NetworkSpec { name: "ingress".into(), ingress: true, ipv4: true, ..NetworkSpec::default() };
    let change = Change::CreateNetwork { id: NETWORK, spec: Arc::new(spec) };
    apply(&mut view, Author::Api, change);
    let subnets = vec![Subnet::new("10.0.0.0/16".parse().unwrap(), None, None)];
    let change = Change::AllocateNetwork { id: NETWORK, vni: 4_096, mtu: 1_450, subnets };
    apply(&mut view, Author::Allocator, change);
    view
}

fn good(peer: &str) -> PathCheck {
    PathCheck {
        node: node_id(peer),
        sent: 50,
        answered: 50,
        round_trip_us: 90,
        wanted: 1_450,
        passes: 1_450,
        tunnel: None,
    }
}

fn check(paths: Vec<PathCheck>) -> NetworkCheck {
    NetworkCheck { network: NETWORK, problems: Vec::new(), paths, strangers: Vec::new() }
}

/// All see all.
fn answers() -> BTreeMap<NodeId, Answer> {
    let of = |own: &str, peers: [&str; 2]| (node_id(own), Ok(check(peers.map(good).to_vec())));
    [of("a", ["b", "c"]), of("b", ["a", "c"]), of("c", ["a", "b"])].into()
}

fn path_to<'a>(
    answers: &'a mut BTreeMap<NodeId, Answer>,
    node: &str,
    peer: &str,
) -> &'a mut PathCheck {
    let check = answers.get_mut(&node_id(node)).unwrap().as_mut().unwrap();
    check.paths.iter_mut().find(|path| path.node == node_id(peer)).unwrap()
}

/// What is wrong, as `node[>peer]: words`.
fn wrong(view: &Snapshot, answers: &BTreeMap<NodeId, Answer>) -> Vec<String> {
    let name = |id: NodeId| view.node(id).unwrap().hostname().to_owned();
    let network = view.network(NETWORK).unwrap();
    let all = judge_paths(view, network, answers);
    assert_eq!(all.iter().filter(|verdict| verdict.peer.is_some()).count() % 2, 0);
    all.into_iter()
        .filter(|verdict| !verdict.problem.is_empty())
        .map(|verdict| match verdict.peer {
            Some(peer) => format!("{}>{}: {}", name(verdict.node), name(peer), verdict.problem),
            None => format!("{}: {}", name(verdict.node), verdict.problem),
        })
        .collect()
}

#[test]
fn nothing_is_said_where_nothing_is_wrong() {
    let view = view();
    assert!(wrong(&view, &answers()).is_empty());
    let mut few = answers();
    path_to(&mut few, "a", "b").answered = 49;
    assert!(wrong(&view, &few).is_empty(), "one lost of fifty is chance");
}

#[test]
fn each_kind_of_trouble_has_its_words() {
    let view = view();
    let mut all = answers();
    path_to(&mut all, "a", "b").answered = 40;
    path_to(&mut all, "a", "c").passes = 1_400;
    for (node, peer) in [("b", "c"), ("c", "b")] {
        *path_to(&mut all, node, peer) = PathCheck { answered: 0, passes: 0, ..good(peer) };
    }
    let check = all.get_mut(&node_id("b")).unwrap().as_mut().unwrap();
    check.problems.push("3 routes are missing".into());
    assert_eq!(
        wrong(&view, &all),
        [
            "a>b: 20 % of packets are lost",
            "a>c: wrong MTU: packets over 1400 bytes do not pass, containers send up to 1450; \
             raise the MTU of the links between, or make the network with --opt \
             com.docker.network.driver.mtu=1400",
            "b: 3 routes are missing",
            "b>c: no answer: UDP port 4789 is blocked between 192.0.2.2 and 192.0.2.3, one way or \
             both",
            "c>b: no answer: UDP port 4789 is blocked between 192.0.2.3 and 192.0.2.2, one way or \
             both",
        ]
    );
}

#[test]
fn a_tunnel_without_answers_is_named_with_what_is_known_of_it() {
    let mut view = view();
    for name in ["a", "b"] {
        say_keys(&mut view, name);
    }
    let silent = |peer: &str, tunnel: TunnelCheck| PathCheck {
        answered: 0,
        passes: 0,
        tunnel: Some(tunnel),
        ..good(peer)
    };
    let none = TunnelCheck { generation: 1, ..TunnelCheck::default() };
    let mut all = answers();
    *path_to(&mut all, "a", "b") = silent("b", none.clone());
    *path_to(&mut all, "b", "a") = silent("a", none.clone());
    *path_to(&mut all, "a", "c") = silent("c", none.clone());
    let port = encryption_port(ENCRYPTION_PORTS_DEFAULT, 1);
    assert_eq!(
        wrong(&view, &all),
        [
            format!(
                "a>b: no handshake: UDP port {port} is blocked between 192.0.2.1 and 192.0.2.2, \
                 one way or both"
            ),
            "a>c: no handshake: c has not said a key yet".to_owned(),
            format!(
                "b>a: no handshake: UDP port {port} is blocked between 192.0.2.2 and 192.0.2.1, \
                 one way or both"
            ),
        ]
    );
    // The other side says what became of it.
    let drops = BTreeMap::from([("wrong-key".to_owned(), 3)]);
    *path_to(&mut all, "b", "a") = silent("a", TunnelCheck { drops, ..none.clone() });
    let told = wrong(&view, &all);
    assert!(told[0].starts_with("a>b: wrong key: b drops what a sends"), "{told:?}");
    assert!(told[2].starts_with("b>a: wrong key: b drops what a sends"), "{told:?}");
    let old = TunnelCheck { handshake_age: Some(Millis(61_500)), ..none.clone() };
    *path_to(&mut all, "a", "b") = silent("b", old);
    let told = wrong(&view, &all);
    assert!(told[0].contains("though its last handshake is 61 s old"), "{told:?}");
    // What the node itself knows comes first, also where packets pass.
    let trouble = TunnelCheck { trouble: "the device is down".into(), ..none };
    *path_to(&mut all, "a", "b") = PathCheck { tunnel: Some(trouble), ..good("b") };
    assert_eq!(wrong(&view, &all)[0], "a>b: the device is down");
    path_to(&mut all, "a", "b").passes = 1_300;
    assert!(wrong(&view, &all)[0].starts_with("a>b: wrong MTU: packets over 1300 bytes"));
}

fn say_keys(view: &mut Snapshot, name: &str) {
    let node = view.node(node_id(name)).unwrap();
    let (id, mut description) = (node.id, node.description.clone());
    let keys = [(1, NetworkKey([name.as_bytes()[0]; 32]))].into();
    description.data_path.encryption = Some(NodeEncryption { keys, ..NodeEncryption::default() });
    let description = Box::new(description);
    apply(view, Author::Dispatch, Change::DescribeNode { id, description });
}

#[test]
fn a_translated_address_is_named_on_both_sides() {
    let view = view();
    let mut all = answers();
    for (node, peer) in [("a", "b"), ("b", "a")] {
        *path_to(&mut all, node, peer) = PathCheck { answered: 0, passes: 0, ..good(peer) };
    }
    let elsewhere: IpAddr = [198, 51, 100, 7].into();
    all.get_mut(&node_id("b")).unwrap().as_mut().unwrap().strangers = vec![elsewhere];
    let told = wrong(&view, &all);
    assert_eq!(told.len(), 2, "{told:?}");
    for text in told {
        assert!(text.contains("NAT between the nodes: b sees packets from 198.51.100.7"), "{text}");
        assert!(text.contains("none from 192.0.2.1 of a"), "{text}");
    }
    // Where every peer answers, it is somebody else.
    let mut all = answers();
    all.get_mut(&node_id("b")).unwrap().as_mut().unwrap().strangers = vec![elsewhere];
    let told = wrong(&view, &all);
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("b: packets of this network come from 198.51.100.7"), "{told:?}");
}

#[test]
fn nodes_that_said_nothing_and_peers_that_are_missing_are_named() {
    let view = view();
    let mut all = answers();
    all.remove(&node_id("c"));
    all.insert(node_id("b"), Err("it did not answer within 15 s".into()));
    let check = all.get_mut(&node_id("a")).unwrap().as_mut().unwrap();
    check.paths.retain(|path| path.node != node_id("b"));
    assert_eq!(
        wrong(&view, &all),
        [
            "a>b: it is missing among the peers; it is told within seconds",
            "a>c: node c is down",
            "b: it did not answer within 15 s",
            "c: it is down",
        ]
    );
}

#[test]
fn a_condition_names_the_peer_and_nothing_that_changes() {
    let view = view();
    let bad = |name: &str, trouble| BadPath { network: NETWORK, node: node_id(name), trouble };
    let all = [bad("b", PathTrouble::Silent), bad("c", PathTrouble::TooLarge(1_450))];
    let network = view.network(NETWORK).unwrap();
    let condition = path_condition(&view, &all).unwrap();
    assert_eq!(condition.code, ConditionCode::PeerPath);
    assert_eq!(
        condition.message,
        "b (ingress): no answer over the data path; c (ingress): packets of 1450 bytes do not pass"
    );
    assert_eq!(path_condition(&view, &[]), None);
    assert_eq!(paths_on(&view, network, &all[1..]), ["c: packets of 1450 bytes do not pass"]);
    // Silence is that of the peer, on whichever network it was watched; a size is that of one.
    let elsewhere = NetworkId(Id::from_u128(78).unwrap());
    let all = all.map(|bad| BadPath { network: elsewhere, ..bad });
    assert_eq!(paths_on(&view, network, &all), ["b: no answer over the data path"]);
}
