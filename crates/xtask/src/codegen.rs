//! Rust code of the wire contract: `proto/*.proto` into `crates/shell/wire/src/generated`.
//!
//! Owns: the generator's options. The generated files are checked in, so a build needs neither
//! protoc nor this crate.
//! Does not know: what the messages mean.
//! Invariant: `--check` fails when the checked-in files are not what the generator would write,
//! or when one of them is left over from a `.proto` that is gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{Mode, settle};

pub(crate) fn run(root: &Path, mode: Mode) -> Result<()> {
    let folder = root.join("crates/shell/wire/src/generated");
    let files = generate(&root.join("proto"))?;
    for (name, text) in &files {
        settle(&folder.join(name), text, mode)?;
    }
    for stale in stale(&folder, &files)? {
        if mode == Mode::Check {
            bail!("{} belongs to no .proto file", stale.display());
        }
        std::fs::remove_file(&stale)
            .with_context(|| format!("cannot remove {}", stale.display()))?;
        println!("removed {}", stale.display());
    }
    Ok(())
}

/// File name and content of each generated file.
fn generate(protos: &Path) -> Result<BTreeMap<String, String>> {
    let sources = with_extension(protos, "proto")?;
    if sources.is_empty() {
        bail!("no .proto file in {}", protos.display());
    }
    let descriptors = protox::compile(&sources, [protos])
        .map_err(|error| anyhow::anyhow!("proto does not compile: {error:?}"))?;
    let scratch = Scratch::new()?;
    tonic_prost_build::configure()
        .out_dir(&scratch.0)
        .emit_rerun_if_changed(false)
        .bytes(".")
        .btree_map(".")
        // What it carries is printed by no one; the crate writes a form without it.
        .skip_debug([".shoal.v1.PullImageRequest"])
        .compile_fds(descriptors)
        .context("the generator failed")?;
    let mut files = BTreeMap::new();
    for path in with_extension(&scratch.0, "rs")? {
        let name = path.file_name().context("a generated file has no name")?;
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        files.insert(name.to_string_lossy().into_owned(), text);
    }
    Ok(files)
}

/// Generated files that no `.proto` file stands for any more.
fn stale(folder: &Path, files: &BTreeMap<String, String>) -> Result<Vec<PathBuf>> {
    let mut found = with_extension(folder, "rs")?;
    found.retain(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name != "mod.rs" && !files.contains_key(&name))
    });
    Ok(found)
}

fn with_extension(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !folder.exists() {
        return Ok(found);
    }
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A folder of this process, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("shoal-codegen-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it being gone: the system clears its temporary folder.
        drop(std::fs::remove_dir_all(&self.0));
    }
}
