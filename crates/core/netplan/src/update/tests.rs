//! An update taken in two steps, beside the same in one.
//!
//! Owns: nothing. Does not know: the shell. Invariant: routes that were handed over, and what is
//! answered after them, are the way to what is wanted.

use std::net::Ipv4Addr;

use base::Id;
use types::{
    EndpointMode, EndpointPart, OwnEncryption, OwnPart, PortPart, PortProtocol, PublishMode,
    ServicePart,
};

use super::*;
use crate::mesh::MeshLinks;
use crate::overlay::tests::carry_out;
use crate::overlay::{MAIN, host_net};
use crate::plan::{HostPortPlan, LocalLink};
use crate::state::{Surplus, Wanted};

fn id<T: From<Id>>(number: u32) -> T {
    T::from(Id::from_u128(u128::from(number) + 1).unwrap())
}

fn network(number: u32) -> NetworkPart {
    NetworkPart {
        id: id(number),
        name: format!("net{number}"),
        driver: NetworkDriver::Overlay,
        vni: 4096 + number,
        mtu: 1450,
        ingress: number == 9,
        internal: false,
        encrypted: false,
        subnets: vec![("10.0.0.0/8".parse().unwrap(), [10, 0, 0, 1].into())],
        options: Default::default(),
        config_from: String::new(),
    }
}

fn peer(network: u32, number: u32) -> PeerPart {
    PeerPart {
        network: id(network),
        node: id(number),
        name: format!("n{number}"),
        number,
        address: [192, 0, 2, number as u8].into(),
        mtu: if number == 4 { 1_350 } else { 0 },
        encryption: None,
    }
}

fn service(network: u32, number: u32) -> ServicePart {
    ServicePart {
        network: id(network),
        service: id(1_000 + number),
        name: format!("s{number}"),
        aliases: Vec::new(),
        mode: EndpointMode::Vip,
        v4: Some(Ipv4Addr::from_bits(0x0a01_0000 + number)),
        v6: None,
        ports: Vec::new(),
    }
}

fn endpoint(network: u32, number: u32, node: u32) -> EndpointPart {
    EndpointPart {
        network: id(network),
        task: id(10_000 + number),
        service: Some(id(1_000 + number % 100)),
        node: id(node),
        number: node,
        v4: Some(Ipv4Addr::from_bits(0x0a10_0000 + number)),
        v6: Some(std::net::Ipv6Addr::from_bits((0xfd << 120) + u128::from(number))),
        names: Vec::new(),
        serving: true,
    }
}

/// Three peers on each network, and so many endpoints on all nodes in turn.
fn update(networks: &[u32], endpoints: u32) -> DirectoryUpdate {
    let pairs = |number: u32| networks.iter().map(move |network| (*network, number));
    let own = OwnPart {
        node: id(1),
        number: 1,
        data_path_port: 4789,
        encryption: OwnEncryption::default(),
    };
    DirectoryUpdate {
        full: true,
        own: Some(own),
        networks: networks.iter().map(|number| network(*number)).collect(),
        peers: (2..=4).flat_map(pairs).map(|(network, number)| peer(network, number)).collect(),
        services: (0..100).flat_map(pairs).map(|(n, number)| service(n, number)).collect(),
        endpoints: (0..endpoints)
            .flat_map(pairs)
            .map(|(network, number)| endpoint(network, number, 1 + number % 4))
            .collect(),
        ..DirectoryUpdate::default()
    }
}

fn planner() -> Planner {
    let links =
        MeshLinks { v4: "100.64.0.0/20".parse().unwrap(), v6: "fd00:5368::/112".parse().unwrap() };
    Planner::new(links, "gw")
}

const NETWORKS: [u32; 3] = [1, 2, 9];

fn scopes() -> [Scope; 3] {
    [Scope::Overlay(id(1)), Scope::Overlay(id(2)), Scope::Mesh]
}

/// Takes an update in two steps; what was wanted in the middle, with all routes in their order.
fn in_two_steps(
    planner: &mut Planner,
    update: &DirectoryUpdate,
) -> BTreeMap<Scope, (Wanted, usize)> {
    let mut begun = planner.begin(update);
    let mut held: BTreeMap<Scope, (Wanted, usize)> = BTreeMap::new();
    for scope in scopes() {
        begun.note_done(scope);
        held.insert(scope, (planner.wanted(scope).unwrap().clone(), 0));
    }
    let changes = planner.finish(begun, |scope, routes| {
        let (held, parts) = held.get_mut(&scope).unwrap();
        held.routes.extend(std::mem::take(routes));
        *parts += 1;
    });
    for (scope, changes) in changes {
        let Some((held, _)) = held.get_mut(&scope) else { continue };
        held.routes.extend(changes.routes);
        for key in changes.routes_gone {
            held.routes.remove(&key);
        }
    }
    held
}

#[test]
fn routes_that_are_handed_over_and_the_rest_are_all_that_is_wanted() {
    let update = update(&NETWORKS, 10_000);
    let (mut one, mut two) = (planner(), planner());
    one.update(&update);
    let held = in_two_steps(&mut two, &update);
    for scope in scopes() {
        let wanted = one.wanted(scope).unwrap();
        assert!(two.wanted(scope) == Some(wanted), "{scope:?}");
        let (held, parts) = &held[&scope];
        assert!(held.routes == wanted.routes, "{scope:?}");
        assert_eq!(*parts, 10_000 * 2 * 3 / 4 / ROUTES_AT_ONCE, "{scope:?}");
        let differing = wanted.route_changes_from(held, Surplus::Remove);
        assert_eq!(differing.len(), 0, "{scope:?}");
    }
}

