//! Where each entry of the log is: in memory, in a segment, or both.
//!
//! Owns: the positions of all live entries, a bounded cache of the recent ones, vote and purge
//! point. Does not know: how entries get to the disk.
//! Invariant: an entry without a place in a segment is in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::DiskFile;

use super::WalError;
use super::format::{Cipher, FRAME_HEAD_BYTES, Record};

/// Where a frame stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) sealed: usize,
}

/// A segment that entries are read from.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) cipher: Arc<Cipher>,
}

#[derive(Debug)]
struct Slot {
    bytes: Option<Bytes>,
    place: Option<Place>,
    len: usize,
    ticket: u64,
}

/// All live entries.
pub(crate) struct Index {
    first: u64,
    slots: VecDeque<Slot>,
    cached_bytes: usize,
    cached_from: u64,
    cache_bytes_max: usize,
    live_bytes: usize,
    tickets: u64,
    pub(crate) segments: BTreeMap<u64, Segment>,
    pub(crate) vote: Option<Bytes>,
    pub(crate) purged: Option<(u64, Bytes)>,
}

impl Index {
    pub(crate) fn new(cache_bytes_max: usize) -> Self {
        Self {
            first: 0,
            slots: VecDeque::new(),
            cached_bytes: 0,
            cached_from: 0,
            cache_bytes_max,
            live_bytes: 0,
            tickets: 0,
            segments: BTreeMap::new(),
            vote: None,
            purged: None,
        }
    }

    /// First live entry and the one after the last; equal when there is none.
    pub(crate) fn range(&self) -> (u64, u64) {
        (self.first, self.first + self.slots.len() as u64)
    }

    /// Bytes of all live entries.
    pub(crate) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Adds an entry after the last and returns its ticket.
    pub(crate) fn push(
        &mut self,
        index: u64,
        bytes: Bytes,
        place: Option<Place>,
    ) -> Result<u64, WalError> {
        if self.slots.is_empty() {
            self.first = index;
            self.cached_from = index;
        } else if index != self.range().1 {
            return Err(WalError::Order { expected: self.range().1, found: index });
        }
        self.tickets += 1;
        self.cached_bytes += bytes.len();
        self.live_bytes += bytes.len();
        let len = bytes.len();
        self.slots.push_back(Slot { bytes: Some(bytes), place, len, ticket: self.tickets });
        self.evict();
        Ok(self.tickets)
    }

    /// Notes where an entry stands now, unless it was truncated or purged in the meantime.
    pub(crate) fn settle(&mut self, index: u64, ticket: u64, place: Place) {
        if let Some(slot) = self.slot(index)
            && slot.ticket == ticket
        {
            slot.place = Some(place);
        }
    }

    /// Notes where an entry was written anew.
    pub(crate) fn replace_place(&mut self, index: u64, place: Place) {
        if let Some(slot) = self.slot(index) {
            slot.place = Some(place);
        }
    }

    /// To be called when places were settled: the cache may shrink now.
    pub(crate) fn evict(&mut self) {
        while self.cached_bytes > self.cache_bytes_max {
            let index = self.cached_from;
            let Some(slot) = self.slot(index) else { return };
            if slot.place.is_none() {
                return;
            }
            let freed = slot.bytes.take().map_or(0, |bytes| bytes.len());
            self.cached_bytes -= freed;
            self.cached_from += 1;
        }
    }

    /// Forgets the entries from `from` on.
    pub(crate) fn truncate(&mut self, from: u64) {
        while self.range().1 > from.max(self.first) {
            let slot = self.slots.pop_back();
            self.forget(slot);
        }
        self.cached_from = self.cached_from.min(self.range().1);
    }

    /// Forgets the entries up to `to`.
    pub(crate) fn purge(&mut self, to: u64, id: Bytes) {
        if self.purged.as_ref().is_some_and(|(before, _)| *before > to) {
            return;
        }
        while self.first <= to && !self.slots.is_empty() {
            let slot = self.slots.pop_front();
            self.forget(slot);
            self.first += 1;
        }
        if self.slots.is_empty() {
            self.first = to + 1;
        }
        self.cached_from = self.cached_from.max(self.first);
        self.purged = Some((to, id));
    }

    /// The entry at `index`; `None` when it is not live.
    pub(crate) fn read(&self, index: u64) -> Result<Option<Bytes>, WalError> {
        let Some(offset) = index.checked_sub(self.first) else { return Ok(None) };
        let Some(slot) = self.slots.get(offset as usize) else { return Ok(None) };
        match (&slot.bytes, slot.place) {
            (Some(bytes), _) => Ok(Some(bytes.clone())),
            (None, Some(place)) => self.read_place(index, place).map(Some),
            (None, None) => unreachable!("an entry without a place is in memory"),
        }
    }

    /// Size of the entry at `index` without reading it.
    pub(crate) fn len_of(&self, index: u64) -> Option<usize> {
        Some(self.slots.get(index.checked_sub(self.first)? as usize)?.len)
    }

    fn read_place(&self, index: u64, place: Place) -> Result<Bytes, WalError> {
        let segment = self.segments.get(&place.segment).ok_or(WalError::Gone(index))?;
        let mut frame = vec![0; FRAME_HEAD_BYTES + place.sealed];
        segment.file.read_exact_at(&mut frame, place.offset).map_err(|source| WalError::Io {
            action: "read",
            path: segment.name.clone().into(),
            source,
        })?;
        let corrupt = |reason: &str| WalError::Corrupt {
            path: segment.name.clone().into(),
            offset: place.offset,
            reason: reason.to_owned(),
        };
        let (plain, _) = segment
            .cipher
            .take_frame(&frame, place.offset)
            .map_err(|_| corrupt("an entry that was written reads back damaged"))?;
        match Record::decode(plain) {
            Ok(Record::Entry { index: found, bytes }) if found == index => Ok(bytes),
            _ => Err(corrupt("another record stands where an entry was written")),
        }
    }

    fn slot(&mut self, index: u64) -> Option<&mut Slot> {
        self.slots.get_mut(index.checked_sub(self.first)? as usize)
    }

    fn forget(&mut self, slot: Option<Slot>) {
        if let Some(slot) = slot {
            self.cached_bytes -= slot.bytes.map_or(0, |bytes| bytes.len());
            self.live_bytes -= slot.len;
        }
    }
}
