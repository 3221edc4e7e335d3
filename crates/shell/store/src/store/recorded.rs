//! A directory that format 1 wrote is kept in the repository, and opened here.
//!
//! When the format changes, this directory stays and another one is recorded beside it, with
//! `SHOAL_RECORD_DIR=… cargo test -p store recorded`.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{Id, Millis};
use pki::{DataKey, NodeKey, NodeTls, Role, RootCa, Subject, wall_now};

use crate::disk::RealDisk;
use crate::wal::WalOptions;
use crate::{ApplyHalt, Machine, Options, RaftStore, Tuning, identity};

/// Length of each entry's payload, by index.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Lengths(pub(super) BTreeMap<u64, u64>);

impl Machine for Lengths {
    type Reply = u64;
    type View = Self;

    fn apply(&mut self, index: u64, payload: &[u8]) -> Result<u64, ApplyHalt> {
        self.0.insert(index, payload.len() as u64);
        Ok(index)
    }

    fn view(&self) -> Self {
        self.clone()
    }

    fn encode_snapshot(
        view: &Self,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let pairs = view.0.iter().flat_map(|(index, len)| [*index, *len]);
        pairs.into_iter().try_for_each(|number| sink(&number.to_le_bytes()))
    }

    fn restore(source: &mut dyn Read) -> io::Result<Self> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes)?;
        let numbers: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|part| u64::from_le_bytes(part.try_into().unwrap()))
            .collect();
        Ok(Self(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()))
    }
}

pub(super) const SMALL: WalOptions =
    WalOptions { segment_bytes: 16 * 1024, reserve_bytes: 1_024, cache_bytes_max: 4_096 };
const RAFT_ID: u64 = 0x5A5A;

pub(super) fn options(dir: &Path) -> Options<Lengths> {
    let (node, cluster) = (Id::from_u128(11).unwrap(), Id::from_u128(22).unwrap());
    let root = RootCa::generate(wall_now()).unwrap();
    let key = NodeKey::generate().unwrap();
    let subject = Subject { node, role: Role::Manager, cluster };
    let expiry = Millis::from_secs(7_200);
    let issued = root.issue(&key.request().unwrap(), &subject, expiry, wall_now()).unwrap();
    let tls = NodeTls::new(&key, &issued.chain_pem, &root.certificate_pem()).unwrap();
    Options {
        dir: dir.to_owned(),
        key: DataKey::from_bytes([0x11; 32]),
        raft_id: RAFT_ID,
        node,
        address: "192.0.2.1:2377".to_owned(),
        tls,
        machine: Lengths::default(),
        on_apply: Box::new(|_| {}),
        tuning: Tuning {
            snapshot_entries: 20,
            keep_entries: 5,
            free_bytes_floor: 1,
            ..Tuning::default()
        },
    }
}

async fn record(dir: &Path) {
    let disk = Arc::new(RealDisk::open(dir).unwrap());
    let options = options(dir);
    let cluster = options.tls.identity().cluster;
    identity::check_or_create(dir, RAFT_ID, options.node, cluster).unwrap();
    let store = RaftStore::open_on(disk, SMALL, options).await.unwrap();
    store.bootstrap().await.unwrap();
    for len in 0..50 {
        store.propose(vec![b'r'; len * 20]).await.unwrap();
    }
    store.shutdown().await;
    std::fs::remove_file(dir.join("log-spare.wal")).unwrap();
}

fn copy() -> (tempfile::TempDir, Vec<String>) {
    let recorded = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/format-1");
    let dir = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&recorded).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    (dir, names)
}

#[tokio::test]
async fn a_snapshot_that_was_deleted_by_hand_is_missed() {
    let (dir, names) = copy();
    let name = names.iter().find(|name| name.ends_with(".snap")).unwrap();
    std::fs::remove_file(dir.path().join(name)).unwrap();
    let error = RaftStore::open(options(dir.path())).await.err().unwrap().to_string();
    assert!(error.contains("snapshot with the entries up to"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_directory_of_format_1_is_opened() {
    if let Ok(dir) = std::env::var("SHOAL_RECORD_DIR") {
        record(Path::new(&dir)).await;
        return;
    }
    let (dir, names) = copy();
    for part in ["raft.id", ".wal", ".snap"] {
        assert!(names.iter().any(|name| name.ends_with(part)), "{part} in {names:?}");
    }
    assert_eq!(crate::stored_raft_id(dir.path()).unwrap(), Some(RAFT_ID));
    let store = RaftStore::open(options(dir.path())).await.unwrap();
    let mut leadership = store.leadership();
    leadership.wait_for(|now| now.ready).await.unwrap();
    let lengths: Vec<u64> = store.view().0.into_values().collect();
    assert_eq!(lengths, (0..50).map(|len| len * 20).collect::<Vec<u64>>());
    store.propose(vec![1]).await.unwrap();
    store.shutdown().await;
}
