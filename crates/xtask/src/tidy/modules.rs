//! Orphan files: sources that no module declaration leads to.
//!
//! Owns: following `mod` lines and `include!` from the targets that cargo knows.
//! Does not know: macros that make modules; there are none here.
//! Invariant: each `.rs` file of a package is reached, or named in a finding.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::Package;

use super::Finding;
use super::lexer::blank;
use super::relative;

/// All `.rs` files below `folder`, without build results and packages inside it.
pub(crate) fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(folder, &mut found, 0)?;
    found.sort();
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Ok(());
    }
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            let hidden = path
                .file_name()
                .is_some_and(|name| name == "target" || name.to_string_lossy().starts_with('.'));
            if !hidden && !path.join("Cargo.toml").exists() {
                collect(&path, found, depth + 1)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

pub(crate) fn check(root: &Path, package: &Package, sources: &[PathBuf]) -> Result<Vec<Finding>> {
    let mut reached = BTreeSet::new();
    for target in &package.targets {
        follow(target.src_path.as_std_path(), true, &mut reached)?;
    }
    Ok(sources
        .iter()
        .filter(|path| !reached.contains(*path))
        .map(|path| Finding::whole(relative(root, path), "no `mod` line leads to this file"))
        .collect())
}

fn follow(path: &Path, is_root: bool, reached: &mut BTreeSet<PathBuf>) -> Result<()> {
    if !path.exists() || !reached.insert(path.to_path_buf()) {
        return Ok(());
    }
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    for next in children(path, &text, is_root) {
        follow(&next, false, reached)?;
    }
    Ok(())
}

/// Files that the module in `path` may name, existing or not.
fn children(path: &Path, text: &str, is_root: bool) -> Vec<PathBuf> {
    let code = blank(text);
    let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let stem = path.file_stem().unwrap_or_default();
    let own = if is_root || stem == "mod" { folder.clone() } else { folder.join(stem) };
    let mut found = Vec::new();
    let mut named: Option<PathBuf> = None;
    for (code, original) in code.lines().zip(text.lines()) {
        let line = code.trim();
        if line.starts_with("#[path") {
            named = quoted(original).map(|name| folder.join(name));
        } else if let Some(name) = declared(line) {
            match named.take() {
                Some(path) => found.push(path),
                None => {
                    found.push(own.join(format!("{name}.rs")));
                    found.push(own.join(name).join("mod.rs"));
                }
            }
        } else if line.contains("include!(") {
            found.extend(quoted(original).map(|name| folder.join(name)));
        }
    }
    found
}

/// The module that a line like `pub mod name;` declares.
fn declared(line: &str) -> Option<&str> {
    let rest = line.strip_suffix(';')?;
    let at = rest.find("mod ")?;
    let visibility = rest[..at].trim();
    let known = visibility.is_empty() || visibility.starts_with("pub") || visibility.ends_with(']');
    known.then(|| rest[at + 4..].trim())
}

fn quoted(line: &str) -> Option<&str> {
    line.split('"').nth(1)
}

/// Source folders are never this deep; it stops a loop of links.
const DEPTH_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_lead_to_files() {
        let text = "mod a;\npub(crate) mod b;\n#[path = \"x/c.rs\"]\nmod c;\n\
                    mod inline { }\n// mod no;\ninclude!(\"gen/d.rs\");\n";
        let found = children(Path::new("src/lib.rs"), text, true);
        let expected =
            ["src/a.rs", "src/a/mod.rs", "src/b.rs", "src/b/mod.rs", "src/x/c.rs", "src/gen/d.rs"];
        assert_eq!(found, expected.map(PathBuf::from));
        let nested = children(Path::new("src/a.rs"), "mod z;\n", false);
        assert_eq!(nested, ["src/a/z.rs", "src/a/z/mod.rs"].map(PathBuf::from));
    }
}
