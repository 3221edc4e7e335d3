//! The durable log: segments on disk, one writer, an index in memory.
//!
//! Owns: entries, vote and purge point, encrypted from the first byte, and their recovery.
//! Does not know: Raft's rules, what an entry means.
//! Invariant: what was acknowledged is there after a crash at any moment, or opening the log
//! fails with the place of the damage.

pub(crate) mod format;
pub(crate) mod index;
mod replay;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use pki::DataKey;

use crate::disk::Disk;
use crate::limits::{CACHE_BYTES_MAX, SEGMENT_BYTES, SEGMENT_RESERVE_BYTES, WRITER_QUEUE_MAX};

use format::{Previous, Record};
use index::Index;
use replay::Replayed;
use writer::{Item, Start, Writer};

pub(crate) use writer::Done;

/// Sizes of the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WalOptions {
    pub(crate) segment_bytes: u64,
    pub(crate) reserve_bytes: u64,
    pub(crate) cache_bytes_max: usize,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES,
            reserve_bytes: SEGMENT_RESERVE_BYTES,
            cache_bytes_max: CACHE_BYTES_MAX,
        }
    }
}

/// The log could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The disk refused: look at its health and at the path's permissions.
    #[error("could not {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Something that was acknowledged is damaged: replace this manager, its log is not to be
    /// trusted.
    #[error("{path} is damaged at byte {offset}: {reason}")]
    Corrupt { path: PathBuf, offset: u64, reason: String },
    /// Another version wrote it: run that version.
    #[error("{path} cannot be read by this version: {reason}")]
    Newer { path: PathBuf, reason: String },
    /// The data key is not the one the log was written with: restore the key file.
    #[error("{0} was written with another data key")]
    Key(PathBuf),
    /// There is no room for a segment.
    #[error("{path} needs {missing_bytes} more bytes of disk space")]
    NoSpace { path: PathBuf, missing_bytes: u64 },
    /// A defect: entries must follow each other.
    #[error("log entry {found} follows where {expected} was due")]
    Order { expected: u64, found: u64 },
    /// A defect: a live entry's segment was reclaimed.
    #[error("the segment of log entry {0} is gone")]
    Gone(u64),
    /// The system has no entropy to give.
    #[error("no salt for a log segment could be drawn")]
    Entropy,
    /// The thread of the log could not be started.
    #[error("the log's thread could not be started")]
    Thread(#[source] io::Error),
    /// The log has stopped after a failed write; only a restart reads what the disk really has.
    #[error("the log has stopped: {0}")]
    Poisoned(Arc<str>),
}

impl WalError {
    fn io(action: &'static str, path: PathBuf, source: io::Error) -> Self {
        Self::Io { action, path, source }
    }

    fn corrupt(path: PathBuf, offset: u64, reason: &str) -> Self {
        Self::Corrupt { path, offset, reason: reason.to_owned() }
    }
}

/// What the writer and the readers share.
pub(crate) struct Shared {
    index: Mutex<Index>,
    poisoned: OnceLock<Arc<str>>,
    on_poison: Box<dyn Fn(Arc<str>) + Send + Sync>,
    /// No segment is prepared: the log may come to a stand.
    pub(crate) spare_missing: AtomicBool,
    /// Number of synced commits.
    pub(crate) commits: AtomicU64,
}

impl Shared {
    fn poisoned(&self) -> Option<Arc<str>> {
        self.poisoned.get().cloned()
    }

    fn poison(&self, reason: String) -> Arc<str> {
        let reason = Arc::clone(self.poisoned.get_or_init(|| reason.into()));
        tracing::error!(%reason, "log stopped");
        (self.on_poison)(Arc::clone(&reason));
        reason
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log; clones share it. What was queued is on disk when the last of them is dropped.
#[derive(Clone)]
pub(crate) struct Wal {
    queue: SyncSender<Item>,
    shared: Arc<Shared>,
    _thread: Arc<ThreadGuard>,
}

/// Joins the writer when the last clone of the log is gone; its queue is closed by then.
struct ThreadGuard(Option<JoinHandle<()>>);

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take()
            && handle.join().is_err()
        {
            tracing::error!("log thread panicked");
        }
    }
}

