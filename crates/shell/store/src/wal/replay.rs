//! Reading the log back when it is opened.
//!
//! Owns: which segments count, what a torn end is and what is damage.
//! Does not know: threads, what an entry means.
//! Invariant: nothing that was acknowledged is given up silently. Only the end of the newest
//! segment may be torn, and only when no later commit stands behind the tear.

use std::collections::BTreeMap;
use std::sync::Arc;

use pki::DataKey;

use crate::disk::{Disk, DiskFile};

use super::format::{
    Cipher, DATA_OFFSET, FRAME_HEAD_BYTES, FrameError, HEADER_BYTES, Header, HeaderError, Previous,
    Record, padded,
};
use super::index::{Index, Place, Segment};
use super::{WalError, segment_name, sequence_of};

/// What the directory holds.
pub(crate) struct Replayed {
    pub(crate) index: Index,
    /// Segments that count, with the highest entry in each, oldest first.
    pub(crate) segments: Vec<(u64, Option<u64>)>,
    /// Up to where the newest segment is valid.
    pub(crate) valid_to: u64,
    /// Files that do not count any more.
    pub(crate) leftovers: Vec<String>,
}

/// Reads the whole log.
pub(crate) fn replay(
    disk: &dyn Disk,
    key: &DataKey,
    cache_bytes_max: usize,
) -> Result<Replayed, WalError> {
    let mut leftovers = Vec::new();
    let mut headers = BTreeMap::new();
    for name in disk.list().map_err(|source| WalError::io("list", disk.path(""), source))? {
        if name.ends_with(".tmp") && name.starts_with("log-") || name == super::SPARE_TMP {
            leftovers.push(name);
        } else if let Some(sequence) = sequence_of(&name) {
            headers.insert(sequence, read_header(disk, &name, sequence)?);
        }
    }
    let first = first_that_counts(&headers);
    leftovers.extend(headers.range(..first).map(|(sequence, _)| segment_name(*sequence)));
    let mut state =
        Replayed { index: Index::new(cache_bytes_max), segments: vec![], valid_to: 0, leftovers };
    let counted: Vec<_> = headers.split_off(&first).into_iter().collect();
    for (position, (sequence, header)) in counted.iter().enumerate() {
        let bound = match counted.get(position + 1).map(|(_, next)| next.previous) {
            None => Bound::Torn,
            Some(Previous::ValidTo(offset)) => Bound::Exactly(offset),
            Some(Previous::None) => unreachable!("segments before such a one do not count"),
        };
        state.segment(disk, key, *sequence, header, bound)?;
    }
    state.check_complete(disk)?;
    Ok(state)
}

/// Where the frames of a segment must end.
#[derive(Clone, Copy)]
enum Bound {
    Exactly(u64),
    /// It is the newest: its end may be torn.
    Torn,
}

impl Replayed {
    fn segment(
        &mut self,
        disk: &dyn Disk,
        key: &DataKey,
        sequence: u64,
        header: &Header,
        bound: Bound,
    ) -> Result<(), WalError> {
        let name = segment_name(sequence);
        let io = |action| {
            let path = disk.path(&name);
            move |source| WalError::io(action, path, source)
        };
        let file = disk.open(&name).map_err(io("open"))?;
        let bytes = read_all(&*file).map_err(io("read"))?;
        let cipher = Arc::new(Cipher::new(key, &header.salt));
        let segment =
            Segment { name: name.clone(), file: Arc::clone(&file), cipher: Arc::clone(&cipher) };
        self.index.segments.insert(sequence, segment);
        self.segments.push((sequence, None));
        let mut walk = Walk { cipher: &cipher, bytes: &bytes, offset: DATA_OFFSET, batch: 1 };
        loop {
            let at = walk.offset;
            if matches!(bound, Bound::Exactly(end) if at >= end) {
                break;
            }
            match walk.next() {
                Ok((record, sealed)) => {
                    let record = record.map_err(|error| WalError::Newer {
                        path: disk.path(&name),
                        reason: error.to_string(),
                    })?;
                    self.record(record, Place { segment: sequence, offset: at, sealed })?;
                }
                Err(FrameError::Key) => return Err(WalError::Key(disk.path(&name))),
                Err(FrameError::Invalid) => match bound {
                    Bound::Torn if at > DATA_OFFSET && !walk.commit_behind() => break,
                    Bound::Torn | Bound::Exactly(_) => {
                        return Err(WalError::corrupt(
                            disk.path(&name),
                            at,
                            "a committed record is damaged",
                        ));
                    }
                },
            }
        }
        self.valid_to = walk.offset;
        if matches!(bound, Bound::Torn) {
            // It may be in the page cache only, of a process that was killed before its sync.
            file.sync().map_err(io("sync"))?;
        }
        Ok(())
    }

