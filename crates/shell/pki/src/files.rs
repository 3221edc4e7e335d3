//! A node's key, certificate and roots on disk.
//!
//! Owns: `node.key`, `node.crt`, `ca.crt` in one directory (0700), each 0600, and atomic writes.
//! Does not know: how they are obtained or used.
//! Invariant: at every moment, also in a crash, the directory holds a key that fits its
//! certificate, or no certificate: the key file holds old and new key while the certificate is
//! replaced.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::ca;
use crate::identity::{self, IdentityError};
use crate::key::NodeKey;
use crate::limits::KEY_FILE_BYTES_MAX;

/// The directory of a node's identity.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    dir: PathBuf,
}

/// What the directory holds.
#[derive(Debug, Clone)]
pub struct Stored {
    pub key: NodeKey,
    /// The node's certificate and what links it to the root, PEM.
    pub chain_pem: String,
    /// The roots believed, PEM.
    pub roots_pem: String,
}

impl IdentityFiles {
    /// Files in `dir`, which need not exist yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Reads everything; `None` when the node has no certificate.
    ///
    /// # Errors
    /// When a file cannot be read, is damaged, or no key fits the certificate.
    pub fn load(&self) -> Result<Option<Stored>, FilesError> {
        let Some(chain) = read_private(&self.certificate())? else { return Ok(None) };
        let missing = |path: PathBuf| FilesError::read(&path, io::ErrorKind::NotFound.into());
        let keys = read_private(&self.key())?.ok_or_else(|| missing(self.key()))?;
        let roots = read_private(&self.roots())?.ok_or_else(|| missing(self.roots()))?;
        let public = self.public_key(&chain)?;
        let key = keys_of(&keys).into_iter().find(|key| key.public() == public);
        let key = key.ok_or_else(|| FilesError::NoKey(self.key()))?;
        Ok(Some(Stored { key, chain_pem: chain.to_string(), roots_pem: roots.to_string() }))
    }

    /// Writes everything; a reader sees the old or the new set.
    ///
    /// # Errors
    /// When a file cannot be written, or the key does not fit the certificate.
    pub fn save(&self, new: &Stored) -> Result<(), FilesError> {
        self.create_dir()?;
        if self.public_key(&new.chain_pem)? != new.key.public() {
            return Err(FilesError::NoKey(self.key()));
        }
        let mut keys = Zeroizing::new(new.key.pem().to_owned());
        if let Ok(Some(old)) = self.load()
            && old.key.public() != new.key.public()
        {
            keys.push_str(old.key.pem());
        }
        write_atomic(&self.key(), keys.as_bytes(), 0o600)?;
        write_atomic(&self.roots(), new.roots_pem.as_bytes(), 0o600)?;
        write_atomic(&self.certificate(), new.chain_pem.as_bytes(), 0o600)?;
        write_atomic(&self.key(), new.key.pem().as_bytes(), 0o600)
    }

    fn create_dir(&self) -> Result<(), FilesError> {
        let fail = |source| FilesError::write(&self.dir, source);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(fail)?;
        std::fs::set_permissions(&self.dir, PermissionsExt::from_mode(0o700)).map_err(fail)
    }

    fn public_key(&self, chain_pem: &str) -> Result<Vec<u8>, FilesError> {
        let damaged = |source| FilesError::Certificate { path: self.certificate(), source };
        let chain = ca::certificates(chain_pem);
        let chain = chain.map_err(|_| damaged(IdentityError::Certificate))?;
        let leaf = chain.first().ok_or_else(|| damaged(IdentityError::Certificate))?;
        let leaf = identity::parse(leaf).map_err(damaged)?;
        Ok(leaf.public_key().subject_public_key.data.to_vec())
    }

    fn key(&self) -> PathBuf {
        self.dir.join("node.key")
    }

    fn certificate(&self) -> PathBuf {
        self.dir.join("node.crt")
    }

    fn roots(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }
}

/// The identity files could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Look at the path's permissions and at the disk.
    #[error("{path} could not be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Look at the path's permissions and at the disk's free space.
    #[error("{path} could not be written")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The certificate file is damaged: the node must leave and join again.
    #[error("{path} is not a certificate of this node")]
    Certificate {
        path: PathBuf,
        #[source]
        source: IdentityError,
    },
    /// The key file is damaged or of another node: the node must leave and join again.
    #[error("{0} holds no key that fits the certificate")]
    NoKey(PathBuf),
}

