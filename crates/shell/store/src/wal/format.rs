//! The bytes of a log segment, format 1.
//!
//! Owns: the header of a segment, the frame around a record, and the records themselves.
//! Does not know: files, threads, what an entry means.
//! Invariant: a frame is accepted only in the segment, at the offset and in the batch it was
//! written for: checksum and seal cover the segment's salt and all of these.

use bytes::Bytes;
use pki::DataKey;

use crate::limits::FRAME_BYTES_MAX;
use crate::seal::{FileKey, Purpose, SALT_BYTES, TAG_BYTES};

/// Newest format that this version writes, and the only one it reads.
pub(crate) const FORMAT: u16 = 1;
/// Where the first frame of a segment stands: a sector of its own for the header.
pub(crate) const DATA_OFFSET: u64 = 512;
/// Bytes of a segment's header.
pub(crate) const HEADER_BYTES: usize = 64;
/// Bytes before a frame's sealed record.
pub(crate) const FRAME_HEAD_BYTES: usize = 12;
/// Frames begin at multiples of this.
pub(crate) const ALIGN: u64 = 8;

const MAGIC: &[u8; 8] = b"SHOALLOG";
const LAST_OF_BATCH: u32 = 1 << 31;

/// How a segment goes on from the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Previous {
    /// This segment holds everything; older ones are leftovers.
    None,
    /// The segment before this one is valid up to this offset.
    ValidTo(u64),
}

/// The first bytes of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sequence: u64,
    pub(crate) previous: Previous,
    pub(crate) salt: [u8; SALT_BYTES],
}

/// Why bytes are not a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("it does not begin as a log segment")]
    Magic,
    #[error("it has format {0}, this version knows format {FORMAT}")]
    Format(u16),
    #[error("the checksum of its header is wrong")]
    Checksum,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.sequence.to_le_bytes());
        let previous = match self.previous {
            Previous::None => u64::MAX,
            Previous::ValidTo(offset) => offset,
        };
        bytes[20..28].copy_from_slice(&previous.to_le_bytes());
        bytes[28..60].copy_from_slice(&self.salt);
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        if &bytes[..8] != MAGIC {
            return Err(HeaderError::Magic);
        }
        let format = u16::from_le_bytes([bytes[8], bytes[9]]);
        if format != FORMAT {
            return Err(HeaderError::Format(format));
        }
        if read_u32(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
            return Err(HeaderError::Checksum);
        }
        let previous = match read_u64(bytes, 20) {
            u64::MAX => Previous::None,
            offset => Previous::ValidTo(offset),
        };
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&bytes[28..60]);
        Ok(Self { sequence: read_u64(bytes, 12), previous, salt })
    }
}

/// Seals and opens the frames of one segment.
#[derive(Debug)]
pub(crate) struct Cipher {
    key: FileKey,
    seed: u32,
}

/// What stands before a frame's sealed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHead {
    /// Bytes of the sealed record.
    pub(crate) sealed: usize,
    /// Number of the commit this frame belongs to, counted from 1 in each segment.
    pub(crate) batch: u32,
    /// Whether it is the last frame of its commit.
    pub(crate) last: bool,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// Nothing, something torn, or something of an earlier use of the file.
    Invalid,
    /// The checksum is right and the seal is not: the data key is another manager's.
    Key,
}

impl Cipher {
    pub(crate) fn new(key: &DataKey, salt: &[u8; SALT_BYTES]) -> Self {
        Self { key: FileKey::derive(key, salt, Purpose::Log), seed: crc32c::crc32c(salt) }
    }

    /// Appends the frame of `record` to `buffer`; it will stand at `offset` of the segment.
    pub(crate) fn put_frame(
        &self,
        buffer: &mut Vec<u8>,
        offset: u64,
        batch: u32,
        last: bool,
        record: &Record,
    ) {
        let start = buffer.len();
        buffer.extend_from_slice(&[0; FRAME_HEAD_BYTES]);
        record.encode(buffer);
        let sealed = buffer.len() - start - FRAME_HEAD_BYTES + TAG_BYTES;
        assert!(sealed <= FRAME_BYTES_MAX, "the size was checked before it was queued");
        let flags = batch | if last { LAST_OF_BATCH } else { 0 };
        buffer[start..start + 4].copy_from_slice(&(sealed as u32).to_le_bytes());
        buffer[start + 4..start + 8].copy_from_slice(&flags.to_le_bytes());
        let bound: [u8; 8] = buffer[start..start + 8].try_into().expect("eight bytes");
        self.key.seal(offset, &bound, buffer, start + FRAME_HEAD_BYTES);
        let body = &buffer[start + FRAME_HEAD_BYTES..];
        let checksum = self.checksum(offset, &bound, body);
        buffer[start + 8..start + 12].copy_from_slice(&checksum.to_le_bytes());
        let padding = padded(buffer.len() - start) - (buffer.len() - start);
        buffer.extend_from_slice(&[0; ALIGN as usize][..padding]);
    }

