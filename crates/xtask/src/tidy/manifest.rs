//! Rules for the manifests: versions, lints and licence come from the workspace.
//!
//! Owns: what every `Cargo.toml` of the workspace must say.
//! Does not know: the directions between crates, which are `edges`.
//! Invariant: no version number stands in a member's manifest.

use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::Metadata;
use toml::{Table, Value};

use super::Finding;
use super::relative;

pub(crate) fn check(root: &Path, metadata: &Metadata) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for package in metadata.workspace_packages() {
        let path = package.manifest_path.as_std_path();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let table: Table =
            text.parse().with_context(|| format!("{} is not TOML", path.display()))?;
        let file = relative(root, path);
        let stand_in = path.starts_with(root.join("crates/stand-in"));
        let found = breaches(&table).into_iter();
        // What stands in for a crate has that crate's version.
        let found = found.filter(|text| !(stand_in && text.starts_with("`version.workspace ")));
        findings.extend(found.map(|text| Finding::whole(file, text)));
    }
    Ok(findings)
}

fn breaches(manifest: &Table) -> Vec<String> {
    let mut found = Vec::new();
    let package = manifest.get("package").and_then(Value::as_table);
    for key in ["version", "edition", "rust-version", "license", "publish"] {
        if !package.is_some_and(|package| from_workspace(package.get(key))) {
            found.push(format!("`{key}.workspace = true` is missing"));
        }
    }
    if !from_workspace(manifest.get("lints")) {
        found.push("`[lints] workspace = true` is missing".into());
    }
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(table) = manifest.get(section).and_then(Value::as_table) else { continue };
        for (name, value) in table {
            if !from_workspace(Some(value)) {
                found.push(format!("{section}: `{name}.workspace = true` is the only form"));
            }
        }
    }
    found
}

fn from_workspace(value: Option<&Value>) -> bool {
    value.and_then(|value| value.get("workspace")).and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_its_own_is_found() {
        let good = "[package]\nversion.workspace = true\nedition.workspace = true\n\
                    rust-version.workspace = true\nlicense.workspace = true\n\
                    publish.workspace = true\n[lints]\nworkspace = true\n[dependencies]\n";
        for (line, expected) in [
            ("x.workspace = true", vec![]),
            ("x = { workspace = true, features = [\"y\"] }", vec![]),
            ("x = \"1\"", vec!["dependencies: `x.workspace = true` is the only form"]),
        ] {
            let table = format!("{good}{line}").parse().unwrap();
            assert_eq!(breaches(&table), expected, "{line}");
        }
        assert_eq!(breaches(&Table::new()).len(), 6);
    }
}
