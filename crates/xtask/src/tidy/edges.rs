//! Allowed directions between crates, read from the tables in `ARCHITECTURE.md`.
//!
//! Owns: comparing those tables with what `cargo metadata` says.
//! Does not know: the directions; the document is the only place where they stand.
//! Invariant: a crate that the document does not name may depend on nothing of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, Package};

use super::{Finding, folder_of, relative};

pub(crate) fn check(root: &Path, metadata: &Metadata) -> Result<Vec<Finding>> {
    let path = root.join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let rules = Rules::parse(&text)?;
    let packages = metadata.workspace_packages();
    let mut places = BTreeMap::new();
    for package in &packages {
        places.insert(package.name.to_string(), place_of(root, package));
    }
    let mut findings = rules.unknown(&places);
    for package in &packages {
        let place = place_of(root, package);
        let manifest = relative(root, package.manifest_path.as_std_path());
        for dependency in &package.dependencies {
            let edge = Edge {
                from: &place,
                name: &dependency.name,
                to: places.get(&dependency.name).map(String::as_str),
                is_dev: dependency.kind == DependencyKind::Development,
            };
            findings.extend(rules.breach(&edge).map(|text| Finding::whole(manifest, text)));
        }
    }
    Ok(findings)
}

/// The path that names a crate in the document: `core/state`, `bin/shoal`, `xtask`.
fn place_of(root: &Path, package: &Package) -> String {
    let folder = folder_of(package);
    let place = relative(root, &folder);
    let place = place.strip_prefix("crates").unwrap_or(place);
    place.to_string_lossy().into_owned()
}

/// Whether an entry of the directions allows the edge: one may be for tests alone.
fn is_listed(entry: &str, edge: &Edge<'_>, to: &str) -> bool {
    match entry.strip_suffix(" in tests") {
        Some(pattern) => edge.is_dev && matches(pattern, to),
        None => matches(entry, to),
    }
}

struct Edge<'a> {
    from: &'a str,
    name: &'a str,
    /// Its path when the dependency is a crate of ours.
    to: Option<&'a str>,
    is_dev: bool,
}

#[derive(Debug, Default)]
struct Rules {
    /// Crate → patterns of our crates that it may use.
    directions: BTreeMap<String, Vec<String>>,
    /// Third-party crate → patterns of the only crates that may use it.
    confined: BTreeMap<String, Vec<String>>,
    /// Third-party crates that core may use, and those its tests may use.
    core: BTreeSet<String>,
    core_tests: BTreeSet<String>,
}

impl Rules {
    fn parse(text: &str) -> Result<Self> {
        let mut rules = Self::default();
        for row in table(text, "directions")? {
            let [froms, tos, ..] = row.as_slice() else { bail!("directions: a row is too short") };
            for from in items(froms) {
                rules.directions.insert(from, items(tos));
            }
        }
        for row in table(text, "confined")? {
            let [names, users, ..] = row.as_slice() else { bail!("confined: a row is too short") };
            for name in items(names) {
                rules.confined.insert(name, items(users));
            }
        }
        for row in table(text, "core dependencies")? {
            let [names, used, ..] = row.as_slice() else {
                bail!("core dependencies: a row is too short")
            };
            let tests_only = used.trim() == "tests";
            let set = if tests_only { &mut rules.core_tests } else { &mut rules.core };
            set.extend(items(names));
        }
        Ok(rules)
    }

    /// Crates that exist and that the table of directions does not name.
    fn unknown(&self, places: &BTreeMap<String, String>) -> Vec<Finding> {
        let file = Path::new("ARCHITECTURE.md");
        let named = |place: &String| self.directions.keys().any(|key| matches(key, place));
        places
            .values()
            .filter(|place| !named(place))
            .map(|place| Finding::whole(file, format!("the directions do not name {place}")))
            .collect()
    }

    fn breach(&self, edge: &Edge<'_>) -> Option<String> {
        match edge.to {
            Some(to) => self.breach_of_direction(edge, to),
            None => self.breach_of_third_party(edge),
        }
    }

    fn breach_of_direction(&self, edge: &Edge<'_>, to: &str) -> Option<String> {
        let everybody =
            to == "core/base" || (edge.from.starts_with("shell/") && to == "core/types");
        let for_tests = edge.is_dev && to == "test/testkit";
        let listed = self
            .directions
            .iter()
            .filter(|(from, _)| matches(from, edge.from))
            .any(|(_, tos)| tos.iter().any(|entry| is_listed(entry, edge, to)));
        let to_tests = to.starts_with("test/") && !PROVERS.iter().any(|p| edge.from.starts_with(p));
        if for_tests || ((everybody || listed) && !to_tests) {
            return None;
        }
        Some(format!("{} may not depend on {to} (ARCHITECTURE.md, directions)", edge.from))
    }

