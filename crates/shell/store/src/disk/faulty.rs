//! A disk in memory that can be killed, and then has what a real one might have.
//!
//! Owns: which writes survive a crash. Does not know: what is written.
//! Invariant: synced bytes and synced names survive; of all others any part may.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use base::IdSource;

use super::{Disk, DiskFile};

#[derive(Clone)]
pub(crate) struct FaultyDisk(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    contents: BTreeMap<u64, Content>,
    next: u64,
    operations_left: Option<u64>,
    fail_syncs: bool,
    capacity: Option<u64>,
}

#[derive(Clone)]
enum NameChange {
    Set(String, u64),
    Move(String, String),
    Remove(String),
}

#[derive(Default, Clone)]
struct Content {
    durable: Vec<u8>,
    volatile: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
}

impl FaultyDisk {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// Every operation after the next `count` fails.
    pub(crate) fn kill_after(&self, count: u64) {
        self.0.lock().unwrap().operations_left = Some(count);
    }

    pub(crate) fn fail_syncs(&self) {
        self.0.lock().unwrap().fail_syncs = true;
    }

    pub(crate) fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().unwrap().capacity = bytes;
    }

    /// Flips one bit of a file.
    pub(crate) fn damage(&self, name: &str, offset: usize) {
        let mut inner = self.0.lock().unwrap();
        let id = inner.names[name];
        let content = inner.contents.get_mut(&id).unwrap();
        content.volatile[offset] ^= 1;
        content.durable[offset] ^= 1;
    }

    pub(crate) fn used(&self) -> u64 {
        self.0.lock().unwrap().used()
    }

    pub(crate) fn holds(&self, needle: &[u8]) -> bool {
        let inner = self.0.lock().unwrap();
        let contains = |bytes: &Vec<u8>| bytes.windows(needle.len()).any(|part| part == needle);
        inner.contents.values().any(|content| contains(&content.volatile))
    }

    /// What is found after a loss of power: a disk of its own.
    pub(crate) fn crash(&self, random: &mut IdSource) -> Self {
        let inner = self.0.lock().unwrap();
        let mut names = inner.durable_names.clone();
        let kept = random.below(inner.name_changes.len() as u64 + 1) as usize;
        inner.name_changes[..kept].iter().for_each(|change| change.apply(&mut names));
        let mut contents = BTreeMap::new();
        for id in names.values() {
            let bytes = inner.contents[id].survivor(random);
            let content = Content { durable: bytes.clone(), volatile: bytes, pending: Vec::new() };
            contents.insert(*id, content);
        }
        let durable_names = names.clone();
        let next = inner.next;
        Self(Arc::new(Mutex::new(Inner {
            names,
            durable_names,
            contents,
            next,
            ..Inner::default()
        })))
    }
}

impl Inner {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.operations_left {
            None => Ok(()),
            Some(0) => Err(io::Error::other("killed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|id| self.contents[id].volatile.len() as u64).sum()
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Set(name, id) => drop(names.insert(name.clone(), *id)),
            Self::Move(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            Self::Remove(name) => drop(names.remove(name)),
        }
    }
}

impl Content {
    fn survivor(&self, random: &mut IdSource) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for change in &self.pending {
            match change {
                Change::Len(len) => {
                    if random.below(2) == 0 {
                        bytes.resize(*len as usize, 0);
                    }
                }
                Change::Write(offset, data) => {
                    let fate = random.below(3);
                    for (sector, part) in data.chunks(SECTOR).enumerate() {
                        if fate == 0 || fate == 1 && random.below(2) == 0 {
                            put(&mut bytes, *offset as usize + sector * SECTOR, part);
                        }
                    }
                }
            }
        }
        bytes
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    id: u64,
}

impl Disk for FaultyDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.0.lock().unwrap();
        inner.step()?;
        inner.next += 1;
        let id = inner.next;
        inner.contents.insert(id, Content::default());
        inner.change(NameChange::Set(name.to_owned(), id));
        Ok(Arc::new(FaultyFile { disk: self.clone(), id }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.0.lock().unwrap();
        inner.step()?;
        let id = *inner.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(FaultyFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.step()?;
        inner.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        inner.change(NameChange::Move(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.step()?;
        inner.change(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut inner = self.0.lock().unwrap();
        inner.step()?;
        Ok(inner.names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.step()?;
        inner.durable_names = inner.names.clone();
        inner.name_changes.clear();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let inner = self.0.lock().unwrap();
        Ok(inner.capacity.map_or(u64::MAX, |bytes| bytes.saturating_sub(inner.used())))
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/faulty").join(name)
    }
}

impl DiskFile for FaultyFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut inner = self.disk.0.lock().unwrap();
        inner.step()?;
        let bytes = &inner.contents[&self.id].volatile;
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_from_slice(bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = self.disk.0.lock().unwrap();
        inner.step()?;
        let (capacity, used) = (inner.capacity, inner.used());
        let content = inner.contents.get_mut(&self.id).unwrap();
        let grown = (offset + bytes.len() as u64).saturating_sub(content.volatile.len() as u64);
        if capacity.is_some_and(|capacity| grown > 0 && used + grown > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        put(&mut content.volatile, offset as usize, bytes);
        content.pending.push(Change::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.0.lock().unwrap();
        inner.step()?;
        if inner.fail_syncs {
            return Err(io::Error::other("sync failed"));
        }
        let content = inner.contents.get_mut(&self.id).unwrap();
        content.durable = content.volatile.clone();
        content.pending.clear();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().unwrap().contents[&self.id].volatile.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.0.lock().unwrap();
        inner.step()?;
        let content = inner.contents.get_mut(&self.id).unwrap();
        content.volatile.resize(len as usize, 0);
        content.pending.push(Change::Len(len));
        Ok(())
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, part: &[u8]) {
    if bytes.len() < offset + part.len() {
        bytes.resize(offset + part.len(), 0);
    }
    bytes[offset..offset + part.len()].copy_from_slice(part);
}

const SECTOR: usize = 512;
