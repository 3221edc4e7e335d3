//! Environment variables: `NAME=VALUE`, `NAME` and files of them.
//!
//! Owns: reading environment files, and replacing variables by name.
//! Does not know: specs.
//! Invariant: no name stands twice in what comes out; the later one wins.

use std::path::Path;

use crate::error::CliError;

/// Adds `entries` to `list`, replacing variables of the same name.
pub(super) fn merge(list: &mut Vec<String>, entries: impl IntoIterator<Item = String>) {
    for entry in entries {
        let name = name_of(&entry).to_owned();
        match list.iter_mut().find(|old| name_of(old) == name) {
            Some(old) => *old = entry,
            None => list.push(entry),
        }
    }
}

pub(super) fn name_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

/// `NAME` alone takes the value of this process; a variable that is not set here is left out.
pub(super) fn resolve(entry: &str) -> Option<String> {
    if entry.contains('=') {
        return Some(entry.to_owned());
    }
    std::env::var(entry).ok().map(|value| format!("{entry}={value}"))
}

/// The variables in the file `path`.
pub(super) fn read(path: &Path) -> Result<Vec<String>, CliError> {
    let wrong = |message: String| CliError::usage("--env-file", message);
    let size = std::fs::metadata(path).map(|metadata| metadata.len()).unwrap_or(0);
    if size > FILE_BYTES_MAX {
        return Err(wrong(format!("{} is larger than 1 MiB", path.display())));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|source| wrong(format!("cannot read {}: {source}", path.display())))?;
    parse(&text)
        .map_err(|(line, message)| wrong(format!("{} line {line}: {message}", path.display())))
}

fn parse(text: &str) -> Result<Vec<String>, (usize, String)> {
    let mut found = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = name_of(line);
        if name.is_empty() {
            return Err((index + 1, "no variable name on this line".into()));
        }
        if name.contains(char::is_whitespace) {
            return Err((index + 1, format!("variable `{name}` contains whitespaces")));
        }
        found.extend(resolve(line));
    }
    Ok(found)
}

/// Larger than any environment that a kernel accepts with the default stack limit.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_variables_win() {
        let mut list = vec!["A=1".to_owned(), "B=2".to_owned()];
        merge(&mut list, ["B=3".to_owned(), "C=4".to_owned(), "C=5".to_owned()]);
        assert_eq!(list, ["A=1", "B=3", "C=5"]);
    }

    #[test]
    fn files() {
        let text = "# c\n\nA=1\n  B=x y \nNO_SUCH_VARIABLE_HERE\n";
        assert_eq!(parse(text).unwrap(), ["A=1", "B=x y "]);
        assert_eq!(parse("A=1\n=x").unwrap_err().0, 2);
        assert_eq!(parse("A B=1").unwrap_err().0, 1);
    }
}
