//! Entries, votes and memberships as bytes: entry format 1, for the disk and for other managers.
//!
//! Owns: one strict encoding. Does not know: files, messages.
//! Invariant: what is not understood to the last byte is refused; nothing is skipped.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EntryPayload as Kind;

use crate::limits::{ADDRESS_BYTES_MAX, MEMBERS_MAX};
use crate::raft_types::{
    Ballot, Entry, EntryPayload, Leader, LogId, Membership, Payload, Peer, SnapshotMeta,
    StoredMembership,
};

/// The bytes are not what this version writes: damage, or a newer version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("{0} ends too early")]
    Short(&'static str),
    #[error("{0} has bytes behind its end")]
    Long(&'static str),
    #[error("{what} of kind {kind} is not known to this version")]
    Unknown { what: &'static str, kind: u8 },
    #[error("membership is not valid")]
    Membership,
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

pub(crate) fn encode_entry(entry: &Entry) -> Bytes {
    let mut bytes = BytesMut::with_capacity(32);
    put_log_id(&mut bytes, &entry.log_id);
    match &entry.payload {
        Kind::Blank => bytes.put_u8(BLANK),
        Kind::Normal(payload) => {
            bytes.put_u8(NORMAL);
            bytes.extend_from_slice(&payload.0);
        }
        Kind::Membership(membership) => {
            bytes.put_u8(MEMBERSHIP);
            put_membership(&mut bytes, membership);
        }
    }
    bytes.freeze()
}

pub(crate) fn decode_entry(bytes: Bytes) -> Result<Entry, CodecError> {
    let mut bytes = bytes;
    let log_id = take_log_id(&mut bytes)?;
    need(&bytes, 1, "log entry")?;
    let payload: EntryPayload = match bytes.get_u8() {
        BLANK => Kind::Blank,
        NORMAL => return Ok(Entry { log_id, payload: Kind::Normal(Payload(bytes)) }),
        MEMBERSHIP => Kind::Membership(take_membership(&mut bytes)?),
        kind => return Err(CodecError::Unknown { what: "log entry", kind }),
    };
    end(&bytes, "log entry")?;
    Ok(Entry { log_id, payload })
}

pub(crate) fn encode_ballot(ballot: &Ballot) -> Bytes {
    let mut bytes = BytesMut::with_capacity(17);
    bytes.put_u64(ballot.leader_id.term);
    bytes.put_u64(ballot.leader_id.node_id);
    bytes.put_u8(u8::from(ballot.committed));
    bytes.freeze()
}

pub(crate) fn decode_ballot(bytes: Bytes) -> Result<Ballot, CodecError> {
    let mut bytes = bytes;
    need(&bytes, 17, "vote")?;
    let leader_id = Leader { term: bytes.get_u64(), node_id: bytes.get_u64() };
    let committed = match bytes.get_u8() {
        0 => false,
        1 => true,
        kind => return Err(CodecError::Unknown { what: "vote", kind }),
    };
    end(&bytes, "vote")?;
    Ok(Ballot { leader_id, committed })
}

pub(crate) fn encode_log_id(id: &LogId) -> Bytes {
    let mut bytes = BytesMut::with_capacity(24);
    put_log_id(&mut bytes, id);
    bytes.freeze()
}

pub(crate) fn decode_log_id(bytes: Bytes) -> Result<LogId, CodecError> {
    let mut bytes = bytes;
    let id = take_log_id(&mut bytes)?;
    end(&bytes, "log id")?;
    Ok(id)
}

/// What a snapshot covers.
pub(crate) fn encode_meta(meta: &SnapshotMeta) -> Bytes {
    let mut bytes = BytesMut::new();
    put_option(&mut bytes, meta.last_log_id.as_ref());
    put_option(&mut bytes, meta.last_membership.log_id().as_ref());
    put_membership(&mut bytes, meta.last_membership.membership());
    bytes.freeze()
}

pub(crate) fn decode_meta(bytes: Bytes) -> Result<SnapshotMeta, CodecError> {
    let mut bytes = bytes;
    let last_log_id = take_option(&mut bytes)?;
    let of = take_option(&mut bytes)?;
    let last_membership = StoredMembership::new(of, take_membership(&mut bytes)?);
    end(&bytes, "snapshot head")?;
    Ok(SnapshotMeta { last_log_id, last_membership })
}

fn put_log_id(bytes: &mut BytesMut, id: &LogId) {
    bytes.put_u64(id.leader_id.term);
    bytes.put_u64(id.leader_id.node_id);
    bytes.put_u64(id.index);
}

fn take_log_id(bytes: &mut Bytes) -> Result<LogId, CodecError> {
    need(bytes, 24, "log id")?;
    let leader_id = Leader { term: bytes.get_u64(), node_id: bytes.get_u64() };
    Ok(LogId { leader_id, index: bytes.get_u64() })
}

fn put_option(bytes: &mut BytesMut, id: Option<&LogId>) {
    bytes.put_u8(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(bytes, id);
    }
}

fn take_option(bytes: &mut Bytes) -> Result<Option<LogId>, CodecError> {
    need(bytes, 1, "log id")?;
    match bytes.get_u8() {
        0 => Ok(None),
        1 => take_log_id(bytes).map(Some),
        kind => Err(CodecError::Unknown { what: "log id", kind }),
    }
}

fn put_membership(bytes: &mut BytesMut, membership: &Membership) {
    let configs = membership.get_joint_config();
    bytes.put_u8(configs.len() as u8);
    for config in configs {
        bytes.put_u8(config.len() as u8);
        config.iter().for_each(|id| bytes.put_u64(*id));
    }
    bytes.put_u8(membership.nodes().count() as u8);
    for (id, peer) in membership.nodes() {
        bytes.put_u64(*id);
        bytes.put_u128(peer.node);
        bytes.put_u16(peer.address.len() as u16);
        bytes.extend_from_slice(peer.address.as_bytes());
    }
}

fn take_membership(bytes: &mut Bytes) -> Result<Membership, CodecError> {
    let what = "membership";
    let mut configs = Vec::new();
    need(bytes, 1, what)?;
    for _ in 0..bytes.get_u8() {
        need(bytes, 1, what)?;
        let mut config = BTreeSet::new();
        for _ in 0..bytes.get_u8() {
            need(bytes, 8, what)?;
            config.insert(bytes.get_u64());
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    need(bytes, 1, what)?;
    for _ in 0..bytes.get_u8() {
        need(bytes, 26, what)?;
        let (id, node) = (bytes.get_u64(), bytes.get_u128());
        let len = usize::from(bytes.get_u16());
        if len > ADDRESS_BYTES_MAX {
            return Err(CodecError::Membership);
        }
        need(bytes, len, what)?;
        let address = String::from_utf8(bytes.split_to(len).to_vec());
        let address = address.map_err(|_| CodecError::Membership)?;
        nodes.insert(id, Peer { node, address });
    }
    if nodes.len() > MEMBERS_MAX {
        return Err(CodecError::Membership);
    }
    Membership::new(configs, nodes).map_err(|_| CodecError::Membership)
}

fn need(bytes: &Bytes, count: usize, what: &'static str) -> Result<(), CodecError> {
    if bytes.len() < count { Err(CodecError::Short(what)) } else { Ok(()) }
}

fn end(bytes: &Bytes, what: &'static str) -> Result<(), CodecError> {
    if bytes.is_empty() { Ok(()) } else { Err(CodecError::Long(what)) }
}

const BLANK: u8 = 1;
const NORMAL: u8 = 2;
const MEMBERSHIP: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn log_id(index: u64) -> LogId {
        LogId { leader_id: Leader { term: 3, node_id: 9 }, index }
    }

    fn membership() -> Membership {
        let peer = |number| Peer { node: number, address: format!("10.0.0.{number}:2377") };
        let nodes = BTreeMap::from([(1, peer(7)), (2, peer(8)), (3, peer(9))]);
        Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([1])], nodes).unwrap()
    }

    fn entries() -> Vec<Entry> {
        let entry = |payload| Entry { log_id: log_id(5), payload };
        vec![
            entry(Kind::Blank),
            entry(Kind::Normal(Payload(Bytes::from_static(b"data")))),
            entry(Kind::Normal(Payload(Bytes::new()))),
            entry(Kind::Membership(membership())),
        ]
    }

    #[test]
    fn entries_come_back_and_no_prefix_of_one_is_taken_for_another() {
        for entry in entries() {
            let bytes = encode_entry(&entry);
            assert_eq!(decode_entry(bytes.clone()).unwrap(), entry);
            let is_data = matches!(entry.payload, Kind::Normal(_));
            for cut in 0..bytes.len() {
                let part = decode_entry(bytes.slice(..cut));
                assert!(part.is_err() || is_data && cut >= 25, "{entry:?} {cut}");
            }
        }
    }

    #[test]
    fn unknown_kinds_and_trailing_bytes_are_refused() {
        let mut bytes = encode_entry(&entries()[0]).to_vec();
        bytes[24] = 9;
        let unknown = CodecError::Unknown { what: "log entry", kind: 9 };
        assert_eq!(decode_entry(bytes.clone().into()), Err(unknown));
        bytes[24] = BLANK;
        bytes.push(0);
        assert_eq!(decode_entry(bytes.into()), Err(CodecError::Long("log entry")));
    }

    #[test]
    fn votes_log_ids_and_snapshot_heads_come_back() {
        for committed in [false, true] {
            let ballot = Ballot { leader_id: Leader { term: 1, node_id: 2 }, committed };
            assert_eq!(decode_ballot(encode_ballot(&ballot)), Ok(ballot));
        }
        assert_eq!(decode_log_id(encode_log_id(&log_id(8))), Ok(log_id(8)));
        for last_log_id in [None, Some(log_id(8))] {
            let last_membership = StoredMembership::new(Some(log_id(4)), membership());
            let meta = SnapshotMeta { last_log_id, last_membership };
            assert_eq!(decode_meta(encode_meta(&meta)).unwrap(), meta);
        }
    }
}
