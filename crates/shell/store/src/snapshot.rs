//! Snapshot files, format 1: written, read and received in sealed pieces.
//!
//! Owns: the file's layout and its life from temporary to current.
//! Does not know: what the state's bytes mean, Raft, the network.
//! Invariant: a file with a snapshot's name is whole and durable; its last piece says that it is
//! the last, so a cut one is never taken for a shorter state.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use pki::DataKey;

use crate::codec;
use crate::disk::{Disk, DiskFile};
use crate::limits::SNAPSHOT_CHUNK_BYTES;
use crate::raft_types::SnapshotMeta;
use crate::seal::{self, FileKey, Purpose, SALT_BYTES, TAG_BYTES};

/// Where snapshots are kept, and with which key.
#[derive(Clone)]
pub(crate) struct Snapshots {
    disk: Arc<dyn Disk>,
    key: Arc<DataKey>,
}

/// A whole snapshot, open: it can be read even after its file was replaced.
#[derive(Clone)]
pub(crate) struct SnapshotFile {
    pub(crate) meta: SnapshotMeta,
    pub(crate) bytes: u64,
    pub(crate) name: String,
    pub(crate) file: Arc<dyn DiskFile>,
}

impl Snapshots {
    pub(crate) fn new(disk: Arc<dyn Disk>, key: DataKey) -> Self {
        Self { disk, key: Arc::new(key) }
    }

    /// The newest snapshot; leftovers of interrupted writes are removed.
    pub(crate) fn open_current(&self) -> io::Result<Option<SnapshotFile>> {
        let mut newest = None;
        for name in self.disk.list()? {
            if name.starts_with(PREFIX) && name.ends_with(".tmp") {
                self.disk.remove(&name)?;
            } else if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
                newest = Some(name);
            }
        }
        newest.map(|name| self.open(&name)).transpose()
    }

    /// Begins a file; `purpose` tells concurrent writers apart.
    pub(crate) fn create(&self, purpose: &str, meta: &SnapshotMeta) -> io::Result<SnapshotWriter> {
        let name = format!("{PREFIX}{purpose}.tmp");
        let salt = seal::salt().ok_or_else(|| io::Error::other("no entropy for a salt"))?;
        let file = self.disk.create(&name)?;
        let mut head = vec![0; HEAD_BYTES];
        head[..8].copy_from_slice(MAGIC);
        head[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        head[12..12 + SALT_BYTES].copy_from_slice(&salt);
        let checksum = crc32c::crc32c(&head[..HEAD_BYTES - 4]);
        head[HEAD_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        file.write_all_at(&head, 0)?;
        let mut writer = SnapshotWriter {
            snapshots: self.clone(),
            name,
            key: FileKey::derive(&self.key, &salt, Purpose::Snapshot),
            file,
            offset: HEAD_BYTES as u64,
            piece: 0,
            buffer: Vec::new(),
            meta: meta.clone(),
            bytes: 0,
            finished: false,
        };
        writer.put_piece(&codec::encode_meta(meta), false)?;
        Ok(writer)
    }

    /// Gives a written file its lasting name and removes all others.
    pub(crate) fn install(&self, snapshot: &SnapshotFile) -> io::Result<SnapshotFile> {
        let (term, index) = match &snapshot.meta.last_log_id {
            Some(id) => (id.leader_id.term, id.index + 1),
            None => (0, 0),
        };
        let name = format!("{PREFIX}{index:016x}-{term:016x}{SUFFIX}");
        if snapshot.name != name {
            self.disk.rename(&snapshot.name, &name)?;
            self.disk.sync_dir()?;
        }
        for other in self.disk.list()? {
            if other.starts_with(PREFIX) && other.ends_with(SUFFIX) && other != name {
                self.disk.remove(&other)?;
            }
        }
        self.disk.sync_dir()?;
        Ok(SnapshotFile { name, ..snapshot.clone() })
    }

    /// Reads the state's bytes.
    pub(crate) fn read(&self, snapshot: &SnapshotFile) -> io::Result<SnapshotReader> {
        let mut reader = self.reader(Arc::clone(&snapshot.file), &snapshot.name)?;
        reader.next_piece()?;
        reader.piece_bytes.clear();
        Ok(reader)
    }

    fn open(&self, name: &str) -> io::Result<SnapshotFile> {
        let file = self.disk.open(name)?;
        let mut reader = self.reader(Arc::clone(&file), name)?;
        reader.next_piece()?;
        let meta = codec::decode_meta(Bytes::from(std::mem::take(&mut reader.piece_bytes)))?;
        let bytes = file.len()?;
        Ok(SnapshotFile { meta, bytes, name: name.to_owned(), file })
    }

    fn reader(&self, file: Arc<dyn DiskFile>, name: &str) -> io::Result<SnapshotReader> {
        let path = self.disk.path(name).display().to_string();
        let bad =
            |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{path} {what}"));
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, 0)?;
        if &head[..8] != MAGIC {
            return Err(bad("is not a snapshot".to_owned()));
        }
        let format = u16::from_le_bytes([head[8], head[9]]);
        if format != FORMAT {
            return Err(bad(format!("has format {format}, this version knows format {FORMAT}")));
        }
        if crc32c::crc32c(&head[..HEAD_BYTES - 4]).to_le_bytes() != head[HEAD_BYTES - 4..] {
            return Err(bad("has a damaged head".to_owned()));
        }
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&head[12..12 + SALT_BYTES]);
        let key = FileKey::derive(&self.key, &salt, Purpose::Snapshot);
        let offset = HEAD_BYTES as u64;
        Ok(SnapshotReader {
            key,
            file,
            path,
            offset,
            piece: 0,
            last: false,
            piece_bytes: vec![],
            at: 0,
        })
    }
}

