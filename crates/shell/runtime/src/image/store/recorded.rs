//! An image store that format 1 wrote is kept in the repository, and opened here.
//!
//! When the format changes, this directory stays and another one is recorded beside it, with
//! `SHOAL_RECORD_DIR=… cargo test -p runtime recorded`.

use std::path::{Path, PathBuf};

use super::{ImageStore, LAYERS_DIR, StoredImage};
use crate::image::unpack::digest_of;

/// One file in one layer: what an empty directory cannot hide.
fn layer() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(9);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_767_225_600);
    layer.append_data(&mut header, "recorded", &b"format 1\n"[..]).unwrap();
    layer.into_inner().unwrap()
}

/// What format 1 recorded. Never change it: a later format gets its own.
fn image_v1() -> StoredImage {
    StoredImage {
        id: format!("sha256:{}", "1".repeat(64)),
        references: vec!["docker.io/shoal/recorded:1".into()],
        digests: vec![format!("docker.io/shoal/recorded@sha256:{}", "2".repeat(64))],
        architecture: "amd64".into(),
        os: "linux".into(),
        size_bytes: 9,
        created_ms: Some(1_767_225_600_000),
        config_json: "{\"config\":{\"Cmd\":[\"/recorded\"]}}".into(),
        layers: vec![digest_of(&layer())],
    }
}

fn record(dir: &Path) {
    let store = ImageStore::open(dir).unwrap();
    let layer = layer();
    store.add_layer(&digest_of(&layer), &mut layer.as_slice(), || Ok(())).unwrap();
    store.add_image(image_v1()).unwrap();
    let mut database = store.database;
    while database.compact().unwrap() {}
}

#[test]
fn a_recorded_store_of_format_1_is_opened() {
    if let Ok(dir) = std::env::var("SHOAL_RECORD_DIR") {
        record(Path::new(&dir));
        return;
    }
    let recorded = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/format-1");
    let dir = tempfile::tempdir().unwrap();
    copy(&recorded, dir.path());
    let store = ImageStore::open(dir.path()).unwrap();
    let expected = image_v1();
    for text in ["shoal/recorded:1", &expected.id, &expected.digests[0], "111111111111"] {
        assert_eq!(store.find(text).unwrap().as_ref(), Some(&expected), "{text}");
    }
    // The layer was not swept as a leftover, and the short link leads to it.
    assert_eq!(store.layer_size(&expected.layers[0]), Some(9));
    let link = store.layer_links(&expected.layers).unwrap().remove(0);
    let file = dir.path().join(LAYERS_DIR).join(link).join("recorded");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "format 1\n");
    // It can be changed.
    store.remove("shoal/recorded:1", false, |_| None).unwrap();
    drop(store);
    assert!(ImageStore::open(dir.path()).unwrap().list().is_empty());
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else if kind.is_symlink() {
            let leads = std::fs::read_link(entry.path()).unwrap();
            std::os::unix::fs::symlink(leads, &target).unwrap();
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
