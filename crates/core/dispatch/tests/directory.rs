//! What nodes are told of their networks: after any history of increments a node knows what one
//! full update would tell it, and silence empties no service.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use base::{Id, IdSource};
use dispatch::{Directory, Heard};
use state::{Author, Change, ChangeSet, Event, Snapshot, Stamp};
use testkit::{fixture, node_id, service_id};
use types::{
    Attachment, Connection, DataPath, DirectoryUpdate, Endpoint, EndpointPart, NetworkAttachment,
    NetworkId, NetworkKey, NetworkPart, NetworkSpec, NodeEncryption, NodeId, OwnPart,
    PeerEncryption, PeerPart, ServiceId, ServicePart, Subnet, TaskId, TaskNetwork, TaskState,
    TaskStatus, VirtualAddress,
};

const NODES: [&str; 4] = ["a", "b", "c", "d"];

/// A state, the directory that follows it, and each node's session.
struct World {
    view: Snapshot,
    directory: Directory,
    sessions: BTreeMap<NodeId, (Heard, Known)>,
    next_address: u32,
}

/// What a node knows.
#[derive(Debug, Default, PartialEq)]
struct Known {
    own: Option<OwnPart>,
    networks: BTreeMap<NetworkId, NetworkPart>,
    peers: BTreeMap<(NetworkId, NodeId), PeerPart>,
    services: BTreeMap<(NetworkId, ServiceId), ServicePart>,
    endpoints: BTreeMap<(NetworkId, TaskId), EndpointPart>,
}

impl Known {
    fn take(&mut self, update: DirectoryUpdate) {
        if update.full {
            *self = Self::default();
        }
        self.own = update.own.or(self.own.take());
        for id in update.removed_networks {
            self.networks.remove(&id);
            self.peers.retain(|(network, _), _| *network != id);
            self.services.retain(|(network, _), _| *network != id);
            self.endpoints.retain(|(network, _), _| *network != id);
        }
        update.removed_peers.iter().for_each(|key| drop(self.peers.remove(key)));
        update.removed_services.iter().for_each(|key| drop(self.services.remove(key)));
        update.removed_endpoints.iter().for_each(|key| drop(self.endpoints.remove(key)));
        self.networks.extend(update.networks.into_iter().map(|part| (part.id, part)));
        self.peers.extend(update.peers.into_iter().map(|part| ((part.network, part.node), part)));
        let services = update.services.into_iter();
        self.services.extend(services.map(|part| ((part.network, part.service), part)));
        let endpoints = update.endpoints.into_iter();
        self.endpoints.extend(endpoints.map(|part| ((part.network, part.task), part)));
    }
}

fn id<T: From<Id>>(number: u128) -> T {
    T::from(Id::from_u128(number).unwrap())
}

impl World {
    fn new() -> Self {
        let view = fixture(
            "now 12:00:00
             node a ready
             node b ready
             node c ready
             node d ready
             service web replicas=1
             service db replicas=1",
        )
        .view;
        let mut world = Self {
            view,
            directory: Directory::default(),
            sessions: BTreeMap::new(),
            next_address: 10,
        };
        world.directory.rebuild(&world.view);
        for name in NODES {
            let number = world.view.node(node_id(name)).unwrap().number;
            let mut node = (**world.view.node(node_id(name)).unwrap()).clone();
            node.status.address = format!("192.0.2.{number}");
            let (id, status) = (node.id, node.status);
            world.apply(Author::Dispatch, Change::SetNodeStatus { id, status });
            world.sessions.insert(node_id(name), Default::default());
        }
        world
    }

    fn apply(&mut self, author: Author, change: Change) {
        let stamp = Stamp { index: self.view.index() + 1, time: self.view.time() };
        let mut events: Vec<Event> = Vec::new();
        let atom = ChangeSet { author, changes: vec![change] };
        self.view.apply(stamp, &atom, &mut events).unwrap();
        events.iter().for_each(|event| self.directory.mark(&self.view, event));
    }

    fn make_network(&mut self, number: u8, ingress: bool) -> NetworkId {
        self.make_network_with(number, ingress, &[])
    }

