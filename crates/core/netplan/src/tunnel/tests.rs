//! Encrypted networks on a node, beside plain ones.
//!
//! Owns: nothing. Does not know: the shell. Invariant: what was learned in steps is as what is
//! learned at once.

use base::Id;
use proptest::prelude::*;
use types::{DirectoryUpdate, EndpointPart, NetworkDriver, OwnEncryption, OwnPart, PeerEncryption};

use super::*;
use crate::mesh::MeshLinks;
use crate::numbers::node_hardware;
use crate::state::Surplus;

fn id<T: From<Id>>(number: u128) -> T {
    T::from(Id::from_u128(number).unwrap())
}

fn network(number: u8, encrypted: bool) -> NetworkPart {
    NetworkPart {
        id: id(u128::from(number)),
        name: format!("net{number}"),
        driver: NetworkDriver::Overlay,
        vni: 4096 + u32::from(number),
        mtu: 1370,
        ingress: number == 9,
        internal: false,
        encrypted,
        subnets: vec![(format!("10.0.{number}.0/24").parse().unwrap(), [10, 0, number, 1].into())],
        options: Default::default(),
        config_from: String::new(),
    }
}

fn peer(network: u8, number: u32, address: u8) -> PeerPart {
    PeerPart {
        network: id(u128::from(network)),
        node: id(100 + u128::from(number)),
        name: format!("n{number}"),
        number,
        address: [192, 0, 2, address].into(),
        mtu: 0,
        encryption: Some(PeerEncryption {
            keys: [(1, NetworkKey([number as u8; 32]))].into(),
            sends_with: 1,
        }),
    }
}

fn endpoint(network: u8, number: u32) -> EndpointPart {
    EndpointPart {
        network: id(u128::from(network)),
        task: id(1000 + u128::from(network) * 100 + u128::from(number)),
        service: None,
        node: id(100 + u128::from(number)),
        number,
        v4: Some([10, 0, network, number as u8].into()),
        v6: None,
        names: Vec::new(),
        serving: true,
    }
}

fn own(number: u32) -> OwnPart {
    OwnPart { node: id(100), number, data_path_port: 4789, encryption: OwnEncryption::default() }
}

fn planner() -> Planner {
    let links =
        MeshLinks { v4: "100.64.0.0/20".parse().unwrap(), v6: "fd00:5368::/112".parse().unwrap() };
    Planner::new(links, "gw")
}

fn elements(planner: &Planner, scope: Scope, set: &str) -> Vec<Vec<u8>> {
    let all = planner.wanted(scope).and_then(|wanted| wanted.elements.get(set));
    all.into_iter().flat_map(BTreeMap::keys).map(|key| key.to_vec()).collect()
}

#[test]
fn an_encrypted_network_leads_into_the_tunnel_and_the_host_lets_nothing_of_it_pass() {
    let mut planner = planner();
    let update = DirectoryUpdate {
        full: true,
        own: Some(own(1)),
        networks: vec![network(1, false), network(2, true)],
        peers: vec![peer(1, 2, 12), peer(2, 2, 12), peer(2, 3, 13)],
        ..DirectoryUpdate::default()
    };
    planner.update(&update);
    let at = |planner: &Planner, network: u8, number| {
        let wanted = planner.wanted(Scope::Overlay(id(u128::from(network)))).unwrap();
        wanted.forwarding.get(&node_hardware(number)).copied()
    };
    assert_eq!(at(&planner, 1, 2), Some([192, 0, 2, 12].into()));
    assert_eq!(at(&planner, 2, 2), Some([10, 0, 0, 2].into()));
    assert_eq!(elements(&planner, Scope::Host, set::SEALED), [[0, 0x10, 2, 0]]);
    assert_eq!(elements(&planner, Scope::Host, set::VNIS).len(), 2);
    let members = elements(&planner, Scope::Host, set::MEMBERS4);
    assert_eq!(members, [[192, 0, 2, 12, 0, 0x10, 1, 0]]);
    let tunnel = planner.wanted(Scope::Tunnel).unwrap();
    assert!(tunnel.addresses.contains(&("lo".into(), "10.0.0.1/32".parse().unwrap())));
    assert_eq!(elements(&planner, Scope::Tunnel, set::MEMBERS4).len(), 2);
    assert!(tunnel.routes.is_empty(), "no generation is chosen yet");
    let changes = planner.set_generations([(2, 1), (3, 2), (7, 1)].into());
    assert_eq!(changes[&Scope::Tunnel].routes.len(), 2);
    let links: Vec<String> = planner
        .wanted(Scope::Tunnel)
        .unwrap()
        .routes
        .values()
        .filter_map(|to| to.link.map(|link| link.to_string()))
        .collect();
    assert_eq!(links, ["wg1", "wg0"]);
    // A node that leaves is not led to any more, at once.
    let gone =
        DirectoryUpdate { removed_peers: vec![(id(2), id(103))], ..DirectoryUpdate::default() };
    let changes = planner.update(&gone);
    assert_eq!(changes[&Scope::Tunnel].routes_gone.len(), 1);
    assert_eq!(planner.tunnel_nodes().into_keys().collect::<Vec<_>>(), [2]);
    let last = DirectoryUpdate { removed_networks: vec![id(2)], ..DirectoryUpdate::default() };
    planner.update(&last);
    assert!(planner.wanted(Scope::Tunnel).is_none() && !planner.is_tunnelled());
    assert!(elements(&planner, Scope::Host, set::SEALED).is_empty());
}

