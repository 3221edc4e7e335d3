//! Join tokens: `SWMTKN-1-<digest of the CA>-<secret>`.
//!
//! Owns: making, reading and comparing them. Does not know: which role a secret stands for.
//! Invariant: secrets are compared in constant time, wiped on drop and absent from `Debug`.

use std::fmt::{self, Debug, Display, Formatter};
use std::str::FromStr;

use ring::rand::SecureRandom;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::base36;

/// SHA-256 of a root certificate's DER form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CaDigest([u8; 32]);

impl CaDigest {
    /// Digest of one certificate.
    #[must_use]
    pub fn of(certificate_der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate_der);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl Display for CaDigest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&base36::encode(&self.0, DIGEST_LEN))
    }
}

impl Debug for CaDigest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "CaDigest({self})")
    }
}

/// The 128 secret bits of a token; whoever has them may join.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TokenSecret([u8; 16]);

impl TokenSecret {
    /// Draws a new secret.
    ///
    /// # Errors
    /// When the system gives no entropy.
    pub fn mint() -> Result<Self, TokenError> {
        random().map(Self).ok_or(TokenError::Entropy)
    }

    /// A secret from stored bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes to store; a secret.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The 25 characters that stand in the token; a secret.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(base36::encode(&self.0, SECRET_LEN))
    }
}

impl PartialEq for TokenSecret {
    /// Takes the same time wherever the first difference stands.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenSecret {}

impl Debug for TokenSecret {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(redacted)")
    }
}

/// What a joining node is given: which cluster to trust, and the right to join it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub digest: CaDigest,
    pub secret: TokenSecret,
}

impl JoinToken {
    /// The token's text; a secret. There is no `Display`, so that it cannot slip into a log.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}-{VERSION}-{}-{}", self.digest, *self.secret.text()))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('-');
        if parts.next() != Some(PREFIX) {
            return Err(TokenError::Prefix);
        }
        match parts.next() {
            Some(VERSION) => {}
            Some(version) => return Err(TokenError::Version(version.chars().take(8).collect())),
            None => return Err(TokenError::Parts),
        }
        let (Some(digest), Some(secret), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::Parts);
        };
        let digest = base36::decode(digest, DIGEST_LEN).ok_or(TokenError::Digest)?;
        let secret = base36::decode(secret, SECRET_LEN).ok_or(TokenError::Secret)?;
        Ok(Self { digest: CaDigest(digest), secret: TokenSecret(secret) })
    }
}

/// The text is not a join token. No variant quotes the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else was pasted.
    #[error("--token: a join token begins with SWMTKN-1-")]
    Prefix,
    /// The token was made by a newer or a FIPS cluster.
    #[error("--token: token version {0:?} is not known, only version 1 is")]
    Version(String),
    /// The text was cut or run together.
    #[error("--token: a join token is SWMTKN-1-DIGEST-SECRET, this one has other parts")]
    Parts,
    /// The digest was damaged in copying.
    #[error("--token: the digest must be {DIGEST_LEN} characters of 0-9 and a-z")]
    Digest,
    /// The secret was damaged in copying.
    #[error("--token: the secret must be {SECRET_LEN} characters of 0-9 and a-z")]
    Secret,
    /// The system has no entropy to give.
    #[error("no secret for a join token could be drawn")]
    Entropy,
}

/// Bytes from the operating system; `None` when it has none to give.
pub(crate) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    ring::rand::SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

const PREFIX: &str = "SWMTKN";
const VERSION: &str = "1";
/// 36^50 is the first power of 36 above 2^256.
const DIGEST_LEN: usize = 50;
/// 36^25 is the first power of 36 above 2^128.
const SECRET_LEN: usize = 25;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> JoinToken {
        JoinToken { digest: CaDigest([0xAB; 32]), secret: TokenSecret([0x5A; 16]) }
    }

    #[test]
    fn text_has_dockers_shape_and_comes_back() {
        let text = sample().text();
        assert_eq!(text.len(), "SWMTKN-1-".len() + 50 + 1 + 25);
        assert_eq!(text.parse::<JoinToken>(), Ok(sample()));
        assert_eq!(format!(" {}\n", *text).parse::<JoinToken>(), Ok(sample()));
    }

    #[test]
    fn dockers_own_example_is_read() {
        let text = "SWMTKN-1-3pu6hszjas19xyp7ghgosyx9k8atbfcr8p2is99znpy26u2lkl-\
                    1awxwuwd3z9j1z3puu7rcgdbx";
        assert_eq!(*text.parse::<JoinToken>().unwrap().text(), text);
    }

    #[test]
    fn each_damage_is_named() {
        let good = sample().text().to_string();
        let (digest, secret) = (&good[9..59], &good[60..]);
        for (text, error) in [
            (String::new(), TokenError::Prefix),
            ("SWMTKN".to_owned(), TokenError::Parts),
            ("SWMTKN-1".to_owned(), TokenError::Parts),
            (format!("SWMTKN-2-1-{digest}-{secret}"), TokenError::Version("2".to_owned())),
            (format!("SWMTKN-1-{digest}"), TokenError::Parts),
            (format!("SWMTKN-1-{digest}-{secret}-x"), TokenError::Parts),
            (format!("SWMTKN-1-{}-{secret}", &digest[1..]), TokenError::Digest),
            (format!("SWMTKN-1-{}-{secret}", digest.to_uppercase()), TokenError::Digest),
            (format!("SWMTKN-1-{}-{secret}", "z".repeat(50)), TokenError::Digest),
            (format!("SWMTKN-1-{digest}-{}", &secret[1..]), TokenError::Secret),
        ] {
            let found = text.parse::<JoinToken>().unwrap_err();
            assert_eq!(found, error, "{text}");
            assert!(found.to_string().starts_with("--token:"));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", sample());
        assert!(shown.contains("redacted"), "{shown}");
        assert!(!shown.contains(sample().secret.text().as_str()), "{shown}");
        assert!(!shown.contains("90"), "{shown}");
    }
}
