//! What a user may mean by the text of a reference.
//!
//! Owns: telling identities of images from their names.
//! Does not know: which images exist; the grammar of names is the types'.
//! Invariant: a full identity is never taken for a name.

use ports::runtime::RuntimeError;
use types::ImageName;

use crate::fail::invalid;

/// What a user may mean by the text of a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// `sha256:…` of a configuration, or at least [`SHORT_ID_MIN`] of its first digits; these may
    /// also be a name.
    IdOrName {
        id_prefix: String,
        name: Option<ImageName>,
    },
    Name(ImageName),
}

/// Understands a name, with its defaults filled in.
pub(crate) fn parse_name(text: &str) -> Result<ImageName, RuntimeError> {
    ImageName::parse(text)
        .map_err(|fault| invalid("image", format!("{}; {}", fault.message, fault.hint)))
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
    fn ids_may_be_short() {
        let wanted = parse_wanted("deadbeef").unwrap();
        assert!(matches!(wanted, Wanted::IdOrName { id_prefix, name: Some(_) }
            if id_prefix == "sha256:deadbeef"));
        assert!(matches!(parse_wanted("abc").unwrap(), Wanted::Name(_)));
        let full = format!("sha256:{}", "0".repeat(64));
        assert!(matches!(parse_wanted(&full).unwrap(), Wanted::IdOrName { name: None, .. }));
    }
}
