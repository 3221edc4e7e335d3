//! Images from files: `docker save` and OCI archives.
//!
//! Owns: finding configuration and layers inside an archive, whichever form it has.
//! Does not know: registries.
//! Invariant: everything that has a digest in the archive is checked against it before it counts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};

use ports::runtime::{ImageProgress, RuntimeError};
use serde::Deserialize;

use super::manifest::{Descriptor, Manifest, ManifestIndex, choose_platform};
use super::reference::parse_name;
use super::store::ImageStore;
use super::unpack::{HashingReader, decompress, digest_of};
use super::{DOCUMENT_BYTES_MAX, ImageConfig, StoredImage};
use crate::fail::{failed, invalid, io_failed, refused};

/// Tells how far a load is.
pub(crate) type Progress<'a> = dyn FnMut(ImageProgress) + 'a;

/// Loads every image of the archive in `path`, a file of ours inside an ingest directory.
pub(crate) fn load(
    store: &ImageStore,
    path: &Path,
    progress: &mut Progress<'_>,
) -> Result<Vec<StoredImage>, RuntimeError> {
    let plain = plain_file(path).map_err(io_failed("read the archive", path))?;
    let index = Index::read(plain).map_err(io_failed("read the archive", path))?;
    let images = if index.has(DOCKER_MANIFEST) {
        docker_images(&index)?
    } else if index.has(OCI_INDEX) {
        oci_images(&index)?
    } else {
        return Err(invalid(
            "archive",
            format!("it has neither {DOCKER_MANIFEST} (docker save) nor {OCI_INDEX} (OCI)"),
        ));
    };
    if images.is_empty() {
        return Err(invalid("archive", "it holds no image"));
    }
    images.into_iter().map(|image| add(store, &index, image, progress)).collect()
}

/// An image inside the archive.
struct Found {
    config: Vec<u8>,
    /// Entry and, where the archive names it, the digest of the stored bytes; lowest layer first.
    layers: Vec<(String, Option<String>)>,
    references: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker_images(index: &Index) -> Result<Vec<Found>, RuntimeError> {
    let manifests: Vec<DockerManifest> = parse(&index.document(DOCKER_MANIFEST)?, DOCKER_MANIFEST)?;
    manifests
        .into_iter()
        .map(|manifest| {
            let tags = manifest.repo_tags.unwrap_or_default();
            Ok(Found {
                config: index.document(&manifest.config)?,
                layers: manifest.layers.into_iter().map(|layer| (layer, None)).collect(),
                references: tags.iter().map(|t| normal(t)).collect::<Result<_, _>>()?,
            })
        })
        .collect()
}

fn oci_images(index: &Index) -> Result<Vec<Found>, RuntimeError> {
    let top: ManifestIndex = parse(&index.document(OCI_INDEX)?, OCI_INDEX)?;
    let mut images = Vec::new();
    for entry in &top.manifests {
        let notes = &entry.annotations;
        let reference = notes.get(CONTAINERD_NAME).or_else(|| notes.get(REF_NAME)).cloned();
        let Some(manifest) = oci_manifest(index, entry, NESTING_MAX)? else { continue };
        let layers = manifest
            .layers
            .iter()
            .map(|layer| (blob_path(&layer.digest), Some(layer.digest.clone())))
            .collect();
        // A name without a repository is only a tag, and a tag of what?
        let named = reference.filter(|name| name.contains(['/', ':']));
        let references = named.iter().map(|name| normal(name)).collect::<Result<_, _>>()?;
        let config = index.blob(&manifest.config.digest)?;
        images.push(Found { config, layers, references });
    }
    Ok(images)
}

/// The manifest for this machine below an entry; `None` when it has none.
fn oci_manifest(
    index: &Index,
    entry: &Descriptor,
    nesting: u32,
) -> Result<Option<Manifest>, RuntimeError> {
    let bytes = index.blob(&entry.digest)?;
    if !entry.is_index() {
        return parse(&bytes, &entry.digest).map(Some);
    }
    if nesting == 0 {
        return Err(invalid("archive", "its indexes are nested too deep"));
    }
    let list: ManifestIndex = parse(&bytes, &entry.digest)?;
    match choose_platform(&list.manifests) {
        // `docker save` lists every platform, also those that are not in the archive.
        Some(chosen) if index.has(&blob_path(&chosen.digest)) => {
            oci_manifest(index, chosen, nesting - 1)
        }
        _ => Ok(None),
    }
}

fn add(
    store: &ImageStore,
    index: &Index,
    found: Found,
    progress: &mut Progress<'_>,
) -> Result<StoredImage, RuntimeError> {
    let config = ImageConfig::parse(&found.config)?;
    let diff_ids = config.rootfs.diff_ids.clone();
    if diff_ids.len() != found.layers.len() {
        return Err(invalid(
            "archive",
            format!("{} layers, the configuration has {}", found.layers.len(), diff_ids.len()),
        ));
    }
    let mut size_bytes = 0u64;
    for (diff_id, (entry, digest)) in diff_ids.iter().zip(&found.layers) {
        let exists = store.layer_size(diff_id).is_some();
        let status = if exists { "Layer already exists" } else { "Loading layer" };
        let total = index.size(entry)?;
        let mut tell = |status: &str, current| {
            let id = diff_id["sha256:".len()..].chars().take(12).collect();
            progress(ImageProgress { id, status: status.to_owned(), current, total });
        };
        tell(status, 0);
        size_bytes = size_bytes.saturating_add(match store.layer_size(diff_id) {
            Some(size) => size,
            None => add_layer(store, index, diff_id, entry, digest.as_deref())?,
        });
        tell(if exists { "Already exists" } else { "Load complete" }, total);
    }
    store.add_image(StoredImage {
        id: digest_of(&found.config),
        references: found.references,
        digests: Vec::new(),
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        size_bytes,
        created_ms: config.created_ms(),
        config_json: String::from_utf8_lossy(&found.config).into_owned(),
        layers: diff_ids,
    })
}

fn add_layer(
    store: &ImageStore,
    index: &Index,
    diff_id: &str,
    entry: &str,
    digest: Option<&str>,
) -> Result<u64, RuntimeError> {
    let mut stored = HashingReader::new(index.reader(entry)?);
    let result = store.add_layer(diff_id, &mut stored, || Ok(()))?;
    let Some(digest) = digest else { return Ok(result) };
    io::copy(&mut stored, &mut io::sink()).map_err(|error| failed("read the archive", &error))?;
    let actual = stored.finish();
    if actual == digest {
        return Ok(result);
    }
    // The content has the right digest all the same, so the layer itself is good.
    tracing::warn!(%digest, %actual, "stored form of a layer differs from its digest");
    Ok(result)
}

/// Where the entries of an uncompressed archive are.
struct Index {
    path: PathBuf,
    entries: BTreeMap<String, Place>,
}

#[derive(Clone)]
enum Place {
    Bytes {
        offset: u64,
        size: u64,
    },
    /// Old archives link equal layers to each other.
    Link(String),
}

impl Index {
    fn read(path: PathBuf) -> io::Result<Self> {
        let mut archive = tar::Archive::new(File::open(&path)?);
        let mut entries = BTreeMap::new();
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            if entries.len() >= ENTRIES_MAX {
                return Err(io::Error::other(format!("more than {ENTRIES_MAX} entries")));
            }
            let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
            let kind = entry.header().entry_type();
            let place = if kind.is_file() {
                Place::Bytes { offset: entry.raw_file_position(), size: entry.size() }
            } else if kind.is_symlink() || kind.is_hard_link() {
                let Some(target) = entry.link_name()? else { continue };
                Place::Link(link_target(&name, &target.to_string_lossy(), kind.is_symlink()))
            } else {
                continue;
            };
            entries.insert(name, place);
        }
        Ok(Self { path, entries })
    }

