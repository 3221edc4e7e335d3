//! What `apply` guards, and that indexes are what a fresh derivation would give.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::sync::Arc;

use base::{Id, IdSource, Timestamp};
use state::{Author, Change, ChangeSet, Event, Refusal, Snapshot, Stamp, verify};
use testkit::{fixture, node_id, service_id};
use types::{ServiceId, ServiceSpec, TaskId, TaskState, TaskStatus};

const BASE: &str = "now 12:00:00
     node a ready
     node b ready
     service web replicas=3 reserve.cpu=0.5
     task web.1 @a running
     task web.2 pending
     task web.3 new";

fn base() -> Snapshot {
    fixture(BASE).view
}

fn apply(view: &mut Snapshot, author: Author, changes: Vec<Change>) -> Result<Vec<Event>, Refusal> {
    let stamp = Stamp { index: view.index() + 1, time: view.time() };
    let mut events = Vec::new();
    view.apply(stamp, &ChangeSet { author, changes }, &mut events).map(|()| events)
}

fn spec_of(view: &Snapshot, change: impl FnOnce(&mut ServiceSpec)) -> Arc<ServiceSpec> {
    let mut spec = (*view.service(service_id("web")).unwrap().spec).clone();
    change(&mut spec);
    Arc::new(spec)
}

fn task_named(view: &Snapshot, state: TaskState) -> TaskId {
    view.tasks().find(|task| task.status.state == state).unwrap().id
}

fn status(state: TaskState) -> TaskStatus {
    TaskStatus { state, ..TaskStatus::default() }
}

#[test]
fn a_refused_atom_leaves_no_trace() {
    let mut view = base();
    let before = view.clone();
    let new = task_named(&view, TaskState::New);
    let changes = vec![
        Change::AdmitTasks(vec![new]),
        Change::AdmitTasks(vec![TaskId(Id::from_u128(99).unwrap())]),
    ];
    let refusal = apply(&mut view, Author::Allocator, changes).unwrap_err();
    assert!(matches!(refusal, Refusal::Missing { .. }), "{refusal}");
    assert_eq!(view, before);
}

#[test]
fn names_are_taken_without_regard_to_case() {
    let mut view = base();
    let spec = spec_of(&view, |spec| spec.name = "WEB".into());
    let create = Change::CreateService { id: ServiceId(Id::from_u128(5).unwrap()), spec };
    let refusal = apply(&mut view, Author::Api, vec![create]).unwrap_err();
    assert_eq!(refusal, Refusal::NameTaken { name: "WEB".into() });
}

#[test]
fn an_update_of_what_has_changed_meanwhile_is_refused() {
    let mut view = base();
    let id = service_id("web");
    let expect = view.service(id).unwrap().meta.spec_version;
    let update = |view: &Snapshot| {
        let spec = spec_of(view, |spec| drop(spec.labels.insert("a".into(), "b".into())));
        vec![Change::UpdateService { id, expect, spec }]
    };
    let changes = update(&view);
    apply(&mut view, Author::Api, changes.clone()).unwrap();
    let refusal = apply(&mut view, Author::Api, changes).unwrap_err();
    assert!(refusal.to_string().contains("update out of sequence"), "{refusal}");
}

#[test]
fn only_a_changed_template_is_a_new_revision() {
    let mut view = base();
    let id = service_id("web");
    let revision = view.service(id).unwrap().revision;
    let update = |view: &mut Snapshot, spec| {
        let expect = view.service(id).unwrap().meta.spec_version;
        apply(view, Author::Api, vec![Change::UpdateService { id, expect, spec }]).unwrap();
        view.service(id).unwrap().revision
    };
    let labelled = spec_of(&view, |spec| drop(spec.labels.insert("a".into(), "b".into())));
    assert_eq!(update(&mut view, labelled), revision);
    let changed = spec_of(&view, |spec| spec.task.container.image = "other".into());
    assert_ne!(update(&mut view, changed), revision);
    assert!(view.revision(id, revision).is_some(), "tasks still run it");
    let tasks = view.tasks().map(|task| task.id).collect();
    apply(&mut view, Author::Orchestrator, vec![Change::RemoveTasks(tasks)]).unwrap();
    assert!(view.revision(id, revision).is_none(), "nobody refers to it any more");
}

