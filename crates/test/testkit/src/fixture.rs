//! The language of fixtures.
//!
//! ```text
//! now     12:00:00                          time of day of the decision
//! limit   2                                 task history limit
//! node    a ready drain cpu=2 mem=1GiB label.zone=x arch=arm64 role=manager since=90s
//! service web replicas=3 constraint=node.labels.zone==x reserve.cpu=0.5 restart=on-failure …
//! change  web image=other                   a later revision of the service
//! task    web.1 @a running desired=shutdown rev=old age=90s exit=1
//! tally   web.1 attempts=2 resume=12:00:05
//! reason  web scheduler no-suitable-node since=11:59:58 count=2 no suitable node (…)
//! gone    web                               the service was removed after its tasks were made
//! ```
//!
//! Owns: parsing it into a snapshot. A line that makes no sense panics with the line.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Id, Millis, Timestamp};
use state::{Author, Change, ChangeSet, Restore, Snapshot, Stamp};
use types::{
    Availability, Cluster, ClusterId, ClusterSpec, ContainerSpec, Labels, Meta, Node,
    NodeDescription, NodeId, NodeRole, NodeSpec, NodeState, NodeStatus, Placement, Platform,
    Reason, Resources, RestartCondition, Revision, Service, ServiceId, ServiceMode, ServiceSpec,
    Slot, SlotKey, Tally, Task, TaskId, TaskSpec, TaskState, TaskStatus,
};

/// A snapshot, the time of the decision, and names for what is in it.
pub struct Fixture {
    pub view: Snapshot,
    pub now: Timestamp,
}

/// What a decider changed further, at the same time. A change that is refused panics.
pub fn apply(view: &mut Snapshot, author: Author, change: Change) {
    let stamp = Stamp { index: view.index() + 1, time: view.time() };
    view.apply(stamp, &ChangeSet::one(author, change), &mut Vec::new())
        .expect("a change that is taken");
}

/// Identity of the node of that name in every fixture.
#[must_use]
pub fn node_id(name: &str) -> NodeId {
    NodeId(number_of(1, name))
}

/// Identity of the service of that name in every fixture.
#[must_use]
pub fn service_id(name: &str) -> ServiceId {
    ServiceId(number_of(2, name))
}

fn number_of(kind: u128, name: &str) -> Id {
    let mut number: u128 = kind << 120;
    for (at, byte) in name.bytes().take(14).enumerate() {
        number |= u128::from(byte) << (8 * (13 - at));
    }
    Id::from_u128(number).expect("the kind is not zero")
}

/// Builds the snapshot that `text` describes.
///
/// # Panics
/// On a line that makes no sense.
#[must_use]
pub fn fixture(text: &str) -> Fixture {
    let mut builder = Builder::default();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        builder.line(kind, &rest).unwrap_or_else(|| panic!("fixture line makes no sense: {line}"));
    }
    builder.finish()
}

#[derive(Default)]
struct Builder {
    now: Timestamp,
    history: Option<i64>,
    nodes: Vec<Node>,
    services: BTreeMap<ServiceId, Service>,
    revisions: Vec<Revision>,
    tasks: Vec<Task>,
    tallies: Vec<(ServiceId, SlotKey, Tally)>,
    gone: Vec<ServiceId>,
    index: u64,
}

impl Builder {
    fn line(&mut self, kind: &str, words: &[&str]) -> Option<()> {
        self.index += 1;
        match kind {
            "now" => self.now = clock(words.first()?)?,
            "limit" => self.history = Some(words.first()?.parse().ok()?),
            "node" => self.nodes.push(node(words, self.now)?),
            "service" => {
                let id = service_id(words.first()?);
                let meta = self.meta();
                let spec = Arc::new(spec(words)?);
                self.add_revision(id, &spec);
                let service = Service {
                    id,
                    meta,
                    spec,
                    previous: None,
                    revision: self.index,
                    update: None,
                    reasons: Vec::new(),
                    endpoint: None,
                };
                self.services.insert(id, service);
            }
            "change" => self.change(words)?,
            "task" => {
                let task = self.task(words)?;
                self.tasks.push(task);
            }
            "tally" => {
                let (service, slot) = slot_name(words.first()?)?;
                let pairs = pairs(&words[1..]);
                let tally = Tally {
                    revision: self.services.get(&service)?.revision,
                    attempts: pairs.get("attempts").map_or(Some(0), |v| v.parse().ok())?,
                    times: Vec::new(),
                    resume_at: pairs.get("resume").map_or(Some(Timestamp::ZERO), |v| clock(v))?,
                };
                self.tallies.push((service, slot, tally));
            }
            "reason" => self.reason(words)?,
            "gone" => self.gone.push(service_id(words.first()?)),
            _ => return None,
        }
        Some(())
    }

