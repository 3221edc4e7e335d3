//! The log on a disk that is killed, torn, damaged and filled.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base::IdSource;
use bytes::Bytes;
use pki::DataKey;

use crate::disk::Disk;
use crate::disk::faulty::FaultyDisk;

use super::{Wal, WalError, WalOptions};

const SMALL: WalOptions =
    WalOptions { segment_bytes: 16 * 1024, reserve_bytes: 1_024, cache_bytes_max: 4_096 };

fn key() -> DataKey {
    DataKey::from_bytes([9; 32])
}

fn open(disk: &FaultyDisk) -> Result<Wal, WalError> {
    Wal::open(Arc::new(disk.clone()), key(), SMALL, Box::new(|_| {}))
}

/// Everything a log says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct State {
    vote: Option<Bytes>,
    purged: Option<u64>,
    entries: Vec<(u64, Bytes)>,
}

fn state(wal: &Wal) -> State {
    try_state(wal).unwrap()
}

fn try_state(wal: &Wal) -> Result<State, WalError> {
    let (first, end) = wal.range();
    let entries = wal.read(first, end, usize::MAX)?;
    assert_eq!(entries.len() as u64, end - first);
    Ok(State {
        vote: wal.vote(),
        purged: wal.purged().map(|(to, _)| to),
        entries: (first..end).zip(entries).collect(),
    })
}

/// Appends and waits for the disk.
async fn append(wal: &Wal, entries: Vec<(u64, Bytes)>) -> Result<(), Arc<str>> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let done = Box::new(move |result| drop(sender.send(result)));
    wal.append(entries, done).await.map_err(|error| error.to_string())?;
    receiver.await.unwrap_or_else(|_| Err("dropped".into()))
}

fn entry(index: u64, len: usize) -> (u64, Bytes) {
    (index, Bytes::from(vec![(index % 251) as u8; len]))
}

async fn fill(wal: &Wal, from: u64, to: u64, len: usize) {
    for index in from..to {
        append(wal, vec![entry(index, len)]).await.unwrap();
    }
}

#[tokio::test]
async fn everything_comes_back_across_segments_and_restarts() {
    let disk = FaultyDisk::new();
    let wal = open(&disk).unwrap();
    fill(&wal, 0, 60, 700).await;
    wal.save_vote(Bytes::from_static(b"vote")).await.unwrap();
    wal.truncate(50).await.unwrap();
    wal.purge(9, Bytes::from_static(b"nine")).await.unwrap();
    fill(&wal, 50, 55, 900).await;
    let before = state(&wal);
    assert_eq!(before.entries.len(), 45);
    assert_eq!(before.entries[40].1.len(), 900);
    drop(wal);
    for _ in 0..5 {
        let again = open(&disk).unwrap();
        assert_eq!(state(&again), before);
        assert_eq!(again.purged(), Some((9, Bytes::from_static(b"nine"))));
    }
}

#[tokio::test]
async fn purged_segments_are_used_again_and_restarts_leave_few_files() {
    let disk = FaultyDisk::new();
    let wal = open(&disk).unwrap();
    for round in 0..40 {
        fill(&wal, round * 20, round * 20 + 20, 700).await;
        wal.purge(round * 20 + 15, Bytes::new()).await.unwrap();
    }
    drop(wal);
    for _ in 0..20 {
        drop(open(&disk).unwrap());
    }
    assert!(disk.list().unwrap().len() <= 4, "{:?}", disk.list());
    assert!(disk.used() <= 4 * SMALL.segment_bytes, "{}", disk.used());
}

#[tokio::test]
async fn nothing_readable_is_on_the_disk() {
    let disk = FaultyDisk::new();
    let wal = open(&disk).unwrap();
    append(&wal, vec![(0, Bytes::from_static(b"hunter2-hunter2-hunter2"))]).await.unwrap();
    drop(wal);
    assert!(!disk.holds(b"hunter2"));
    let other = DataKey::from_bytes([8; 32]);
    let refused = Wal::open(Arc::new(disk), other, SMALL, Box::new(|_| {}));
    assert!(matches!(refused.err(), Some(WalError::Key(_))));
}

#[tokio::test]
async fn a_failed_sync_stops_the_log_and_is_never_tried_again() {
    let disk = FaultyDisk::new();
    let told = Arc::new(Mutex::new(None));
    let hook = Arc::clone(&told);
    let on_poison = Box::new(move |reason| *hook.lock().unwrap() = Some(reason));
    let wal = Wal::open(Arc::new(disk.clone()), key(), SMALL, on_poison).unwrap();
    fill(&wal, 0, 3, 10).await;
    disk.fail_syncs();
    let first = append(&wal, vec![entry(3, 10)]).await.unwrap_err();
    assert!(first.contains("sync failed"), "{first}");
    let commits = wal.commits();
    let second = append(&wal, vec![entry(4, 10)]).await.unwrap_err();
    assert_eq!(first, second);
    assert!(matches!(wal.save_vote(Bytes::new()).await, Err(WalError::Poisoned(_))));
    assert_eq!(wal.commits(), commits);
    assert_eq!(told.lock().unwrap().as_deref(), Some(&*first));
}