/// A snapshot being written; dropped unfinished, its file is removed.
pub(crate) struct SnapshotWriter {
    snapshots: Snapshots,
    name: String,
    key: FileKey,
    file: Arc<dyn DiskFile>,
    offset: u64,
    piece: u64,
    buffer: Vec<u8>,
    meta: SnapshotMeta,
    bytes: u64,
    finished: bool,
}

impl SnapshotWriter {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            let part = rest.len().min(SNAPSHOT_CHUNK_BYTES - self.buffer.len());
            self.buffer.extend_from_slice(&rest[..part]);
            rest = &rest[part..];
            if self.buffer.len() == SNAPSHOT_CHUNK_BYTES {
                let piece = std::mem::take(&mut self.buffer);
                self.put_piece(&piece, false)?;
            }
        }
        Ok(())
    }

    /// Bytes of the state written so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes the file whole and durable; it has its temporary name still.
    pub(crate) fn finish(mut self) -> io::Result<SnapshotFile> {
        let piece = std::mem::take(&mut self.buffer);
        self.put_piece(&piece, true)?;
        self.file.sync()?;
        self.finished = true;
        Ok(SnapshotFile {
            meta: self.meta.clone(),
            bytes: self.offset,
            name: self.name.clone(),
            file: Arc::clone(&self.file),
        })
    }

    fn put_piece(&mut self, plain: &[u8], last: bool) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(4 + plain.len() + TAG_BYTES);
        let flags = (plain.len() + TAG_BYTES) as u32 | if last { LAST } else { 0 };
        let bound = flags.to_le_bytes();
        buffer.extend_from_slice(&bound);
        buffer.extend_from_slice(plain);
        self.key.seal(self.piece, &bound, &mut buffer, 4);
        self.file.write_all_at(&buffer, self.offset)?;
        self.offset += buffer.len() as u64;
        self.piece += 1;
        Ok(())
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished {
            // It would be removed at the next start anyway.
            drop(self.snapshots.disk.remove(&self.name));
        }
    }
}

/// Reads the state's bytes of a snapshot.
pub(crate) struct SnapshotReader {
    key: FileKey,
    file: Arc<dyn DiskFile>,
    path: String,
    offset: u64,
    piece: u64,
    last: bool,
    piece_bytes: Vec<u8>,
    at: usize,
}