#[test]
fn each_field_has_one_writer() {
    let mut view = base();
    let pending = task_named(&view, TaskState::Pending);
    let assign = || vec![Change::AssignTasks(vec![(pending, node_id("a"))])];
    for author in Author::ALL.into_iter().filter(|author| *author != Author::Scheduler) {
        let refusal = apply(&mut view, author, assign()).unwrap_err();
        assert_eq!(refusal, Refusal::NotTheWriter { author: author.name() });
    }
    apply(&mut view, Author::Scheduler, assign()).unwrap();
    let refusal = apply(&mut view, Author::Scheduler, assign()).unwrap_err();
    assert!(matches!(refusal, Refusal::WrongState { .. }), "{refusal}");
}

#[test]
fn an_observed_state_never_goes_back() {
    let mut view = base();
    let running = task_named(&view, TaskState::Running);
    let report = |view: &mut Snapshot, state| {
        let changes = vec![Change::ReportTasks(vec![(running, status(state))])];
        apply(view, Author::Dispatch, changes).unwrap();
        view.task(running).unwrap().status.state
    };
    assert_eq!(report(&mut view, TaskState::Preparing), TaskState::Running);
    assert_eq!(report(&mut view, TaskState::Failed), TaskState::Failed);
    assert_eq!(report(&mut view, TaskState::Running), TaskState::Failed);
    let desire = |view: &mut Snapshot, desired| {
        let changes = vec![Change::DesireTasks { desired, tasks: vec![running] }];
        apply(view, Author::Orchestrator, changes).unwrap();
        view.task(running).unwrap().desired
    };
    assert_eq!(desire(&mut view, TaskState::Remove), TaskState::Remove);
    assert_eq!(desire(&mut view, TaskState::Shutdown), TaskState::Remove);
}

#[test]
fn a_removed_node_stays_removed() {
    let mut view = base();
    let node = (**view.node(node_id("a")).unwrap()).clone();
    apply(&mut view, Author::Api, vec![Change::RemoveNode(node.id)]).unwrap();
    assert!(view.is_removed(node.id));
    let again = vec![Change::CreateNode(Box::new(node))];
    assert!(matches!(apply(&mut view, Author::Api, again), Err(Refusal::Exists { .. })));
}

#[test]
fn time_in_the_store_never_goes_back() {
    let mut view = base();
    let (time, index) = (view.time(), view.index());
    let proposal = state::Proposal { time: Timestamp(1), atoms: Vec::new() };
    view.apply_proposal(index + 1, &proposal, &mut Vec::new());
    assert_eq!((view.time(), view.index()), (time, index + 1));
}

/// Random histories: whatever was refused or not, the indexes are what the tables say.
#[test]
fn indexes_follow_every_history() {
    for seed in 0..60 {
        let (mut view, mut ids) = (base(), IdSource::new(seed));
        for _ in 0..60 {
            let (author, change) = random_change(&view, &mut ids);
            // A refusal is a fine outcome here.
            let _ = apply(&mut view, author, vec![change]);
        }
        verify(&view).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
    }
}

fn random_change(view: &Snapshot, ids: &mut IdSource) -> (Author, Change) {
    let id = service_id("web");
    let count = view.task_count() as u64;
    let nth = ids.below(count.max(1)) as usize;
    let task = view.tasks().nth(nth).map_or(TaskId(ids.mint()), |task| task.id);
    let node = node_id(if ids.below(2) == 0 { "a" } else { "b" });
    let any_state = TaskState::ALL[ids.below(TaskState::ALL.len() as u64) as usize];
    match ids.below(10) {
        0..=1 => {
            let first = 1 + ids.below(20) as u32;
            let revision = view.service(id).map_or(1, |service| service.revision);
            let change = Change::CreateTasks {
                service: id,
                revision,
                seed: ids.mint().as_u128(),
                desired: TaskState::Running,
                slots: vec![(first, first + ids.below(3) as u32)],
                nodes: Vec::new(),
            };
            (Author::Orchestrator, change)
        }
        2 => (Author::Allocator, Change::AdmitTasks(vec![task])),
        3..=4 => (Author::Scheduler, Change::AssignTasks(vec![(task, node)])),
        5..=6 => (Author::Dispatch, Change::ReportTasks(vec![(task, status(any_state))])),
        7 => {
            let change = Change::DesireTasks { desired: any_state, tasks: vec![task] };
            (Author::Orchestrator, change)
        }
        8 => (Author::Orchestrator, Change::RemoveTasks(vec![task])),
        _ => {
            let expect = view.service(id).map_or(0, |service| service.meta.spec_version);
            let image = format!("nginx:{}", ids.below(3));
            let spec = spec_of(view, |spec| spec.task.container.image = image);
            (Author::Api, Change::UpdateService { id, expect, spec })
        }
    }
}