    fn make_network_with(&mut self, number: u8, ingress: bool, options: &[&str]) -> NetworkId {
        let network: NetworkId = id(1_000 + u128::from(number));
        let name = format!("net{number}");
        let attachable = !ingress;
        let options = options.iter().map(|key| ((*key).to_owned(), String::new())).collect();
        let spec = NetworkSpec {
            name,
            ingress,
            attachable,
            ipv4: true,
            options,
            ..NetworkSpec::default()
        };
        let spec = Arc::new(spec);
        self.apply(Author::Api, Change::CreateNetwork { id: network, spec });
        let net = format!("10.{number}.0.0/16").parse().unwrap();
        let gateway = format!("10.{number}.0.1").parse().unwrap();
        let subnets = vec![Subnet { net, range: None, gateway, cursor: 0 }];
        let vni = 4_096 + u32::from(number);
        let change = Change::AllocateNetwork { id: network, vni, mtu: 1_450, subnets };
        self.apply(Author::Allocator, change);
        network
    }

    /// Attaches a service and gives it a virtual address.
    fn attach(&mut self, service: &str, network: NetworkId) {
        let old = self.view.service(service_id(service)).unwrap();
        let mut spec = (*old.spec).clone();
        let target = network.to_string();
        spec.task.networks.push(NetworkAttachment { target, ..NetworkAttachment::default() });
        let (id, expect) = (old.id, old.meta.spec_version);
        self.apply(Author::Api, Change::UpdateService { id, expect, spec: Arc::new(spec) });
        let mut endpoint = self.view.service(id).unwrap().endpoint.as_deref().cloned();
        let v4 = Some(self.address(network));
        let vip = VirtualAddress { network, v4, v6: None };
        endpoint.get_or_insert_with(Endpoint::default).vips.push(vip);
        let endpoint = endpoint.map(Arc::new);
        self.apply(Author::Allocator, Change::SetEndpoint { service: id, endpoint });
    }

    fn address(&mut self, network: NetworkId) -> Ipv4Addr {
        self.next_address += 1;
        let std::net::IpAddr::V4(first) = self.view.network(network).unwrap().subnets[0].gateway
        else {
            panic!("an IPv4 network")
        };
        Ipv4Addr::from(u32::from(first) + self.next_address)
    }

    /// A task of a service on a node, attached to all networks of the service.
    fn start(&mut self, service: &str, node: &str, seed: u128) -> TaskId {
        let service = Arc::clone(self.view.service(service_id(service)).unwrap());
        let before: Vec<TaskId> = self.view.tasks().map(|task| task.id).collect();
        let slot = u32::try_from(before.len()).unwrap() + 1;
        self.apply(
            Author::Orchestrator,
            Change::CreateTasks {
                service: service.id,
                revision: service.revision,
                seed,
                desired: TaskState::Running,
                slots: vec![(slot, slot)],
                nodes: Vec::new(),
            },
        );
        let task = self.view.tasks().find(|task| !before.contains(&task.id)).unwrap().id;
        let networks: Vec<NetworkId> =
            service.spec.task.networks.iter().map(|one| one.target.parse().unwrap()).collect();
        let attachments = networks
            .into_iter()
            .map(|network| Attachment { network, v4: Some(self.address(network)), v6: None })
            .collect();
        let network = TaskNetwork { attachments, ..TaskNetwork::default() };
        self.apply(Author::Allocator, Change::AttachTasks(vec![(task, network)]));
        let pair = vec![(task, node_id(node))];
        self.apply(Author::Scheduler, Change::AssignTasks(pair));
        task
    }

    fn describe(&mut self, name: &str, change: impl FnOnce(&mut DataPath)) {
        let id = node_id(name);
        let mut description = self.view.node(id).unwrap().description.clone();
        change(&mut description.data_path);
        let description = Box::new(description);
        self.apply(Author::Dispatch, Change::DescribeNode { id, description });
    }

    fn say_keys(&mut self, name: &str, keys: &[(u32, u8)], sends_with: u32) {
        let keys = keys.iter().map(|(of, byte)| (*of, NetworkKey([*byte; 32]))).collect();
        let said = NodeEncryption { keys, sends_with, ..NodeEncryption::default() };
        self.describe(name, |path| path.encryption = Some(said));
    }

    fn report(&mut self, task: TaskId, state: TaskState) {
        let status = TaskStatus { state, ..TaskStatus::default() };
        self.apply(Author::Dispatch, Change::ReportTasks(vec![(task, status)]));
    }

    /// Tells every session, and compares what its node knows with what a full update tells.
    fn tell(&mut self) {
        let touched = self.directory.take_touched();
        for (node, (heard, known)) in &mut self.sessions {
            if touched.contains(node) || known.own.is_none() {
                let update = self.directory.update(&self.view, *node, heard);
                update.into_iter().for_each(|update| known.take(update));
            }
            let mut fresh = Known::default();
            let full = self.directory.update(&self.view, *node, &mut Heard::default()).unwrap();
            assert!(full.full);
            fresh.take(full);
            assert_eq!(*known, fresh, "node {node}");
        }
    }