#[test]
fn addresses_that_move_and_go_in_one_update_are_where_they_are_wanted() {
    let mut planner = planner();
    planner.update(&update(&NETWORKS, 10_000));
    // All on other nodes, every address a task further, and the last ones go.
    let mut second = update(&NETWORKS, 9_000);
    for part in &mut second.endpoints {
        part.number = part.number % 4 + 1;
        part.node = id(part.number);
        part.v4 = part.v4.map(|address| Ipv4Addr::from_bits(address.to_bits() + 1));
    }
    let held = in_two_steps(&mut planner, &second);
    let mut fresh = self::planner();
    fresh.update(&second);
    for scope in scopes() {
        let (held, parts) = &held[&scope];
        assert!(*parts > 0);
        assert!(held.routes == planner.wanted(scope).unwrap().routes, "{scope:?}");
        assert!(held.routes == fresh.wanted(scope).unwrap().routes, "{scope:?}");
    }
    let first = RouteKey { table: MAIN, net: host_net(Ipv4Addr::from_bits(0x0a10_0000).into()) };
    assert!(!held[&Scope::Mesh].0.routes.contains_key(&first));
}

type Elements = BTreeMap<&'static str, crate::Elements>;

fn without_empty(all: &Elements) -> Elements {
    all.iter().filter(|(_, all)| !all.is_empty()).map(|(set, all)| (*set, all.clone())).collect()
}

fn published(service: &mut ServicePart, ports: &[u16]) {
    let port = |published: &u16| PortPart {
        name: String::new(),
        protocol: PortProtocol::Tcp,
        target: 80,
        published: *published,
        mode: PublishMode::Ingress,
        host: String::new(),
    };
    service.ports = ports.iter().map(port).collect();
}

#[test]
fn what_a_service_leaves_another_one_gets_in_the_same_update() {
    let mut first = update(&NETWORKS, 400);
    let edge = |number: u32| usize::try_from(number).unwrap() * NETWORKS.len();
    for (number, ports) in [(0, [80, 81]), (99, [90, 91])] {
        first.services[edge(number)..][..3].iter_mut().for_each(|one| published(one, &ports));
    }
    // Each has what the other one had, whichever is taken first.
    let mut second = first.clone();
    let (one, other) = (edge(0), edge(99));
    for at in 0..NETWORKS.len() {
        let (v4, ports) = (first.services[one + at].v4, first.services[one + at].ports.clone());
        second.services[one + at].v4 = first.services[other + at].v4;
        second.services[one + at].ports = first.services[other + at].ports.clone();
        (second.services[other + at].v4, second.services[other + at].ports) = (v4, ports);
    }
    // One goes, and its place is taken.
    let mut third = second.clone();
    third.services.drain(other..);
    for at in 0..NETWORKS.len() {
        third.services[one + at].v4 = second.services[other + at].v4;
        third.services[one + at].ports = second.services[other + at].ports.clone();
    }
    let (mut planner, mut kernel) = (planner(), BTreeMap::<Scope, Elements>::new());
    for scope in scopes() {
        kernel.insert(scope, planner.wanted(scope).map(|w| w.elements.clone()).unwrap_or_default());
    }
    for update in [&first, &second, &third, &first] {
        for (scope, changes) in planner.update(update) {
            let Some(kernel) = kernel.get_mut(&scope) else { continue };
            carry_out(kernel, &changes.edits);
            carry_out(kernel, &changes.later);
            let wanted = &planner.wanted(scope).unwrap().elements;
            assert!(without_empty(kernel) == without_empty(wanted), "{scope:?}");
        }
        let mut fresh = self::planner();
        fresh.update(update);
        for scope in scopes() {
            // Which slot a backend is in depends on those before it.
            let keys = |planner: &Planner| {
                let elements = planner.wanted(scope).unwrap().elements.clone().into_iter();
                let keys = elements.map(|(set, all)| (set, all.into_keys().collect::<Vec<_>>()));
                keys.filter(|(_, keys)| !keys.is_empty()).collect::<Vec<_>>()
            };
            assert!(keys(&planner) == keys(&fresh), "{scope:?}");
        }
    }
}

#[test]
fn a_port_that_a_container_has_is_the_services_once_it_has_left() {
    let mut planner = planner();
    let mut all = update(&NETWORKS, 400);
    planner.update(&all);
    let end = LocalLink {
        link: "t1".into(),
        v4: Some([100, 64, 0, 9].into()),
        hardware: [2, 0, 0, 0, 0, 9],
        ..LocalLink::default()
    };
    let port = HostPortPlan {
        protocol: PortProtocol::Tcp,
        published: 40_000,
        target: 8080,
        host: String::new(),
    };
    let container =
        LocalContainer { links: vec![end], host_ports: vec![port], ..LocalContainer::default() };
    planner.attach("one", container);
    let targets = |planner: &Planner| {
        let elements = planner.wanted(Scope::Mesh).unwrap().elements.get(crate::set::TARGET4);
        elements.map_or(0, BTreeMap::len)
    };
    assert_eq!((targets(&planner), planner.contested().len()), (1, 0));
    // The node chose the port, and nobody else knew when a service was given the same.
    all.services[2].network = id(9);
    published(&mut all.services[2], &[40_000]);
    planner.update(&all);
    assert_eq!((targets(&planner), planner.contested().len()), (1, 1));
    planner.detach("one");
    assert_eq!((targets(&planner), planner.contested().len()), (4, 0));
    all.services[2].ports.clear();
    planner.update(&all);
    assert_eq!(targets(&planner), 0);
}
