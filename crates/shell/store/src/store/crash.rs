//! A whole manager whose power fails at any disk operation: log, snapshots and compaction together.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::{IdSource, Millis};

use super::recorded::{Lengths, SMALL, options};
use crate::disk::faulty::FaultyDisk;
use crate::{OpenError, Options, ProposeError, RaftStore, Timing, Tuning};

fn quick() -> Options<Lengths> {
    let timing =
        Timing { heartbeat: Millis(10), election_min: Millis(30), election_max: Millis(60) };
    let tuning = Tuning {
        timing,
        snapshot_entries: 15,
        keep_entries: 3,
        free_bytes_floor: 1,
        proposal_timeout: Millis::from_secs(10),
        ..Tuning::default()
    };
    Options { tuning, ..options(Path::new("unused")) }
}

async fn open(disk: &FaultyDisk) -> Result<RaftStore<Lengths>, OpenError> {
    RaftStore::open_on(Arc::new(disk.clone()), SMALL, quick()).await
}

/// Proposes until the disk is gone; what was answered is added to `answered`.
async fn work(
    store: &RaftStore<Lengths>,
    random: &mut IdSource,
    answered: &mut BTreeMap<u64, u64>,
) {
    if !store.is_initialized() && store.bootstrap().await.is_err() {
        return;
    }
    let mut leadership = store.leadership();
    let ready = leadership.wait_for(|now| now.ready);
    if !matches!(tokio::time::timeout(Duration::from_secs(2), ready).await, Ok(Ok(_))) {
        return;
    }
    for _ in 0..60 {
        let lens: Vec<u64> = (0..1 + random.below(6)).map(|_| random.below(1_500)).collect();
        let proposals = lens.iter().map(|len| store.propose(vec![b'c'; *len as usize]));
        for (len, outcome) in lens.iter().zip(futures::future::join_all(proposals).await) {
            match outcome {
                Ok(index) => drop(answered.insert(index, *len)),
                Err(ProposeError::Halted(_) | ProposeError::Unknown) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

async fn run(seed: u64) {
    let mut random = IdSource::new(u128::from(seed) << 64 | 0xC4A5);
    let (mut disk, mut answered) = (FaultyDisk::new(), BTreeMap::new());
    for life in 0..3 {
        disk.kill_after(60 + random.below(900));
        if let Ok(store) = open(&disk).await {
            work(&store, &mut random, &mut answered).await;
            store.shutdown().await;
        }
        disk = disk.crash(&mut random);
        let store = open(&disk).await.unwrap_or_else(|error| {
            panic!("seed {seed} life {life}: {}", base::chain(&error));
        });
        if store.is_initialized() {
            let mut leadership = store.leadership();
            let ready = leadership.wait_for(|now| now.ready);
            let ready = tokio::time::timeout(Duration::from_secs(20), ready).await;
            assert!(matches!(ready, Ok(Ok(_))), "seed {seed} life {life}: nobody leads");
        }
        let found = store.view().0;
        for (index, len) in &answered {
            assert_eq!(found.get(index), Some(len), "seed {seed} life {life}: entry {index}");
        }
        store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_whose_power_fails_at_any_moment_keeps_what_it_answered() {
    for first in (0..30).step_by(6) {
        let runs = (first..first + 6).map(|seed| tokio::spawn(run(seed)));
        for outcome in futures::future::join_all(runs).await {
            outcome.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_stops_the_manager_with_the_reason() {
    let disk = FaultyDisk::new();
    let store = open(&disk).await.unwrap();
    store.bootstrap().await.unwrap();
    let index = store.propose(vec![1; 7]).await.unwrap();
    disk.fail_syncs();
    let refused = store.propose(vec![1; 8]).await;
    assert!(matches!(refused, Err(ProposeError::Halted(_))), "{refused:?}");
    let reason = store.halted().borrow().clone().unwrap();
    assert!(reason.contains("sync failed"), "{reason}");
    assert_eq!(store.view().0.get(&index), Some(&7));
    store.shutdown().await;
}
