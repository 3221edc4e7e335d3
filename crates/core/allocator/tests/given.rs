//! What is given out: held by one object at a time, in a circle, after a rest, and never leaked.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use allocator::{Allocator, Connecting, Key, connect};
use base::{Id, IdSource, Millis, Timestamp};
use proptest::prelude::*;
use state::{Author, Change, ChangeSet, Ctx, Decider, Event, Refusal, Snapshot, Stamp, verify};
use testkit::{fixture, node_id};
use types::{
    Condition, ConditionCode, Connection, EndpointSpec, IpamPool, NetworkAttachment, NetworkId,
    NetworkSpec, PortProtocol, PortSpec, PublishMode, ServiceId, ServiceMode, ServiceSpec, TaskId,
    TaskState, TaskStatus, limits,
};

/// A state that the allocator follows, as the reconcile loop lets it.
struct World {
    view: Snapshot,
    now: Timestamp,
    ids: IdSource,
}

fn id<T: From<Id>>(number: u128) -> T {
    T::from(Id::from_u128(number).unwrap())
}

/// Of IPv4, with a subnet of its own when one is named.
fn spec(number: u128, subnet: &str) -> NetworkSpec {
    let pool = IpamPool { subnet: subnet.parse().ok(), ..IpamPool::default() };
    let ipam = if subnet.is_empty() { Vec::new() } else { vec![pool] };
    NetworkSpec { name: format!("net{number}"), ipv4: true, ipam, ..NetworkSpec::default() }
}

impl World {
    fn new() -> Self {
        let fixture = fixture("now 12:00:00\nnode a ready\nnode b ready\nservice base replicas=1");
        Self { view: fixture.view, now: fixture.now, ids: IdSource::new(7) }
    }

    fn try_apply(&mut self, author: Author, change: Change) -> Result<(), Refusal> {
        let mut dirty = BTreeSet::new();
        self.take(&ChangeSet { author, changes: vec![change] }, &mut dirty)?;
        self.settle(dirty);
        Ok(())
    }

    fn apply(&mut self, author: Author, change: Change) {
        self.try_apply(author, change).unwrap();
    }

    fn take(&mut self, atom: &ChangeSet, dirty: &mut BTreeSet<Key>) -> Result<(), Refusal> {
        let stamp = Stamp { index: self.view.index() + 1, time: self.now };
        let mut events: Vec<Event> = Vec::new();
        self.view.apply(stamp, atom, &mut events)?;
        events.iter().for_each(|event| Allocator::mark(&self.view, event, dirty));
        Ok(())
    }

    /// Decides until nothing is left to do; nothing that the allocator wants may be refused.
    fn settle(&mut self, mut dirty: BTreeSet<Key>) {
        for _ in 0..1_000 {
            let Some(key) = dirty.pop_first() else { return };
            let mut ctx = Ctx { view: &self.view, now: self.now, ids: &mut self.ids };
            let plan = Allocator::decide(&mut ctx, key);
            for atom in &plan.atoms {
                self.take(atom, &mut dirty).unwrap();
            }
            if plan.more {
                dirty.insert(key);
            }
        }
        panic!("the allocator does not come to rest");
    }

    fn pass(&mut self, time: Millis) {
        self.now = self.now + time;
        let mut dirty = BTreeSet::new();
        Allocator::mark_all(&self.view, &mut dirty);
        self.settle(dirty);
    }

    fn network(&mut self, number: u128, subnet: &str) -> NetworkId {
        self.try_network(number, spec(number, subnet)).unwrap()
    }

    fn try_network(&mut self, number: u128, spec: NetworkSpec) -> Result<NetworkId, Refusal> {
        let network = id(1_000 + number);
        let change = Change::CreateNetwork { id: network, spec: Arc::new(spec) };
        self.try_apply(Author::Api, change).map(|()| network)
    }

    fn service(&mut self, number: u128, networks: &[NetworkId], ports: Vec<PortSpec>) -> ServiceId {
        let of = |network: &NetworkId| NetworkAttachment {
            target: network.to_string(),
            ..NetworkAttachment::default()
        };
        self.service_with(number, networks.iter().map(of).collect(), ports)
    }