impl SnapshotReader {
    fn next_piece(&mut self) -> io::Result<()> {
        let damaged = |path: &str, at: u64| {
            let text = format!("{path} is damaged at byte {at}, or was written with another key");
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let mut bound = [0; 4];
        self.file.read_exact_at(&mut bound, self.offset)?;
        let flags = u32::from_le_bytes(bound);
        let len = (flags & !LAST) as usize;
        if !(TAG_BYTES..=PIECE_BYTES_MAX).contains(&len) {
            return Err(damaged(&self.path, self.offset));
        }
        let mut sealed = vec![0; len];
        self.file.read_exact_at(&mut sealed, self.offset + 4)?;
        let plain = self.key.open(self.piece, &bound, &mut sealed).map(|plain| plain.len());
        sealed.truncate(plain.ok_or_else(|| damaged(&self.path, self.offset))?);
        self.piece_bytes = sealed;
        self.at = 0;
        self.last = flags & LAST != 0;
        self.offset += 4 + len as u64;
        self.piece += 1;
        Ok(())
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece_bytes.len() {
            if self.last {
                return Ok(0);
            }
            self.next_piece()?;
        }
        let count = buffer.len().min(self.piece_bytes.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece_bytes[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

const MAGIC: &[u8; 8] = b"SHOALSNP";
const FORMAT: u16 = 1;
const HEAD_BYTES: usize = 48;
const LAST: u32 = 1 << 31;
/// A head with the largest membership is far below a full piece of state.
const PIECE_BYTES_MAX: usize = SNAPSHOT_CHUNK_BYTES + TAG_BYTES;
const PREFIX: &str = "snapshot-";
const SUFFIX: &str = ".snap";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::faulty::FaultyDisk;
    use crate::raft_types::{Leader, LogId};

    fn meta(index: u64) -> SnapshotMeta {
        let leader_id = Leader { term: 2, node_id: 1 };
        let last_log_id = Some(LogId { leader_id, index });
        SnapshotMeta { last_log_id, ..SnapshotMeta::default() }
    }

    fn snapshots(disk: &FaultyDisk, key: u8) -> Snapshots {
        Snapshots::new(Arc::new(disk.clone()), DataKey::from_bytes([key; 32]))
    }

    fn write(snapshots: &Snapshots, index: u64, bytes: &[u8]) -> SnapshotFile {
        let mut writer = snapshots.create("build", &meta(index)).unwrap();
        bytes.chunks(70_000).for_each(|part| writer.write(part).unwrap());
        snapshots.install(&writer.finish().unwrap()).unwrap()
    }

    fn state(len: usize) -> Vec<u8> {
        (0..len).map(|number| (number % 251) as u8).collect()
    }

    #[test]
    fn every_size_comes_back_and_the_newest_counts() {
        let disk = FaultyDisk::new();
        let snapshots = snapshots(&disk, 1);
        assert!(snapshots.open_current().unwrap().is_none());
        let piece = SNAPSHOT_CHUNK_BYTES;
        for (index, len) in [0, 1, piece - 1, piece, piece + 1, 3 * piece].into_iter().enumerate() {
            write(&snapshots, index as u64, &state(len));
            let found = snapshots.open_current().unwrap().unwrap();
            assert_eq!(found.meta, meta(index as u64));
            let mut back = Vec::new();
            snapshots.read(&found).unwrap().read_to_end(&mut back).unwrap();
            assert_eq!(back, state(len));
            assert_eq!(disk.list().unwrap().len(), 1);
        }
        assert!(!disk.holds(&state(40)));
    }

    #[test]
    fn cut_damaged_and_foreign_files_are_refused() {
        let disk = FaultyDisk::new();
        let snapshots_1 = snapshots(&disk, 1);
        let file = write(&snapshots_1, 5, &state(2 * SNAPSHOT_CHUNK_BYTES));
        let read = |snapshots: &Snapshots| -> io::Result<Vec<u8>> {
            let found = snapshots.open_current()?.ok_or(io::ErrorKind::NotFound)?;
            let mut back = Vec::new();
            snapshots.read(&found)?.read_to_end(&mut back)?;
            Ok(back)
        };
        assert!(read(&snapshots(&disk, 2)).is_err());
        for offset in [3, 20, 47, 60, 70_000, 500_000] {
            disk.damage(&file.name, offset);
            assert!(read(&snapshots_1).is_err(), "{offset}");
            disk.damage(&file.name, offset);
        }
        assert!(read(&snapshots_1).is_ok());
        let len = file.file.len().unwrap();
        file.file.set_len(len - 4 - TAG_BYTES as u64).unwrap();
        assert!(read(&snapshots_1).is_err());
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let disk = FaultyDisk::new();
        let snapshots = snapshots(&disk, 1);
        write(&snapshots, 5, &state(10));
        let mut writer = snapshots.create("build", &meta(9)).unwrap();
        writer.write(&state(10)).unwrap();
        drop(writer);
        let left = disk.list().unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
        disk.create("snapshot-receive-1.tmp").unwrap();
        assert_eq!(snapshots.open_current().unwrap().unwrap().meta, meta(5));
        assert_eq!(disk.list().unwrap().len(), 1);
    }
}
