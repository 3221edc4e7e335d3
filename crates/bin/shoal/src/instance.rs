//! Which daemon of this machine this is, and that it is alone with its data.
//!
//! Owns: the lock of the data directory and the instance's identity.
//! Invariant: what carries the instance id (cgroups, interfaces, mounts) belongs to this daemon.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use base::{Id, IdSource};
use nix::fcntl::{Flock, FlockArg};
use ring::rand::{SecureRandom, SystemRandom};

/// Characters of the instance id: enough to be unique on a machine, short enough for names of
/// interfaces.
const INSTANCE_CHARS: usize = 8;

/// The lock on a data directory, held while this lives.
pub(crate) struct Instance {
    pub id: String,
    _lock: Flock<File>,
}

impl Instance {
    /// Locks `data_dir`, making it when it is missing.
    pub(crate) fn open(data_dir: &Path) -> Result<Self> {
        private_dir(data_dir)?;
        let path = data_dir.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!("--data-dir {}: another daemon uses it", data_dir.display());
        };
        Ok(Self { id: instance_id(&data_dir.join("instance"))?, _lock: lock })
    }
}

fn instance_id(path: &Path) -> Result<String> {
    if let Ok(text) = fs::read_to_string(path) {
        let id = text.trim();
        if id.len() == INSTANCE_CHARS && id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Ok(id.to_owned());
        }
        bail!("{}: damaged, must be {INSTANCE_CHARS} letters and digits", path.display());
    }
    let id = id_source()?.mint().to_string();
    let id = id[Id::TEXT_LEN - INSTANCE_CHARS..].to_owned();
    pki::write_atomic(path, id.as_bytes(), 0o600).context("cannot write the instance's id")?;
    Ok(id)
}

/// A source of identities, seeded from the operating system.
pub(crate) fn id_source() -> Result<IdSource> {
    let mut seed = [0; 16];
    if SystemRandom::new().fill(&mut seed).is_err() {
        bail!("the operating system gives no entropy");
    }
    Ok(IdSource::new(u128::from_be_bytes(seed)))
}

/// Makes a directory that only root may enter.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_daemon_and_keeps_its_id() {
        let dir = std::env::temp_dir().join(format!("shoal-instance-{}", std::process::id()));
        let first = Instance::open(&dir).unwrap();
        let error = Instance::open(&dir).err().unwrap();
        assert!(error.to_string().contains("another daemon"), "{error}");
        let id = first.id.clone();
        drop(first);
        assert_eq!(Instance::open(&dir).unwrap().id, id);
        fs::remove_dir_all(&dir).unwrap();
    }
}
