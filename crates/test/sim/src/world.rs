//! One run: hosts, managers, faults, checks.
//!
//! Owns: the phases (chaos, then calm), the choice of faults, and the verdict.
//! Invariant: every choice comes from the seed.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent::{Agent, Options, TaskDb};
use base::{Id, IdSource, Millis};
use manager::{Dispatcher, Timing};
use ports::Clock;
use ports::store::Store;
use state::{Author, Change, ChangeSet, Proposal, Snapshot};
use testkit::fake::{Gate, Host, SimClock};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Duration, sleep};
use types::{
    Availability, Cluster, ClusterId, ClusterSpec, ContainerSpec, Labels, ManagerStatus, Node,
    NodeDescription, NodeId, NodeRole, NodeSpec, NodeStatus, Platform, Resources, RestartPolicy,
    ServiceId, ServiceMode, ServiceSpec, TaskSpec,
};

use crate::group::{Group, SimStore, address};
use crate::invariants::{Backwards, check_converged, check_running, check_services, check_slots};
use crate::link::{Dialer, Net};

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub managers: usize,
    /// Hosts in all; the first ones are the managers.
    pub hosts: usize,
    /// Simulated time with faults.
    pub chaos: Millis,
}

impl Plan {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, managers: 3, hosts: 5, chaos: Millis::from_secs(60) }
    }
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Digest of everything that was stored, in order: equal runs have equal digests.
    pub digest: u64,
    /// Entries of the log.
    pub entries: u64,
    pub faults: u64,
    /// The first violation.
    pub violation: Option<String>,
}

/// Simulated time in which the cluster must converge once faults stop.
const CALM_MAX: Millis = Millis::from_secs(900);
/// How far a node's wall clock is off at most.
const SKEW_MAX: Millis = Millis::from_secs(20);
const CHECK_PERIOD: Millis = Millis(500);

/// Runs one seed to its end, in virtual time.
#[must_use]
pub fn run(plan: Plan) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O can always be built");
    runtime.block_on(async move {
        let mut world = World::new(plan).await;
        let violation = world.play().await.err();
        Outcome {
            digest: world.group.digest(),
            entries: world.group.committed().index(),
            faults: world.faults,
            violation,
        }
    })
}

struct HostState {
    host: Host,
    db: Arc<TaskDb>,
    node: NodeId,
    clock: SimClock,
    gate: Gate,
    agent: Option<(JoinHandle<()>, watch::Sender<bool>)>,
    cut_until: Option<Millis>,
    down_until: Option<Millis>,
    stopped_until: Option<Millis>,
}

struct World {
    plan: Plan,
    clock: SimClock,
    random: IdSource,
    group: Group,
    net: Net,
    hosts: Vec<HostState>,
    managers: Vec<Vec<JoinHandle<()>>>,
    /// Acknowledged services and their replicas.
    known: BTreeMap<ServiceId, u64>,
    backwards: Backwards,
    names: u64,
    faults: u64,
    // Held, so that loops see no shutdown.
    stop: watch::Sender<bool>,
}

impl World {
    async fn new(plan: Plan) -> Self {
        let mut random = IdSource::new(u128::from(plan.seed) << 1 | 1);
        let mut split = || IdSource::new(random.mint().as_u128());
        let gates: Vec<Gate> = (0..plan.hosts).map(|_| Gate::default()).collect();
        let group = Group::new(&gates[..plan.managers], split());
        let net = Net::new(split(), gates.clone());
        let clock = SimClock::default();
        let hosts = gates.iter().enumerate().map(|(number, gate)| HostState {
            host: Host::troubled(split(), gate.clone()),
            db: Arc::new(TaskDb::in_memory().expect("memory does not fail")),
            node: NodeId(Id::from_u128(number as u128 + 1).expect("not zero")),
            clock: clock.of_node(gate),
            gate: gate.clone(),
            agent: None,
            cut_until: None,
            down_until: None,
            stopped_until: None,
        });
        let hosts = hosts.collect();
        let stop = watch::Sender::new(false);
        let mut world = Self {
            plan,
            clock,
            random,
            group,
            net,
            hosts,
            managers: (0..plan.managers).map(|_| Vec::new()).collect(),
            known: BTreeMap::new(),
            backwards: Backwards::default(),
            names: 0,
            faults: 0,
            stop,
        };
        (0..plan.hosts).for_each(|host| world.set_clock(host));
        (0..plan.managers).for_each(|seat| world.start_manager(seat));
        world.found().await;
        (0..plan.hosts).for_each(|host| world.start_agent(host));
        world
    }