    fn service_with(
        &mut self,
        number: u128,
        networks: Vec<NetworkAttachment>,
        ports: Vec<PortSpec>,
    ) -> ServiceId {
        let base = self.view.services().find(|service| service.spec.name == "base").unwrap();
        let mut spec: ServiceSpec = (*base.spec).clone();
        spec.name = format!("service{number}");
        spec.mode = ServiceMode::Replicated(1);
        spec.task.networks = networks;
        if !ports.is_empty() {
            spec.endpoint = Some(EndpointSpec { ports, ..EndpointSpec::default() });
        }
        let service = id(2_000 + number);
        self.apply(Author::Api, Change::CreateService { id: service, spec: Arc::new(spec) });
        service
    }

    fn start(&mut self, service: ServiceId, slot: u32) -> TaskId {
        let revision = self.view.service(service).unwrap().revision;
        let before: BTreeSet<TaskId> = self.view.tasks().map(|task| task.id).collect();
        let seed = self.ids.mint().as_u128();
        let (desired, slots) = (TaskState::Running, vec![(slot, slot)]);
        let change =
            Change::CreateTasks { service, revision, seed, desired, slots, nodes: Vec::new() };
        self.apply(Author::Orchestrator, change);
        self.view.tasks().find(|task| !before.contains(&task.id)).unwrap().id
    }

    fn end(&mut self, task: TaskId) {
        if self.view.task(task).unwrap().node.is_none() {
            let given = self.view.task(task).unwrap().status.state == TaskState::Pending;
            if given {
                self.apply(Author::Scheduler, Change::AssignTasks(vec![(task, node_id("a"))]));
            }
        }
        let status = TaskStatus { state: TaskState::Failed, ..TaskStatus::default() };
        self.apply(Author::Dispatch, Change::ReportTasks(vec![(task, status)]));
    }

    fn address(&self, task: TaskId, network: NetworkId) -> Option<IpAddr> {
        let task = self.view.task(task).unwrap();
        let mut held = task.held().filter(|one| one.network == network);
        held.next().and_then(|one| one.addresses().next())
    }

    fn reason(&self, service: ServiceId) -> Option<String> {
        self.view.service(service).unwrap().reasons.first().map(|reason| reason.code.clone())
    }

    fn set_behind(&mut self, behind: bool) {
        let mut status = self.view.node(node_id("a")).unwrap().status.clone();
        let code = ConditionCode::DataPathBehind;
        status.conditions = behind.then(|| Condition::new(code, "")).into_iter().collect();
        self.apply(Author::Dispatch, Change::SetNodeStatus { id: node_id("a"), status });
    }

    /// Nobody shares an address or a port, and every address is one that may be held.
    fn check(&self) {
        verify(&self.view).unwrap();
        let mut holders: BTreeMap<(NetworkId, IpAddr), String> = BTreeMap::new();
        let services = self.view.services().flat_map(|service| {
            service.held().map(|one| (*one, service.spec.name.clone())).collect::<Vec<_>>()
        });
        let tasks = self.view.tasks().flat_map(|task| {
            task.held().map(|one| (*one, task.id.to_string())).collect::<Vec<_>>()
        });
        for (one, holder) in services.chain(tasks) {
            let network = self.view.network(one.network).expect("a network that is there");
            for address in one.addresses() {
                let subnet = network.subnets.iter().find(|subnet| subnet.net.contains(&address));
                assert!(subnet.is_some_and(|subnet| subnet.may_hold(address)), "{address}");
                let other = holders.insert((one.network, address), holder.clone());
                assert_eq!(other, None, "{address} is {holder}'s");
            }
        }
        let mut subnets: Vec<_> = self
            .view
            .networks()
            .flat_map(|network| network.subnets.iter().map(|s| s.net))
            .collect();
        subnets.sort();
        for pair in subnets.windows(2) {
            assert!(!types::nets_overlap(pair[0], pair[1]), "{pair:?}");
        }
        let mut ports: BTreeSet<(PortProtocol, u16)> = BTreeSet::new();
        for service in self.view.services() {
            for port in service.endpoint.iter().flat_map(|endpoint| endpoint.mesh_ports()) {
                assert!(ports.insert((port.protocol, port.published)), "{port:?} twice");
            }
        }
    }
}