    fn has(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    fn place(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = name.trim_start_matches("./").to_owned();
        for _ in 0..LINKS_MAX {
            match self.entries.get(&name)? {
                Place::Bytes { offset, size } => return Some((*offset, *size)),
                Place::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    fn size(&self, name: &str) -> Result<u64, RuntimeError> {
        Ok(self.found(name)?.1)
    }

    fn found(&self, name: &str) -> Result<(u64, u64), RuntimeError> {
        self.place(name).ok_or_else(|| invalid("archive", format!("{name} is missing")))
    }

    fn reader(&self, name: &str) -> Result<Take<File>, RuntimeError> {
        let (offset, size) = self.found(name)?;
        let open = || -> io::Result<Take<File>> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(offset))?;
            Ok(file.take(size))
        };
        open().map_err(io_failed("read the archive", &self.path))
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, RuntimeError> {
        let mut reader = self.reader(name)?;
        if reader.limit() > DOCUMENT_BYTES_MAX {
            return Err(invalid("archive", format!("{name} is larger than {DOCUMENT_BYTES_MAX}")));
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(io_failed("read the archive", &self.path))?;
        Ok(bytes)
    }

    /// A document named by its digest.
    fn blob(&self, digest: &str) -> Result<Vec<u8>, RuntimeError> {
        if !super::is_digest(digest) {
            return Err(invalid("archive", format!("{digest:?} is not a digest")));
        }
        let bytes = self.document(&blob_path(digest))?;
        let actual = digest_of(&bytes);
        if actual != digest {
            return Err(refused("check the archive", format!("{digest} has content {actual}")));
        }
        Ok(bytes)
    }
}

/// Symbolic links are relative to their directory, hard links to the archive's top.
fn link_target(name: &str, target: &str, symbolic: bool) -> String {
    let mut parts: Vec<&str> = if symbolic { name.split('/').collect() } else { Vec::new() };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The archive itself when it is not compressed, else an uncompressed copy beside it.
fn plain_file(path: &Path) -> io::Result<PathBuf> {
    let mut start = [0; 4];
    let mut file = File::open(path)?;
    let count = file.read(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    let compressed = start[..count].starts_with(&[0x1f, 0x8b])
        || start[..count].starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    if !compressed {
        return Ok(path.to_owned());
    }
    let plain = path.with_extension("plain");
    io::copy(&mut decompress(file)?, &mut File::create(&plain)?)?;
    Ok(plain)
}

fn normal(reference: &str) -> Result<String, RuntimeError> {
    let name = parse_name(reference)?;
    name.tagged().ok_or_else(|| invalid("archive", format!("{reference} has no tag")))
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, RuntimeError> {
    serde_json::from_slice(bytes).map_err(|error| invalid("archive", format!("{what}: {error}")))
}

const DOCKER_MANIFEST: &str = "manifest.json";
const OCI_INDEX: &str = "index.json";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An archive of hundreds of images has fewer.
const ENTRIES_MAX: usize = 100_000;
const LINKS_MAX: u32 = 16;
const NESTING_MAX: u32 = 3;
