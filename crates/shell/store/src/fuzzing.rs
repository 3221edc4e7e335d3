//! What the log's decoders are given by files, for tests that feed them anything.
//!
//! Owns: the ways in. Does not know: how inputs are made.
//! Invariant: whatever the bytes are, an error or a value comes back, and a value that is written
//! again gives one that is read as the same.

use bytes::Bytes;

use crate::codec;
use crate::seal::SALT_BYTES;
use crate::wal::format::{HEADER_BYTES, Header, Previous, Record};

/// Bytes as the record of a log's frame.
pub fn log_record(bytes: &[u8]) {
    let Ok(record) = Record::decode(bytes.to_vec()) else { return };
    let mut again = Vec::new();
    record.encode(&mut again);
    assert_eq!(Record::decode(again), Ok(record), "a record is read as it was written");
}

/// Bytes as the beginning of a segment.
pub fn log_header(bytes: &[u8]) {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else { return };
    if let Ok(header) = Header::decode(head) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
}

/// Bytes as an entry, a vote, the name of an entry, the head of a snapshot.
pub fn log_entry(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(entry) = codec::decode_entry(bytes.clone()) {
        assert!(codec::decode_entry(codec::encode_entry(&entry)).is_ok_and(|same| same == entry));
    }
    if let Ok(ballot) = codec::decode_ballot(bytes.clone()) {
        assert!(codec::decode_ballot(codec::encode_ballot(&ballot)).is_ok_and(|b| b == ballot));
    }
    if let Ok(id) = codec::decode_log_id(bytes.clone()) {
        assert!(codec::decode_log_id(codec::encode_log_id(&id)).is_ok_and(|same| same == id));
    }
    if let Ok(meta) = codec::decode_meta(bytes) {
        assert!(codec::decode_meta(codec::encode_meta(&meta)).is_ok_and(|same| same == meta));
    }
}

/// What the log writes, to begin from.
#[must_use]
pub fn log_seeds() -> Vec<Vec<u8>> {
    let id = Bytes::from_static(&[7; 24]);
    let records = [
        Record::Entry { index: 9, bytes: Bytes::from_static(b"entry") },
        Record::Vote(Bytes::from_static(&[1; 17])),
        Record::Truncate { from: 3 },
        Record::Purge { to: 2, id: id.clone() },
        Record::State { vote: Some(Bytes::from_static(&[1; 17])), purged: Some((2, id)) },
        Record::State { vote: None, purged: None },
    ];
    let encoded = |record: &Record| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        bytes
    };
    let header = Header { sequence: 2, previous: Previous::ValidTo(64), salt: [3; SALT_BYTES] };
    records.iter().map(encoded).chain([header.encode().to_vec()]).collect()
}