    /// Checks the frame that `bytes` begin with, standing at `offset`; does not open it.
    pub(crate) fn check_frame(&self, bytes: &[u8], offset: u64) -> Option<FrameHead> {
        let head = bytes.get(..FRAME_HEAD_BYTES)?;
        let (sealed, flags) = (read_u32(head, 0) as usize, read_u32(head, 4));
        if !(TAG_BYTES + 1..=FRAME_BYTES_MAX).contains(&sealed) {
            return None;
        }
        let body = bytes.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + sealed)?;
        let bound: [u8; 8] = head[..8].try_into().ok()?;
        if read_u32(head, 8) != self.checksum(offset, &bound, body) {
            return None;
        }
        let (batch, last) = (flags & !LAST_OF_BATCH, flags & LAST_OF_BATCH != 0);
        Some(FrameHead { sealed, batch, last })
    }

    /// Checks and opens the frame that `bytes` begin with; the record and the frame's head.
    pub(crate) fn take_frame(
        &self,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(Vec<u8>, FrameHead), FrameError> {
        let head = self.check_frame(bytes, offset).ok_or(FrameError::Invalid)?;
        let mut body = bytes[FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + head.sealed].to_vec();
        let opened = self.key.open(offset, &bytes[..8], &mut body).ok_or(FrameError::Key)?;
        let plain = opened.len();
        body.truncate(plain);
        Ok((body, head))
    }

    fn checksum(&self, offset: u64, bound: &[u8; 8], body: &[u8]) -> u32 {
        let sum = crc32c::crc32c_append(self.seed, &offset.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(sum, bound), body)
    }
}

/// What is written to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// An entry; its index is one above the last.
    Entry { index: u64, bytes: Bytes },
    /// The vote, replacing the one before.
    Vote(Bytes),
    /// Entries from this index on are gone.
    Truncate { from: u64 },
    /// Entries up to this index are gone; the bytes name the last of them.
    Purge { to: u64, id: Bytes },
    /// What older segments would tell besides entries: first in each segment.
    State { vote: Option<Bytes>, purged: Option<(u64, Bytes)> },
}

/// Why bytes are not a record. Only a newer version or a defect writes such a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("record type {0} is not known to this version")]
    Type(u8),
    #[error("a record of type {0} has the wrong length")]
    Length(u8),
}

impl Record {
    /// Bytes of the frame that holds this record, padding included.
    pub(crate) fn frame_bytes(&self) -> usize {
        let body = match self {
            Self::Entry { bytes, .. } => 8 + bytes.len(),
            Self::Vote(vote) => vote.len(),
            Self::Truncate { .. } => 8,
            Self::Purge { id, .. } => 8 + id.len(),
            Self::State { vote, purged } => {
                2 + vote.as_ref().map_or(0, Bytes::len)
                    + 2
                    + purged.as_ref().map_or(0, |(_, id)| 8 + id.len())
            }
        };
        padded(FRAME_HEAD_BYTES + 1 + body + TAG_BYTES)
    }

    pub(crate) fn encode(&self, buffer: &mut Vec<u8>) {
        match self {
            Self::Entry { index, bytes } => {
                buffer.push(1);
                buffer.extend_from_slice(&index.to_le_bytes());
                buffer.extend_from_slice(bytes);
            }
            Self::Vote(vote) => {
                buffer.push(2);
                buffer.extend_from_slice(vote);
            }
            Self::Truncate { from } => {
                buffer.push(3);
                buffer.extend_from_slice(&from.to_le_bytes());
            }
            Self::Purge { to, id } => {
                buffer.push(4);
                buffer.extend_from_slice(&to.to_le_bytes());
                buffer.extend_from_slice(id);
            }
            Self::State { vote, purged } => {
                buffer.push(5);
                put_short(buffer, vote.as_ref().map(|vote| [vote.as_ref()]));
                let purged = purged.as_ref().map(|(to, id)| (to.to_le_bytes(), id));
                put_short(buffer, purged.as_ref().map(|(to, id)| [to.as_ref(), id.as_ref()]));
            }
        }
    }

    pub(crate) fn decode(record: Vec<u8>) -> Result<Self, RecordError> {
        let record = Bytes::from(record);
        let Some(&kind) = record.first() else { return Err(RecordError::Length(0)) };
        let body = record.slice(1..);
        let wrong = RecordError::Length(kind);
        let number = || body.get(..8).map(|bytes| read_u64(bytes, 0)).ok_or(wrong.clone());
        match kind {
            1 => Ok(Self::Entry { index: number()?, bytes: body.slice(8..) }),
            2 => Ok(Self::Vote(body)),
            3 if body.len() == 8 => Ok(Self::Truncate { from: number()? }),
            4 => Ok(Self::Purge { to: number()?, id: body.slice(8..) }),
            5 => {
                let (vote, rest) = take_short(&body).ok_or(wrong.clone())?;
                let (purged, rest) = take_short(&rest).ok_or(wrong.clone())?;
                let purged = match purged {
                    Some(bytes) if bytes.len() >= 8 => {
                        Some((read_u64(&bytes, 0), bytes.slice(8..)))
                    }
                    Some(_) => return Err(wrong),
                    None => None,
                };
                if rest.is_empty() { Ok(Self::State { vote, purged }) } else { Err(wrong) }
            }
            3 => Err(wrong),
            other => Err(RecordError::Type(other)),
        }
    }
}

