//! To which manager a store directory belongs.
//!
//! Owns: the file `raft.id`, and the drawing of raft numbers.
//! Does not know: what else is in the directory.
//! Invariant: a directory is never opened as another manager: its log would be taken for that
//! manager's promises.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base::Id;
use pki::FilesError;

/// The directory cannot be used by this manager.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Look at the path's permissions and at the disk.
    #[error("{path} could not be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It could not be written.
    #[error(transparent)]
    Write(#[from] FilesError),
    /// The file is damaged, or a newer version wrote it.
    #[error("{0} is not of a format this version knows")]
    Format(PathBuf),
    /// The directory is another manager's: name the right one.
    #[error("{path} belongs to {found}, not to {expected}")]
    Other { path: PathBuf, found: String, expected: String },
}

/// The raft number of the store in `dir`; `None` when there is none.
///
/// # Errors
/// When the file cannot be read, or is of an unknown format.
pub fn stored_raft_id(dir: &Path) -> Result<Option<u64>, IdentityError> {
    Ok(load(&dir.join(FILE))?.map(|stored| stored.raft_id))
}

/// A raft number nobody had before, out of random bits.
#[must_use]
pub fn fresh_raft_id(random: u64) -> u64 {
    // Zero is nobody; the top bit stays clear for languages without unsigned numbers.
    (random & i64::MAX as u64).max(1)
}

pub(crate) fn check_or_create(
    dir: &Path,
    raft_id: u64,
    node: Id,
    cluster: Id,
) -> Result<(), IdentityError> {
    let path = dir.join(FILE);
    let own = Stored { raft_id, node: node.to_string(), cluster: cluster.to_string() };
    match load(&path)? {
        Some(found) if found == own => Ok(()),
        Some(found) => {
            Err(IdentityError::Other { path, found: found.shown(), expected: own.shown() })
        }
        None => {
            let Stored { node, cluster, .. } = &own;
            let text = format!("{MAGIC}\nraft {raft_id}\nnode {node}\ncluster {cluster}\n");
            Ok(pki::write_atomic(&path, text.as_bytes(), 0o600)?)
        }
    }
}

#[derive(PartialEq, Eq)]
struct Stored {
    raft_id: u64,
    node: String,
    cluster: String,
}

impl Stored {
    fn shown(&self) -> String {
        format!("raft number {:x} of node {} in cluster {}", self.raft_id, self.node, self.cluster)
    }
}

fn load(path: &Path) -> Result<Option<Stored>, IdentityError> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| IdentityError::Read { path: path.to_owned(), source })?,
    };
    parse(&text).map(Some).ok_or_else(|| IdentityError::Format(path.to_owned()))
}

fn parse(text: &str) -> Option<Stored> {
    let mut lines = text.lines();
    if lines.next()? != MAGIC {
        return None;
    }
    let raft_id = lines.next()?.strip_prefix("raft ")?.parse().ok()?;
    let node = lines.next()?.strip_prefix("node ")?.to_owned();
    let cluster = lines.next()?.strip_prefix("cluster ")?.to_owned();
    lines.next().is_none().then_some(Stored { raft_id, node, cluster })
}

const FILE: &str = "raft.id";
const MAGIC: &str = "shoal-raft 1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_opened_by_its_own_manager_only() {
        let dir = tempfile::tempdir().unwrap();
        let id = |number| Id::from_u128(number).unwrap();
        assert_eq!(stored_raft_id(dir.path()).unwrap(), None);
        check_or_create(dir.path(), 7, id(1), id(2)).unwrap();
        check_or_create(dir.path(), 7, id(1), id(2)).unwrap();
        assert_eq!(stored_raft_id(dir.path()).unwrap(), Some(7));
        for (raft_id, node, cluster) in [(8, 1, 2), (7, 3, 2), (7, 1, 3)] {
            let refused = check_or_create(dir.path(), raft_id, id(node), id(cluster));
            assert!(matches!(refused, Err(IdentityError::Other { .. })));
        }
        fs::write(dir.path().join(FILE), "shoal-raft 2\n").unwrap();
        assert!(matches!(stored_raft_id(dir.path()), Err(IdentityError::Format(_))));
    }

    #[test]
    fn raft_numbers_are_never_zero() {
        assert_eq!(fresh_raft_id(0), 1);
        assert_eq!(fresh_raft_id(u64::MAX), i64::MAX as u64);
    }
}
