//! The 128-bit identity of every object.
//!
//! Owns: the number, its 25-character base 36 text, and the seeded source of new ones.
//! Does not know: randomness of the machine; a source is seeded by whoever wires it.
//! Invariant: zero is not an identity, so `Option<Id>` costs no space.

use std::fmt::{self, Debug, Display, Formatter};
use std::num::NonZeroU128;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// 128 random bits, printed as 25 characters of `0-9a-z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id(NonZeroU128);

impl Id {
    /// Number of characters of the text form.
    pub const TEXT_LEN: usize = 25;

    /// `None` for zero, which is not an identity.
    #[must_use]
    pub const fn from_u128(number: u128) -> Option<Self> {
        match NonZeroU128::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0.get()
    }

    /// Big-endian bytes, the stored form.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }

    /// `None` unless `bytes` are 16 bytes that are not all zero.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::from_u128(u128::from_be_bytes(bytes.try_into().ok()?))
    }

    fn text(self) -> [u8; Self::TEXT_LEN] {
        let mut text = [b'0'; Self::TEXT_LEN];
        let mut rest = self.0.get();
        for slot in text.iter_mut().rev() {
            *slot = DIGITS[(rest % 36) as usize];
            rest /= 36;
        }
        text
    }
}

impl Display for Id {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = self.text();
        f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl Debug for Id {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

/// The text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("id must be {} characters of 0-9 and a-z, not zero", Id::TEXT_LEN)]
pub struct ParseIdError;

impl FromStr for Id {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.len() != Self::TEXT_LEN {
            return Err(ParseIdError);
        }
        let mut number: u128 = 0;
        for byte in text.bytes() {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'z' => byte - b'a' + 10,
                _ => return Err(ParseIdError),
            };
            number = number
                .checked_mul(36)
                .and_then(|n| n.checked_add(u128::from(digit)))
                .ok_or(ParseIdError)?;
        }
        Self::from_u128(number).ok_or(ParseIdError)
    }
}

/// A seeded stream of new identities (splitmix64 over a 128-bit seed).
///
/// The daemon seeds it from the operating system's entropy, simulation from its seed. Identities
/// name objects; they are not secrets, so the stream need not be a cryptographic one.
#[derive(Clone)]
pub struct IdSource {
    high: u64,
    low: u64,
}

impl IdSource {
    #[must_use]
    pub const fn new(seed: u128) -> Self {
        Self { high: (seed >> 64) as u64, low: seed as u64 }
    }

    /// A new identity; never zero.
    pub fn mint(&mut self) -> Id {
        loop {
            let number =
                u128::from(splitmix(&mut self.high)) << 64 | u128::from(splitmix(&mut self.low));
            if let Some(id) = Id::from_u128(number) {
                return id;
            }
        }
    }

    /// A number in `0..bound` (`bound` at least 1), for jitter; slightly biased for huge bounds.
    pub fn below(&mut self, bound: u64) -> u64 {
        splitmix(&mut self.low) % bound.max(1)
    }
}

impl Debug for IdSource {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("IdSource")
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_25_characters_and_comes_back() {
        for number in [1, 35, 36, u128::from(u64::MAX), u128::MAX] {
            let id = Id::from_u128(number).unwrap();
            assert_eq!(id.to_string().len(), 25);
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(Id::from_bytes(&id.to_bytes()), Some(id));
        }
    }

    #[test]
    fn bad_text_is_refused() {
        for text in [
            "",
            "x",
            "0000000000000000000000000",
            "zzzzzzzzzzzzzzzzzzzzzzzzz",
            "A000000000000000000000000",
        ] {
            assert_eq!(text.parse::<Id>(), Err(ParseIdError), "{text}");
        }
    }

    #[test]
    fn same_seed_same_ids() {
        let (mut a, mut b) = (IdSource::new(7), IdSource::new(7));
        let ids: Vec<Id> = (0..4).map(|_| a.mint()).collect();
        assert!(ids.iter().all(|id| *id == b.mint()));
        assert_ne!(ids[0], ids[1]);
    }
}
