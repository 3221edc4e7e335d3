//! The rules of the repository that clippy cannot check.
//!
//! Owns: running every check over every file and printing what breaks a rule.
//! Does not know: the rules themselves; each lives in a module of its own.
//! Invariant: all findings are printed, not only the first, and any finding fails the run.

mod edges;
mod lexer;
mod lints;
mod manifest;
mod modules;
mod sources;

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};

/// A broken rule: where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    file: PathBuf,
    line: usize,
    text: String,
}

impl Finding {
    fn at(file: &Path, line: usize, text: impl Into<String>) -> Self {
        Self { file: file.to_path_buf(), line, text: text.into() }
    }

    fn whole(file: &Path, text: impl Into<String>) -> Self {
        Self::at(file, 1, text)
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.text)
    }
}

pub(crate) fn run(root: &Path) -> Result<()> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .other_options(vec!["--locked".into(), "--offline".into()])
        .exec()
        .or_else(|_| MetadataCommand::new().manifest_path(root.join("Cargo.toml")).exec())
        .context("cargo metadata failed")?;
    let mut findings = edges::check(root, &metadata)?;
    findings.extend(manifest::check(root, &metadata)?);
    findings.extend(lints::check(root)?);
    let mut files = 0;
    for package in metadata.workspace_packages() {
        let folder = folder_of(package);
        let sources = modules::sources(&folder)?;
        files += sources.len();
        findings.extend(modules::check(root, package, &sources)?);
        for path in &sources {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            findings.extend(sources::check(relative(root, path), &text));
        }
    }
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings in {files} files", findings.len());
    }
    println!("tidy: {files} files, {} crates, no findings", members(&metadata));
    Ok(())
}

fn members(metadata: &Metadata) -> usize {
    metadata.workspace_members.len()
}

fn folder_of(package: &cargo_metadata::Package) -> PathBuf {
    let manifest = package.manifest_path.as_std_path();
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

fn relative<'a>(root: &Path, path: &'a Path) -> &'a Path {
    path.strip_prefix(root).unwrap_or(path)
}
