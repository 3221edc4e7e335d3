//! Suspicion on a node with three peers.
//!
//! Owns: nothing. Does not know: the shell. Invariant: what is undone is as before.

use base::Id;
use types::{
    EndpointMode, NetworkDriver, NetworkPart, OwnPart, PeerPart, PortPart, PortProtocol,
    PublishMode, ServicePart,
};

use super::*;
use crate::mesh::MeshLinks;
use crate::set;

fn id<T: From<Id>>(number: u128) -> T {
    T::from(Id::from_u128(number).unwrap())
}

fn network(number: u8, ingress: bool) -> NetworkPart {
    NetworkPart {
        id: id(u128::from(number)),
        name: format!("net{number}"),
        driver: NetworkDriver::Overlay,
        vni: 4096 + u32::from(number),
        mtu: 1450,
        ingress,
        internal: false,
        encrypted: false,
        subnets: vec![(format!("10.0.{number}.0/24").parse().unwrap(), [10, 0, number, 1].into())],
        options: Default::default(),
        config_from: String::new(),
    }
}

fn endpoint(network: u8, task: u8, service: u8, node: u32) -> EndpointPart {
    EndpointPart {
        network: id(u128::from(network)),
        task: id(u128::from(task)),
        service: Some(id(100 + u128::from(service))),
        node: id(u128::from(node)),
        number: node,
        v4: Some([10, 0, network, task].into()),
        v6: None,
        names: Vec::new(),
        serving: true,
    }
}

fn service(network: u8, number: u8) -> ServicePart {
    let port = PortPart {
        name: String::new(),
        protocol: PortProtocol::Tcp,
        target: 80,
        published: 8_000 + u16::from(number),
        mode: PublishMode::Ingress,
        host: String::new(),
    };
    ServicePart {
        network: id(u128::from(network)),
        service: id(100 + u128::from(number)),
        name: format!("s{number}"),
        aliases: Vec::new(),
        mode: EndpointMode::Vip,
        v4: Some([10, 0, network, 200 + number].into()),
        v6: None,
        ports: vec![port],
    }
}

/// Node 1, with peers 2, 3 and 4 on an overlay and on the mesh.
fn planner() -> Planner {
    let links =
        MeshLinks { v4: "100.64.0.0/20".parse().unwrap(), v6: "fd00:5368::/112".parse().unwrap() };
    let mut planner = Planner::new(links, "gw");
    let peer = |network: u8, number: u32| PeerPart {
        network: id(u128::from(network)),
        node: id(u128::from(number)),
        name: format!("n{number}"),
        number,
        address: [192, 0, 2, number as u8].into(),
        mtu: if number == 4 { 1_350 } else { 0 },
        encryption: None,
    };
    let update = DirectoryUpdate {
        full: true,
        own: Some(OwnPart {
            node: id(1),
            number: 1,
            data_path_port: 4789,
            encryption: types::OwnEncryption::default(),
        }),
        networks: vec![network(1, false), network(9, true)],
        peers: [1, 9].into_iter().flat_map(|n| (2..=4).map(move |p| peer(n, p))).collect(),
        services: vec![service(1, 1), service(1, 2), service(9, 1)],
        endpoints: vec![
            endpoint(1, 10, 1, 2),
            endpoint(1, 11, 1, 3),
            endpoint(1, 12, 2, 2),
            endpoint(9, 10, 1, 2),
            endpoint(9, 11, 1, 4),
        ],
        ..DirectoryUpdate::default()
    };
    planner.update(&update);
    planner
}

fn backends(planner: &Planner, scope: Scope, set: &str) -> usize {
    slots(planner.wanted(scope).unwrap(), set)
}