    fn record(&mut self, record: Record, place: Place) -> Result<(), WalError> {
        match record {
            Record::Entry { index, bytes } => {
                self.index.push(index, bytes, Some(place))?;
                if let Some((_, highest)) = self.segments.last_mut() {
                    *highest = (*highest).max(Some(index));
                }
            }
            Record::Vote(vote) => self.index.vote = Some(vote),
            Record::Truncate { from } => self.index.truncate(from),
            Record::Purge { to, id } => self.index.purge(to, id),
            Record::State { vote, purged } => {
                self.index.vote = vote.or(self.index.vote.take());
                if let Some((to, id)) = purged {
                    self.index.purge(to, id);
                }
            }
        }
        Ok(())
    }

    fn check_complete(&self, disk: &dyn Disk) -> Result<(), WalError> {
        let (first, end) = self.index.range();
        let expected = self.index.purged.as_ref().map_or(first, |(to, _)| to + 1);
        if first < end && first != expected {
            let reason = format!("entries {expected} to {} are missing", first.saturating_sub(1));
            return Err(WalError::corrupt(disk.path(""), 0, &reason));
        }
        Ok(())
    }
}

struct Walk<'a> {
    cipher: &'a Cipher,
    bytes: &'a [u8],
    offset: u64,
    /// The commit that the next frame belongs to, or a later one.
    batch: u32,
}

impl Walk<'_> {
    #[allow(clippy::type_complexity)]
    fn next(&mut self) -> Result<(Result<Record, super::format::RecordError>, usize), FrameError> {
        let rest = self.bytes.get(self.offset as usize..).ok_or(FrameError::Invalid)?;
        let (plain, head) = self.cipher.take_frame(rest, self.offset)?;
        self.offset += padded(FRAME_HEAD_BYTES + head.sealed) as u64;
        self.batch = if head.last { head.batch + 1 } else { head.batch };
        Ok((Record::decode(plain), head.sealed))
    }

    /// Whether a later commit than the broken one stands behind the broken frame. Each commit is
    /// synced before the next is written, so then the broken one was acknowledged.
    fn commit_behind(&self) -> bool {
        let mut offset = self.offset as usize;
        while let Some(rest) = self.bytes.get(offset..) {
            if rest.len() < FRAME_HEAD_BYTES {
                break;
            }
            offset += match self.cipher.check_frame(rest, offset as u64) {
                Some(head) if head.batch > self.batch => return true,
                Some(head) => padded(FRAME_HEAD_BYTES + head.sealed),
                None => super::format::ALIGN as usize,
            };
        }
        false
    }
}

/// A segment that holds everything, or the oldest from which the sequence has no gap.
fn first_that_counts(headers: &BTreeMap<u64, Header>) -> u64 {
    let mut first = None;
    for (sequence, header) in headers.iter().rev() {
        if first.is_some_and(|later| later != sequence + 1) {
            break;
        }
        first = Some(*sequence);
        if header.previous == Previous::None {
            break;
        }
    }
    first.unwrap_or(0)
}

fn read_header(disk: &dyn Disk, name: &str, sequence: u64) -> Result<Header, WalError> {
    let path = || disk.path(name);
    let file = disk.open(name).map_err(|source| WalError::io("open", path(), source))?;
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(|source| WalError::io("read", path(), source))?;
    let header = Header::decode(&bytes).map_err(|error| match error {
        HeaderError::Format(_) => WalError::Newer { path: path(), reason: error.to_string() },
        HeaderError::Magic | HeaderError::Checksum => {
            WalError::corrupt(path(), 0, &error.to_string())
        }
    })?;
    if header.sequence != sequence {
        return Err(WalError::corrupt(path(), 0, "the file has the name of another segment"));
    }
    Ok(header)
}

fn read_all(file: &dyn DiskFile) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.len()? as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