    fn meta(&self) -> Meta {
        Meta { version: self.index, spec_version: self.index, ..Meta::default() }
    }

    fn add_revision(&mut self, service: ServiceId, spec: &ServiceSpec) {
        self.revisions.push(Revision::of(service, self.index, spec));
    }

    fn reason(&mut self, words: &[&str]) -> Option<()> {
        let [service, decider, code, since, count, message @ ..] = words else { return None };
        let reason = Reason {
            decider: (*decider).to_owned(),
            code: (*code).to_owned(),
            message: message.join(" "),
            count: count.strip_prefix("count=")?.parse().ok()?,
            since: clock(since.strip_prefix("since=")?)?,
        };
        self.services.get_mut(&service_id(service))?.reasons.push(reason);
        Some(())
    }

    fn change(&mut self, words: &[&str]) -> Option<()> {
        let id = service_id(words.first()?);
        let mut service = self.services.remove(&id)?;
        let mut changed = (*service.spec).clone();
        words[1..].iter().try_for_each(|word| set(&mut changed, word))?;
        if changed.task != service.spec.task {
            self.add_revision(id, &changed);
            service.revision = self.index;
        }
        service.previous = Some(Arc::clone(&service.spec));
        service.spec = Arc::new(changed);
        self.services.insert(id, service);
        Some(())
    }

    fn task(&self, words: &[&str]) -> Option<Task> {
        let (service, key) = slot_name(words.first()?)?;
        let pairs = pairs(&words[1..]);
        let plain = |text: &&&str| !text.contains('=') && !text.starts_with('@');
        let state = words[1..].iter().find(plain).copied().unwrap_or("new");
        let node = words.iter().find_map(|word| word.strip_prefix('@')).map(node_id);
        let age = pairs.get("age").map_or(Some(Millis::from_secs(60)), |v| seconds(v))?;
        let desired = match pairs.get("desired") {
            Some(name) => TaskState::from_name(name)?,
            None => TaskState::Running,
        };
        let current = self.services.get(&service)?.revision;
        let old = self.revisions.iter().find(|r| r.service == service).map(|r| r.number)?;
        let (slot, node) = match key {
            SlotKey::Replica(number) => (Slot::Replica(number), node),
            SlotKey::Node(id) => (Slot::Node, Some(id)),
        };
        Some(Task {
            id: TaskId(Id::from_u128(3 << 120 | u128::from(self.index))?),
            meta: Meta {
                created: self.now - age,
                updated: self.now - age,
                version: self.index,
                spec_version: self.index,
            },
            service,
            revision: if pairs.get("rev") == Some(&"old") { old } else { current },
            slot,
            node,
            desired,
            status: TaskStatus {
                state: TaskState::from_name(state)?,
                at: self.now - age,
                exit_code: pairs.get("exit").and_then(|v| v.parse().ok()),
                ..TaskStatus::default()
            },
            network: None,
        })
    }

    fn finish(self) -> Fixture {
        let mut restore = Restore::new(self.index, self.now);
        let spec = ClusterSpec {
            task_history_limit: self.history.unwrap_or(types::limits::TASK_HISTORY_DEFAULT),
            ..ClusterSpec::default()
        };
        restore.cluster(cluster(spec));
        self.nodes.into_iter().for_each(|n| restore.node(n));
        for service in self.services.into_values().filter(|s| !self.gone.contains(&s.id)) {
            restore.service(service);
        }
        self.revisions.into_iter().for_each(|r| restore.revision(r));
        self.tasks.into_iter().for_each(|t| restore.task(t));
        self.tallies.into_iter().for_each(|(s, k, t)| restore.tally(s, k, t));
        let view = restore.finish().expect("a fixture's references fit together");
        Fixture { view, now: self.now }
    }
}

fn cluster(spec: ClusterSpec) -> Cluster {
    Cluster {
        id: ClusterId::MIN,
        meta: Meta::default(),
        spec,
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
        next_ports: BTreeMap::new(),
    }
}