impl FilesError {
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        Self::Write { path: path.to_owned(), source }
    }
}

/// Replaces `path` with `bytes`: temporary file beside it, fsync, rename, fsync of the directory.
///
/// # Errors
/// When any step fails; `path` is then as it was, or already new.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FilesError> {
    let fail = |source| FilesError::write(path, source);
    let name = path.file_name().ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    let temporary = dir.join(temporary);
    let write = || -> io::Result<()> {
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(fail)
}

/// The text of a small file; `None` when there is none.
pub(crate) fn read_private(path: &Path) -> Result<Option<Zeroizing<String>>, FilesError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|source| FilesError::read(path, source))?,
    };
    let mut text = Zeroizing::new(String::new());
    file.take(KEY_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|source| FilesError::read(path, source))?;
    Ok(Some(text))
}

/// Every readable key of a file; damaged blocks are passed over, another may fit.
fn keys_of(text: &str) -> Vec<NodeKey> {
    const END: &str = "-----END PRIVATE KEY-----";
    text.split_inclusive(END).filter_map(|block| NodeKey::from_pem(block.trim()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use base::{Id, Timestamp};

    use super::*;
    use crate::{Role, RootCa, Subject, limits, wall_now};

    fn stored(root: &RootCa) -> Stored {
        let key = NodeKey::generate().unwrap();
        let (node, cluster) = (Id::from_u128(1).unwrap(), Id::from_u128(2).unwrap());
        let subject = Subject { node, role: Role::Worker, cluster };
        let expiry = limits::CERTIFICATE_EXPIRY_DEFAULT;
        let issued = root.issue(&key.request().unwrap(), &subject, expiry, wall_now()).unwrap();
        Stored { key, chain_pem: issued.chain_pem, roots_pem: root.certificate_pem() }
    }

    #[test]
    fn comes_back_private() {
        let dir = tempfile::tempdir().unwrap();
        let files = IdentityFiles::new(dir.path().join("certificates"));
        assert!(files.load().unwrap().is_none());
        let stored = stored(&RootCa::generate(wall_now()).unwrap());
        files.save(&stored).unwrap();
        let back = files.load().unwrap().unwrap();
        assert_eq!(back.key.pem(), stored.key.pem());
        assert_eq!((back.chain_pem, back.roots_pem), (stored.chain_pem, stored.roots_pem));
        for (name, mode) in
            [("", 0o700), ("node.key", 0o600), ("node.crt", 0o600), ("ca.crt", 0o600)]
        {
            let meta = std::fs::metadata(files.dir.join(name)).unwrap();
            assert_eq!(meta.permissions().mode() & 0o777, mode, "{name}");
        }
        assert_eq!(std::fs::read_dir(&files.dir).unwrap().count(), 3);
    }

    #[test]
    fn a_crash_between_any_two_writes_leaves_a_pair_that_fits() {
        let root = RootCa::generate(wall_now()).unwrap();
        let (old, new) = (stored(&root), stored(&root));
        let both = format!("{}{}", new.key.pem(), old.key.pem());
        for (keys, chain) in [
            (&both, &old.chain_pem),
            (&both, &new.chain_pem),
            (&new.key.pem().to_owned(), &new.chain_pem),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let files = IdentityFiles::new(dir.path());
            files.save(&old).unwrap();
            write_atomic(&files.key(), keys.as_bytes(), 0o600).unwrap();
            write_atomic(&files.certificate(), chain.as_bytes(), 0o600).unwrap();
            let found = files.load().unwrap().unwrap();
            let expected = if *chain == old.chain_pem { &old } else { &new };
            assert_eq!(found.key.pem(), expected.key.pem());
            files.save(&new).unwrap();
            assert_eq!(files.load().unwrap().unwrap().key.pem(), new.key.pem());
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let root = RootCa::generate(Timestamp(1_795_000_000_000)).unwrap();
        let (a, b) = (stored(&root), stored(&root));
        let dir = tempfile::tempdir().unwrap();
        let files = IdentityFiles::new(dir.path());
        let mixed = Stored { key: b.key.clone(), ..a.clone() };
        assert!(matches!(files.save(&mixed), Err(FilesError::NoKey(_))));
        files.save(&a).unwrap();
        write_atomic(&files.key(), b.key.pem().as_bytes(), 0o600).unwrap();
        assert!(matches!(files.load(), Err(FilesError::NoKey(_))));
    }
}