#[test]
fn of_two_peers_with_one_key_the_first_has_it() {
    let mut planner = planner();
    let mut twin = peer(2, 3, 13);
    twin.encryption = peer(2, 2, 12).encryption;
    let update = DirectoryUpdate {
        full: true,
        own: Some(own(1)),
        networks: vec![network(2, true)],
        peers: vec![peer(2, 2, 12), twin],
        ..DirectoryUpdate::default()
    };
    planner.update(&update);
    let nodes = planner.tunnel_nodes();
    assert_eq!(nodes[&2].encryption.keys.len(), 1);
    assert!(nodes[&3].encryption.keys.is_empty() && nodes[&3].doubles.contains(&1));
}

#[test]
fn the_tunnels_ports_are_no_containers_business() {
    let mut planner = planner();
    planner.update(&DirectoryUpdate { own: Some(own(1)), ..DirectoryUpdate::default() });
    let guarded = elements(&planner, Scope::Mesh, set::GUARDED);
    assert_eq!(guarded, [[17, 0, 0, 0, 0x12, 0xb9, 0, 0], [17, 0, 0, 0, 0x12, 0xba, 0, 0]]);
    planner.set_managers(&["192.0.2.1:2377".parse().unwrap()].into());
    assert_eq!(elements(&planner, Scope::Mesh, set::GUARDED).len(), 3);
}

/// What is learned of three networks, one of them the mesh's, and three peers.
#[derive(Clone, Debug)]
enum Step {
    /// A network is there, encrypted or not, or not there.
    Network(u8, Option<bool>),
    /// A peer is on it, at an address, or is not.
    Peer(u8, u32, Option<u8>),
    Endpoint(u8, u32, bool),
    Own(u32),
    Uses(BTreeMap<u32, u32>),
}

fn step() -> impl Strategy<Value = Step> {
    let number = || prop_oneof![Just(1u8), Just(2), Just(9)];
    prop_oneof![
        (number(), prop::option::of(any::<bool>())).prop_map(|(n, e)| Step::Network(n, e)),
        (number(), 2u32..5, prop::option::of(1u8..4)).prop_map(|(n, p, a)| Step::Peer(n, p, a)),
        (number(), 2u32..5, any::<bool>()).prop_map(|(n, p, there)| Step::Endpoint(n, p, there)),
        (10u32..12).prop_map(Step::Own),
        prop::collection::btree_map(2u32..5, 1u32..3, 0..4).prop_map(Step::Uses),
    ]
}

/// The whole that steps lead to.
#[derive(Default)]
struct Known {
    own: u32,
    networks: BTreeMap<u8, bool>,
    peers: BTreeMap<(u8, u32), u8>,
    endpoints: BTreeSet<(u8, u32)>,
    uses: BTreeMap<u32, u32>,
}

impl Known {
    fn as_update(&self) -> DirectoryUpdate {
        DirectoryUpdate {
            full: true,
            own: Some(own(self.own)),
            networks: self.networks.iter().map(|(n, e)| network(*n, *e)).collect(),
            peers: self.peers.iter().map(|((n, p), a)| peer(*n, *p, *a)).collect(),
            endpoints: self.endpoints.iter().map(|(n, p)| endpoint(*n, *p)).collect(),
            ..DirectoryUpdate::default()
        }
    }

