//! A database that format 1 wrote is kept in the repository, and opened here.
//!
//! When the format changes, this file stays and another one is recorded beside it, with
//! `SHOAL_RECORD_DIR=… cargo test -p agent recorded`.

use std::path::{Path, PathBuf};

use base::{Id, Timestamp};
use types::{TaskId, TaskState, TaskStatus};
use wire::agent_v1::{StoredNode, StoredTask};
use wire::v1;

use super::{Batch, FORMAT, TaskDb};

const NAME: &str = "tasks.redb";

/// What format 1 recorded. Never change it: a later format gets its own.
fn content_v1() -> (Vec<(TaskId, StoredTask)>, StoredNode) {
    let id = |number| Id::from_u128(number).unwrap();
    let bytes = |number| wire::bytes_of(id(number));
    let container = types::ContainerSpec {
        image: "shoal/whoami:latest".into(),
        args: vec!["--port".into(), "80".into()],
        env: vec!["A=b".into()],
        ..types::ContainerSpec::default()
    };
    let spec = types::TaskSpec { container, ..types::TaskSpec::default() };
    let status = TaskStatus {
        state: TaskState::Running,
        at: Timestamp(1_767_225_600_000),
        message: Some("started".into()),
        ..TaskStatus::default()
    };
    let task = |number: u128, slot, status: Option<&TaskStatus>| {
        let assignment = v1::TaskAssignment {
            task: bytes(number),
            service: bytes(7),
            revision: 3,
            slot,
            desired: TaskState::Running as i32,
            network: None,
        };
        let revision = v1::AssignedRevision {
            service: bytes(7),
            revision: 3,
            service_name: "web".into(),
            service_labels: [("team".to_owned(), "a".to_owned())].into(),
            spec: Some((&spec).into()),
        };
        let stored = StoredTask {
            format: 1,
            assignment: Some(assignment),
            revision: Some(revision),
            status: status.map(Into::into),
        };
        (TaskId(id(number)), stored)
    };
    let node = StoredNode {
        format: 1,
        epoch: 2,
        index: 41,
        managers: vec!["192.0.2.1:2377".into(), "192.0.2.2:2377".into()],
        name: "worker-1".into(),
    };
    (vec![task(100, 1, Some(&status)), task(101, 0, None)], node)
}

fn record(dir: &Path) {
    let (put, node) = content_v1();
    let mut db = TaskDb::open(&dir.join(NAME)).unwrap();
    db.write(&Batch { put, node: Some(node), ..Batch::default() }).unwrap();
    while db.db.compact().unwrap() {}
}

#[test]
fn a_recorded_database_of_format_1_is_opened() {
    if let Ok(dir) = std::env::var("SHOAL_RECORD_DIR") {
        record(Path::new(&dir));
        return;
    }
    let recorded = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/format-1");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    std::fs::copy(recorded.join(NAME), &path).unwrap();
    let (put, node) = content_v1();
    let db = TaskDb::open(&path).unwrap();
    let (tasks, stored) = db.load().unwrap();
    assert_eq!(tasks, put.iter().map(|(_, task)| task.clone()).collect::<Vec<_>>());
    assert_eq!(stored, node);
    // And what is in it makes sense to this version.
    let revision = tasks[0].revision.clone().unwrap();
    let spec: types::TaskSpec = revision.spec.unwrap().try_into().unwrap();
    assert_eq!(spec.container.image, "shoal/whoami:latest");
    // It can be written, and read again.
    let delete = vec![put[0].0];
    db.write(&Batch { delete, ..Batch::default() }).unwrap();
    drop(db);
    assert_eq!(TaskDb::open(&path).unwrap().load().unwrap().0.len(), 1);
}

#[test]
fn a_format_of_the_future_is_refused_with_its_number() {
    let (mut put, _) = content_v1();
    put[1].1.format = FORMAT + 1;
    let db = TaskDb::in_memory().unwrap();
    db.write(&Batch { put, ..Batch::default() }).unwrap();
    let error = db.load().unwrap_err().to_string();
    assert!(error.contains("has format 2, this version reads 1"), "{error}");
}
