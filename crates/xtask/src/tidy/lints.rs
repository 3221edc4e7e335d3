//! The core's clippy configuration must repeat every ban of the workspace's.
//!
//! Owns: comparing `clippy.toml` with `crates/core/clippy.toml`.
//! Does not know: what the bans are.
//! Invariant: clippy reads only the nearest file, so what is missing there is not enforced.

use std::path::Path;

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::Finding;

pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let outer = load(&root.join("clippy.toml"))?;
    let name = Path::new("crates/core/clippy.toml");
    let inner = load(&root.join(name))?;
    Ok(missing(&outer, &inner)
        .into_iter()
        .map(|text| Finding::whole(name, format!("lacks {text} of the root's clippy.toml")))
        .collect())
}

fn load(path: &Path) -> Result<Table> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse().with_context(|| format!("{} is not TOML", path.display()))
}

/// What stands in `outer` and not in `inner`.
fn missing(outer: &Table, inner: &Table) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in outer {
        match (value, inner.get(key)) {
            (Value::Array(outer), Some(Value::Array(inner))) => {
                let names: Vec<&str> = inner.iter().filter_map(path_of).collect();
                let lacking = outer.iter().filter_map(path_of).filter(|path| !names.contains(path));
                found.extend(lacking.map(|path| format!("{key} `{path}`")));
            }
            (Value::Array(outer), None) if outer.is_empty() => {}
            (value, inner) if inner == Some(value) => {}
            _ => found.push(format!("`{key} = {value}`")),
        }
    }
    found
}

fn path_of(entry: &Value) -> Option<&str> {
    entry.as_str().or_else(|| entry.get("path").and_then(Value::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_that_is_not_repeated_is_found() {
        let outer = "x = true\nb = [{ path = \"a::b\", reason = \"r\" }, \"c\"]".parse().unwrap();
        for (inner, expected) in [
            ("x = true\nb = [\"c\", \"a::b\", \"d\"]", vec![]),
            ("x = true\nb = [\"c\"]", vec!["b `a::b`"]),
            ("b = [\"a::b\", \"c\"]", vec!["`x = true`"]),
        ] {
            assert_eq!(missing(&outer, &inner.parse().unwrap()), expected, "{inner}");
        }
    }
}
