//! The thread that writes the log: group commit, rolling, reclaiming.
//!
//! Owns: the newest segment, the spare, and the order of everything on disk.
//! Does not know: Raft, what an entry means.
//! Invariant: an operation is answered after its bytes were synced. After a failed write or sync
//! nothing is written any more: what the disk holds is then unknown, and trying again would hide
//! that. A full disk fails nothing: a segment is written into only after its space was taken.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use pki::DataKey;

use crate::disk::{Disk, DiskFile, is_full};
use crate::limits::{COMMIT_BYTES_MAX, SLOW_COMMIT, SPACE_RETRY};
use crate::seal;

use super::format::{Cipher, DATA_OFFSET, FRAME_HEAD_BYTES, Header, Previous, Record};
use super::index::{Place, Segment};
use super::{SPARE, SPARE_TMP, Shared, WalError, WalOptions, segment_name};

/// Told when an operation is durable, or why it will never be.
pub(crate) type Done = Box<dyn FnOnce(Result<(), Arc<str>>) + Send>;

/// One thing to write.
pub(crate) struct Item {
    pub(crate) record: Record,
    /// Of an entry: what the index called it.
    pub(crate) ticket: u64,
    pub(crate) done: Option<Done>,
}

/// The segment that is written to.
pub(crate) struct Current {
    sequence: u64,
    file: Arc<dyn DiskFile>,
    cipher: Arc<Cipher>,
    offset: u64,
    batch: u32,
    highest: Option<u64>,
}

/// The writer; [`Writer::run`] is its thread.
pub(crate) struct Writer {
    disk: Arc<dyn Disk>,
    key: DataKey,
    options: WalOptions,
    shared: Arc<Shared>,
    current: Current,
    /// Older segments with the highest entry in each, oldest first.
    older: VecDeque<(u64, Option<u64>)>,
    vote: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
    spare: Option<Arc<dyn DiskFile>>,
    preparing: Option<JoinHandle<io::Result<Arc<dyn DiskFile>>>>,
    /// When to try to prepare a spare again after a failure.
    retry_at: Instant,
    /// What waits for space, in order.
    stalled: VecDeque<Item>,
}

/// What [`Writer::open`] goes on from.
pub(crate) struct Start {
    pub(crate) vote: Option<Bytes>,
    pub(crate) purged: Option<(u64, Bytes)>,
    pub(crate) older: Vec<(u64, Option<u64>)>,
    pub(crate) previous: Previous,
    /// Entries that the first segment repeats, when it is to stand alone.
    pub(crate) entries: Vec<(u64, Bytes)>,
}