impl World {
    /// A network of a subnet that others may have, too, or must not.
    fn overlapping(&mut self, number: u128, subnet: &str, may: bool) -> Result<NetworkId, Refusal> {
        let option = (NetworkSpec::OVERLAP.to_owned(), may.to_string());
        self.try_network(number, NetworkSpec { options: [option].into(), ..spec(number, subnet) })
    }

    /// A network that running containers may be connected to.
    fn attachable(&mut self, number: u128, subnet: &str) -> NetworkId {
        let spec = NetworkSpec { attachable: true, ..spec(number, subnet) };
        self.try_network(number, spec).unwrap()
    }

    fn running(&mut self, service: ServiceId) -> TaskId {
        let task = self.start(service, 1);
        self.apply(Author::Scheduler, Change::AssignTasks(vec![(task, node_id("a"))]));
        let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
        self.apply(Author::Dispatch, Change::ReportTasks(vec![(task, status)]));
        task
    }

    fn connect(&mut self, task: TaskId, network: NetworkId, ip: &str) -> Result<IpAddr, String> {
        let asked: Vec<IpAddr> = ip.parse().into_iter().collect();
        for _ in 0..2 {
            let known = self.view.network(network).unwrap();
            match connect(&self.view, self.now, known, &asked).map_err(|fault| fault.message)? {
                Connecting::After(atom) => {
                    let mut dirty = BTreeSet::new();
                    self.take(&atom, &mut dirty).unwrap();
                    self.settle(dirty);
                }
                Connecting::With(attachment) => {
                    let connection = Box::new(Connection { attachment, aliases: Vec::new() });
                    let change = Change::ConnectTask { task, connection };
                    let applied = self.try_apply(Author::Allocator, change);
                    applied.map_err(|refusal| refusal.to_fault().message)?;
                    return Ok(attachment.addresses().next().unwrap());
                }
            }
        }
        Err("it never became larger".into())
    }
}

#[test]
fn a_packet_of_an_encrypted_network_fits_whichever_family_the_nodes_have() {
    let mut world = World::new();
    let describe = |world: &mut World, address: &str, mtu: u32| {
        let mut description = world.view.node(node_id("a")).unwrap().description.clone();
        description.data_path.address = address.parse().ok();
        description.data_path.mtu = mtu;
        let description = Box::new(description);
        world.apply(Author::Dispatch, Change::DescribeNode { id: node_id("a"), description });
    };
    let mut number = 0;
    let mut mtu = |world: &mut World, options: &[(&str, &str)]| {
        number += 1;
        let options = options.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let (name, network) = (format!("net{number}"), id(1_000 + number));
        let spec = NetworkSpec { name, ipv4: true, options, ..NetworkSpec::default() };
        world.apply(Author::Api, Change::CreateNetwork { id: network, spec: Arc::new(spec) });
        world.view.network(network).unwrap().mtu
    };
    let encrypted = [("encrypted", "")];
    for (address, underlay, plain, inside) in [
        ("192.0.2.1", 0, 1_450, 1_370),
        ("192.0.2.1", 1_460, 1_410, 1_330),
        ("2001:db8::1", 9_001, 8_931, 8_871),
    ] {
        describe(&mut world, address, underlay);
        let given = (mtu(&mut world, &[]), mtu(&mut world, &encrypted));
        assert_eq!(given, (plain, inside), "{address} {underlay}");
        assert_eq!(mtu(&mut world, &[("encrypted", "false")]), plain);
    }
    assert_eq!(mtu(&mut world, &[encrypted[0], (NetworkSpec::MTU, "1300")]), 1_300);
}

