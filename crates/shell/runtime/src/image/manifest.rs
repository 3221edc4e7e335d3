//! Manifests and indexes, OCI's and docker's alike.
//!
//! Owns: their form and the choice of a platform.
//! Does not know: where they come from.
//! Invariant: an entry is chosen only when a container of it can run on this machine.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Points at a blob or another manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
}

/// One image for several platforms.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ManifestIndex {
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

impl Descriptor {
    pub(crate) fn is_index(&self) -> bool {
        self.media_type.contains("image.index") || self.media_type.contains("manifest.list")
    }
}

/// The best entry for this machine; attestations and foreign platforms are passed over.
pub(crate) fn choose_platform(entries: &[Descriptor]) -> Option<&Descriptor> {
    choose(entries, architecture(), variant())
}

fn choose<'a>(
    entries: &'a [Descriptor],
    architecture: &str,
    variant: Option<&str>,
) -> Option<&'a Descriptor> {
    // Lower is better: the exact variant, then none, then older ones that this machine also runs.
    let rank = |entry: &Descriptor| -> Option<u32> {
        let Some(platform) = &entry.platform else { return Some(100) };
        if platform.os != "linux" || platform.architecture != architecture {
            return None;
        }
        match (platform.variant.as_deref(), variant) {
            (None | Some(""), _) => Some(1),
            (Some(theirs), Some(ours)) if theirs == ours => Some(0),
            (Some(theirs), ours) => {
                let (theirs, ours) = (level(theirs)?, level(ours.unwrap_or("v1"))?);
                (theirs <= ours).then(|| 2 + ours - theirs)
            }
        }
    };
    let ranked = entries.iter().filter_map(|entry| rank(entry).map(|rank| (rank, entry)));
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
}

/// `v7` is 7.
fn level(variant: &str) -> Option<u32> {
    variant.strip_prefix('v')?.parse().ok()
}

/// This machine in the words of images.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn variant() -> Option<&'static str> {
    match std::env::consts::ARCH {
        "aarch64" => Some("v8"),
        "arm" => Some("v7"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Descriptor {
        let mut parts = name.split('/');
        let mut next = || parts.next().unwrap_or_default().to_owned();
        let platform = Platform {
            os: next(),
            architecture: next(),
            variant: Some(next()).filter(|variant| !variant.is_empty()),
        };
        Descriptor { digest: name.into(), platform: Some(platform), ..Descriptor::default() }
    }

    #[test]
    fn the_best_platform_is_chosen() {
        for (entries, architecture, variant, chosen) in [
            (vec!["linux/arm64/v8", "linux/amd64"], "amd64", None, Some("linux/amd64")),
            (vec!["unknown/unknown", "linux/amd64"], "amd64", None, Some("linux/amd64")),
            (vec!["windows/amd64"], "amd64", None, None),
            (vec!["linux/amd64/v3", "linux/amd64"], "amd64", None, Some("linux/amd64")),
            (vec!["linux/amd64/v3"], "amd64", None, None),
            (vec!["linux/arm64", "linux/arm64/v8"], "arm64", Some("v8"), Some("linux/arm64/v8")),
            (
                vec!["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"],
                "arm",
                Some("v7"),
                Some("linux/arm/v6"),
            ),
        ] {
            let entries: Vec<Descriptor> = entries.into_iter().map(entry).collect();
            let found = choose(&entries, architecture, variant).map(|d| d.digest.as_str());
            assert_eq!(found, chosen, "{entries:?}");
        }
    }
}
