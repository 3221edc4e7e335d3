//! The log as openraft wants it.
//!
//! Owns: the adaptation of [`Wal`] to openraft's traits. Does not know: how the log is stored.
//! Invariant: openraft is told that something is durable by the log's writer and by nobody else.

#[cfg(test)]
mod suite;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use futures::{Stream, TryStreamExt};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};

use crate::codec;
use crate::limits::READ_BYTES_MAX;
use crate::raft_types::{Ballot, Entry, LogId, Types};
use crate::wal::{Wal, WalError};

/// Log storage and reader in one: clones share the log.
#[derive(Clone)]
pub(crate) struct LogStore {
    wal: Wal,
}

impl LogStore {
    pub(crate) fn new(wal: Wal) -> Self {
        Self { wal }
    }

    fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let bytes = self.wal.read(from, to, bytes_max)?;
        bytes.into_iter().map(|entry| codec::decode_entry(entry).map_err(Into::into)).collect()
    }

    fn last_purged(&self) -> io::Result<Option<LogId>> {
        let id = self.wal.purged().map(|(_, id)| codec::decode_log_id(id));
        Ok(id.transpose()?)
    }
}

/// First index and the one after the last.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl From<WalError> for io::Error {
    fn from(error: WalError) -> Self {
        io::Error::other(base::chain(&error).to_string())
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (from, to) = bounds(&range);
        self.read(from, to, usize::MAX)
    }

    /// Read piece by piece as it is applied: a long log after a restart does not fit in memory.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let ((from, to), log) = (bounds(&range), self.clone());
        let pieces = futures::stream::try_unfold((log, from), move |(log, from)| {
            let piece = match from < to {
                true => log.read(from, to, READ_BYTES_MAX),
                false => Ok(Vec::new()),
            };
            futures::future::ready(piece.map(|entries| {
                let next = from + entries.len() as u64;
                (!entries.is_empty()).then_some((entries, (log, next)))
            }))
        });
        pieces.map_ok(|entries| futures::stream::iter(entries.into_iter().map(Ok))).try_flatten()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES_MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Ballot>> {
        Ok(self.wal.vote().map(codec::decode_ballot).transpose()?)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let last_purged_log_id = self.last_purged()?;
        let (first, end) = self.wal.range();
        let last = if first < end { self.read(end - 1, end, usize::MAX)?.pop() } else { None };
        let last_log_id = last.map(|entry| entry.log_id).or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Ballot) -> io::Result<()> {
        Ok(self.wal.save_vote(codec::encode_ballot(vote)).await?)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<_> = entries
            .into_iter()
            .map(|entry| (entry.log_id.index, codec::encode_entry(&entry)))
            .collect();
        let done = Box::new(move |result: Result<(), std::sync::Arc<str>>| {
            callback.io_completed(result.map_err(|reason| io::Error::other(reason.to_string())));
        });
        Ok(self.wal.append(entries, done).await?)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        Ok(self.wal.truncate(last.map_or(0, |last| last.index + 1)).await?)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        Ok(self.wal.purge(log_id.index, codec::encode_log_id(&log_id)).await?)
    }
}