impl Writer {
    /// Begins a new segment after whatever was there: a file is never continued after a restart,
    /// because its end may have been written before with other bytes under the same nonces.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        key: DataKey,
        options: WalOptions,
        shared: Arc<Shared>,
        start: Start,
    ) -> Result<Self, WalError> {
        let sequence = start.older.last().map_or(1, |(sequence, _)| sequence + 1);
        let spare = match open_spare(&*disk, options.segment_bytes) {
            Some(file) => file,
            None => prepare_spare(&*disk, options.segment_bytes).map_err(|source| {
                if is_full(&source) {
                    let (path, missing_bytes) = (disk.path(SPARE), options.segment_bytes);
                    return WalError::NoSpace { path, missing_bytes };
                }
                WalError::io("prepare", disk.path(SPARE), source)
            })?,
        };
        let state = Record::State { vote: start.vote.clone(), purged: start.purged.clone() };
        let mut records = vec![state];
        let entries = start.entries.iter();
        records.extend(
            entries.map(|(index, bytes)| Record::Entry { index: *index, bytes: bytes.clone() }),
        );
        let (mut current, places) =
            begin_segment(&*disk, &key, spare, sequence, start.previous, &records)?;
        current.highest = start.entries.last().map(|(index, _)| *index);
        {
            let mut index = shared.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.segments.insert(sequence, current.as_segment());
            for ((entry, _), place) in start.entries.iter().zip(places.into_iter().skip(1)) {
                index.replace_place(*entry, place);
            }
        }
        let mut writer = Self {
            disk,
            key,
            options,
            shared,
            current,
            older: start.older.into(),
            vote: start.vote,
            purged: start.purged,
            spare: None,
            preparing: None,
            retry_at: Instant::now(),
            stalled: VecDeque::new(),
        };
        if start.previous == Previous::None {
            writer.drop_older(u64::MAX);
        }
        writer.want_spare();
        Ok(writer)
    }

    /// Writes until the other end of `queue` is dropped and everything is on disk.
    pub(crate) fn run(mut self, queue: &Receiver<Item>) {
        loop {
            let waiting = !self.stalled.is_empty() || self.lacks_spare();
            let first = match waiting {
                false => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                true => queue.recv_timeout(SPACE_RETRY),
            };
            let mut items: VecDeque<Item> = std::mem::take(&mut self.stalled);
            let had_stalled = !items.is_empty();
            match first {
                Ok(item) => items.push_back(item),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let mut bytes: usize = 0;
            while bytes < COMMIT_BYTES_MAX {
                match queue.try_recv() {
                    Ok(item) => {
                        bytes += item.record.frame_bytes();
                        items.push_back(item);
                    }
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            self.settle_spare(had_stalled);
            self.write(items);
        }
        self.finish();
    }

    fn finish(mut self) {
        if let Some(handle) = self.preparing.take() {
            drop(handle.join());
        }
        let reason: Arc<str> = "the log is closed".into();
        for item in self.stalled.drain(..) {
            answer(item.done, Err(Arc::clone(&reason)));
        }
    }

    fn write(&mut self, items: VecDeque<Item>) {
        let mut commit = Vec::new();
        let mut bytes: u64 = 0;
        for item in items {
            if let Some(reason) = self.shared.poisoned() {
                answer(item.done, Err(reason));
                continue;
            }
            if !self.may_overtake(&item.record) {
                self.stalled.push_back(item);
                continue;
            }
            let size = item.record.frame_bytes() as u64;
            if self.current.offset + bytes + size > self.limit(&item.record) {
                self.commit(std::mem::take(&mut commit));
                bytes = 0;
                if !self.roll() {
                    self.stalled.push_back(item);
                    continue;
                }
            } else if bytes + size > COMMIT_BYTES_MAX as u64 {
                self.commit(std::mem::take(&mut commit));
                bytes = 0;
            }
            bytes += size;
            commit.push(item);
        }
        self.commit(commit);
    }

    /// Whether a record may go before those that wait for space. A vote touches no entry, and a
    /// purge below all that wait only makes room.
    fn may_overtake(&self, record: &Record) -> bool {
        let waits_above = |to: u64| {
            let mut waiting = self.stalled.iter().map(|item| &item.record);
            waiting.all(|record| matches!(record, Record::Entry { index, .. } if *index > to))
        };
        match record {
            Record::Vote(_) => true,
            Record::Purge { to, .. } => waits_above(*to),
            Record::Entry { .. } | Record::Truncate { .. } | Record::State { .. } => {
                self.stalled.is_empty()
            }
        }
    }

    /// Where a record of this kind must end. The last piece of a segment is kept
    /// for what a full disk must not stop.
    fn limit(&self, record: &Record) -> u64 {
        match record {
            Record::Vote(_) | Record::Purge { .. } => self.options.segment_bytes,
            Record::Entry { .. } | Record::Truncate { .. } | Record::State { .. } => {
                self.options.segment_bytes - self.options.reserve_bytes
            }
        }
    }

    /// Writes and syncs one commit, then answers for it.
    fn commit(&mut self, items: Vec<Item>) {
        if items.is_empty() {
            return;
        }
        if let Some(reason) = self.shared.poisoned() {
            items.into_iter().for_each(|item| answer(item.done, Err(Arc::clone(&reason))));
            return;
        }
        let (current, mut buffer, mut places) = (&mut self.current, Vec::new(), Vec::new());
        let (start, batch) = (current.offset, current.batch + 1);
        for (position, item) in items.iter().enumerate() {
            let offset = start + buffer.len() as u64;
            let before = buffer.len();
            let last = position + 1 == items.len();
            current.cipher.put_frame(&mut buffer, offset, batch, last, &item.record);
            let sealed = sealed_bytes(&buffer[before..]);
            places.push(Place { segment: current.sequence, offset, sealed });
        }
        let begun = Instant::now();
        let written = current.file.write_all_at(&buffer, start).and_then(|()| current.file.sync());
        if begun.elapsed() > SLOW_COMMIT {
            let millis = begun.elapsed().as_millis() as u64;
            tracing::warn!(millis, bytes = buffer.len(), "disk is slow to sync the log");
        }
        if let Err(error) = written {
            let path = self.disk.path(&segment_name(current.sequence));
            let reason =
                self.shared.poison(format!("{} could not be written: {error}", path.display()));
            items.into_iter().for_each(|item| answer(item.done, Err(Arc::clone(&reason))));
            return;
        }
        current.offset += buffer.len() as u64;
        current.batch = batch;
        self.settle(items, &places);
    }

    /// What follows from a commit: places, own copies of the state, answers, reclaiming.
    fn settle(&mut self, items: Vec<Item>, places: &[Place]) {
        let mut purge = None;
        let mut index = self.shared.index.lock().unwrap_or_else(PoisonError::into_inner);
        for (item, place) in items.iter().zip(places) {
            match &item.record {
                Record::Entry { index: number, .. } => {
                    index.settle(*number, item.ticket, *place);
                    self.current.highest = self.current.highest.max(Some(*number));
                }
                Record::Vote(vote) => self.vote = Some(vote.clone()),
                Record::Purge { to, id } => {
                    self.purged = Some((*to, id.clone()));
                    purge = Some(*to);
                }
                Record::Truncate { .. } | Record::State { .. } => {}
            }
        }
        index.evict();
        drop(index);
        self.shared.commits.fetch_add(1, Ordering::Relaxed);
        items.into_iter().for_each(|item| answer(item.done, Ok(())));
        if let Some(to) = purge {
            self.drop_older(to);
        }
    }

    /// Goes on in a new segment; `false` when there is no space for one. A log that has stopped
    /// goes on too: what is written then is refused with the reason.
    fn roll(&mut self) -> bool {
        if self.shared.poisoned().is_some() {
            return true;
        }
        self.settle_spare(true);
        let Some(file) = self.spare.take() else { return self.shared.poisoned().is_some() };
        let sequence = self.current.sequence + 1;
        let state = Record::State { vote: self.vote.clone(), purged: self.purged.clone() };
        let previous = Previous::ValidTo(self.current.offset);
        let begun = begin_segment(&*self.disk, &self.key, file, sequence, previous, &[state]);
        match begun {
            Ok((current, _)) => {
                let before = std::mem::replace(&mut self.current, current);
                self.older.push_back((before.sequence, before.highest));
                let mut index = self.shared.index.lock().unwrap_or_else(PoisonError::into_inner);
                index.segments.insert(sequence, self.current.as_segment());
            }
            Err(error) => {
                self.shared.poison(base::chain(&error).to_string());
            }
        }
        self.want_spare();
        true
    }

    /// Removes older segments that hold no entry above `to`; one of them becomes the spare.
    fn drop_older(&mut self, to: u64) {
        let mut gone = Vec::new();
        while let Some((sequence, highest)) = self.older.front().copied() {
            if highest.is_some_and(|highest| highest > to) {
                break;
            }
            self.older.pop_front();
            gone.push(sequence);
        }
        if gone.is_empty() {
            return;
        }
        for sequence in gone {
            let segment = {
                let mut index = self.shared.index.lock().unwrap_or_else(PoisonError::into_inner);
                index.segments.remove(&sequence)
            };
            if let Err(error) = self.reclaim(&segment_name(sequence), segment) {
                tracing::warn!(segment = sequence, %error, "log segment could not be reclaimed");
            }
        }
        if let Err(error) = self.disk.sync_dir() {
            tracing::warn!(%error, "log directory could not be synced");
        }
    }

    fn reclaim(&mut self, name: &str, segment: Option<Segment>) -> io::Result<()> {
        let fits = segment.filter(|segment| {
            segment.file.len().is_ok_and(|len| len == self.options.segment_bytes)
        });
        match fits {
            Some(segment) if self.lacks_spare() && self.preparing.is_none() => {
                self.disk.rename(name, SPARE)?;
                self.spare = Some(segment.file);
                self.shared.spare_missing.store(false, Ordering::Relaxed);
                Ok(())
            }
            _ => self.disk.remove(name),
        }
    }

    fn lacks_spare(&self) -> bool {
        self.spare.is_none()
    }

    /// Takes the spare that was prepared, waiting for it when `needed`; asks for one otherwise.
    fn settle_spare(&mut self, needed: bool) {
        if self.spare.is_none() && self.preparing.is_none() {
            self.want_spare();
        }
        let finished = self.preparing.as_ref().is_some_and(|handle| needed || handle.is_finished());
        let Some(handle) = self.preparing.take_if(|_| finished) else { return };
        match handle.join() {
            Ok(Ok(file)) => self.spare = Some(file),
            Ok(Err(error)) => {
                self.retry_at = Instant::now() + SPACE_RETRY;
                tracing::warn!(%error, "no spare log segment");
                if needed && !is_full(&error) {
                    self.shared.poison(format!("no log segment could be prepared: {error}"));
                }
            }
            Err(_) => {
                self.shared.poison("the thread that prepares log segments panicked".to_owned());
            }
        }
        self.shared.spare_missing.store(self.spare.is_none(), Ordering::Relaxed);
    }

    fn want_spare(&mut self) {
        if self.spare.is_some() || self.preparing.is_some() || Instant::now() < self.retry_at {
            return;
        }
        let (disk, bytes) = (Arc::clone(&self.disk), self.options.segment_bytes);
        let prepare = move || prepare_spare(&*disk, bytes);
        match std::thread::Builder::new().name("log-spare".to_owned()).spawn(prepare) {
            Ok(handle) => self.preparing = Some(handle),
            Err(error) => tracing::warn!(%error, "thread for a log segment refused"),
        }
    }
}

impl Current {
    fn as_segment(&self) -> Segment {
        Segment {
            name: segment_name(self.sequence),
            file: Arc::clone(&self.file),
            cipher: Arc::clone(&self.cipher),
        }
    }
}

/// Turns the spare into segment `sequence`, durable with `records` in it before it has its name.
fn begin_segment(
    disk: &dyn Disk,
    key: &DataKey,
    file: Arc<dyn DiskFile>,
    sequence: u64,
    previous: Previous,
    records: &[Record],
) -> Result<(Current, Vec<Place>), WalError> {
    let salt = seal::salt().ok_or(WalError::Entropy)?;
    let cipher = Arc::new(Cipher::new(key, &salt));
    let header = Header { sequence, previous, salt };
    let mut buffer = vec![0; DATA_OFFSET as usize];
    buffer[..header.encode().len()].copy_from_slice(&header.encode());
    let mut places = Vec::new();
    for (position, record) in records.iter().enumerate() {
        let before = buffer.len();
        let last = position + 1 == records.len();
        cipher.put_frame(&mut buffer, before as u64, 1, last, record);
        let sealed = sealed_bytes(&buffer[before..]);
        places.push(Place { segment: sequence, offset: before as u64, sealed });
    }
    let name = segment_name(sequence);
    file.write_all_at(&buffer, 0)
        .and_then(|()| file.sync())
        .and_then(|()| disk.rename(SPARE, &name))
        .and_then(|()| disk.sync_dir())
        .map_err(|source| WalError::io("begin", disk.path(&name), source))?;
    let offset = buffer.len() as u64;
    Ok((Current { sequence, file, cipher, offset, batch: 1, highest: None }, places))
}

/// The spare left by an earlier run, when it has the right size.
fn open_spare(disk: &dyn Disk, bytes: u64) -> Option<Arc<dyn DiskFile>> {
    let file = disk.open(SPARE).ok()?;
    (file.len().ok()? == bytes).then_some(file)
}

/// A file of zeroes with all its space taken. A partial one is removed again.
fn prepare_spare(disk: &dyn Disk, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
    let fill = || -> io::Result<Arc<dyn DiskFile>> {
        let file = disk.create(SPARE_TMP)?;
        let zeroes = vec![0; ZERO_BYTES.min(bytes as usize)];
        let mut offset = 0;
        while offset < bytes {
            let part = zeroes.len().min((bytes - offset) as usize);
            file.write_all_at(&zeroes[..part], offset)?;
            offset += part as u64;
        }
        file.sync()?;
        disk.rename(SPARE_TMP, SPARE)?;
        disk.sync_dir()?;
        Ok(file)
    };
    let filled = fill();
    if filled.is_err() {
        drop(disk.remove(SPARE_TMP));
    }
    filled
}

fn answer(done: Option<Done>, result: Result<(), Arc<str>>) {
    if let Some(done) = done {
        done(result);
    }
}

fn sealed_bytes(frame: &[u8]) -> usize {
    let len: [u8; 4] = frame[..4].try_into().expect("a frame begins with its length");
    let sealed = u32::from_le_bytes(len) as usize;
    assert!(FRAME_HEAD_BYTES + sealed <= frame.len(), "the frame is whole");
    sealed
}

const ZERO_BYTES: usize = 1024 * 1024;