/// How many elements a set has; of that of backends, how many different ones the blocks have.
fn slots(wanted: &crate::Wanted, set: &str) -> usize {
    let elements = |set: &str| wanted.elements.get(set).into_iter().flatten();
    if set != set::BACKEND4 {
        return elements(set).count();
    }
    let different = |value: &crate::Value| match value {
        crate::Value::Bytes(block) => block.chunks(4).collect::<BTreeSet<_>>().len(),
        crate::Value::Member | crate::Value::Class(_) => 0,
    };
    set::BLOCKS4.iter().flat_map(|set| elements(set)).map(|(_, value)| different(value)).sum()
}

#[test]
fn a_suspected_node_gets_no_new_connections_and_no_service_is_emptied() {
    let mut planner = planner();
    let overlay = Scope::Overlay(id(1));
    let whole = (planner.wanted(overlay).cloned(), planner.wanted(Scope::Mesh).cloned());
    assert_eq!(backends(&planner, overlay, set::BACKEND4), 3);
    let (changes, update) = planner.set_suspected(BTreeSet::from([2]));
    assert!(changes.contains_key(&overlay) && changes.contains_key(&Scope::Mesh));
    // One of the first service is left, and the one of the second, though it is suspected.
    assert_eq!(backends(&planner, overlay, set::BACKEND4), 2);
    assert_eq!(backends(&planner, Scope::Mesh, set::TARGET4), 1);
    let told: Vec<_> = update.endpoints.iter().map(|e| (e.network, e.task, e.serving)).collect();
    assert_eq!(told, [(id(1), id(10), false), (id(9), id(10), false)]);
    assert_eq!(planner.take_departed().len(), 2);
    // What is said meanwhile counts, too.
    let more = DirectoryUpdate {
        endpoints: vec![endpoint(1, 13, 2, 3), endpoint(1, 14, 1, 2)],
        ..DirectoryUpdate::default()
    };
    planner.update(&more);
    assert_eq!(backends(&planner, overlay, set::BACKEND4), 2);
    let less = DirectoryUpdate {
        removed_endpoints: vec![(id(1), id(13)), (id(1), id(14))],
        ..DirectoryUpdate::default()
    };
    planner.update(&less);
    let (_, update) = planner.set_suspected(BTreeSet::new());
    assert_eq!(update.endpoints.len(), 2);
    assert!(update.endpoints.iter().all(|part| part.serving));
    let elements = |wanted: &Option<crate::Wanted>, set| slots(wanted.as_ref().unwrap(), set);
    let now = (planner.wanted(overlay).cloned(), planner.wanted(Scope::Mesh).cloned());
    for set in [set::BACKEND4, set::VIP4, set::TARGET4, set::PUBLISHED4] {
        assert_eq!(elements(&now.0, set), elements(&whole.0, set), "{set}");
        assert_eq!(elements(&now.1, set), elements(&whole.1, set), "{set}");
    }
    let (changes, update) = planner.set_suspected(BTreeSet::new());
    assert!(changes.is_empty() && update.is_empty());
}

#[test]
fn too_many_silent_peers_are_none() {
    for (silent, peers, want) in [(1, 2, 1), (1, 1, 0), (2, 2, 0), (3, 8, 3), (4, 8, 0), (0, 0, 0)]
    {
        let silent: BTreeSet<u32> = (1..=silent).collect();
        assert_eq!(suspects(silent.clone(), peers).len() as u32, want, "{silent:?} of {peers}");
    }
}

#[test]
fn peers_are_told_with_the_size_that_reaches_them() {
    let mut planner = planner();
    let all = planner.peers(&AllPeers::new(), |_| true);
    assert_eq!(all.len(), 2);
    let mtus: Vec<u32> = all[&Scope::Mesh].peers.values().map(|peer| peer.mtu).collect();
    assert_eq!(mtus, [1_450, 1_450, 1_350]);
    let gone =
        DirectoryUpdate { removed_peers: vec![(id(1), id(2))], ..DirectoryUpdate::default() };
    planner.update(&gone);
    let now = planner.peers(&all, |network| network == id(1));
    assert_eq!(now[&Scope::Overlay(id(1))].peers.len(), 2);
    assert!(Arc::ptr_eq(&now[&Scope::Mesh], &all[&Scope::Mesh]));
}