    /// Nobody is told anything at a node that is gone.
    fn remove_node(&mut self, name: &str) {
        self.apply(Author::Api, Change::RemoveNode(node_id(name)));
        self.sessions.remove(&node_id(name));
    }

    fn knows(&self, node: &str) -> &Known {
        &self.sessions[&node_id(node)].1
    }

    fn serving(&self, node: &str) -> usize {
        self.knows(node).endpoints.values().filter(|endpoint| endpoint.serving).count()
    }
}

#[test]
fn a_node_is_told_of_the_networks_that_its_tasks_are_on_and_no_others() {
    let mut world = World::new();
    let (one, two) = (world.make_network(1, false), world.make_network(2, false));
    world.attach("web", one);
    world.attach("db", two);
    let first = world.start("web", "a", 1);
    world.start("web", "b", 2);
    world.start("db", "c", 3);
    world.report(first, TaskState::Running);
    world.tell();
    let networks = |node: &str| world.knows(node).networks.keys().copied().collect::<Vec<_>>();
    assert_eq!((networks("a"), networks("c"), networks("d")), (vec![one], vec![two], vec![]));
    let a = world.knows("a");
    assert_eq!(a.peers.keys().map(|(_, node)| *node).collect::<Vec<_>>(), [node_id("b")]);
    assert_eq!(a.endpoints.len(), 2, "its own and the other's");
    assert_eq!(world.serving("b"), 1, "only the one that runs");
    let names = &a.endpoints[&(one, first)].names;
    assert_eq!(names[0], format!("web.1.{first}"));
    assert_eq!(a.services[&(one, service_id("web"))].name, "web");

    world.report(first, TaskState::Failed);
    world.tell();
    assert!(world.knows("a").networks.is_empty(), "its last task there is over");
    assert!(world.knows("b").peers.is_empty());
}

#[test]
fn every_node_takes_part_in_the_ingress_network() {
    let mut world = World::new();
    let ingress = world.make_network(1, true);
    world.tell();
    for node in NODES {
        assert_eq!(world.knows(node).peers.len(), NODES.len() - 1, "{node}");
        assert!(world.knows(node).networks[&ingress].ingress);
    }
}

#[test]
fn keys_are_told_on_encrypted_networks_only_and_go_with_their_node() {
    let mut world = World::new();
    let plain = world.make_network(1, false);
    let secret = world.make_network_with(2, false, &["encrypted"]);
    world.attach("web", plain);
    world.attach("db", secret);
    for (seed, (service, node)) in
        [("web", "a"), ("web", "b"), ("db", "a"), ("db", "b"), ("web", "c")].into_iter().enumerate()
    {
        world.start(service, node, seed as u128 + 1);
    }
    world.tell();
    assert!(world.knows("a").networks[&secret].encrypted);
    assert!(!world.knows("a").networks[&plain].encrypted);
    let key_of = |world: &World, node: &str, network, peer: &str| {
        world.knows(node).peers.get(&(network, node_id(peer))).map(|part| part.encryption.clone())
    };
    assert_eq!(key_of(&world, "a", secret, "b"), Some(None), "not said yet");
    world.say_keys("b", &[(1, 7)], 1);
    world.say_keys("c", &[(1, 8)], 1);
    world.tell();
    let said = |keys: &[(u32, u8)], sends_with| PeerEncryption {
        keys: keys.iter().map(|(of, byte)| (*of, NetworkKey([*byte; 32]))).collect(),
        sends_with,
    };
    assert_eq!(key_of(&world, "a", secret, "b"), Some(Some(said(&[(1, 7)], 1))));
    assert_eq!(key_of(&world, "a", plain, "b"), Some(None), "of no use there");
    assert_eq!(key_of(&world, "a", plain, "c"), Some(None));
    assert_eq!(key_of(&world, "a", secret, "c"), None, "it is not on that network");
    assert_eq!(key_of(&world, "c", plain, "b"), Some(None));

    // Everybody is told that new keys are wanted, and each key as soon as it is said.
    world.apply(Author::Api, Change::RotateNetworkKey { expect: 1 });
    world.tell();
    for node in NODES {
        assert_eq!(world.knows(node).own.as_ref().unwrap().encryption.generation, 2, "{node}");
    }
    world.say_keys("b", &[(1, 7), (2, 9)], 1);
    world.tell();
    assert_eq!(key_of(&world, "a", secret, "b"), Some(Some(said(&[(1, 7), (2, 9)], 1))));

    // The next update takes a removed node's keys away, though its task is still known.
    world.apply(Author::Api, Change::RemoveNode(node_id("b")));
    let (view, (heard, known)) = (&world.view, world.sessions.get_mut(&node_id("a")).unwrap());
    known.take(world.directory.update(view, node_id("a"), heard).unwrap());
    assert_eq!(key_of(&world, "a", secret, "b"), None);
}

