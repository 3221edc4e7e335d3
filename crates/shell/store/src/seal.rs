//! Encryption at rest of one file.
//!
//! Owns: the file key derived from the manager's data key and the file's salt, and the nonces.
//! Does not know: what is sealed.
//! Invariant: a (salt, position) pair seals one text only. Salts are drawn anew for each use of a
//! file, positions inside it only grow, and a file is never continued after a restart.

use std::fmt::{self, Debug, Formatter};

use pki::DataKey;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};

/// Bytes that sealing adds.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes of a file's salt.
pub(crate) const SALT_BYTES: usize = 32;

/// The key of one file.
pub(crate) struct FileKey {
    key: LessSafeKey,
}

/// What a key is for, so that equal salts of two kinds still give two keys.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Log,
    Snapshot,
}

impl FileKey {
    /// Derives the key of the file with this salt.
    pub(crate) fn derive(key: &DataKey, salt: &[u8; SALT_BYTES], purpose: Purpose) -> Self {
        let info: [&[u8]; 1] = match purpose {
            Purpose::Log => [b"shoal log 1"],
            Purpose::Snapshot => [b"shoal snapshot 1"],
        };
        let extracted = Salt::new(HKDF_SHA256, salt).extract(key.as_bytes());
        let key = extracted.expand(&info, &AES_256_GCM).map(UnboundKey::from);
        Self { key: LessSafeKey::new(key.expect("32 bytes are within what HKDF gives")) }
    }

    /// Seals `buffer[from..]` in place and appends the tag. `position` names it within the file.
    pub(crate) fn seal(&self, position: u64, bound: &[u8], buffer: &mut Vec<u8>, from: usize) {
        let sealed = self.key.seal_in_place_separate_tag(
            nonce(position),
            Aad::from(bound),
            &mut buffer[from..],
        );
        let tag = sealed.expect("a frame is far below the cipher's limit");
        buffer.extend_from_slice(tag.as_ref());
    }

    /// Opens in place; `None` when the bytes were not sealed with this key, position and `bound`.
    pub(crate) fn open<'a>(
        &self,
        position: u64,
        bound: &[u8],
        sealed: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        self.key.open_in_place(nonce(position), Aad::from(bound), sealed).ok()
    }
}

impl Debug for FileKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("FileKey(redacted)")
    }
}

/// A fresh salt; `None` when the system has no entropy to give.
pub(crate) fn salt() -> Option<[u8; SALT_BYTES]> {
    let mut salt = [0; SALT_BYTES];
    SystemRandom::new().fill(&mut salt).ok()?;
    Some(salt)
}

fn nonce(position: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&position.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_salt_position_and_bound_open() {
        let data_key = DataKey::from_bytes([7; 32]);
        let key = FileKey::derive(&data_key, &[1; SALT_BYTES], Purpose::Log);
        let mut sealed = b"head plain text".to_vec();
        key.seal(5, b"bound", &mut sealed, 4);
        assert_eq!(sealed.len(), 15 + TAG_BYTES);
        assert_eq!(&sealed[..4], b"head");
        assert!(!sealed.windows(5).any(|window| window == b"plain"));
        let open = |key: &FileKey, position, bound: &[u8]| {
            let mut bytes = sealed[4..].to_vec();
            key.open(position, bound, &mut bytes).map(|text| text.to_vec())
        };
        assert_eq!(open(&key, 5, b"bound").unwrap(), b" plain text");
        assert_eq!(open(&key, 6, b"bound"), None);
        assert_eq!(open(&key, 5, b"other"), None);
        for other in [
            FileKey::derive(&data_key, &[2; SALT_BYTES], Purpose::Log),
            FileKey::derive(&data_key, &[1; SALT_BYTES], Purpose::Snapshot),
            FileKey::derive(&DataKey::from_bytes([8; 32]), &[1; SALT_BYTES], Purpose::Log),
        ] {
            assert_eq!(open(&other, 5, b"bound"), None);
        }
    }
}