    fn breach_of_third_party(&self, edge: &Edge<'_>) -> Option<String> {
        let name = edge.name;
        if edge.from.starts_with("core/") {
            let allowed =
                self.core.contains(name) || (edge.is_dev && self.core_tests.contains(name));
            if !allowed {
                return Some(format!("{} may not use {name}: it is not on core's list", edge.from));
            }
        }
        let users = self.confined.get(name)?;
        let allowed = users.iter().any(|pattern| matches(pattern, edge.from));
        (!allowed).then(|| format!("{name} is confined to {}", users.join(", ")))
    }
}

/// `*` is everything, `core/*` one folder, anything else itself.
fn matches(pattern: &str, place: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => place.starts_with(prefix),
        None => pattern == place,
    }
}

/// The cells of the table that follows the line `<!-- tidy: NAME -->`, without its two head lines.
fn table(text: &str, name: &str) -> Result<Vec<Vec<String>>> {
    let marker = format!("<!-- tidy: {name} -->");
    let mut lines = text.lines().skip_while(|line| line.trim() != marker);
    lines.next().with_context(|| format!("ARCHITECTURE.md has no line {marker}"))?;
    let rows: Vec<Vec<String>> = lines
        .skip_while(|line| line.trim().is_empty())
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    if rows.is_empty() {
        bail!("ARCHITECTURE.md has no table after {marker}");
    }
    Ok(rows)
}

/// `a, b` in a cell; a dash stands for nothing.
fn items(cell: &str) -> Vec<String> {
    cell.split(',')
        .map(|item| item.trim().trim_matches('`'))
        .filter(|item| !item.is_empty() && *item != "–")
        .map(str::to_owned)
        .collect()
}

/// What may use the crates of `test/`.
const PROVERS: &[&str] = &["test/", "tests/", "xtask", "fuzz"];

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
<!-- tidy: directions -->

| Crate | May use | Must not know |
| --- | --- | --- |
| core/base | – | domain |
| core/state | core/types | Raft |
| shell/store | core/state, shell/wire, shell/pki in tests | x |
| test/* | * | – |

<!-- tidy: confined -->
| Crate | Only in |
| --- | --- |
| `openraft` | shell/store |

<!-- tidy: core dependencies -->
| Crate | Used in |
| --- | --- |
| `serde` | code |
| `proptest` | tests |
";

    fn breach(from: &str, name: &str, to: Option<&str>, is_dev: bool) -> Option<String> {
        Rules::parse(DOCUMENT).unwrap().breach(&Edge { from, name, to, is_dev })
    }

    #[test]
    fn edges_are_allowed_as_the_document_says() {
        for (from, name, to, is_dev) in [
            ("core/state", "types", Some("core/types"), false),
            ("core/state", "base", Some("core/base"), false),
            ("core/state", "testkit", Some("test/testkit"), true),
            ("core/state", "serde", None, false),
            ("core/state", "proptest", None, true),
            ("shell/store", "types", Some("core/types"), false),
            ("shell/store", "pki", Some("shell/pki"), true),
            ("shell/store", "openraft", None, false),
            ("test/sim", "anything", Some("shell/manager"), false),
            ("test/sim", "testkit", Some("test/testkit"), false),
        ] {
            assert_eq!(breach(from, name, to, is_dev), None, "{from} -> {name}");
        }
    }

    #[test]
    fn other_edges_are_refused() {
        for (from, name, to, is_dev) in [
            ("core/state", "wire", Some("shell/wire"), false),
            ("core/base", "types", Some("core/types"), false),
            ("shell/store", "testkit", Some("test/testkit"), false),
            ("shell/store", "pki", Some("shell/pki"), false),
            ("shell/unheard", "state", Some("core/state"), false),
            ("core/state", "tokio", None, false),
            ("core/state", "proptest", None, false),
            ("shell/manager", "openraft", None, false),
        ] {
            assert!(breach(from, name, to, is_dev).is_some(), "{from} -> {name}");
        }
    }

    #[test]
    fn a_crate_without_a_row_is_named() {
        let rules = Rules::parse(DOCUMENT).unwrap();
        let places = BTreeMap::from([("x".to_owned(), "shell/x".to_owned())]);
        assert_eq!(
            rules.unknown(&places)[0].to_string(),
            "ARCHITECTURE.md:1: the directions do not name shell/x"
        );
        assert!(Rules::parse("no tables").is_err());
    }
}
