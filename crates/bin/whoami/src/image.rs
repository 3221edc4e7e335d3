//! An image of this very binary.
//!
//! Owns: a `docker save` archive with one layer that holds `/whoami`.
//! Does not know: who loads it.
//! Invariant: the same binary gives the same archive, byte for byte, and a binary that needs
//! shared libraries gives none.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use ring::digest::{SHA256, digest};

/// Writes the archive of the running program under `name` to `file`.
pub(crate) fn write(file: &Path, name: &str) -> io::Result<()> {
    let program = std::fs::read("/proc/self/exe")?;
    if needs_libraries(&program) {
        return Err(io::Error::other(
            "this binary needs shared libraries; build it with -C target-feature=+crt-static",
        ));
    }
    if name.is_empty() || name.contains(['"', '\\', ' ']) {
        return Err(io::Error::other(format!("{name:?} is not an image name")));
    }
    let archive = archive(&program, name)?;
    let mut file = File::create(file)?;
    file.write_all(&archive)?;
    file.sync_all()
}

fn archive(program: &[u8], name: &str) -> io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "whoami", 0o755, program)?;
    let layer = layer.into_inner()?;
    let config = format!(
        "{{\"architecture\":\"{}\",\"os\":\"linux\",\"created\":\"2026-01-01T00:00:00Z\",\
         \"config\":{{\"Entrypoint\":[\"/whoami\"],\"ExposedPorts\":{{\"80/tcp\":{{}},\
         \"80/udp\":{{}}}}}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{}\"]}},\
         \"history\":[{{\"created_by\":\"whoami image\"}}]}}",
        architecture(),
        hex(&layer)
    );
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let layer_name = format!("{}/layer.tar", hex(&layer));
    let manifest = format!(
        "[{{\"Config\":\"{config_name}\",\"RepoTags\":[\"{name}\"],\
         \"Layers\":[\"{layer_name}\"]}}]"
    );
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, &layer_name, 0o644, &layer)?;
    append(&mut archive, &config_name, 0o644, config.as_bytes())?;
    append(&mut archive, "manifest.json", 0o644, manifest.as_bytes())?;
    archive.into_inner()
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    mode: u32,
    data: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_767_225_600);
    archive.append_data(&mut header, path, data)
}

/// An ELF program that names an interpreter is linked dynamically.
fn needs_libraries(program: &[u8]) -> bool {
    const INTERPRETER: [u8; 4] = [3, 0, 0, 0];
    let word = |at: usize| {
        let bytes = program.get(at..at + 8).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes)) as usize
    };
    let half = |at: usize| {
        let bytes = program.get(at..at + 2).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| usize::from(u16::from_le_bytes(*bytes)))
    };
    let (table, size, count) = (word(0x20), half(0x36), half(0x38));
    (0..count).any(|index| {
        let header = table.saturating_add(index * size);
        program.get(header..header.saturating_add(4)) == Some(&INTERPRETER)
    })
}

/// In the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_archive_holds_the_program_and_its_description() {
        let bytes = archive(b"program", "a/b:1").unwrap();
        assert_eq!(bytes, archive(b"program", "a/b:1").unwrap());
        let mut names = Vec::new();
        let mut archive = tar::Archive::new(bytes.as_slice());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            if name == "manifest.json" {
                let text = String::from_utf8(data).unwrap();
                assert!(text.contains("\"RepoTags\":[\"a/b:1\"]"), "{text}");
                assert!(names.iter().all(|name: &String| text.contains(name)), "{text}");
            } else if name.ends_with(".json") {
                assert_eq!(name, format!("{}.json", hex(&data)));
            }
            names.push(name);
        }
        assert_eq!(names.len(), 3);
    }

    #[test]
    fn a_dynamic_program_is_told_apart() {
        let test = std::fs::read("/proc/self/exe").unwrap();
        let dynamic = !cfg!(target_feature = "crt-static");
        assert_eq!(needs_libraries(&test), dynamic);
        assert!(!needs_libraries(&std::fs::read("/bin/busybox").unwrap()));
        assert!(!needs_libraries(b"short"));
    }
}