#[tokio::test]
async fn damage_before_the_last_commit_is_reported_with_its_place() {
    let disk = FaultyDisk::new();
    let wal = open(&disk).unwrap();
    fill(&wal, 0, 8, 300).await;
    drop(wal);
    let name = disk.list().unwrap().into_iter().find(|name| name != super::SPARE).unwrap();
    for offset in [520, 900, 2_000] {
        disk.damage(&name, offset);
        match open(&disk).err() {
            Some(WalError::Corrupt { path, .. }) => assert!(path.ends_with(&name)),
            other => panic!("{offset}: {other:?}"),
        }
        disk.damage(&name, offset);
    }
    assert_eq!(state(&open(&disk).unwrap()).entries.len(), 8);
}

#[tokio::test]
async fn a_segment_that_was_deleted_by_hand_is_missed() {
    let disk = FaultyDisk::new();
    let wal = open(&disk).unwrap();
    fill(&wal, 0, 10, 1_000).await;
    wal.purge(0, Bytes::new()).await.unwrap();
    fill(&wal, 10, 60, 1_000).await;
    drop(wal);
    let segments: Vec<_> =
        disk.list().unwrap().into_iter().filter(|name| name != super::SPARE).collect();
    assert!(segments.len() >= 3, "{segments:?}");
    disk.remove(&segments[0]).unwrap();
    assert!(matches!(open(&disk).err(), Some(WalError::Corrupt { .. })));
}

#[tokio::test]
async fn a_full_disk_delays_entries_but_not_votes_and_goes_on_by_itself() {
    let disk = FaultyDisk::new();
    let wal = open(&disk).unwrap();
    fill(&wal, 0, 2, 100).await;
    wait(|| disk.list().unwrap().iter().any(|name| name == super::SPARE)).await;
    disk.set_capacity(Some(disk.used()));
    let appending = {
        let wal = wal.clone();
        tokio::spawn(async move { append(&wal, (2..100).map(|i| entry(i, 700)).collect()).await })
    };
    wait(|| wal.spare_missing()).await;
    wal.save_vote(Bytes::from_static(b"still")).await.unwrap();
    assert!(!appending.is_finished());
    disk.set_capacity(None);
    appending.await.unwrap().unwrap();
    wait(|| !wal.spare_missing()).await;
    let before = state(&wal);
    drop(wal);
    assert_eq!(state(&open(&disk).unwrap()), before);
    assert_eq!(before.entries.len(), 100);
}

#[tokio::test]
async fn old_entries_are_read_from_the_disk() {
    let disk = FaultyDisk::new();
    let wal = open(&disk).unwrap();
    fill(&wal, 0, 50, 500).await;
    for index in 0..50 {
        assert_eq!(wal.read(index, index + 1, 1).unwrap(), [entry(index, 500).1]);
    }
    assert_eq!(wal.read(0, 50, 1_600).unwrap().len(), 3);
    assert_eq!(wal.read(48, 99, usize::MAX).unwrap().len(), 2);
}

/// Random operations, a kill at a random disk operation, a loss of power: what is found must be
/// the state after some operation that is not before the last acknowledged one.
#[tokio::test]
async fn a_crash_at_any_moment_loses_nothing_acknowledged() {
    for seed in 0..300 {
        crash_run(seed).await;
    }
}

async fn crash_run(seed: u64) {
    let mut random = IdSource::new(u128::from(seed) << 64 | 0x5EED);
    let mut disk = FaultyDisk::new();
    let mut history = vec![State::default()];
    for life in 0..3 {
        disk.kill_after(40 + random.below(400));
        let mut acknowledged = 0;
        if let Ok(wal) = open(&disk)
            && let Ok(begin) = try_state(&wal)
        {
            assert!(history.contains(&begin), "seed {seed} life {life}");
            history = vec![begin];
            acknowledged = operate(&wal, &mut random, &mut history).await;
        }
        disk = disk.crash(&mut random);
        let found = open(&disk).unwrap_or_else(|error| panic!("seed {seed} life {life}: {error}"));
        let found = state(&found);
        let position = history.iter().rposition(|state| *state == found);
        assert!(
            position.is_some_and(|position| position >= acknowledged),
            "seed {seed} life {life}: found {position:?}, acknowledged {acknowledged}"
        );
    }
}

/// Returns the position in `history` of the last state that was acknowledged.
async fn operate(wal: &Wal, random: &mut IdSource, history: &mut Vec<State>) -> usize {
    let mut acknowledged = 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    for step in 0..120u64 {
        assert!(Instant::now() < deadline);
        let mut now = history.last().unwrap().clone();
        let end = now.entries.last().map_or(now.purged.map_or(0, |to| to + 1), |(i, _)| i + 1);
        let done = match random.below(10) {
            0 => {
                let vote = Bytes::from(step.to_le_bytes().to_vec());
                now.vote = Some(vote.clone());
                history.push(now);
                wal.save_vote(vote).await.is_ok()
            }
            1 if now.entries.len() > 3 => {
                let from = end - random.below(3);
                now.entries.retain(|(index, _)| *index < from);
                history.push(now);
                wal.truncate(from).await.is_ok()
            }
            2 if now.entries.len() > 10 => {
                let to = now.entries[random.below(8) as usize].0;
                now.entries.retain(|(index, _)| *index > to);
                now.purged = Some(to);
                history.push(now);
                drop(wal.purge(to, Bytes::new()).await);
                false
            }
            _ => {
                let mut added = Vec::new();
                for offset in 0..1 + random.below(4) {
                    added.push(entry(end + offset, random.below(1_500) as usize));
                    now.entries.push(added[offset as usize].clone());
                    history.push(now.clone());
                }
                append(wal, added).await.is_ok()
            }
        };
        if done {
            acknowledged = history.len() - 1;
        }
    }
    acknowledged
}

async fn wait(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "condition not met in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