fn node(words: &[&str], now: Timestamp) -> Option<Node> {
    let name = *words.first()?;
    let pairs = pairs(&words[1..]);
    let since = pairs.get("since").map_or(Some(Millis::ZERO), |v| seconds(v))?;
    let has = |word: &str| words.contains(&word);
    let labels = |prefix: &str| -> Labels {
        let entry = |(key, value): (&&str, &&str)| {
            Some((key.strip_prefix(prefix)?.to_owned(), (*value).to_owned()))
        };
        pairs.iter().filter_map(entry).collect()
    };
    let state = match () {
        () if has("down") => NodeState::Down,
        () if has("unknown") => NodeState::Unknown,
        () if has("ready") => NodeState::Ready,
        () => return None,
    };
    let availability = match () {
        () if has("drain") => Availability::Drain,
        () if has("pause") => Availability::Pause,
        () => Availability::Active,
    };
    let role =
        if pairs.get("role") == Some(&"manager") { NodeRole::Manager } else { NodeRole::Worker };
    let resources = Resources {
        cpu_nanos: pairs.get("cpu").map_or(Some(64_000_000_000), |v| cores(v))?,
        memory_bytes: pairs.get("mem").map_or(Some(64 << 30), |v| bytes(v))?,
        ..Resources::default()
    };
    let architecture = (*pairs.get("arch").unwrap_or(&"x86_64")).to_owned();
    Some(Node {
        id: node_id(name),
        meta: Meta::default(),
        spec: NodeSpec { labels: labels("label."), role, availability, ..NodeSpec::default() },
        description: NodeDescription {
            hostname: name.to_owned(),
            platform: Platform { architecture, os: "linux".into() },
            resources,
            engine_labels: labels("engine."),
            images: pairs.get("image").map(|v| (*v).to_owned()).into_iter().collect(),
            ..NodeDescription::default()
        },
        status: NodeStatus { state, since: now - since, ..NodeStatus::default() },
        role,
        manager: None,
        number: 1,
        certificate_expires: Timestamp::ZERO,
    })
}

fn spec(words: &[&str]) -> Option<ServiceSpec> {
    let container = ContainerSpec { image: "nginx:1".into(), ..ContainerSpec::default() };
    let mut spec = ServiceSpec {
        name: (*words.first()?).to_owned(),
        labels: Labels::new(),
        task: TaskSpec { container, placement: Placement::default(), ..TaskSpec::default() },
        mode: ServiceMode::Replicated(1),
        update: None,
        rollback: None,
        endpoint: None,
    };
    words[1..].iter().try_for_each(|word| set(&mut spec, word))?;
    Some(spec)
}

fn set(spec: &mut ServiceSpec, word: &str) -> Option<()> {
    if word == "global" {
        spec.mode = ServiceMode::Global;
        return Some(());
    }
    let (key, value) = word.split_once('=')?;
    let task = &mut spec.task;
    match key {
        "replicas" => spec.mode = ServiceMode::Replicated(value.parse().ok()?),
        "image" => value.clone_into(&mut task.container.image),
        "constraint" => task.placement.constraints.push(value.to_owned()),
        "spread" => task.placement.spread.push(value.to_owned()),
        "max" => task.placement.max_replicas = value.parse().ok()?,
        "reserve.cpu" => task.reservations.cpu_nanos = cores(value)?,
        "reserve.mem" => task.reservations.memory_bytes = bytes(value)?,
        "platform" => task
            .placement
            .platforms
            .push(Platform { architecture: value.to_owned(), os: "linux".into() }),
        "restart" => {
            task.restart.condition = match value {
                "none" => RestartCondition::None,
                "on-failure" => RestartCondition::OnFailure,
                "any" => RestartCondition::Any,
                _ => return None,
            };
        }
        "delay" => task.restart.delay = seconds(value)?,
        "attempts" => task.restart.max_attempts = value.parse().ok()?,
        "window" => task.restart.window = seconds(value)?,
        _ => return None,
    }
    Some(())
}

fn slot_name(text: &str) -> Option<(ServiceId, SlotKey)> {
    let (service, slot) = text.rsplit_once('.')?;
    let key = match slot.parse::<u32>() {
        Ok(number) => SlotKey::Replica(number),
        Err(_) => SlotKey::Node(node_id(slot)),
    };
    Some((service_id(service), key))
}

fn pairs<'a>(words: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    words.iter().filter_map(|word| word.split_once('=')).collect()
}

fn clock(text: &str) -> Option<Timestamp> {
    let mut parts = text.split(':').map(str::parse::<u64>);
    let (h, m, s) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    Some(Timestamp((86_400 + h * 3_600 + m * 60 + s) * 1_000))
}

fn seconds(text: &str) -> Option<Millis> {
    text.strip_suffix('s')?.parse().ok().map(Millis::from_secs)
}

fn cores(text: &str) -> Option<u64> {
    text.parse::<f64>().ok().map(|cores| (cores * 1e9) as u64)
}

fn bytes(text: &str) -> Option<u64> {
    match (text.strip_suffix("GiB"), text.strip_suffix("MiB")) {
        (Some(n), _) => n.parse::<u64>().ok().map(|n| n << 30),
        (_, Some(n)) => n.parse::<u64>().ok().map(|n| n << 20),
        _ => None,
    }
}