#[test]
fn a_running_task_is_connected_and_what_it_had_rests_when_it_is_not_any_more() {
    let mut world = World::new();
    let network = world.attachable(1, "10.9.0.0/29");
    let other = world.network(2, "10.8.0.0/24");
    let (web, plain) = (world.service(1, &[other], vec![]), world.service(2, &[], vec![]));
    let (task, bare) = (world.running(web), world.running(plain));
    assert_eq!(world.connect(task, network, "10.9.0.3").unwrap().to_string(), "10.9.0.3");
    assert_eq!(world.connect(bare, network, "").unwrap().to_string(), "10.9.0.4");
    world.check();
    for (wanted, ip, part) in [
        (network, "", "already exists in network net1"),
        (network, "10.9.0.3", "Address already in use"),
        (network, "10.9.0.1", "is no address that a container of net1 may have"),
        (other, "", "network net2 not manually attachable"),
    ] {
        let refused = world.connect(task, wanted, ip).unwrap_err();
        assert!(refused.contains(part), "{refused}");
    }
    let refused = world.try_apply(Author::Api, Change::RemoveNetwork(network)).unwrap_err();
    let message = refused.to_fault().message;
    assert!(message.starts_with("network net1 is in use by container service"), "{message}");
    assert!(world.view.nodes_on_network(network).any(|one| one == (node_id("a"), 2)));
    let gone = Change::DisconnectTask { task, network };
    world.apply(Author::Allocator, gone.clone());
    assert!(world.try_apply(Author::Allocator, gone).is_err(), "it is not there any more");
    assert_eq!(world.address(task, network), None);
    assert_eq!(world.connect(task, network, "").unwrap().to_string(), "10.9.0.5", "it rests");
    // With the task, what it was connected to is gone.
    for task in [task, bare] {
        world.end(task);
    }
    world.apply(Author::Api, Change::RemoveNetwork(network));
    world.check();
}

#[test]
fn a_task_that_does_not_run_is_not_connected_and_a_full_network_grows() {
    let mut world = World::new();
    let network = world.attachable(1, "");
    let service = world.service(1, &[], vec![]);
    let fresh = world.start(service, 1);
    let refused = world.connect(fresh, network, "").unwrap_err();
    assert!(refused.contains("running"), "{refused}");
    let task = world.running(service);
    for _ in 0..300 {
        world.connect(task, network, "").unwrap();
        world.apply(Author::Allocator, Change::DisconnectTask { task, network });
    }
    assert_eq!(world.view.network(network).unwrap().subnets.len(), 2);
    world.check();
}

fn mesh(published: u16) -> PortSpec {
    PortSpec { target: 80, published, mode: PublishMode::Ingress, ..PortSpec::default() }
}

#[test]
fn a_freed_address_rests_and_the_circle_goes_on_from_the_last_one() {
    let mut world = World::new();
    let network = world.network(1, "10.9.0.0/28");
    let service = world.service(1, &[network], Vec::new());
    let first = world.start(service, 1);
    let address = world.address(first, network).unwrap();
    world.end(first);
    let mut given = Vec::new();
    for slot in 2..=40 {
        let task = world.start(service, slot);
        let Some(next) = world.address(task, network) else { break };
        assert_ne!(next, address, "it rests");
        given.push(next);
        world.check();
    }
    // 16 addresses but the network's, the broadcast one, the gateway, the VIP and the resting one.
    assert_eq!(given.len(), 11);
    assert_eq!(world.reason(service).as_deref(), Some("network-full"), "it is the user's subnet");
    let waiting = world.view.fresh_tasks(service).next().unwrap();
    world.pass(limits::REST_PERIOD);
    assert_eq!(world.address(waiting, network), Some(address));
    assert_eq!(world.reason(service), None);
    world.check();
}