#[test]
fn endpoints_of_a_removed_node_are_told_again_and_serve_nobody() {
    for suspected in [false, true] {
        let mut world = World::new();
        let networks = [world.make_network(1, true), world.make_network(2, false)];
        world.attach("web", networks[1]);
        let tasks = [("a", 1), ("b", 2)].map(|(node, seed)| {
            let task = world.start("web", node, seed);
            world.report(task, TaskState::Running);
            task
        });
        let view = world.view.clone();
        world.directory.suspect(&view, node_id("b"), suspected);
        world.tell();
        let number = view.node(node_id("b")).unwrap().number;
        assert_eq!(world.knows("a").endpoints[&(networks[1], tasks[1])].number, number);
        world.remove_node("b");
        world.tell();
        let known = world.knows("a");
        let part = &known.endpoints[&(networks[1], tasks[1])];
        assert_eq!((part.number, part.serving), (0, false), "suspected: {suspected}");
        assert!(known.endpoints[&(networks[1], tasks[0])].serving);
        assert!(!known.peers.keys().any(|(_, node)| *node == node_id("b")));
    }
}

#[test]
fn an_encrypted_network_leaves_room_for_the_tunnel_at_each_peer() {
    let mut world = World::new();
    let secret = world.make_network_with(1, false, &["encrypted"]);
    world.attach("web", secret);
    world.start("web", "a", 1);
    world.start("web", "b", 2);
    for (address, mtu, want) in
        [("192.0.2.1", 1_580, 0), ("192.0.2.1", 1_500, 1_370), ("fd00::1", 1_500, 1_370)]
    {
        world.describe("b", |path| {
            path.address = address.parse().ok();
            path.mtu = mtu;
        });
        world.tell();
        assert_eq!(world.knows("a").peers[&(secret, node_id("b"))].mtu, want, "{address} {mtu}");
    }
}

#[test]
fn a_node_behind_a_translator_keeps_its_tunnels_open() {
    let mut world = World::new();
    world.make_network(1, true);
    let mut keepalive = |said: &str, seen: &str, routes: &[&str]| {
        world.describe("a", |path| {
            path.address = said.parse().ok();
            path.routes = routes.iter().map(|net| net.parse().unwrap()).collect();
        });
        let id = node_id("a");
        let mut status = world.view.node(id).unwrap().status.clone();
        status.address = seen.to_owned();
        world.apply(Author::Dispatch, Change::SetNodeStatus { id, status });
        world.tell();
        world.knows("a").own.as_ref().unwrap().encryption.keepalive
    };
    assert!(!keepalive("192.0.2.1", "192.0.2.1", &["192.0.2.0/24"]));
    assert!(!keepalive("192.0.2.1", "::ffff:192.0.2.1", &[]));
    assert!(keepalive("10.0.0.5", "203.0.113.7", &["10.0.0.0/24"]));
    let both = ["10.0.0.0/24", "192.0.2.0/24"];
    assert!(!keepalive("10.0.0.5", "192.0.2.1", &both), "it has a network for its data path");
    assert!(!keepalive("10.0.0.5", "127.0.0.1", &[]), "a manager to itself");
    assert!(!keepalive("10.0.0.5", "2001:db8::1", &[]), "it has addresses of both families");
    assert!(!keepalive("", "192.0.2.1", &[]), "it has not said one");
}

#[test]
fn silence_takes_a_node_out_of_service_unless_nobody_is_left() {
    let mut world = World::new();
    let network = world.make_network(1, false);
    world.attach("web", network);
    for (seed, node) in ["a", "b"].into_iter().enumerate() {
        let task = world.start("web", node, seed as u128 + 1);
        world.report(task, TaskState::Running);
    }
    world.tell();
    assert_eq!(world.serving("a"), 2);
    let view = world.view.clone();
    world.directory.suspect(&view, node_id("b"), true);
    world.tell();
    assert_eq!(world.serving("a"), 1);
    world.directory.suspect(&view, node_id("a"), true);
    world.tell();
    assert_eq!(world.serving("a"), 2, "silence empties no service");
    world.directory.suspect(&view, node_id("a"), false);
    world.tell();
    assert_eq!(world.serving("a"), 1);
}

