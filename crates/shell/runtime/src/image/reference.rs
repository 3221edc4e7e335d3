//! Names of images.
//!
//! Owns: the normal form `host/path:tag` and what counts as an image id.
//! Does not know: which images exist.
//! Invariant: two spellings of one name have one normal form.

use oci_client::Reference;
use ports::runtime::RuntimeError;

use crate::fail::invalid;

/// What a user may mean by the text of a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// `sha256:…` of a configuration, or at least [`SHORT_ID_MIN`] of its first digits; these may
    /// also be a name.
    IdOrName {
        id_prefix: String,
        name: Option<Name>,
    },
    Name(Name),
}

/// A normalised name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// `docker.io/library/nginx`.
    pub(crate) repository: String,
    /// `latest` when neither tag nor digest was given.
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<String>,
}

impl Name {
    /// `repository:tag`, the form in which references are stored.
    pub(crate) fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.repository))
    }

    /// `repository@sha256:…`.
    pub(crate) fn pinned(&self) -> Option<String> {
        self.digest.as_ref().map(|digest| format!("{}@{digest}", self.repository))
    }
}

/// Understands a name, with its defaults filled in.
pub(crate) fn parse_name(text: &str) -> Result<Name, RuntimeError> {
    let reference = parse_reference(text)?;
    let repository = format!("{}/{}", reference.registry(), reference.repository());
    let digest = reference.digest().map(str::to_owned);
    // A digest says it all; the tag beside it is only a comment.
    let tag = if digest.is_some() { None } else { reference.tag().map(str::to_owned) };
    Ok(Name { repository, tag, digest })
}

/// The form the registry client wants.
pub(crate) fn parse_reference(text: &str) -> Result<Reference, RuntimeError> {
    text.parse::<Reference>().map_err(|error| {
        invalid("image", format!("{text:?} is not a name, name:tag or name@digest: {error}"))
    })
}

/// Understands a name or an id.
pub(crate) fn parse_wanted(text: &str) -> Result<Wanted, RuntimeError> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = !hex.is_empty() && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if is_hex && (SHORT_ID_MIN..=64).contains(&hex.len()) {
        let name = if hex.len() == text.len() { parse_name(text).ok() } else { None };
        return Ok(Wanted::IdOrName { id_prefix: format!("sha256:{hex}"), name });
    }
    parse_name(text).map(Wanted::Name)
}

/// Shorter ones are taken for names.
const SHORT_ID_MIN: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_their_defaults() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, tagged) in [
            ("nginx", Some("docker.io/library/nginx:latest")),
            ("shoal/whoami", Some("docker.io/shoal/whoami:latest")),
            ("shoal/whoami:1.2", Some("docker.io/shoal/whoami:1.2")),
            ("127.0.0.1:5000/a/b", Some("127.0.0.1:5000/a/b:latest")),
            ("localhost/x:y", Some("localhost/x:y")),
        ] {
            assert_eq!(parse_name(text).unwrap().tagged().as_deref(), tagged, "{text}");
        }
        let pinned = parse_name(&format!("nginx@{digest}")).unwrap();
        assert_eq!(pinned.pinned(), Some(format!("docker.io/library/nginx@{digest}")));
        assert_eq!(pinned.tagged(), None);
    }

    #[test]
    fn bad_names_are_refused() {
        for text in ["", "UPPER", "a b", "x:y:z", "@sha256:00"] {
            assert!(parse_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ids_may_be_short() {
        let wanted = parse_wanted("deadbeef").unwrap();
        assert!(matches!(wanted, Wanted::IdOrName { id_prefix, name: Some(_) }
            if id_prefix == "sha256:deadbeef"));
        assert!(matches!(parse_wanted("abc").unwrap(), Wanted::Name(_)));
        let full = format!("sha256:{}", "0".repeat(64));
        assert!(matches!(parse_wanted(&full).unwrap(), Wanted::IdOrName { name: None, .. }));
    }
}
