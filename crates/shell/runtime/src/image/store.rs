//! Records and layers on disk.
//!
//! Owns: `images.redb`, `layers/`, `ingest/`, `trash/`.
//! Does not know: registries and archives' formats.
//! Invariant: see the parent module. Nothing is deleted in place: it is renamed into `trash/`
//! first, so that a crash leaves no half directory under a layer's name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ports::runtime::RuntimeError;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use types::ImageName;

use super::reference::{Wanted, parse_wanted};
use super::{StoredImage, unpack};
use crate::fail::{failed, invalid, io_failed, refused};

/// All images and layers of one data directory.
#[derive(Debug)]
pub(crate) struct ImageStore {
    data_dir: PathBuf,
    database: Database,
    known: Mutex<Known>,
    /// One change of the records at a time, from reading them to writing them.
    changes: Mutex<()>,
    /// One at a time may unpack a given layer; the others find it done.
    layer_turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    images: BTreeMap<String, StoredImage>,
    /// Diff id to size, of layers whose directory is complete.
    layers: BTreeMap<String, u64>,
}

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const LAYERS: TableDefinition<'_, &str, u64> = TableDefinition::new("layers");

/// Format of the tables; a higher one was written by a later release.
const FORMAT: u64 = 1;

impl ImageStore {
    /// Opens or makes the store; what no record names is swept away.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, RuntimeError> {
        for name in [LAYERS_DIR, INGEST_DIR, TRASH_DIR] {
            let path = data_dir.join(name);
            make_dir(&path).map_err(io_failed("make the image store", &path))?;
        }
        let links = data_dir.join(LAYERS_DIR).join(LINKS_DIR);
        make_dir(&links).map_err(io_failed("make the image store", &links))?;
        let path = data_dir.join(DATABASE);
        let database = Database::create(&path).map_err(|e| failed("open the image records", &e))?;
        let known = load(&database)?;
        let store = Self {
            data_dir: data_dir.to_owned(),
            database,
            known: Mutex::new(known),
            changes: Mutex::new(()),
            layer_turns: Mutex::new(BTreeMap::new()),
            next: AtomicU64::new(0),
        };
        store.sweep_unrecorded()?;
        Ok(store)
    }

    pub(crate) fn list(&self) -> Vec<StoredImage> {
        self.known().images.values().cloned().collect()
    }

    /// By name, name@digest, id or the beginning of one.
    pub(crate) fn find(&self, text: &str) -> Result<Option<StoredImage>, RuntimeError> {
        let known = self.known();
        Ok(match parse_wanted(text)? {
            Wanted::Name(name) => known.by_name(&name),
            Wanted::IdOrName { id_prefix, name } => {
                match name.and_then(|name| known.by_name(&name)) {
                    Some(image) => Some(image),
                    None => known.by_id(&id_prefix)?,
                }
            }
        })
    }

    /// Where the shim finds layers, by the short names of [`ImageStore::layer_links`].
    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.data_dir.join(LAYERS_DIR)
    }

    /// Short relative names of layers, lowest first: the data of a mount has one page only.
    pub(crate) fn layer_links(&self, layers: &[String]) -> Result<Vec<String>, RuntimeError> {
        let known = self.known();
        layers
            .iter()
            .map(|id| match known.layers.contains_key(id) {
                true => Ok(format!("{LINKS_DIR}/{}", short_name(id))),
                false => Err(refused("find the image's layers", format!("layer {id} is missing"))),
            })
            .collect()
    }

    pub(crate) fn layer_size(&self, diff_id: &str) -> Option<u64> {
        self.known().layers.get(diff_id).copied()
    }

    /// Waits for whoever unpacks this layer now.
    pub(crate) async fn layer_turn(&self, diff_id: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.layer_turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(diff_id.to_owned()).or_default())
        };
        turn.lock_owned().await
    }

    /// Unpacks a layer from `archive` and gives it its name, if its uncompressed digest is
    /// `diff_id`. `check` is called after the archive was read to its end and may still refuse.
    pub(crate) fn add_layer(
        &self,
        diff_id: &str,
        archive: &mut dyn io::Read,
        check: impl FnOnce() -> Result<(), RuntimeError>,
    ) -> Result<u64, RuntimeError> {
        if let Some(size) = self.layer_size(diff_id) {
            return check().map(|()| size);
        }
        let ingest = self.ingest_path()?;
        let result = self.ingest_layer(&ingest, diff_id, archive, check);
        if result.is_err() {
            self.discard(&ingest);
        }
        result
    }

    fn ingest_layer(
        &self,
        ingest: &Path,
        diff_id: &str,
        archive: &mut dyn io::Read,
        check: impl FnOnce() -> Result<(), RuntimeError>,
    ) -> Result<u64, RuntimeError> {
        let files = ingest.join(FILES_DIR);
        make_dir_mode(&files, 0o755).map_err(io_failed("unpack a layer", &files))?;
        let unpacked = unpack::unpack_layer(archive, &files)
            .map_err(io_failed("unpack a layer", &self.data_dir))?;
        check()?;
        if unpacked.diff_id != diff_id {
            return Err(refused(
                "unpack a layer",
                format!("its content is {}, the image says {diff_id}", unpacked.diff_id),
            ));
        }
        let target = self.layer_dir(diff_id);
        let step = io_failed("keep a layer", &target);
        self.make_link(diff_id).map_err(&step)?;
        if !target.exists() {
            fs::rename(ingest, &target).map_err(&step)?;
        } else {
            self.discard(ingest);
        }
        self.known().layers.insert(diff_id.to_owned(), unpacked.bytes);
        Ok(unpacked.bytes)
    }

    /// Records an image whose layers are all there. References it takes are lost to other images.
    pub(crate) fn add_image(&self, image: StoredImage) -> Result<StoredImage, RuntimeError> {
        let dir = self.layers_dir();
        // One for all layers: without it a power cut leaves empty files under a good name.
        File::open(&dir)
            .and_then(|dir| nix::unistd::syncfs(&dir).map_err(io::Error::from))
            .map_err(io_failed("sync the layers", &dir))?;
        let _change = self.change();
        let mut known = self.known();
        let mut changed = vec![known.merge(image)];
        let (id, taken) = (changed[0].id.clone(), changed[0].references.clone());
        for other in known.images.values().filter(|other| other.id != id) {
            if other.references.iter().any(|reference| taken.contains(reference)) {
                let mut other = other.clone();
                other.references.retain(|reference| !taken.contains(reference));
                changed.push(other);
            }
        }
        let missing = changed[0].layers.iter().find(|id| !known.layers.contains_key(*id)).cloned();
        if let Some(id) = missing {
            return Err(refused("record the image", format!("layer {id} is missing")));
        }
        self.write(&changed, &[], &known.layers)?;
        let added = changed[0].clone();
        for image in changed {
            known.images.insert(image.id.clone(), image);
        }
        Ok(added)
    }

    /// Removes a name, and the image with its last one. `in_use` names a container that uses an
    /// image. Answers docker's lines.
    pub(crate) fn remove(
        &self,
        text: &str,
        force: bool,
        in_use: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<String>, RuntimeError> {
        let _change = self.change();
        let missing =
            || RuntimeError::ImageMissing { reference: text.to_owned(), detail: String::new() };
        let mut image = self.find(text)?.ok_or_else(missing)?;
        let by_name = match parse_wanted(text)? {
            Wanted::Name(name) => Some(name),
            Wanted::IdOrName { name, .. } => {
                name.filter(|name| name.tagged().is_some_and(|t| image.references.contains(&t)))
            }
        };
        let mut lines = Vec::new();
        match by_name {
            Some(name) => image.untag(&name, &mut lines),
            None if image.references.len() > 1 && !force => {
                return Err(invalid(
                    "image",
                    format!(
                        "{text} has several names ({}); remove them or force it",
                        image.references.join(", ")
                    ),
                ));
            }
            None => image.untag_all(&mut lines),
        }
        if !image.references.is_empty() {
            let mut known = self.known();
            self.write(std::slice::from_ref(&image), &[], &known.layers)?;
            known.images.insert(image.id.clone(), image);
            return Ok(lines);
        }
        if let Some(container) = in_use(&image.id).filter(|_| !force) {
            return Err(invalid(
                "image",
                format!("{text} is used by container {container}; remove that or force it"),
            ));
        }
        let mut known = self.known();
        self.write(&[], std::slice::from_ref(&image.id), &known.layers)?;
        known.images.remove(&image.id);
        lines.push(format!("Deleted: {}", image.id));
        Ok(lines)
    }

    /// Moves layers out of the way that neither an image nor `held` names. Meanwhile nobody may
    /// collect layers that no record names yet. Returns whether something is in the trash now.
    pub(crate) fn sweep(&self, held: &BTreeSet<String>) -> Result<bool, RuntimeError> {
        let _change = self.change();
        let mut known = self.known();
        let live: BTreeSet<&String> =
            known.images.values().flat_map(|image| &image.layers).chain(held).collect();
        let dead: Vec<String> =
            known.layers.keys().filter(|id| !live.contains(id)).cloned().collect();
        if dead.is_empty() {
            return Ok(false);
        }
        for id in &dead {
            known.layers.remove(id);
        }
        self.write(&[], &[], &known.layers)?;
        for id in &dead {
            let _ = fs::remove_file(self.link_path(id));
            self.discard(&self.layer_dir(id));
        }
        Ok(true)
    }

    /// Deletes what is in the trash; slow for large layers.
    pub(crate) fn empty_trash(&self) {
        let Ok(entries) = fs::read_dir(self.data_dir.join(TRASH_DIR)) else { return };
        for entry in entries.flatten() {
            remove_any(&entry.path());
        }
    }

    /// Moves a directory into the trash, or deletes it when that fails.
    pub(crate) fn discard(&self, path: &Path) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{number}", std::process::id(), crate::now_ms());
        if fs::rename(path, self.data_dir.join(TRASH_DIR).join(name)).is_err() {
            remove_any(path);
        }
    }

    /// A new directory that nobody else uses, swept away at the next start.
    pub(crate) fn ingest_path(&self) -> Result<PathBuf, RuntimeError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.data_dir.join(INGEST_DIR).join(format!("{}-{number}", crate::now_ms()));
        make_dir(&path).map_err(io_failed("make room for a layer", &path))?;
        Ok(path)
    }

    fn write(
        &self,
        changed: &[StoredImage],
        removed: &[String],
        layers: &BTreeMap<String, u64>,
    ) -> Result<(), RuntimeError> {
        write(&self.database, changed, removed, layers)
            .map_err(|error| failed("write the image records", &*error))
    }

    fn sweep_unrecorded(&self) -> Result<(), RuntimeError> {
        let known = self.known();
        for name in [INGEST_DIR, TRASH_DIR] {
            for entry in fs::read_dir(self.data_dir.join(name)).into_iter().flatten().flatten() {
                self.discard(&entry.path());
            }
        }
        let recorded: BTreeSet<PathBuf> =
            known.layers.keys().map(|id| self.layer_dir(id)).collect();
        let dir = self.layers_dir();
        let entries = fs::read_dir(&dir).map_err(io_failed("read the layers", &dir))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if !recorded.contains(&path) && path.file_name().is_some_and(|n| n != LINKS_DIR) {
                self.discard(&path);
            }
        }
        for id in known.layers.keys() {
            self.make_link(id).map_err(io_failed("link a layer", &dir))?;
        }
        Ok(())
    }

    fn make_link(&self, diff_id: &str) -> io::Result<()> {
        let target = format!("../{}/{FILES_DIR}", dir_name(diff_id));
        match symlink(target, self.link_path(diff_id)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    fn layer_dir(&self, diff_id: &str) -> PathBuf {
        self.layers_dir().join(dir_name(diff_id))
    }

    fn link_path(&self, diff_id: &str) -> PathBuf {
        self.layers_dir().join(LINKS_DIR).join(short_name(diff_id))
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn by_name(&self, name: &ImageName) -> Option<StoredImage> {
        let (tagged, pinned) = (name.tagged(), name.pinned());
        self.images
            .values()
            .find(|image| {
                tagged.as_ref().is_some_and(|name| image.references.contains(name))
                    || pinned.as_ref().is_some_and(|name| image.digests.contains(name))
            })
            .cloned()
    }

    fn by_id(&self, prefix: &str) -> Result<Option<StoredImage>, RuntimeError> {
        let mut found = self.images.values().filter(|image| image.id.starts_with(prefix));
        let first = found.next();
        if found.next().is_some() {
            return Err(invalid("image", format!("{prefix} is the beginning of several ids")));
        }
        Ok(first.cloned())
    }

    /// The image with the names that it has already.
    fn merge(&self, mut image: StoredImage) -> StoredImage {
        if let Some(old) = self.images.get(&image.id) {
            image.references.extend(old.references.iter().cloned());
            image.digests.extend(old.digests.iter().cloned());
        }
        for names in [&mut image.references, &mut image.digests] {
            names.sort();
            names.dedup();
        }
        image
    }
}

impl StoredImage {
    fn untag(&mut self, name: &ImageName, lines: &mut Vec<String>) {
        let (tagged, pinned) = (name.tagged(), name.pinned());
        self.references.retain(|reference| {
            let gone = tagged.as_ref() == Some(reference)
                || pinned.is_some() && reference.starts_with(&format!("{}:", name.repository()));
            if gone {
                lines.push(format!("Untagged: {}", familiar(reference)));
            }
            !gone
        });
        let prefix = format!("{}:", name.repository());
        if !self.references.iter().any(|reference| reference.starts_with(&prefix)) {
            let pin = format!("{}@", name.repository());
            self.digests.retain(|digest| {
                let gone = digest.starts_with(&pin);
                if gone {
                    lines.push(format!("Untagged: {}", familiar(digest)));
                }
                !gone
            });
        }
    }

    fn untag_all(&mut self, lines: &mut Vec<String>) {
        for name in self.references.drain(..).chain(self.digests.drain(..)) {
            lines.push(format!("Untagged: {}", familiar(&name)));
        }
    }
}

/// As docker prints names: without its own registry.
fn familiar(name: &str) -> &str {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

fn load(database: &Database) -> Result<Known, RuntimeError> {
    let step = "read the image records";
    read(database)
        .map_err(|error| failed(step, &*error))?
        .ok_or_else(|| refused(step, "they were written by a later release"))
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// `None` for a format of the future.
fn read(database: &Database) -> Result<Option<Known>, AnyError> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        let format = meta.get("format")?.map(|value| value.value());
        match format {
            None => drop(meta.insert("format", FORMAT)?),
            Some(FORMAT) => {}
            Some(_) => return Ok(None),
        }
        transaction.open_table(IMAGES)?;
        transaction.open_table(LAYERS)?;
    }
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let mut known = Known::default();
    for row in transaction.open_table(IMAGES)?.iter()? {
        let image: StoredImage = serde_json::from_slice(row?.1.value())?;
        known.images.insert(image.id.clone(), image);
    }
    for row in transaction.open_table(LAYERS)?.iter()? {
        let (id, size) = row?;
        known.layers.insert(id.value().to_owned(), size.value());
    }
    Ok(Some(known))
}

fn write(
    database: &Database,
    changed: &[StoredImage],
    removed: &[String],
    layers: &BTreeMap<String, u64>,
) -> Result<(), AnyError> {
    let transaction = database.begin_write()?;
    {
        let mut images = transaction.open_table(IMAGES)?;
        for image in changed {
            images.insert(image.id.as_str(), serde_json::to_vec(image)?.as_slice())?;
        }
        for id in removed {
            images.remove(id.as_str())?;
        }
        let mut table = transaction.open_table(LAYERS)?;
        table.retain(|id, _| layers.contains_key(id))?;
        for (id, size) in layers {
            table.insert(id.as_str(), size)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn dir_name(diff_id: &str) -> &str {
    diff_id.strip_prefix("sha256:").unwrap_or(diff_id)
}

/// 80 bits of the digest.
fn short_name(diff_id: &str) -> &str {
    &dir_name(diff_id)[..20]
}

fn make_dir(path: &Path) -> io::Result<()> {
    make_dir_mode(path, 0o700)
}

fn make_dir_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

fn remove_any(path: &Path) {
    let result = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return,
    };
    if let Err(error) = result {
        tracing::warn!(path = %path.display(), %error, "could not delete");
    }
}

const DATABASE: &str = "images.redb";
const LAYERS_DIR: &str = "layers";
const INGEST_DIR: &str = "ingest";
const TRASH_DIR: &str = "trash";
/// Short links to layers, inside the layers' directory.
const LINKS_DIR: &str = "l";
const FILES_DIR: &str = "fs";

#[cfg(test)]
mod recorded;
