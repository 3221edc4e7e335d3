//! What messages of other nodes are read as, for tests that feed them anything.
//!
//! Owns: the ways in. Does not know: how inputs are made.
//! Invariant: whatever the bytes are, nothing or a value comes back, and a value that is written
//! again is read as the same.

use prost::Message as _;
use types::NetworkCheck;

use crate::v1;

/// Bytes as what a node found of a network.
#[must_use]
pub fn network_check(bytes: &[u8]) -> Option<NetworkCheck> {
    let check = NetworkCheck::try_from(v1::NetworkCheck::decode(bytes).ok()?).ok()?;
    let again = v1::NetworkCheck::from(&check).encode_to_vec();
    let read = v1::NetworkCheck::decode(&*again).expect("what was written is read");
    assert_eq!(NetworkCheck::try_from(read).as_ref(), Ok(&check));
    Some(check)
}

/// The bytes of one.
#[must_use]
pub fn network_check_seed(check: &NetworkCheck) -> Vec<u8> {
    v1::NetworkCheck::from(check).encode_to_vec()
}