    /// Takes a step, and says it as an increment.
    fn take(&mut self, step: &Step) -> DirectoryUpdate {
        let mut update = DirectoryUpdate::default();
        match step {
            Step::Network(number, Some(encrypted)) => {
                self.networks.insert(*number, *encrypted);
                update.networks.push(network(*number, *encrypted));
            }
            Step::Network(number, None) => {
                self.networks.remove(number);
                self.peers.retain(|(network, _), _| network != number);
                self.endpoints.retain(|(network, _)| network != number);
                update.removed_networks.push(id(u128::from(*number)));
            }
            Step::Peer(number, peer, address) if self.networks.contains_key(number) => {
                match address {
                    Some(address) => {
                        self.peers.insert((*number, *peer), *address);
                        update.peers.push(self::peer(*number, *peer, *address));
                    }
                    None => {
                        self.peers.remove(&(*number, *peer));
                        let key = (id(u128::from(*number)), id(100 + u128::from(*peer)));
                        update.removed_peers.push(key);
                    }
                }
            }
            Step::Endpoint(number, peer, there) if self.networks.contains_key(number) => {
                let part = endpoint(*number, *peer);
                if *there {
                    self.endpoints.insert((*number, *peer));
                    update.endpoints.push(part);
                } else {
                    self.endpoints.remove(&(*number, *peer));
                    update.removed_endpoints.push((part.network, part.task));
                }
            }
            Step::Own(number) => {
                self.own = *number;
                update.own = Some(own(*number));
            }
            Step::Uses(uses) => self.uses.clone_from(uses),
            Step::Peer(..) | Step::Endpoint(..) => {}
        }
        update
    }
}

fn scopes(planner: &Planner) -> Vec<Scope> {
    let overlays = planner.networks().map(|part| Scope::Overlay(part.id));
    let all = overlays.chain([Scope::Mesh, Scope::Host]);
    all.chain(planner.is_tunnelled().then_some(Scope::Tunnel)).collect()
}

/// Without sets that nothing is in.
fn whole(planner: &Planner, scope: Scope) -> Option<Wanted> {
    let mut wanted = planner.wanted(scope)?.clone();
    wanted.elements.retain(|_, elements| !elements.is_empty());
    Some(wanted)
}

/// What a namespace holds after changes: those answered must say all that became different.
fn follow(held: &mut BTreeMap<Scope, Wanted>, changes: &All, planner: &Planner) {
    held.retain(|scope, _| planner.wanted(*scope).is_some());
    for scope in scopes(planner) {
        let wanted = planner.wanted(scope).unwrap();
        let Some(before) = held.get_mut(&scope) else {
            held.insert(scope, wanted.clone());
            continue;
        };
        let differing = wanted.changes_from(before, Surplus::Remove);
        let said = changes.get(&scope).cloned().unwrap_or_default();
        for (key, _) in &differing.routes {
            assert!(said.routes.iter().any(|(said, _)| said == key), "{scope:?} {key:?}");
        }
        for key in &differing.routes_gone {
            assert!(said.routes_gone.contains(key), "{scope:?} {key:?}");
        }
        for (key, _) in &differing.forwarding {
            assert!(said.forwarding.iter().any(|(said, _)| said == key), "{scope:?} {key:?}");
        }
        for key in &differing.addresses_gone {
            assert!(said.addresses_gone.contains(key), "{scope:?} {key:?}");
        }
        let edits = differing.edits.len() + differing.later.len();
        assert!(said.edits.len() + said.later.len() >= edits, "{scope:?}");
        *before = wanted.clone();
    }
}

proptest! {
    #[test]
    fn steps_lead_where_the_whole_does(steps in prop::collection::vec(step(), 1..40)) {
        let mut known = Known { own: 10, ..Known::default() };
        let (mut stepwise, mut held) = (planner(), BTreeMap::new());
        let changes = stepwise.update(&known.as_update());
        follow(&mut held, &changes, &stepwise);
        for step in steps {
            let update = known.take(&step);
            let changes = match &step {
                Step::Uses(uses) => stepwise.set_generations(uses.clone()),
                _ => stepwise.update(&update),
            };
            follow(&mut held, &changes, &stepwise);
            let mut fresh = planner();
            fresh.update(&known.as_update());
            fresh.set_generations(known.uses.clone());
            prop_assert_eq!(scopes(&stepwise), scopes(&fresh));
            for scope in scopes(&fresh) {
                prop_assert_eq!(whole(&stepwise, scope), whole(&fresh, scope), "{:?}", step);
            }
            let sealed = elements(&fresh, Scope::Host, set::SEALED);
            prop_assert_eq!(sealed.len(), known.networks.values().filter(|e| **e).count());
        }
    }
}