#[test]
fn a_connected_task_is_known_by_its_names_and_no_services() {
    let mut world = World::new();
    let back = world.make_network(1, false);
    let front = world.make_network(2, false);
    world.attach("web", back);
    let task = world.start("web", "a", 1);
    world.report(task, TaskState::Running);
    world.tell();
    assert!(!world.knows("a").networks.contains_key(&front));
    let v4 = Some(world.address(front));
    let attachment = Attachment { network: front, v4, v6: None };
    let connection = Box::new(Connection { attachment, aliases: vec!["db".into()] });
    world.apply(Author::Allocator, Change::ConnectTask { task, connection });
    world.tell();
    let known = world.knows("a");
    let part = &known.endpoints[&(front, task)];
    assert_eq!((part.service, part.v4, part.serving), (None, v4, true));
    assert_eq!(part.names.last().unwrap(), "db");
    assert!(known.endpoints[&(back, task)].service.is_some());
    assert!(!world.knows("b").networks.contains_key(&front));
    world.apply(Author::Allocator, Change::DisconnectTask { task, network: front });
    world.tell();
    assert!(!world.knows("a").networks.contains_key(&front), "its node takes no part any more");
    assert!(world.knows("a").endpoints.contains_key(&(back, task)));
}

#[test]
fn increments_lead_to_what_a_full_update_says() {
    for seed in 1..=40 {
        let (mut world, mut random) = (World::new(), IdSource::new(seed));
        let of = |number: u8| if number == 3 { vec!["encrypted"] } else { Vec::new() };
        let networks: Vec<NetworkId> = (1..=3)
            .map(|number| world.make_network_with(number, number == 1, &of(number)))
            .collect();
        let mut tasks: Vec<TaskId> = Vec::new();
        world.attach("web", networks[1]);
        for step in 0..60_u128 {
            let there: Vec<&str> = NODES
                .into_iter()
                .filter(|name| world.sessions.contains_key(&node_id(name)))
                .collect();
            let pick = random.below(there.len() as u64);
            let node = there[usize::try_from(pick).unwrap()];
            let task = (!tasks.is_empty())
                .then(|| tasks[usize::try_from(random.below(tasks.len() as u64)).unwrap()]);
            let generation = world.view.cluster().unwrap().network_key_generation;
            match (random.below(11), task) {
                (10, _) if there.len() > 2 && random.below(8) == 0 => world.remove_node(node),
                (8, _) => {
                    let byte =
                        1 + u8::try_from(pick).unwrap() + 8 * u8::try_from(step / 4).unwrap();
                    world.say_keys(node, &[(generation, byte)], generation);
                }
                (9, _) if random.below(3) == 0 => {
                    world.apply(Author::Api, Change::RotateNetworkKey { expect: generation });
                }
                (0, _) if step == 20 => world.attach("db", networks[2]),
                (0..=2, _) | (_, None) => {
                    let service = if random.below(2) == 0 { "web" } else { "db" };
                    if world.view.service(service_id(service)).unwrap().endpoint.is_some() {
                        tasks.push(world.start(service, node, step + 1));
                    }
                }
                (3 | 4, Some(task)) => world.report(task, TaskState::Running),
                (5, Some(task)) => {
                    let (desired, tasks) = (TaskState::Shutdown, vec![task]);
                    world.apply(Author::Orchestrator, Change::DesireTasks { desired, tasks });
                }
                (6, Some(task)) => world.report(task, TaskState::Shutdown),
                (_, Some(_)) => {
                    let (view, suspected) = (world.view.clone(), random.below(2) == 0);
                    world.directory.suspect(&view, node_id(node), suspected);
                }
            }
            if random.below(3) == 0 {
                world.tell();
            }
        }
        world.tell();
        let mut anew = Directory::default();
        anew.rebuild(&world.view);
        let silent = world.directory.suspected();
        silent.iter().for_each(|node| anew.suspect(&world.view, *node, true));
        world.directory = anew;
        world.sessions.values_mut().for_each(|(heard, _)| *heard = Heard::default());
        for (node, (heard, known)) in &mut world.sessions {
            let full = world.directory.update(&world.view, *node, heard).unwrap();
            let mut fresh = Known::default();
            fresh.take(full);
            assert_eq!(*known, fresh, "seed {seed}, node {node}: derived anew");
        }
    }
}