/// `len` rounded up to the next place where a frame may begin.
pub(crate) fn padded(len: usize) -> usize {
    len.next_multiple_of(ALIGN as usize)
}

/// Two bytes of length, or all ones for nothing.
fn put_short<const N: usize>(buffer: &mut Vec<u8>, parts: Option<[&[u8]; N]>) {
    let Some(parts) = parts else {
        buffer.extend_from_slice(&u16::MAX.to_le_bytes());
        return;
    };
    let len: usize = parts.iter().map(|part| part.len()).sum();
    assert!(len < usize::from(u16::MAX), "votes and log ids are some dozen bytes");
    buffer.extend_from_slice(&(len as u16).to_le_bytes());
    parts.iter().for_each(|part| buffer.extend_from_slice(part));
}

fn take_short(bytes: &Bytes) -> Option<(Option<Bytes>, Bytes)> {
    let len = u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?);
    if len == u16::MAX {
        return Some((None, bytes.slice(2..)));
    }
    let end = 2 + usize::from(len);
    (bytes.len() >= end).then(|| (Some(bytes.slice(2..end)), bytes.slice(end..)))
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let bytes = Bytes::from_static;
        vec![
            Record::Entry { index: 7, bytes: bytes(b"payload") },
            Record::Entry { index: 8, bytes: Bytes::new() },
            Record::Vote(bytes(b"vote")),
            Record::Truncate { from: 9 },
            Record::Purge { to: 3, id: bytes(b"id") },
            Record::State { vote: None, purged: None },
            Record::State { vote: Some(bytes(b"v")), purged: Some((3, bytes(b"id"))) },
        ]
    }

    fn cipher(salt: u8) -> Cipher {
        Cipher::new(&DataKey::from_bytes([3; 32]), &[salt; SALT_BYTES])
    }

    #[test]
    fn records_come_back_from_their_frames() {
        for record in records() {
            let mut frame = Vec::new();
            cipher(1).put_frame(&mut frame, 512, 4, true, &record);
            assert_eq!(frame.len(), record.frame_bytes(), "{record:?}");
            let (plain, head) = cipher(1).take_frame(&frame, 512).unwrap();
            assert_eq!((head.batch, head.last), (4, true));
            assert_eq!(Record::decode(plain).unwrap(), record);
        }
    }

    #[test]
    fn a_frame_is_accepted_only_where_it_was_written() {
        let mut frame = Vec::new();
        cipher(1).put_frame(&mut frame, 512, 4, true, &records()[0]);
        assert_eq!(cipher(1).check_frame(&frame, 520), None);
        assert_eq!(cipher(2).check_frame(&frame, 512), None);
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let padding = FRAME_HEAD_BYTES + read_u32(&frame, 0) as usize;
            if bit / 8 < padding && cipher(1).check_frame(&damaged, 512).is_some() {
                assert_eq!(damaged[..padding], frame[..padding], "bit {bit}");
            }
        }
        for cut in 0..FRAME_HEAD_BYTES + TAG_BYTES {
            assert_eq!(cipher(1).check_frame(&frame[..cut], 512), None, "cut {cut}");
        }
    }

    #[test]
    fn the_key_of_another_manager_is_told_apart_from_damage() {
        let mut frame = Vec::new();
        cipher(1).put_frame(&mut frame, 512, 4, true, &records()[0]);
        let other = Cipher::new(&DataKey::from_bytes([4; 32]), &[1; SALT_BYTES]);
        assert_eq!(other.take_frame(&frame, 512), Err(FrameError::Key));
    }

    #[test]
    fn unknown_and_short_records_are_refused() {
        for (bytes, error) in [
            (vec![], RecordError::Length(0)),
            (vec![9], RecordError::Type(9)),
            (vec![1, 0], RecordError::Length(1)),
            (vec![3, 0], RecordError::Length(3)),
            (vec![5, 9, 0], RecordError::Length(5)),
        ] {
            assert_eq!(Record::decode(bytes.clone()), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn headers_come_back_and_newer_formats_are_named() {
        for previous in [Previous::None, Previous::ValidTo(4_096)] {
            let header = Header { sequence: 9, previous, salt: [5; SALT_BYTES] };
            let bytes = header.encode();
            assert_eq!(Header::decode(&bytes), Ok(header));
            let mut newer = bytes;
            newer[8] = 2;
            assert_eq!(Header::decode(&newer), Err(HeaderError::Format(2)));
            let mut damaged = bytes;
            damaged[30] ^= 1;
            assert_eq!(Header::decode(&damaged), Err(HeaderError::Checksum));
        }
    }
}