#[test]
fn nothing_ends_its_rest_while_a_live_node_is_behind() {
    let mut world = World::new();
    let network = world.network(1, "10.9.0.0/29");
    let service = world.service(1, &[network], Vec::new());
    let tasks: Vec<TaskId> = (1..=4).map(|slot| world.start(service, slot)).collect();
    let freed = world.address(tasks[0], network).unwrap();
    world.set_behind(true);
    world.end(tasks[0]);
    let next = world.start(service, 5);
    assert_eq!(world.address(next, network), None);
    world.pass(Millis(limits::REST_PERIOD.0 * 3));
    assert_eq!(world.address(next, network), None, "the node may still lead to who had it");
    world.check();
    world.set_behind(false);
    world.pass(Millis::from_secs(5));
    assert_eq!(world.address(next, network), Some(freed));
    world.check();
}

#[test]
fn a_full_network_takes_a_further_subnet_of_the_pool() {
    let mut world = World::new();
    let network = world.network(1, "");
    let other = world.network(2, "");
    let service = world.service(1, &[network], Vec::new());
    let tasks: Vec<TaskId> = (1..=300).map(|slot| world.start(service, slot)).collect();
    assert!(tasks.iter().all(|task| world.address(*task, network).is_some()));
    let nets = |network| -> Vec<String> {
        let network = world.view.network(network).unwrap();
        network.subnets.iter().map(|subnet| subnet.net.to_string()).collect()
    };
    assert_eq!(nets(network), ["10.0.0.0/24", "10.0.2.0/24"]);
    assert_eq!(nets(other), ["10.0.1.0/24"]);
    world.check();
}

#[test]
fn who_waits_for_a_subnet_gets_one_of_a_further_pool() {
    let mut world = World::new();
    let pools = |world: &mut World, pools: &[&str]| {
        let pools = pools.iter().map(|&text| text.to_owned()).collect();
        world.try_apply(Author::Api, Change::AddAddressPools(pools))
    };
    pools(&mut world, &["10.77.0.0/24"]).unwrap();
    let (first, second) = (world.network(1, ""), world.network(2, ""));
    let net = |world: &World, id| {
        world.view.network(id).unwrap().subnets.first().map(|subnet| subnet.net.to_string())
    };
    assert_eq!(net(&world, first).as_deref(), Some("10.77.0.0/24"));
    assert_eq!(net(&world, second), None);
    for bad in ["10.77.0.0/23", "10.0.0.0/28", "fd00::/64", "ten"] {
        assert!(matches!(pools(&mut world, &[bad]), Err(Refusal::Invalid(_))), "{bad}");
    }
    pools(&mut world, &["10.78.0.0/16"]).unwrap();
    assert_eq!(net(&world, second).as_deref(), Some("10.78.0.0/24"));
}

#[test]
fn subnets_keep_off_the_routes_of_every_node() {
    let mut world = World::new();
    let mut description = world.view.node(node_id("b")).unwrap().description.clone();
    description.data_path.routes =
        ["0.0.0.0/0", "10.0.0.0/23", "10.0.3.7/32"].map(|net| net.parse().unwrap()).to_vec();
    let (id, description) = (node_id("b"), Box::new(description));
    world.apply(Author::Dispatch, Change::DescribeNode { id, description });
    let networks = [world.network(1, ""), world.network(2, "")];
    let nets = networks.map(|id| world.view.network(id).unwrap().subnets[0].net.to_string());
    assert_eq!(nets, ["10.0.2.0/24", "10.0.4.0/24"]);
}

#[test]
fn slots_get_their_fixed_addresses_and_others_keep_off_them() {
    let mut world = World::new();
    let network = world.network(1, "10.9.0.0/28");
    let fixed: Vec<IpAddr> = ["10.9.0.4", "10.9.0.3"].map(|text| text.parse().unwrap()).to_vec();
    let (target, addresses) = (network.to_string(), fixed.clone());
    let attached = NetworkAttachment { target, addresses, ..NetworkAttachment::default() };
    let service = world.service_with(2, vec![attached], Vec::new());
    let other = world.service(1, &[network], Vec::new());
    let others: Vec<TaskId> = (1..=4).map(|slot| world.start(other, slot)).collect();
    for task in others {
        assert!(!fixed.contains(&world.address(task, network).unwrap()));
    }
    let first = world.start(service, 1);
    assert_eq!(world.address(first, network), Some(fixed[0]));
    // The next one of the slot waits for it, and needs no rest: it is the same name's address.
    let next = world.start(service, 1);
    assert_eq!(world.address(next, network), None);
    world.end(first);
    assert_eq!(world.address(next, network), Some(fixed[0]));
    let second = world.start(service, 2);
    assert_eq!(world.address(second, network), Some(fixed[1]));
    world.check();
}

