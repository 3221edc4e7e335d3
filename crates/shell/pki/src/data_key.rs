//! The key that encrypts a manager's log and snapshots.
//!
//! Owns: the 32 bytes and their file. Does not know: what is encrypted, and how.
//! Invariant: an existing key file is never overwritten: with it goes all that it encrypts.

use std::fmt::{self, Debug, Formatter};
use std::io;
use std::path::{Path, PathBuf};

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::files::{FilesError, read_private, write_atomic};
use crate::token::random;

/// A manager's own data key.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct DataKey([u8; 32]);

impl DataKey {
    /// Draws a new key.
    ///
    /// # Errors
    /// When the system gives no entropy.
    pub fn generate() -> Result<Self, DataKeyError> {
        random().map(Self).ok_or(DataKeyError::Entropy)
    }

    /// A key from known bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key itself; a secret.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads the key at `path`; `None` when there is no such file.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged or of a format this version does not know.
    pub fn load(path: &Path) -> Result<Option<Self>, DataKeyError> {
        let Some(text) = read_private(path)? else { return Ok(None) };
        let damaged = || DataKeyError::Damaged(path.to_owned());
        let (head, rest) = text.split_once('\n').ok_or_else(damaged)?;
        match head.strip_prefix(MAGIC) {
            Some(FORMAT) => {}
            Some(format) => {
                let format = format.chars().take(16).collect();
                return Err(DataKeyError::Format { path: path.to_owned(), format });
            }
            None => return Err(damaged()),
        }
        parse_hex(rest.trim_end()).map(Some).ok_or_else(damaged)
    }

    /// Writes the key to a new file at `path`, 0600.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn save_new(&self, path: &Path) -> Result<(), DataKeyError> {
        if path.try_exists().map_err(|source| FilesError::read(path, source))? {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(FilesError::write(path, source).into());
        }
        let mut text = Zeroizing::new(format!("{MAGIC}{FORMAT}\n"));
        for byte in self.0 {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        text.push('\n');
        Ok(write_atomic(path, text.as_bytes(), 0o600)?)
    }
}

impl Debug for DataKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(redacted)")
    }
}

/// The data key could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum DataKeyError {
    /// The system has no entropy to give.
    #[error("no data key could be drawn")]
    Entropy,
    /// The file is not a data key: restore it, without it the log cannot be read.
    #[error("{0} is not a data key")]
    Damaged(PathBuf),
    /// A newer version wrote it: run that version.
    #[error("{path} has format {format:?}, this version knows format {FORMAT}")]
    Format { path: PathBuf, format: String },
    /// Reading or writing failed.
    #[error(transparent)]
    Files(#[from] FilesError),
}

const MAGIC: &str = "shoal-data-key ";
const FORMAT: &str = "1";
const HEX: &[u8; 16] = b"0123456789abcdef";

fn parse_hex(text: &str) -> Option<DataKey> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (slot, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let (high, low) = (char::from(pair[0]).to_digit(16)?, char::from(pair[1]).to_digit(16)?);
        *slot = (high << 4 | low) as u8;
    }
    Some(DataKey(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn comes_back_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.key");
        assert_eq!(DataKey::load(&path).unwrap(), None);
        let key = DataKey::generate().unwrap();
        key.save_new(&path).unwrap();
        assert_eq!(DataKey::load(&path).unwrap(), Some(key.clone()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(format!("{key:?}"), "DataKey(redacted)");
    }

    #[test]
    fn an_existing_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.key");
        let first = DataKey::from_bytes([1; 32]);
        first.save_new(&path).unwrap();
        assert!(DataKey::from_bytes([2; 32]).save_new(&path).is_err());
        assert_eq!(DataKey::load(&path).unwrap(), Some(first));
    }

    #[test]
    fn damage_and_newer_formats_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.key");
        for (text, expected) in [
            (String::new(), "is not a data key"),
            (format!("shoal-data-key 1\n{}\n", "0".repeat(63)), "is not a data key"),
            (format!("shoal-data-key 1\n{}\n", "+1".repeat(32)), "is not a data key"),
            (format!("shoal-data-key 2\n{}\n", "0".repeat(64)), "has format \"2\""),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = DataKey::load(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
