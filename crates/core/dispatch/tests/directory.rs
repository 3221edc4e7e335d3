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
    Attachment, Connection, DirectoryUpdate, Endpoint, EndpointPart, NetworkAttachment, NetworkId,
    NetworkPart, NetworkSpec, NodeId, OwnPart, PeerPart, ServiceId, ServicePart, Subnet, TaskId,
    TaskNetwork, TaskState, TaskStatus, VirtualAddress,
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
        let network: NetworkId = id(1_000 + u128::from(number));
        let name = format!("net{number}");
        let attachable = !ingress;
        let spec = NetworkSpec { name, ingress, attachable, ipv4: true, ..NetworkSpec::default() };
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
        let networks: Vec<NetworkId> =
            (1..=3).map(|number| world.make_network(number, number == 1)).collect();
        let mut tasks: Vec<TaskId> = Vec::new();
        world.attach("web", networks[1]);
        for step in 0..60_u128 {
            let pick = random.below(NODES.len() as u64);
            let node = NODES[usize::try_from(pick).unwrap()];
            let task = (!tasks.is_empty())
                .then(|| tasks[usize::try_from(random.below(tasks.len() as u64)).unwrap()]);
            match (random.below(8), task) {
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
        for node in NODES {
            let (heard, known) = world.sessions.get_mut(&node_id(node)).unwrap();
            let full = world.directory.update(&world.view, node_id(node), heard).unwrap();
            let mut fresh = Known::default();
            fresh.take(full);
            assert_eq!(*known, fresh, "seed {seed}, node {node}: derived anew");
        }
    }
}