#[test]
fn a_port_waits_for_who_has_it_and_dynamic_ones_go_round() {
    let mut world = World::new();
    let ingress = NetworkSpec::ingress();
    world.apply(Author::Api, Change::CreateNetwork { id: id(999), spec: Arc::new(ingress) });
    let dynamic = |world: &World, service| -> u16 {
        let service = world.view.service(service).unwrap();
        service.endpoint.as_ref().unwrap().ports[0].published
    };
    let first = world.service(1, &[], vec![mesh(0)]);
    let number = dynamic(&world, first);
    assert_eq!(number, limits::MESH_PORT_MIN);
    world.apply(Author::Api, Change::RemoveService(first));
    let second = world.service(2, &[], vec![mesh(0)]);
    assert_eq!(dynamic(&world, second), number + 1, "the freed one rests");
    world.check();
}

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    Network(bool),
    Service { networks: Vec<usize>, ports: Vec<u16> },
    Start(usize),
    End(usize),
    RemoveTask(usize),
    RemoveService(usize),
    RemoveNetwork(usize),
    Behind(bool),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let ports = prop::collection::vec(prop_oneof![Just(0_u16), 8_000..8_004_u16], 0..3);
    prop_oneof![
        2 => any::<bool>().prop_map(Step::Network),
        3 => (prop::collection::vec(0..6_usize, 0..3), ports)
            .prop_map(|(networks, ports)| Step::Service { networks, ports }),
        10 => (0..8_usize).prop_map(Step::Start),
        6 => (0..40_usize).prop_map(Step::End),
        2 => (0..40_usize).prop_map(Step::RemoveTask),
        1 => (0..8_usize).prop_map(Step::RemoveService),
        1 => (0..6_usize).prop_map(Step::RemoveNetwork),
        1 => any::<bool>().prop_map(Step::Behind),
        2 => (1..90_u64).prop_map(Step::Pass),
    ]
}

