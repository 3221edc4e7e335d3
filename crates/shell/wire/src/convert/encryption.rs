//! A node's end of encrypted networks.
//!
//! Owns: the conversions of keys, ports and backends.
//! Does not know: what a key is good for.
//! Invariant: a key that is none is refused, and so are more of them than a node may have.

use std::collections::BTreeMap;

use bytes::Bytes;
use types::{
    EncryptionBackend, Fault, NetworkKey, NetworkKeys, NodeEncryption, OwnEncryption,
    PeerEncryption, limits,
};

use super::{malformed, unknown};
use crate::v1;

impl From<&NodeEncryption> for v1::NodeEncryption {
    fn from(of: &NodeEncryption) -> Self {
        Self {
            backend: of.backend as u32,
            keys: keys_out(&of.keys),
            sends_with: of.sends_with,
            udp_segmentation: of.udp_segmentation,
        }
    }
}

impl TryFrom<v1::NodeEncryption> for NodeEncryption {
    type Error = Fault;

    fn try_from(of: v1::NodeEncryption) -> Result<Self, Fault> {
        Ok(Self {
            backend: backend(of.backend, "encryption.backend")?,
            keys: keys_in(&of.keys)?,
            sends_with: of.sends_with,
            udp_segmentation: of.udp_segmentation,
        })
    }
}

impl From<&OwnEncryption> for v1::OwnEncryption {
    fn from(own: &OwnEncryption) -> Self {
        Self {
            generation: own.generation,
            ports: own.ports.map(u32::from).to_vec(),
            keepalive: own.keepalive,
        }
    }
}

impl TryFrom<v1::OwnEncryption> for OwnEncryption {
    type Error = Fault;

    fn try_from(own: v1::OwnEncryption) -> Result<Self, Fault> {
        Ok(Self {
            generation: own.generation,
            ports: ports(&own.ports, "own.encryption.ports")?,
            keepalive: own.keepalive,
        })
    }
}

impl From<&PeerEncryption> for v1::PeerEncryption {
    fn from(peer: &PeerEncryption) -> Self {
        Self { keys: keys_out(&peer.keys), sends_with: peer.sends_with }
    }
}

impl TryFrom<v1::PeerEncryption> for PeerEncryption {
    type Error = Fault;

    fn try_from(peer: v1::PeerEncryption) -> Result<Self, Fault> {
        Ok(Self { keys: keys_in(&peer.keys)?, sends_with: peer.sends_with })
    }
}

fn keys_out(keys: &NetworkKeys) -> BTreeMap<u32, Bytes> {
    keys.iter().map(|(generation, key)| (*generation, key.0.to_vec().into())).collect()
}

fn keys_in(keys: &BTreeMap<u32, Bytes>) -> Result<NetworkKeys, Fault> {
    if keys.len() > limits::NETWORK_KEYS_PER_NODE_MAX {
        return Err(malformed("encryption.keys", "has more keys than a node may have"));
    }
    let one = |(generation, bytes): (&u32, &Bytes)| {
        let bytes: Result<[u8; NetworkKey::LENGTH], _> = bytes.as_ref().try_into();
        let key = bytes.map_err(|_| malformed("encryption.keys", "a key has 32 bytes"))?;
        Ok((*generation, NetworkKey(key)))
    };
    keys.iter().map(one).collect()
}

/// # Errors
/// Names `field` when it is none.
pub(super) fn backend(number: u32, field: &str) -> Result<EncryptionBackend, Fault> {
    let number = i32::try_from(number).unwrap_or(i32::MAX);
    EncryptionBackend::from_number(number).ok_or_else(|| unknown(field, number))
}

/// Two ports, neither of them 0.
///
/// # Errors
/// Names `field` when they are none.
pub(super) fn ports(ports: &[u32], field: &str) -> Result<[u16; 2], Fault> {
    let bad = || malformed(field, "two ports are expected, 1 to 65535");
    let [a, b] = *ports else { return Err(bad()) };
    let port = |number: u32| u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(bad);
    Ok([port(a)?, port(b)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_comes_back_as_it_was() {
        let keys = NetworkKeys::from([(1, NetworkKey([7; 32])), (2, NetworkKey([8; 32]))]);
        let of = NodeEncryption {
            backend: EncryptionBackend::Kernel,
            keys,
            sends_with: 1,
            udp_segmentation: true,
        };
        assert_eq!(NodeEncryption::try_from(v1::NodeEncryption::from(&of)), Ok(of.clone()));
        let mut short = v1::NodeEncryption::from(&of);
        short.keys.insert(2, vec![1; 31].into());
        assert_eq!(NodeEncryption::try_from(short).unwrap_err().field, "encryption.keys");
        let mut many = v1::NodeEncryption::from(&of);
        many.keys.insert(3, vec![1; 32].into());
        assert_eq!(NodeEncryption::try_from(many).unwrap_err().field, "encryption.keys");
        let strange = v1::NodeEncryption { backend: 3, ..v1::NodeEncryption::from(&of) };
        assert_eq!(NodeEncryption::try_from(strange).unwrap_err().field, "encryption.backend");
    }

    #[test]
    fn ports_are_two() {
        for bad in [&[][..], &[1], &[1, 0], &[1, 70_000], &[1, 2, 3]] {
            assert_eq!(ports(bad, "f").unwrap_err().field, "f");
        }
        assert_eq!(ports(&[1, 2], "f"), Ok([1, 2]));
    }
}
