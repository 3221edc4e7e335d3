//! openraft's own suite for storage, run against log and state machine.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, Weak};

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use pki::DataKey;

use crate::apply::Applier;
use crate::disk::faulty::FaultyDisk;
use crate::halt::Halt;
use crate::log_store::LogStore;
use crate::machine::{ApplyHalt, Machine};
use crate::raft_types::Types;
use crate::snapshot::Snapshots;
use crate::state_machine::StateMachine;
use crate::wal::{Wal, WalOptions};

struct Nothing;

impl Machine for Nothing {
    type Reply = ();
    type View = ();

    fn apply(&mut self, _index: u64, _payload: &[u8]) -> Result<(), ApplyHalt> {
        Ok(())
    }

    fn view(&self) {}

    fn encode_snapshot(
        _view: &(),
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        sink(b"nothing")
    }

    fn restore(source: &mut dyn Read) -> io::Result<Self> {
        let mut text = String::new();
        source.read_to_string(&mut text)?;
        assert_eq!(text, "nothing");
        Ok(Self)
    }
}

/// Stores that live at the same time share the directory of snapshots: one of the suite's tests
/// hands a snapshot from one to the other without a network in between.
#[derive(Default)]
struct Builder {
    snapshots: Mutex<Weak<FaultyDisk>>,
}

impl StoreBuilder<Types, LogStore, StateMachine<Nothing>, Arc<FaultyDisk>> for Builder {
    async fn build(
        &self,
    ) -> Result<(Arc<FaultyDisk>, LogStore, StateMachine<Nothing>), StorageError<Types>> {
        let shared = {
            let mut last = self.snapshots.lock().unwrap();
            let shared = last.upgrade().unwrap_or_else(|| Arc::new(FaultyDisk::new()));
            *last = Arc::downgrade(&shared);
            shared
        };
        let key = DataKey::from_bytes([5; 32]);
        let options =
            WalOptions { segment_bytes: 64 * 1024, reserve_bytes: 1_024, cache_bytes_max: 64 };
        let disk = Arc::new(FaultyDisk::new());
        let wal = Wal::open(disk, key.clone(), options, Box::new(|_| {})).unwrap();
        let applier = Applier::start(Nothing, Box::new(|_| {})).unwrap();
        let snapshots = Snapshots::new(Arc::new((*shared).clone()), key);
        let machine = StateMachine::open(applier, snapshots, Halt::new()).await.unwrap();
        Ok((shared, LogStore::new(wal), machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_storage_suite_passes() {
    Suite::test_all(Builder::default()).await.unwrap();
}
