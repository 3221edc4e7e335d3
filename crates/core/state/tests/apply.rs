//! What `apply` guards, and that indexes are what a fresh derivation would give.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::sync::Arc;

use base::{Id, IdSource, Timestamp};
use state::{
    Author, Change, ChangeSet, Event, Refusal, Restore, RestoreError, Snapshot, Stamp, verify,
};
use testkit::{fixture, node_id, service_id};
use types::{
    NetworkKey, NetworkKeys, NodeEncryption, NodeId, ServiceId, ServiceSpec, TaskId, TaskState,
    TaskStatus,
};

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

fn keys(of: &[(u32, u8)]) -> NetworkKeys {
    of.iter().map(|(generation, byte)| (*generation, NetworkKey([*byte; 32]))).collect()
}

/// Says keys, and gives what is taken of them with the generation that is sent with.
fn say(
    view: &mut Snapshot,
    name: &str,
    of: &[(u32, u8)],
    sends_with: u32,
) -> Option<(NetworkKeys, u32)> {
    let id = node_id(name);
    let mut description = view.node(id).unwrap().description.clone();
    description.hostname = format!("{name}-said");
    let said = NodeEncryption { keys: keys(of), sends_with, ..NodeEncryption::default() };
    description.data_path.encryption = Some(said);
    let description = Box::new(description);
    apply(view, Author::Dispatch, vec![Change::DescribeNode { id, description }]).unwrap();
    verify(view).unwrap();
    let known = &view.node(id).unwrap().description;
    assert_eq!(known.hostname, format!("{name}-said"), "the rest is kept");
    known.data_path.encryption.as_ref().map(|said| (said.keys.clone(), said.sends_with))
}

fn rotate(view: &mut Snapshot, expect: u32) -> Result<Vec<Event>, Refusal> {
    apply(view, Author::Api, vec![Change::RotateNetworkKey { expect }])
}

#[test]
fn only_keys_of_these_times_are_taken() {
    let mut view = base();
    for (said, sends_with, want) in [
        (&[(1, 1)][..], 1, (&[(1, 1)][..], 1)),
        // Of the future, of no time, and what is said to be sent with is none of them.
        (&[(1, 1), (2, 2)], 2, (&[(1, 1)], 0)),
        (&[(0, 3)], 0, (&[], 0)),
        (&[(u32::MAX, 4)], u32::MAX, (&[], 0)),
    ] {
        let taken = say(&mut view, "a", said, sends_with);
        assert_eq!(taken, Some((keys(want.0), want.1)), "{said:?}");
    }
    rotate(&mut view, 1).unwrap();
    rotate(&mut view, 2).unwrap();
    let taken = say(&mut view, "a", &[(1, 1), (3, 3)], 1);
    assert_eq!(taken, Some((keys(&[(3, 3)]), 0)));
    assert_eq!(say(&mut view, "a", &[(2, 2), (3, 3)], 2), Some((keys(&[(2, 2), (3, 3)]), 2)));
    assert_eq!(say(&mut view, "a", &[(3, 0)], 3), None, "no key");
}

#[test]
fn a_key_is_of_one_node_until_it_gives_it_up() {
    let mut view = base();
    let id = |name: &str| node_id(name);
    say(&mut view, "a", &[(1, 1)], 1);
    assert_eq!(view.node_of_network_key(&NetworkKey([1; 32])), Some(id("a")));
    assert_eq!(say(&mut view, "b", &[(1, 2)], 1), Some((keys(&[(1, 2)]), 1)));
    assert_eq!(say(&mut view, "b", &[(1, 1)], 1), None, "somebody else has it");
    assert_eq!(view.node_of_network_key(&NetworkKey([1; 32])), Some(id("a")));
    assert_eq!(view.node_of_network_key(&NetworkKey([2; 32])), None, "b has none any more");
    say(&mut view, "a", &[(1, 3)], 1);
    assert_eq!(say(&mut view, "b", &[(1, 1)], 1), Some((keys(&[(1, 1)]), 1)));
    apply(&mut view, Author::Api, vec![Change::RemoveNode(id("b"))]).unwrap();
    verify(&view).unwrap();
    assert_eq!(view.node_of_network_key(&NetworkKey([1; 32])), None);
    // One that joins with a description does not get around it.
    let mut node = (**view.node(id("a")).unwrap()).clone();
    node.id = NodeId(Id::from_u128(9).unwrap());
    apply(&mut view, Author::Api, vec![Change::CreateNode(Box::new(node.clone()))]).unwrap();
    verify(&view).unwrap();
    assert_eq!(view.node(node.id).unwrap().description.data_path.encryption, None);
}

#[test]
fn a_change_of_keys_happens_once_and_takes_what_is_too_old() {
    let mut view = base();
    say(&mut view, "a", &[(1, 1)], 1);
    let events = rotate(&mut view, 1).unwrap();
    assert_eq!(events, [Event::Cluster], "keys of the generation before stay");
    assert_eq!(view.cluster().unwrap().network_key_generation, 2);
    let refusal = rotate(&mut view, 1).unwrap_err();
    assert!(matches!(refusal, Refusal::OutOfDate { .. }), "{refusal}");
    say(&mut view, "b", &[(1, 2), (2, 3)], 2);
    let events = rotate(&mut view, 2).unwrap();
    let touched = [Event::Cluster, Event::Node(node_id("a")), Event::Node(node_id("b"))];
    assert_eq!(events, touched);
    verify(&view).unwrap();
    let of = |name: &str| {
        let said = view.node(node_id(name)).unwrap().description.data_path.encryption.clone();
        said.map(|said| (said.keys, said.sends_with)).unwrap()
    };
    assert_eq!((of("a"), of("b")), ((keys(&[]), 0), (keys(&[(2, 3)]), 2)));
    let refusal = apply(&mut view, Author::Dispatch, vec![Change::RotateNetworkKey { expect: 3 }]);
    assert!(matches!(refusal, Err(Refusal::NotTheWriter { .. })));
}

#[test]
fn records_with_keys_that_cannot_be_are_refused() {
    let mut view = base();
    say(&mut view, "a", &[(1, 1)], 1);
    let with = |key: (u32, u8)| {
        let mut restore = Restore::new(view.index(), view.time());
        restore.cluster((**view.cluster().unwrap()).clone());
        for node in view.nodes() {
            let mut node = (**node).clone();
            let keys = if node.id == node_id("b") { keys(&[key]) } else { keys(&[(1, 1)]) };
            let said = NodeEncryption { keys, ..NodeEncryption::default() };
            node.description.data_path.encryption = Some(said);
            restore.node(node);
        }
        restore.finish().map(|view| view.nodes().count())
    };
    assert_eq!(with((1, 2)), Ok(2));
    assert_eq!(with((1, 1)), Err(RestoreError::NetworkKeyTwice { node: node_id("b") }));
    assert_eq!(with((2, 2)), Err(RestoreError::NetworkKeyGeneration { node: node_id("b") }));
}
