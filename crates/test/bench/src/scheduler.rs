//! The scheduler's core: from snapshot to finished plan, without applying it.
//!
//! Owns: the two shapes of load, and counting bytes of a task.
//! Does not know: Raft. Invariant: what is placed is checked to be all that waited.

use std::sync::Arc;
use std::time::Duration;

use base::{Id, IdSource, Timestamp};
use state::{Author, Change, ChangeSet, Ctx, Restore, Snapshot, Stamp};
use types::{
    Availability, ContainerSpec, Labels, Meta, Node, NodeDescription, NodeId, NodeRole, NodeSpec,
    NodeState, NodeStatus, Platform, Resources, Revision, Service, ServiceId, ServiceMode,
    ServiceSpec, Slot, Task, TaskId, TaskSpec, TaskState, TaskStatus,
};

/// What one run measured.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    pub tasks: usize,
    /// From snapshot to plan, all plans together; time of this thread on a processor, as are all
    /// times here: what else the machine does is not the scheduler's.
    pub planning: Duration,
    pub applying: Duration,
    pub plans: usize,
}

impl Placed {
    /// Placements per second of planning.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.tasks as f64 / self.planning.as_secs_f64()
    }
}

/// A cluster whose tasks all wait for a node.
#[must_use]
pub fn pending(nodes: u64, services: u64, replicas: u32) -> Snapshot {
    let mut restore = Restore::new(1, Timestamp(1));
    for number in 0..nodes {
        restore.node(node(number));
    }
    let mut ids = IdSource::new(7);
    for number in 0..services {
        let id = ServiceId(ids.mint());
        let spec = Arc::new(spec(number, u64::from(replicas)));
        restore.revision(Revision::new(id, 1, Arc::new(spec.task.clone())));
        restore.service(Service {
            id,
            meta: Meta::default(),
            spec,
            previous: None,
            revision: 1,
            update: None,
            reasons: Vec::new(),
            endpoint: None,
        });
        for slot in 1..=replicas {
            restore.task(task(TaskId(ids.mint()), id, slot));
        }
    }
    restore.finish().expect("the records fit together")
}

/// Places everything, plan by plan, as the manager's loop does on its working copy.
#[must_use]
pub fn place_all(view: Snapshot, placements_per_plan: usize) -> Placed {
    place_into(view, placements_per_plan).1
}

fn place_into(mut view: Snapshot, placements_per_plan: usize) -> (Snapshot, Placed) {
    let mut ids = IdSource::new(1);
    let mut placed =
        Placed { tasks: 0, planning: Duration::ZERO, applying: Duration::ZERO, plans: 0 };
    while view.pending_count() > 0 {
        let begun = cpu_time();
        let mut ctx = Ctx { view: &view, now: Timestamp(2), ids: &mut ids };
        let plan = scheduler::decide_queue(&mut ctx, placements_per_plan);
        placed.planning += cpu_time().saturating_sub(begun);
        placed.plans += 1;
        let begun = cpu_time();
        let before = view.pending_count();
        for atom in &plan.atoms {
            let stamp = Stamp { index: view.index() + 1, time: Timestamp(2) };
            view.apply(stamp, atom, &mut Vec::new()).expect("a plan applies to its snapshot");
        }
        placed.applying += cpu_time().saturating_sub(begun);
        let done = before - view.pending_count();
        assert!(done > 0, "the scheduler does not go on");
        placed.tasks += done;
    }
    (view, placed)
}

/// Time that this thread has spent on a processor.
fn cpu_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    clock.now().map(Duration::from).expect("every Linux has this clock")
}

/// Bytes of resident memory for each task of a cluster at rest, all told: nodes, services, tables
/// and indexes divided by the tasks. Only right in a process that did nothing else before.
#[must_use]
pub fn bytes_per_running_task(nodes: u64, services: u64, replicas: u32) -> f64 {
    let before = resident_bytes();
    let view = place_into(pending(nodes, services, replicas), 20_000).0;
    let view = all_running(view);
    let bytes = resident_bytes().saturating_sub(before);
    bytes as f64 / view.task_count().max(1) as f64
}

/// Makes every task of `view` a running one, as in a cluster at rest.
fn all_running(mut view: Snapshot) -> Snapshot {
    let ids: Vec<TaskId> = view.tasks().map(|task| task.id).collect();
    let status = |pid: usize| TaskStatus {
        state: TaskState::Running,
        at: Timestamp(3),
        pid: u32::try_from(pid).unwrap_or(u32::MAX),
        ..TaskStatus::default()
    };
    for (number, chunk) in ids.chunks(10_000).enumerate() {
        let reports = chunk.iter().enumerate().map(|(n, id)| (*id, status(number + n))).collect();
        let atom = ChangeSet::one(Author::Dispatch, Change::ReportTasks(reports));
        let stamp = Stamp { index: view.index() + 1, time: Timestamp(3) };
        view.apply(stamp, &atom, &mut Vec::new()).expect("reports are never refused");
    }
    view
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn node(number: u64) -> Node {
    Node {
        id: NodeId(Id::from_u128(u128::from(number) + 1).expect("not zero")),
        meta: Meta::default(),
        spec: NodeSpec { availability: Availability::Active, ..NodeSpec::default() },
        description: NodeDescription {
            hostname: format!("node-{number}"),
            platform: Platform { architecture: "x86_64".into(), os: "linux".into() },
            resources: Resources {
                cpu_nanos: 64_000_000_000,
                memory_bytes: 256 << 30,
                ..Resources::default()
            },
            ..NodeDescription::default()
        },
        status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
        role: NodeRole::Worker,
        manager: None,
        number: u32::try_from(number + 1).unwrap_or(u32::MAX),
        certificate_expires: Timestamp::ZERO,
    }
}

fn spec(number: u64, replicas: u64) -> ServiceSpec {
    let container = ContainerSpec { image: "nginx:1".into(), ..ContainerSpec::default() };
    let reservations =
        Resources { cpu_nanos: 100_000_000, memory_bytes: 64 << 20, ..Resources::default() };
    ServiceSpec {
        name: format!("service-{number}"),
        labels: Labels::new(),
        task: TaskSpec { container, reservations, ..TaskSpec::default() },
        mode: ServiceMode::Replicated(replicas),
        update: None,
        rollback: None,
        endpoint: None,
    }
}

fn task(id: TaskId, service: ServiceId, slot: u32) -> Task {
    Task {
        id,
        meta: Meta::default(),
        service,
        revision: 1,
        slot: Slot::Replica(slot),
        node: None,
        desired: TaskState::Running,
        status: TaskStatus { state: TaskState::Pending, ..TaskStatus::default() },
        network: None,
    }
}
