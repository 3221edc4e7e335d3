//! This node's keys for encrypted networks.
//!
//! Owns: `network-key-GENERATION` in a directory of their own (0700), each 0600: made once, kept
//! over restarts, removed when not needed any more.
//! Does not know: which generation is right, who encrypts.
//! Invariant: a private key is made here, is read by whoever encrypts, and leaves the node in no
//! message and no log.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::PathBuf;

use anyhow::{Context, Result};
use network::TunnelKey;
use tunnel::PrivateKey;
use types::NetworkKey;
use zeroize::Zeroizing;

/// The keys of this node by generation.
pub(crate) type Keys = BTreeMap<u32, TunnelKey>;

/// Which keys a node should have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Those that it has: it has not been told yet.
    #[default]
    Untold,
    /// It is in no cluster.
    None,
    /// That of this generation, and the one before until it is dropped.
    Generation(u32),
}

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct NetworkKeys(PathBuf);

impl NetworkKeys {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Where a generation's private half is, or would be.
    pub(crate) fn file(&self, generation: u32) -> PathBuf {
        self.0.join(format!("{PREFIX}{generation}"))
    }

    /// Makes and removes keys until there are those that are wanted; gives them.
    pub(crate) fn settle(&self, wanted: Wanted, droppable: &BTreeSet<u32>) -> Result<Keys> {
        let generations = self.generations()?;
        let (keep, make) = match wanted {
            Wanted::Untold => (generations.clone(), None),
            Wanted::None => (BTreeSet::new(), None),
            Wanted::Generation(now) => {
                let stays = |one: &u32| *one == now || one + 1 == now && !droppable.contains(one);
                (generations.iter().copied().filter(stays).collect(), Some(now))
            }
        };
        for generation in generations.difference(&keep) {
            let path = self.file(*generation);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let mut keys = Keys::new();
        for generation in keep {
            match self.load(generation) {
                Ok(key) => drop(keys.insert(generation, key)),
                // The newest is made anew; peers learn of that as of any key.
                Err(error) => {
                    tracing::error!(generation, error = format!("{error:#}"), "key unusable");
                }
            }
        }
        if let Some(generation) = make
            && !keys.contains_key(&generation)
        {
            keys.insert(generation, self.make(generation)?);
        }
        Ok(keys)
    }

    /// Of all files that are there.
    fn generations(&self) -> Result<BTreeSet<u32>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries.with_context(|| self.0.display().to_string())?,
        };
        let mut generations = BTreeSet::new();
        for entry in entries {
            let name = entry.with_context(|| self.0.display().to_string())?.file_name();
            let generation = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            generations.extend(generation.and_then(|text| text.parse::<u32>().ok()));
        }
        Ok(generations)
    }

    fn load(&self, generation: u32) -> Result<TunnelKey> {
        let path = self.file(generation);
        let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES_MAX));
        let file = fs::File::open(&path).with_context(|| path.display().to_string())?;
        file.take(TEXT_BYTES_MAX as u64)
            .read_to_string(&mut text)
            .with_context(|| path.display().to_string())?;
        let key = PrivateKey::from_text(&text).with_context(|| path.display().to_string())?;
        Ok(public_of(&key, path))
    }

    fn make(&self, generation: u32) -> Result<TunnelKey> {
        crate::instance::private_dir(&self.0)?;
        let (key, path) = (PrivateKey::generate()?, self.file(generation));
        let mut text = key.to_text();
        text.push('\n');
        pki::write_atomic(&path, text.as_bytes(), 0o600)?;
        tracing::info!(generation, "a key for encrypted networks was made");
        Ok(public_of(&key, path))
    }
}

fn public_of(key: &PrivateKey, private: PathBuf) -> TunnelKey {
    TunnelKey { public: NetworkKey(*key.public().as_bytes()), private }
}

const PREFIX: &str = "network-key-";
/// More than a key's text.
const TEXT_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn none() -> BTreeSet<u32> {
        BTreeSet::new()
    }

    #[test]
    fn a_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let keys = NetworkKeys::new(dir.path().join("keys"));
        assert_eq!(keys.settle(Wanted::Untold, &none()).unwrap(), Keys::new());
        let made = keys.settle(Wanted::Generation(1), &none()).unwrap();
        assert_eq!(made.keys().copied().collect::<Vec<_>>(), [1]);
        assert_eq!(keys.settle(Wanted::Untold, &none()).unwrap(), made);
        assert_eq!(keys.settle(Wanted::Generation(1), &BTreeSet::from([1])).unwrap(), made);
        let meta = fs::metadata(&made[&1].private).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
        let dir = fs::metadata(made[&1].private.parent().unwrap()).unwrap();
        assert_eq!(dir.permissions().mode() & 0o777, 0o700);
        let text = fs::read_to_string(&made[&1].private).unwrap();
        assert_eq!(PrivateKey::from_text(&text).unwrap().public().as_bytes(), &made[&1].public.0);
    }

    #[test]
    fn two_generations_are_kept_until_the_older_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let keys = NetworkKeys::new(dir.path().to_owned());
        let first = keys.settle(Wanted::Generation(1), &none()).unwrap();
        let both = keys.settle(Wanted::Generation(2), &none()).unwrap();
        assert_eq!((both.len(), &both[&1]), (2, &first[&1]));
        assert_ne!(both[&2].public, first[&1].public);
        let second = keys.settle(Wanted::Generation(2), &BTreeSet::from([1])).unwrap();
        assert_eq!(second, Keys::from([(2, both[&2].clone())]));
        assert!(!keys.file(1).exists());
        // One that was away for longer: the one before the last would have the newest one's port.
        let later = keys.settle(Wanted::Generation(4), &none()).unwrap();
        assert_eq!(later.keys().copied().collect::<Vec<_>>(), [4]);
        assert_eq!(keys.settle(Wanted::None, &none()).unwrap(), Keys::new());
        assert_eq!(keys.generations().unwrap(), none());
    }

    #[test]
    fn a_damaged_key_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let keys = NetworkKeys::new(dir.path().to_owned());
        let made = keys.settle(Wanted::Generation(1), &none()).unwrap();
        fs::write(&made[&1].private, "torn").unwrap();
        let again = keys.settle(Wanted::Generation(1), &none()).unwrap();
        assert_ne!(again[&1].public, made[&1].public);
        assert_eq!(keys.settle(Wanted::Untold, &none()).unwrap(), again);
        fs::write(dir.path().join("network-key-x"), "other").unwrap();
        assert_eq!(keys.settle(Wanted::Untold, &none()).unwrap(), again);
    }
}
