//! Layers, honest and hostile.

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;

struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, path: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = header(kind, mode, data.len() as u64);
        set_raw_path(&mut header, path);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn link(mut self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = header(kind, 0o777, 0);
        set_raw_path(&mut header, path);
        header.set_link_name_literal(target).unwrap();
        header.set_cksum();
        self.0.append(&header, io::empty()).unwrap();
        self
    }

    fn xattrs(mut self, pairs: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(pairs.iter().copied()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(1_000_000_000);
    header
}

/// The library refuses `..`; attackers do not use the library.
fn set_raw_path(header: &mut Header, path: &str) {
    header.as_ustar_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
}

fn unpack(archive: &[u8]) -> (tempfile::TempDir, io::Result<Unpacked>) {
    let dir = tempfile::tempdir().unwrap();
    let result = unpack_layer(archive, dir.path());
    (dir, result)
}

#[test]
fn contents_owners_modes_times_and_links_arrive() {
    let archive = Layer::new()
        .entry(EntryType::Directory, "d", 0o751, b"")
        .entry(EntryType::Regular, "d/f", 0o4755, b"hello")
        .link(EntryType::Symlink, "d/s", "../../../etc/passwd")
        .link(EntryType::Link, "h", "d/f")
        .entry(EntryType::Fifo, "p", 0o640, b"")
        .entry(EntryType::Regular, "deep/er/x", 0o600, b"")
        .bytes();
    let (dir, result) = unpack(&archive);
    let unpacked = result.unwrap();
    assert_eq!(unpacked, Unpacked { diff_id: digest_of(&archive), bytes: 5 });
    let at = |path: &str| dir.path().join(path).symlink_metadata().unwrap();
    assert_eq!(std::fs::read(dir.path().join("d/f")).unwrap(), b"hello");
    assert_eq!(at("d/f").permissions().mode() & 0o7777, 0o4755);
    assert_eq!((at("d/f").uid(), at("d/f").gid(), at("d/f").mtime()), (12, 34, 1_000_000_000));
    assert_eq!((at("d").mode() & 0o7777, at("d").mtime()), (0o751, 1_000_000_000));
    assert_eq!(at("h").ino(), at("d/f").ino());
    assert_eq!((at("d/s").uid(), at("d/s").mtime()), (12, 1_000_000_000));
    assert!(at("p").file_type().is_fifo());
    assert_eq!(at("deep/er").mode() & 0o7777, 0o755);
}

#[test]
fn whiteouts_become_overlay_marks() {
    let archive = Layer::new()
        .entry(EntryType::Regular, "d/.wh.gone", 0o644, b"")
        .entry(EntryType::Regular, "o/.wh..wh..opq", 0o644, b"")
        .entry(EntryType::Regular, "o/.wh..wh.plnk", 0o644, b"")
        .bytes();
    let (dir, result) = unpack(&archive);
    result.unwrap();
    let gone = dir.path().join("d/gone").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device());
    assert_eq!(gone.rdev(), 0);
    let opaque = xattr::get(dir.path().join("o"), "trusted.overlay.opaque").unwrap();
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
    assert_eq!(std::fs::read_dir(dir.path().join("o")).unwrap().count(), 0);
}

#[test]
fn attributes_arrive_but_for_overlays_own() {
    let archive = Layer::new()
        .xattrs(&[
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .entry(EntryType::Regular, "ping", 0o755, b"x")
        .bytes();
    let (dir, result) = unpack(&archive);
    result.unwrap();
    let path = dir.path().join("ping");
    assert!(xattr::get(&path, "security.capability").unwrap().is_some());
    assert_eq!(xattr::get(&path, "trusted.overlay.redirect").unwrap(), None);
}

#[test]
fn compression_is_recognised() {
    let plain = Layer::new().entry(EntryType::Regular, "f", 0o644, b"hello").bytes();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let (first, second) = plain.split_at(700);
    for archive in [
        plain.clone(),
        gzip(&plain),
        [gzip(first), gzip(second)].concat(),
        zstd::encode_all(plain.as_slice(), 1).unwrap(),
    ] {
        let (dir, result) = unpack(&archive);
        assert_eq!(result.unwrap().diff_id, digest_of(&plain));
        assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"hello");
    }
}

#[test]
fn nothing_leaves_the_layer() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "untouched").unwrap();
    let (out, file) = (outside.path().to_str().unwrap(), secret.to_str().unwrap());
    let up = format!("../../../../../../../..{out}");
    let cases: Vec<(&str, Layer)> = vec![
        ("dots", Layer::new().entry(EntryType::Regular, "../evil", 0o644, b"x")),
        ("inner dots", Layer::new().entry(EntryType::Regular, "a/../../evil", 0o644, b"x")),
        (
            "through a link",
            Layer::new().link(EntryType::Symlink, "l", out).entry(
                EntryType::Regular,
                "l/evil",
                0o644,
                b"x",
            ),
        ),
        (
            "through a relative link",
            Layer::new().link(EntryType::Symlink, "l", &up).entry(
                EntryType::Regular,
                "l/evil",
                0o644,
                b"x",
            ),
        ),
        (
            "over a link",
            Layer::new().link(EntryType::Symlink, "l", file).entry(
                EntryType::Regular,
                "l",
                0o644,
                b"overwritten",
            ),
        ),
        ("hard link", Layer::new().link(EntryType::Link, "h", file)),
        (
            "hard link through a link",
            Layer::new().link(EntryType::Symlink, "l", out).link(EntryType::Link, "h", "l/secret"),
        ),
        (
            "whiteout through a link",
            Layer::new().link(EntryType::Symlink, "l", out).entry(
                EntryType::Regular,
                "l/.wh.secret",
                0o644,
                b"",
            ),
        ),
    ];
    for (name, layer) in cases {
        let (dir, _) = unpack(&layer.bytes());
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "untouched", "{name}");
        assert_eq!(std::fs::metadata(&secret).unwrap().nlink(), 1, "{name}");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "{name}");
        assert!(!dir.path().join("../evil").exists(), "{name}");
    }
}

#[test]
fn later_entries_replace_earlier_ones() {
    let archive = Layer::new()
        .entry(EntryType::Regular, "a", 0o644, b"1")
        .entry(EntryType::Directory, "a", 0o755, b"")
        .entry(EntryType::Regular, "a/in", 0o644, b"2")
        .entry(EntryType::Regular, "b/x", 0o644, b"3")
        .link(EntryType::Symlink, "b", "a")
        .bytes();
    let (dir, result) = unpack(&archive);
    result.unwrap();
    assert_eq!(std::fs::read(dir.path().join("a/in")).unwrap(), b"2");
    assert!(dir.path().join("b").is_symlink());
}

#[test]
fn a_cut_archive_is_refused() {
    let archive = Layer::new().entry(EntryType::Regular, "f", 0o644, &[7; 4096]).bytes();
    assert!(unpack(&archive[..2000]).1.is_err());
}
