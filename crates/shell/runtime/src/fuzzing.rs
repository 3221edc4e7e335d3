//! What images are made of, for tests that feed it anything.
//!
//! Owns: the ways in. Does not know: how inputs are made.
//! Invariant: whatever the bytes are, an error or an image comes back, and nothing is written
//! outside the folder that was named.

use std::path::Path;

use crate::image::ImageConfig;
use crate::image::archive;
use crate::image::manifest::{Manifest, ManifestIndex, choose_platform};
use crate::image::reference::parse_wanted;
use crate::image::store::ImageStore;
use crate::image::unpack::unpack_layer;

/// Bytes as a layer, unpacked into the empty folder `dest`.
pub fn layer(bytes: &[u8], dest: &Path) {
    // That garbage is refused is the rule.
    drop(unpack_layer(bytes, dest));
}

/// Bytes as the archive of `image load`, into an image store in `folder`.
pub fn image_archive(bytes: &[u8], folder: &Path) {
    let path = folder.join("archive.tar");
    std::fs::write(&path, bytes).expect("the folder can be written");
    let store = ImageStore::open(folder).expect("the store was left whole");
    drop(archive::load(&store, &path, &mut |_| {}));
}

/// Bytes as the documents of an image.
pub fn image_documents(bytes: &[u8]) {
    if let Ok(config) = ImageConfig::parse(bytes) {
        let _ = config.created_ms();
    }
    drop(serde_json::from_slice::<Manifest>(bytes));
    if let Ok(index) = serde_json::from_slice::<ManifestIndex>(bytes) {
        let _ = choose_platform(&index.manifests).is_some_and(|entry| entry.is_index());
    }
}

/// A text as what a user names an image by.
pub fn image_wanted(text: &str) {
    drop(parse_wanted(text));
}
