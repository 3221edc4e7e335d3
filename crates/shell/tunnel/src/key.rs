//! Keys of nodes.
//!
//! Owns: their forms in memory and in text. Does not know: where they are kept or sent.
//! Invariant: a private key is wiped when dropped and is never shown.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::TunnelError;

/// The private half of a node's key. It does not leave the node.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; LENGTH]>);

/// The public half, by which nodes know each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; LENGTH]);

impl PrivateKey {
    /// A new key, from the system's entropy.
    pub fn generate() -> Result<Self, TunnelError> {
        let mut bytes = Zeroizing::new([0; LENGTH]);
        SystemRandom::new().fill(bytes.as_mut()).map_err(|_| TunnelError::Entropy)?;
        Ok(Self(bytes))
    }

    #[must_use]
    pub fn from_bytes(bytes: [u8; LENGTH]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, to be stored as secrets are.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; LENGTH]> {
        self.0.clone()
    }

    /// As `wg genkey` writes it, without the line's end; to be stored as secrets are.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.0))
    }

    /// What [`PrivateKey::to_text`] gives, perhaps with space around it.
    pub fn from_text(text: &str) -> Result<Self, TunnelError> {
        let mut bytes = Zeroizing::new([0; DECODED_MAX]);
        match STANDARD.decode_slice(text.trim(), bytes.as_mut()) {
            Ok(LENGTH) => {
                let mut key = Zeroizing::new([0; LENGTH]);
                key.copy_from_slice(&bytes[..LENGTH]);
                Ok(Self(key))
            }
            _ => Err(TunnelError::Private),
        }
    }

    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(*x25519::PublicKey::from(&self.secret()).as_bytes())
    }

    /// In the protocol's form, which is wiped when dropped too.
    pub(crate) fn secret(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(*self.0)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl PublicKey {
    #[must_use]
    pub fn from_bytes(bytes: [u8; LENGTH]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }

    pub(crate) fn point(&self) -> x25519::PublicKey {
        x25519::PublicKey::from(self.0)
    }
}

/// As `wg` shows keys.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = TunnelError;

    fn from_str(text: &str) -> Result<Self, TunnelError> {
        let bytes = STANDARD.decode(text).map_err(|_| TunnelError::Key)?;
        Ok(Self(bytes.try_into().map_err(|_| TunnelError::Key)?))
    }
}

const LENGTH: usize = 32;
/// What the text of a key is thought to need before it is looked at.
const DECODED_MAX: usize = 36;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_text_and_a_private_one_none() {
        let private = PrivateKey::from_bytes([7; 32]);
        assert_eq!(format!("{private:?}"), "PrivateKey(..)");
        let public = private.public();
        assert_eq!(public.to_string().parse::<PublicKey>().unwrap(), public);
        assert!("AAAA".parse::<PublicKey>().is_err());
        assert!("not base64".parse::<PublicKey>().is_err());
        let text = private.to_text();
        assert_eq!(text.len(), 44);
        let again = PrivateKey::from_text(&format!("{}\n", *text)).unwrap();
        assert_eq!(again.public(), public);
        for wrong in ["", "AAAA", "not base64", &text[1..], &"A".repeat(1000)] {
            assert!(PrivateKey::from_text(wrong).is_err(), "{wrong}");
        }
        let other = PrivateKey::generate().unwrap();
        assert_ne!(*other.to_bytes(), *PrivateKey::generate().unwrap().to_bytes());
    }
}
