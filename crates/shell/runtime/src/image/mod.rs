//! The images of this node.
//!
//! Owns: image records, layer directories, and what is removed when nobody needs it any more.
//! Does not know: containers; it is told which layers they hold.
//! Invariant: a layer directory is complete before it gets its name, an image is recorded only
//! after all its layers are on disk for good, and whatever is not recorded at start is swept away.

pub(crate) mod archive;
pub(crate) mod login;
pub(crate) mod manifest;
pub(crate) mod pull;
pub(crate) mod reference;
pub(crate) mod store;
pub(crate) mod unpack;

use base::Timestamp;
use ports::runtime::{ImageRecord, RuntimeError};
use serde::{Deserialize, Serialize};

use crate::fail::invalid;

/// An image as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredImage {
    pub(crate) id: String,
    pub(crate) references: Vec<String>,
    pub(crate) digests: Vec<String>,
    pub(crate) architecture: String,
    pub(crate) os: String,
    pub(crate) size_bytes: u64,
    pub(crate) created_ms: Option<u64>,
    pub(crate) config_json: String,
    /// Diff ids, lowest first.
    pub(crate) layers: Vec<String>,
}

impl StoredImage {
    pub(crate) fn record(&self) -> ImageRecord {
        ImageRecord {
            id: self.id.clone(),
            references: self.references.clone(),
            digests: self.digests.clone(),
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            size_bytes: self.size_bytes,
            created: self.created_ms.map(Timestamp),
            config_json: self.config_json.clone(),
        }
    }
}

/// What is needed of an image's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) config: Option<ExecutionConfig>,
    #[serde(default)]
    pub(crate) rootfs: RootFs,
}

/// Defaults for containers of this image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ExecutionConfig {
    pub(crate) user: Option<String>,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) working_dir: Option<String>,
    pub(crate) stop_signal: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Vec<String>,
}

impl ImageConfig {
    /// Reads and checks a configuration; layers must be well-formed digests.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, RuntimeError> {
        let config: Self = serde_json::from_slice(json)
            .map_err(|error| invalid("image configuration", error.to_string()))?;
        if config.rootfs.diff_ids.len() > LAYERS_MAX {
            return Err(invalid("image configuration", format!("more than {LAYERS_MAX} layers")));
        }
        if let Some(bad) = config.rootfs.diff_ids.iter().find(|id| !is_digest(id)) {
            return Err(invalid("image configuration", format!("{bad:?} is not a layer's digest")));
        }
        Ok(config)
    }

    /// Creation time in milliseconds, when it is given and readable.
    pub(crate) fn created_ms(&self) -> Option<u64> {
        crate::logs::parse_rfc3339_ns(self.created.as_deref()?).map(|ns| ns / 1_000_000)
    }
}

/// `sha256:` and 64 hexadecimal digits.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// More lower directories than this overlayfs does not take; docker's limit.
pub(crate) const LAYERS_MAX: usize = 127;

/// Longest configuration or manifest.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 8 * 1024 * 1024;