    fn split(&mut self) -> IdSource {
        IdSource::new(self.random.mint().as_u128())
    }

    fn start_manager(&mut self, seat: usize) {
        self.group.set_alive(seat, true);
        let (store, timing) = (self.group.store(seat), Timing::default());
        let clock = self.hosts[seat].clock.clone();
        let (dispatcher, handle) = Dispatcher::new(store.clone(), clock.clone(), timing);
        let reconcile =
            manager::reconcile::run(store, clock, self.split(), timing, self.stop.subscribe());
        self.managers[seat] =
            vec![tokio::spawn(reconcile), tokio::spawn(dispatcher.run(self.stop.subscribe()))];
        self.net.set_manager(seat, Some(handle));
    }

    fn start_agent(&mut self, number: usize) {
        let ids = self.split();
        let state = &self.hosts[number];
        let dialer = Dialer { net: self.net.clone(), host: number, node: state.node };
        let (_, description) = watch::channel(description(number));
        let (_, conditions) = watch::channel(Vec::new());
        let (agent, _) = Agent::new(Options {
            node: state.node,
            hostname: format!("host-{number}"),
            runtime: state.host.clone(),
            network: state.host.clone(),
            clock: state.clock.clone(),
            dialer,
            db: Arc::clone(&state.db),
            ids,
            managers: (0..self.plan.managers).map(address).collect(),
            description,
            conditions,
            paths: agent::PathLinks {
                bad: watch::channel(Vec::new()).1,
                contact: watch::Sender::new(true),
            },
        })
        .expect("memory does not fail");
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            if let Err(error) = agent.run(stopped).await {
                tracing::error!(%error, "agent ended");
            }
        });
        self.hosts[number].agent = Some((task, stop));
    }

    /// A node's wall clock is set, rightly or not.
    fn set_clock(&mut self, number: usize) {
        let skew = self.random.below(2 * SKEW_MAX.0 + 1) as i64 - SKEW_MAX.0 as i64;
        self.hosts[number].clock.set_skew(skew);
    }

    /// A node's daemon stands still where it is, or goes on; its containers run.
    fn set_stopped(&mut self, number: usize, stopped: bool) {
        if number < self.plan.managers {
            self.group.set_stopped(number, stopped);
        }
        self.hosts[number].gate.set_stopped(stopped);
    }

    /// A daemon dies where it stands: agent and, on a manager, its loops.
    fn kill_daemon(&mut self, number: usize) {
        if let Some((task, _)) = self.hosts[number].agent.take() {
            task.abort();
        }
        if self.hosts[number].stopped_until.take().is_some() {
            // The kill ends a stopped process too.
            self.set_stopped(number, false);
        }
        self.net.close_host(number);
        if number < self.plan.managers {
            self.managers[number].drain(..).for_each(|task| task.abort());
            self.net.set_manager(number, None);
            self.group.set_alive(number, false);
        }
    }

    fn start_daemon(&mut self, number: usize) {
        if number < self.plan.managers {
            self.start_manager(number);
        }
        self.start_agent(number);
    }

    async fn leader(&self) -> SimStore {
        loop {
            if let Some(leader) = self.group.leader() {
                return self.group.store(leader);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Proposes as a user; `true` when it was acknowledged.
    async fn write(&self, change: Change) -> bool {
        let store = self.leader().await;
        let atoms = vec![ChangeSet::one(Author::Api, change)];
        let proposal = Proposal { time: self.clock.now(), atoms };
        store.propose(proposal).await.is_ok_and(|applied| applied.results.iter().all(Result::is_ok))
    }

    async fn found(&mut self) {
        let created = Change::CreateCluster(Box::new(cluster()));
        while !self.write(created.clone()).await && self.group.committed().cluster().is_none() {}
        for number in 0..self.plan.hosts {
            let node = node(number, self.hosts[number].node, self.plan.managers);
            let id = node.id;
            let create = Change::CreateNode(Box::new(node));
            while !self.write(create.clone()).await && self.group.committed().node(id).is_none() {}
        }
    }

    async fn play(&mut self) -> Result<(), String> {
        let end = Millis(self.clock.monotonic().0 + self.plan.chaos.0);
        while self.clock.monotonic() < end {
            let wait = 50 + self.random.below(900);
            sleep(Duration::from_millis(wait)).await;
            self.act().await;
            self.heal_due(self.clock.monotonic());
            self.check(false)?;
        }
        self.heal_due(Millis::MAX);
        self.settle().await
    }

    /// Waits for convergence; the last reason against it is the verdict.
    async fn settle(&mut self) -> Result<(), String> {
        let end = Millis(self.clock.monotonic().0 + CALM_MAX.0);
        let mut last = Ok(());
        while self.clock.monotonic() < end {
            sleep(CHECK_PERIOD.as_duration()).await;
            self.check(true)?;
            let (running, left) = self.seen();
            last = check_converged(&self.group.committed(), &self.known, &running, &left);
            if last.is_ok() {
                return Ok(());
            }
        }
        last.map_err(|reason| format!("did not converge: {reason}"))
    }

    fn seen(&self) -> (Vec<(usize, String)>, Vec<String>) {
        let one = |(number, state): (usize, &HostState)| {
            state.host.running().into_iter().map(move |id| (number, id))
        };
        let running = self.hosts.iter().enumerate().flat_map(one).collect();
        let left = self.hosts.iter().flat_map(|state| state.host.left()).collect();
        (running, left)
    }

    fn check(&mut self, calm: bool) -> Result<(), String> {
        let view: Snapshot = self.group.committed();
        state::verify(&view)?;
        check_slots(&view)?;
        check_services(&view, &self.known)?;
        self.backwards.check(&view)?;
        let settled: Vec<bool> = self
            .hosts
            .iter()
            .map(|host| {
                let faults = [host.cut_until, host.down_until, host.stopped_until];
                calm || faults.iter().all(Option::is_none)
            })
            .collect();
        check_running(&view, &self.seen().0, &settled)
    }

    /// One thing happens: to a service, or to the cluster.
    async fn act(&mut self) {
        let (host, span) = (
            self.random.below(self.plan.hosts as u64) as usize,
            Millis(1_000 + self.random.below(25_000)),
        );
        let until = Some(Millis(self.clock.monotonic().0 + span.0));
        self.faults += 1;
        match self.random.below(20) {
            0..=3 => self.create_service().await,
            4..=6 => self.change_service().await,
            7 => self.remove_service().await,
            8..=10 => self.hosts[host].host.end_one(span.0, (span.0 % 3) as i32),
            11..=12 if self.hosts[host].down_until.is_none() => {
                self.kill_daemon(host);
                self.hosts[host].down_until = until;
            }
            13 if self.hosts[host].down_until.is_none() => {
                self.kill_daemon(host);
                self.hosts[host].host.reboot();
                self.hosts[host].down_until = until;
            }
            14..=15 if self.hosts[host].cut_until.is_none() => {
                self.cut(host, true);
                self.hosts[host].cut_until = until;
            }
            16 => self.all_killed(),
            17 => self.stop(host, until),
            18 => self.stop(self.group.leader().unwrap_or(host), until),
            19 => self.set_clock(host),
            _ => {}
        }
    }

    fn stop(&mut self, host: usize, until: Option<Millis>) {
        let state = &mut self.hosts[host];
        if state.stopped_until.is_none() && state.down_until.is_none() {
            state.stopped_until = until;
            self.set_stopped(host, true);
        }
    }

    /// Every daemon dies and comes back at once.
    fn all_killed(&mut self) {
        for number in 0..self.plan.hosts {
            if self.hosts[number].down_until.is_none() {
                self.kill_daemon(number);
                self.start_daemon(number);
            }
        }
    }

    /// Cuts a host off from everybody, or mends it.
    fn cut(&mut self, host: usize, cut: bool) {
        for manager in 0..self.plan.managers {
            if manager != host {
                self.net.set_cut(host, manager, cut);
                if host < self.plan.managers {
                    self.group.set_cut(host, manager, cut);
                }
            }
        }
        if host < self.plan.managers {
            (0..self.plan.hosts)
                .filter(|other| *other != host)
                .for_each(|other| self.net.set_cut(other, host, cut));
        }
    }

    fn heal_due(&mut self, now: Millis) {
        for number in 0..self.plan.hosts {
            if self.hosts[number].cut_until.is_some_and(|until| until <= now) {
                self.hosts[number].cut_until = None;
                self.cut(number, false);
            }
            if self.hosts[number].stopped_until.is_some_and(|until| until <= now) {
                self.hosts[number].stopped_until = None;
                self.set_stopped(number, false);
            }
            if self.hosts[number].down_until.is_some_and(|until| until <= now) {
                self.hosts[number].down_until = None;
                self.start_daemon(number);
            }
        }
        // A mended host may have been the other end of a cut that still stands.
        for number in 0..self.plan.hosts {
            if self.hosts[number].cut_until.is_some() {
                self.cut(number, true);
            }
        }
    }

    /// A write of a user needs a majority; without one there is nothing to do.
    fn can_write(&self) -> bool {
        self.group.leader().is_some()
    }

    async fn create_service(&mut self) {
        if !self.can_write() || self.known.len() >= 6 {
            return;
        }
        self.names += 1;
        let replicas = self.random.below(8);
        let id = ServiceId(self.random.mint());
        let spec = spec(format!("s{}", self.names), replicas, "app:1");
        let done = self.write(Change::CreateService { id, spec: Arc::new(spec) }).await;
        if done || self.group.committed().service(id).is_some() {
            self.known.insert(id, replicas);
        }
    }

    fn any_service(&mut self) -> Option<ServiceId> {
        let count = self.known.len() as u64;
        let nth = self.random.below(count.max(1)) as usize;
        self.known.keys().nth(nth).copied().filter(|_| self.can_write())
    }

    async fn change_service(&mut self) {
        let Some(id) = self.any_service() else { return };
        let view = self.group.committed();
        let Some(service) = view.service(id) else { return };
        let (replicas, image) = (self.random.below(9), self.random.below(3));
        let spec = spec(service.spec.name.clone(), replicas, &format!("app:{image}"));
        let expect = service.meta.spec_version;
        self.write(Change::UpdateService { id, expect, spec: Arc::new(spec) }).await;
        // Whether or not the answer came: what counts is what is stored.
        let stored = self.group.committed();
        if let Some(ServiceMode::Replicated(replicas)) = stored.service(id).map(|s| s.spec.mode) {
            self.known.insert(id, replicas);
        }
    }

    async fn remove_service(&mut self) {
        let Some(id) = self.any_service() else { return };
        self.known.remove(&id);
        while !self.write(Change::RemoveService(id)).await
            && self.group.committed().service(id).is_some()
        {}
    }
}

fn spec(name: String, replicas: u64, image: &str) -> ServiceSpec {
    let container = ContainerSpec {
        image: image.to_owned(),
        stop_grace: Some(Millis::from_secs(2)),
        ..ContainerSpec::default()
    };
    let restart = RestartPolicy { delay: Millis::from_secs(1), ..RestartPolicy::default() };
    ServiceSpec {
        name,
        labels: Labels::new(),
        task: TaskSpec { container, restart, ..TaskSpec::default() },
        mode: ServiceMode::Replicated(replicas),
        update: None,
        rollback: None,
        endpoint: None,
    }
}

fn description(number: usize) -> NodeDescription {
    NodeDescription {
        hostname: format!("host-{number}"),
        platform: Platform { architecture: "x86_64".into(), os: "linux".into() },
        resources: Resources {
            cpu_nanos: 8_000_000_000,
            memory_bytes: 16 << 30,
            ..Resources::default()
        },
        engine_version: "sim".into(),
        ..NodeDescription::default()
    }
}

fn node(number: usize, id: NodeId, managers: usize) -> Node {
    let role = if number < managers { NodeRole::Manager } else { NodeRole::Worker };
    let manager = (number < managers)
        .then(|| ManagerStatus { raft_id: number as u64 + 1, address: address(number) });
    Node {
        id,
        meta: types::Meta::default(),
        spec: NodeSpec { role, availability: Availability::Active, ..NodeSpec::default() },
        description: description(number),
        status: NodeStatus::default(),
        role,
        manager,
        number: 0,
        certificate_expires: base::Timestamp::ZERO,
    }
}

fn cluster() -> Cluster {
    Cluster {
        id: ClusterId::MIN,
        meta: types::Meta::default(),
        spec: ClusterSpec {
            dispatcher_heartbeat: Millis::from_secs(1),
            down_grace: Millis::from_secs(5),
            ..ClusterSpec::default()
        },
        ca_certificate: String::new(),
        ca_key: String::new(),
        worker_token: String::new(),
        manager_token: String::new(),
        format_level: 1,
        epoch: 1,
        data_path_port: 4789,
        encryption_ports: types::limits::ENCRYPTION_PORTS_DEFAULT,
        network_key_generation: 1,
        address_pools: Vec::new(),
        address_pool_mask: 24,
        next_node_number: 1,
        ula_prefix: "fd12:3456:789a::/48".parse().ok(),
        next_vni: types::limits::VNI_MIN,
        next_ports: std::collections::BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_stands_still_is_replaced_and_believes_it_for_a_while() {
        let mut world = World::new(Plan::new(5)).await;
        world.create_service().await;
        let old = world.group.leader().expect("the cluster was founded");
        let until = Some(Millis(world.clock.monotonic().0 + 20_000));
        world.stop(old, until);
        assert_eq!(world.group.leader(), None);
        sleep(Duration::from_secs(5)).await;
        let new = world.group.leader().expect("two of three are a majority");
        assert_ne!(new, old);
        let still = world.group.store(old).leadership().borrow().is_leader;
        assert!(still, "it has not heard of it");
        let term = world.group.store(new).leadership().borrow().term;
        sleep(Duration::from_secs(20)).await;
        world.heal_due(Millis::MAX);
        sleep(Duration::from_secs(1)).await;
        let heard = world.group.store(old).leadership().borrow().clone();
        assert!(!heard.is_leader && heard.term >= term, "{heard:?}");
        assert_eq!(world.settle().await, Ok(()));
    }

    /// Leadership that is lost and won again between two looks is still a change: what could not
    /// be stored in between was dropped, and the nodes must say it again.
    #[tokio::test(start_paused = true)]
    async fn a_leader_that_is_elected_again_at_once_loses_no_report() {
        let mut world = World::new(Plan::new(3)).await;
        world.create_service().await;
        let id = *world.known.keys().next().expect("it was created");
        let version = world.group.committed().service(id).expect("stored").meta.spec_version;
        let spec = Arc::new(spec("s1".into(), 8, "app:1"));
        assert!(world.write(Change::UpdateService { id, expect: version, spec }).await);
        world.known.insert(id, 8);
        assert_eq!(world.settle().await, Ok(()));
        for offset in 0..60 {
            let leader = world.group.leader().expect("calm");
            let other = (leader + 1) % 3;
            world.hosts[3].host.end_one(offset, 1);
            world.hosts[4].host.end_one(offset, 1);
            sleep(Duration::from_millis(offset)).await;
            world.set_stopped(leader, true);
            world.kill_daemon(other);
            sleep(Duration::from_secs(1)).await;
            world.set_stopped(leader, false);
            sleep(Duration::from_millis(300)).await;
            world.start_daemon(other);
            assert_eq!(world.settle().await, Ok(()), "stopped after {offset} ms");
        }
    }
}