impl World {
    /// What makes no sense now is passed over; what the store refuses it may refuse.
    fn carry_out(&mut self, number: u128, step: Step) {
        fn nth<T>(mut all: impl Iterator<Item = T>, at: usize) -> Option<T> {
            all.nth(at)
        }
        match step {
            Step::Network(small) => {
                let subnet = format!("10.200.{}.0/29", number % 200);
                self.network(number, if small { &subnet } else { "" });
            }
            Step::Service { networks, ports } => {
                let known: Vec<NetworkId> = self.view.networks().map(|one| one.id).collect();
                let wanted: BTreeSet<NetworkId> =
                    networks.into_iter().filter_map(|at| known.get(at).copied()).collect();
                let base = self.view.services().find(|one| one.spec.name == "base").unwrap();
                let mut spec: ServiceSpec = (*base.spec).clone();
                spec.name = format!("service{number}");
                spec.task.networks = wanted
                    .iter()
                    .map(|one| NetworkAttachment {
                        target: one.to_string(),
                        ..NetworkAttachment::default()
                    })
                    .collect();
                let ports = ports.into_iter().map(mesh).collect();
                spec.endpoint = Some(EndpointSpec { ports, ..EndpointSpec::default() });
                let change = Change::CreateService { id: id(2_000 + number), spec: Arc::new(spec) };
                let _ = self.try_apply(Author::Api, change);
            }
            Step::Start(at) => {
                if let Some(service) = nth(self.view.services().map(|one| one.id), at) {
                    self.start(service, u32::try_from(number).unwrap() + 1);
                }
            }
            Step::End(at) => {
                let live = |task: &&Arc<types::Task>| !task.status.state.is_terminal();
                if let Some(task) = nth(self.view.tasks().filter(live).map(|task| task.id), at) {
                    self.end(task);
                }
            }
            Step::RemoveTask(at) => {
                if let Some(task) = nth(self.view.tasks().map(|task| task.id), at) {
                    let _ = self.try_apply(Author::Orchestrator, Change::RemoveTasks(vec![task]));
                }
            }
            Step::RemoveService(at) => {
                let others = self.view.services().filter(|one| one.spec.name != "base");
                if let Some(service) = nth(others.map(|one| one.id), at) {
                    let _ = self.try_apply(Author::Api, Change::RemoveService(service));
                }
            }
            Step::RemoveNetwork(at) => {
                if let Some(network) = nth(self.view.networks().map(|one| one.id), at) {
                    let _ = self.try_apply(Author::Api, Change::RemoveNetwork(network));
                }
            }
            Step::Behind(behind) => self.set_behind(behind),
            Step::Pass(seconds) => self.pass(Millis::from_secs(seconds)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// After any history nothing is held twice, nothing is leaked, and a fixpoint is one: deciding
    /// about everything once more changes nothing.
    #[test]
    fn any_history_leaves_one_holder_each(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        let spec = Arc::new(NetworkSpec::ingress());
        world.apply(Author::Api, Change::CreateNetwork { id: id(999), spec });
        for (number, step) in steps.into_iter().enumerate() {
            world.carry_out(number as u128 + 10, step);
            world.check();
        }
        world.pass(Millis(limits::REST_PERIOD.0 + 1));
        let before = world.view.clone();
        world.pass(Millis(0));
        prop_assert!(world.view == before, "deciding again changed something");
    }
}

#[test]
fn networks_have_the_same_subnet_when_both_were_made_so_and_no_task_is_on_both() {
    let mut world = World::new();
    let red = world.overlapping(1, "10.77.0.0/24", true).unwrap();
    let blue = world.overlapping(2, "10.77.0.0/16", true).unwrap();
    let nets = |network: NetworkId, world: &World| {
        let subnets = &world.view.network(network).unwrap().subnets;
        subnets.iter().map(|subnet| subnet.net.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(nets(red, &world), ["10.77.0.0/24"]);
    assert_eq!(nets(blue, &world), ["10.77.0.0/16"]);
    // Both must have been made so.
    let refused = world.overlapping(3, "10.77.1.0/24", false).unwrap_err().to_string();
    assert!(refused.contains("overlaps with subnet 10.77.0.0/16 of network net2"), "{refused}");
    // What is chosen for one of them meets nobody.
    let free = world.overlapping(4, "", true).unwrap();
    let chosen = nets(free, &world);
    assert!(!chosen.is_empty() && !chosen[0].starts_with("10.77."), "{chosen:?}");
    let services = [red, blue].map(|network| {
        let service = world.service(network.0.as_u128() - 1_000, &[network], Vec::new());
        world.start(service, 1)
    });
    assert_eq!(world.address(services[0], red), world.address(services[1], blue));

    let base = world.view.services().find(|service| service.spec.name == "base").unwrap();
    let mut spec: ServiceSpec = (*base.spec).clone();
    spec.name = "both".into();
    let on = |network: NetworkId| NetworkAttachment {
        target: network.to_string(),
        ..NetworkAttachment::default()
    };
    spec.task.networks = vec![on(red), on(blue)];
    let change = Change::CreateService { id: id(3_000), spec: Arc::new(spec.clone()) };
    let refused = world.try_apply(Author::Api, change).unwrap_err().to_string();
    assert!(refused.contains("net2 and net1 have overlapping subnets"), "{refused}");
    spec.task.networks = vec![on(red), on(free)];
    let change = Change::CreateService { id: id(3_000), spec: Arc::new(spec) };
    world.try_apply(Author::Api, change).unwrap();
}