impl Wal {
    /// Reads what is there and begins a new segment.
    ///
    /// `on_poison` is told once why the log has stopped.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        key: DataKey,
        options: WalOptions,
        on_poison: Box<dyn Fn(Arc<str>) + Send + Sync>,
    ) -> Result<Self, WalError> {
        let mut replayed = replay::replay(&*disk, &key, options.cache_bytes_max)?;
        for name in std::mem::take(&mut replayed.leftovers) {
            disk.remove(&name)
                .map_err(|source| WalError::io("remove", disk.path(&name), source))?;
        }
        let start = start(&disk, options, &mut replayed)?;
        let Replayed { index, .. } = replayed;
        let shared = Arc::new(Shared {
            index: Mutex::new(index),
            poisoned: OnceLock::new(),
            on_poison,
            spare_missing: AtomicBool::new(false),
            commits: AtomicU64::new(0),
        });
        let (queue, items) = sync_channel(WRITER_QUEUE_MAX);
        let writer = Writer::open(disk, key, options, Arc::clone(&shared), start)?;
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.run(&items))
            .map_err(WalError::Thread)?;
        Ok(Self { queue, shared, _thread: Arc::new(ThreadGuard(Some(thread))) })
    }

    /// Adds entries; they can be read at once and are durable when `done` is told so.
    pub(crate) async fn append(
        &self,
        entries: Vec<(u64, Bytes)>,
        done: Done,
    ) -> Result<(), WalError> {
        let mut items = Vec::with_capacity(entries.len());
        {
            let mut index = self.shared.index();
            for (number, bytes) in entries {
                let ticket = index.push(number, bytes.clone(), None)?;
                let record = Record::Entry { index: number, bytes };
                items.push(Item { record, ticket, done: None });
            }
        }
        match items.last_mut() {
            Some(last) => last.done = Some(done),
            None => done(Ok(())),
        }
        for item in items {
            self.send(item).await?;
        }
        Ok(())
    }

    /// Replaces the vote; durable on return.
    pub(crate) async fn save_vote(&self, vote: Bytes) -> Result<(), WalError> {
        self.durable(Record::Vote(vote.clone())).await?;
        self.shared.index().vote = Some(vote);
        Ok(())
    }

    /// Drops the entries from `from` on; durable on return.
    pub(crate) async fn truncate(&self, from: u64) -> Result<(), WalError> {
        self.shared.index().truncate(from);
        self.durable(Record::Truncate { from }).await
    }

    /// Drops the entries up to `to`, which a durable snapshot covers.
    pub(crate) async fn purge(&self, to: u64, id: Bytes) -> Result<(), WalError> {
        self.shared.index().purge(to, id.clone());
        self.send(Item { record: Record::Purge { to, id }, ticket: 0, done: None }).await
    }

    /// The vote, when there is one.
    pub(crate) fn vote(&self) -> Option<Bytes> {
        self.shared.index().vote.clone()
    }

    /// The last purged entry and its name, when there is one.
    pub(crate) fn purged(&self) -> Option<(u64, Bytes)> {
        self.shared.index().purged.clone()
    }

    /// First live entry and the one after the last; equal when there is none.
    pub(crate) fn range(&self) -> (u64, u64) {
        self.shared.index().range()
    }

    /// Bytes of all live entries.
    pub(crate) fn live_bytes(&self) -> usize {
        self.shared.index().live_bytes()
    }

    /// Number of synced commits since the log was opened.
    pub(crate) fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// Whether the next roll would find no segment.
    pub(crate) fn spare_missing(&self) -> bool {
        self.shared.spare_missing.load(Ordering::Relaxed)
    }

    /// The live entries of `from..to`, at least one where there is one, cut at `bytes_max`.
    pub(crate) fn read(
        &self,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Bytes>, WalError> {
        let index = self.shared.index();
        let (mut found, mut bytes) = (Vec::new(), 0);
        for number in from.max(index.range().0)..to.min(index.range().1) {
            bytes += index.len_of(number).unwrap_or(0);
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            match index.read(number)? {
                Some(entry) => found.push(entry),
                None => break,
            }
        }
        Ok(found)
    }

    async fn durable(&self, record: Record) -> Result<(), WalError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done: Done = Box::new(move |result| drop(sender.send(result)));
        self.send(Item { record, ticket: 0, done: Some(done) }).await?;
        match receiver.await {
            Ok(result) => result.map_err(WalError::Poisoned),
            Err(_) => Err(self.stopped()),
        }
    }

    async fn send(&self, item: Item) -> Result<(), WalError> {
        let mut item = item;
        loop {
            match self.queue.try_send(item) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(back)) => item = back,
                Err(TrySendError::Disconnected(_)) => return Err(self.stopped()),
            }
            tokio::time::sleep(QUEUE_PAUSE).await;
        }
    }

    fn stopped(&self) -> WalError {
        WalError::Poisoned(self.shared.poisoned().unwrap_or_else(|| "its thread is gone".into()))
    }
}

/// What the writer goes on from. A small log is written anew into one segment, so that many
/// restarts do not leave many files.
fn start(
    disk: &Arc<dyn Disk>,
    options: WalOptions,
    replayed: &mut Replayed,
) -> Result<Start, WalError> {
    let index = &replayed.index;
    let (vote, purged) = (index.vote.clone(), index.purged.clone());
    let older = std::mem::take(&mut replayed.segments);
    let (first, end) = index.range();
    let frames = (end - first) as usize * 64 + index.live_bytes();
    if (frames as u64) < options.segment_bytes / 2 {
        let mut entries = Vec::new();
        for number in first..end {
            entries.extend(index.read(number)?.map(|bytes| (number, bytes)));
        }
        return Ok(Start { vote, purged, older, previous: Previous::None, entries });
    }
    if let Some((newest, _)) = older.last()
        && let Some(segment) = index.segments.get(newest)
    {
        let path = || disk.path(&segment.name);
        segment
            .file
            .set_len(replayed.valid_to)
            .and_then(|()| segment.file.sync())
            .map_err(|source| WalError::io("cut", path(), source))?;
    }
    let previous = Previous::ValidTo(replayed.valid_to);
    Ok(Start { vote, purged, older, previous, entries: Vec::new() })
}

fn segment_name(sequence: u64) -> String {
    format!("log-{sequence:016x}.wal")
}

fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-")?.strip_suffix(".wal")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

const SPARE: &str = "log-spare.wal";
const SPARE_TMP: &str = "log-spare.tmp";
const QUEUE_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);
