//! What a node that is part of a cluster must know at its next start.
//!
//! Owns: the file that makes a node a member, and the layout of its directory.
//! Invariant: the file is written last when joining and removed first when leaving, so that a node
//! is either a member with everything it needs, or none.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::address::{Addresses, PathAddress};

const FORMAT: u32 = 1;

/// Addresses of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub format: u32,
    /// Where this node listens when it is a manager.
    pub listen: SocketAddr,
    /// Where others reach it.
    pub advertise: SocketAddr,
    /// Address of the data path.
    pub data_path: PathAddress,
    /// Managers that were named when it joined.
    pub remotes: Vec<String>,
}

impl Settings {
    pub(crate) fn new(addresses: Addresses, remotes: Vec<String>) -> Self {
        let Addresses { listen, advertise, path: data_path } = addresses;
        Self { format: FORMAT, listen, advertise, data_path, remotes }
    }
}

/// The directory of a node's membership.
#[derive(Clone, Debug)]
pub(crate) struct SwarmDir(PathBuf);

impl SwarmDir {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self(data_dir.join("swarm"))
    }

    pub(crate) fn certificates(&self) -> PathBuf {
        self.0.join("certificates")
    }

    pub(crate) fn raft(&self) -> PathBuf {
        self.0.join("raft")
    }

    pub(crate) fn data_key(&self) -> PathBuf {
        self.0.join("certificates").join("data.key")
    }

    pub(crate) fn tasks(&self) -> PathBuf {
        self.0.join("tasks.db")
    }

    pub(crate) fn network_keys(&self) -> PathBuf {
        self.0.join("network-keys")
    }

    fn settings(&self) -> PathBuf {
        self.0.join("node.json")
    }

    /// `None` when this node is part of no cluster.
    pub(crate) fn load(&self) -> Result<Option<Settings>> {
        let path = self.settings();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let settings: Settings = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged", path.display()))?;
        if settings.format != FORMAT {
            bail!("{}: format {} is not known, only {FORMAT}", path.display(), settings.format);
        }
        Ok(Some(settings))
    }

    /// Makes this node a member.
    pub(crate) fn save(&self, settings: &Settings) -> Result<()> {
        let text = serde_json::to_string_pretty(settings).context("settings as JSON")?;
        pki::write_atomic(&self.settings(), text.as_bytes(), 0o600).context("node.json")?;
        Ok(())
    }

    /// Begins with nothing: what an interrupted join left is removed.
    pub(crate) fn clear(&self) -> Result<()> {
        let removed = |result: std::io::Result<()>, path: &Path| match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        };
        removed(fs::remove_file(self.settings()), &self.settings())?;
        removed(fs::remove_dir_all(&self.0), &self.0)?;
        crate::instance::private_dir(&self.0)
    }

    /// Forgets the managers' log, when this node is no longer one of them.
    pub(crate) fn clear_raft(&self) -> Result<()> {
        match fs::remove_dir_all(self.raft()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.raft().display()))
            }
            _ => Ok(()),
        }
    }
}
