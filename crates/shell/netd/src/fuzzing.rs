//! What netd reads, for tests that feed it anything.
//!
//! Owns: the ways in. Does not know: how inputs are made.
//! Invariant: whatever the bytes are, nothing panics, and what is answered can be read.

use std::collections::BTreeMap;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::time::Instant;
use types::{DirectoryUpdate, NetworkId, NetworkKey};

use crate::cache::{self, Cache};
use crate::forward::fits;
use crate::names::Directory;
use crate::part::Change;
use crate::proto::{Decoder, PIECE_BYTES_MAX, Reply, Request};
use crate::query::{Malformed, Query, refuse_malformed};
use crate::resolve::{Records, Scratch, Verdict};
use crate::site::Via;
use crate::tunnels::{Tunnel, TunnelPeer, TunnelPeerStatus, TunnelStatus, TunnelTraffic};
use crate::{Container, Forward, Scope};

/// What is known, without the process around it.
#[derive(Debug, Default)]
pub struct Resolver {
    records: Records,
    scratch: Scratch,
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Answer(Vec<u8>),
    /// Somebody else may know.
    Foreign,
    Nothing,
}

impl Resolver {
    /// Takes an update of the managers in.
    pub fn apply(&mut self, update: &DirectoryUpdate) {
        let directory = &mut self.records.scopes[Scope::Cluster as usize];
        if update.full {
            *directory = Directory::default();
        }
        assert_eq!(directory.apply(Change::of(update)), 0, "what we write is read");
    }

    /// What a container on `networks` is told, by a connection or by a datagram.
    pub fn ask(&mut self, networks: &[NetworkId], question: &[u8], by_stream: bool) -> Said {
        let mut out = Vec::new();
        let query = match Query::parse(question) {
            Ok(query) => query,
            Err(Malformed::Silent) => return Said::Nothing,
            Err(Malformed::Refused { id, flags, code }) => {
                refuse_malformed(id, flags, code, &mut out);
                return Said::Answer(out);
            }
        };
        let via = if by_stream { Via::Stream } else { Via::Datagram };
        let bytes_max = via.bytes_max(&query);
        match self.records.resolve(&query, networks, bytes_max, &mut self.scratch, &mut out) {
            Verdict::Answered => {
                assert!(out.len() <= bytes_max, "{} bytes of {bytes_max}", out.len());
                Said::Answer(out)
            }
            Verdict::Foreign => Said::Foreign,
        }
    }
}

/// Bytes as a question of a container on these networks.
pub fn query(bytes: &[u8], resolver: &mut Resolver, networks: &[NetworkId]) {
    for by_stream in [false, true] {
        if let Said::Answer(answer) = resolver.ask(networks, bytes, by_stream) {
            Message::from_vec(&answer).expect("an answer of ours is a message");
        }
    }
}

/// Bytes as what a server says to the question `asked`.
pub fn server_answer(bytes: &[u8], asked: &[u8]) {
    let Ok(query) = Query::parse(asked) else { return };
    let id = bytes.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    if !fits(bytes, id, &query) {
        return;
    }
    let (mut cache, now) = (Cache::default(), Instant::now());
    let key = cache::key(1, &query);
    cache.insert(key.clone(), bytes, now);
    for age in [0, 1, 59, 100_000] {
        let mut out = Vec::new();
        if cache.find(&key, &query, now + Duration::from_secs(age), &mut out) {
            assert_eq!(out.len(), bytes.len(), "what is kept is given");
        }
    }
}

/// Bytes as what netd kept for its successor: a directory out of it makes the same again.
pub fn journal(bytes: &[u8]) {
    let (mut decoder, mut directory) = (Decoder::default(), Directory::default());
    decoder.push(bytes);
    while let Ok(Some(frame)) = decoder.next_frame() {
        let Ok(Some(request)) = Request::decode(&frame) else { continue };
        let Request::Directory { full, piece, .. } = request else { continue };
        let mut change = Change::default();
        // What cannot be read ends the piece; what was read before stands.
        let _ = match full {
            true => directory.take_piece(&piece).map(drop),
            false => change.take_piece(&piece),
        };
        directory.apply(change);
    }
    let mut again = Directory::default();
    for piece in directory.pieces(PIECE_BYTES_MAX) {
        assert_eq!(again.take_piece(&piece), Ok(0), "what is kept is read");
    }
    assert_eq!(again.len(), directory.len(), "what is kept is all of it");
}

/// Bytes as what a daemon says to netd, and netd to a daemon.
pub fn frames(bytes: &[u8]) {
    // In two pieces: a frame may be cut anywhere.
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut decoder = Decoder::default();
    for piece in [first, second] {
        decoder.push(piece);
        while let Ok(Some(frame)) = decoder.next_frame() {
            if let Ok(Some(reply)) = Reply::decode(&frame) {
                let mut again = Decoder::default();
                again.push(&reply.encode(frame.tag));
                let read = again.next_frame().ok().flatten().map(|frame| Reply::decode(&frame));
                assert_eq!(read, Some(Ok(Some(reply))), "what was written is read");
            }
            let Ok(Some(request)) = Request::decode(&frame) else { continue };
            let mut again = Decoder::default();
            again.push(&request.encode(frame.tag));
            let read = again.next_frame().ok().flatten().map(|frame| Request::decode(&frame));
            assert_eq!(read, Some(Ok(Some(request))), "what was written is read");
        }
    }
}

/// Frames of every kind, a directory in them.
#[must_use]
pub fn seeds(update: &DirectoryUpdate) -> Vec<Vec<u8>> {
    let change = Change::of(update);
    let directory = change.pieces(PIECE_BYTES_MAX).map(|piece| {
        let (scope, full, more, index) = (Scope::Cluster, update.full, false, update.index);
        Request::Directory { scope, full, more, index, piece }.encode(1)
    });
    let container = Container {
        id: "a".into(),
        netns: "/proc/1/ns/net".into(),
        networks: update.networks.iter().map(|part| part.id).collect(),
        forward: Forward::None,
    };
    let requests = [
        Request::Serve(container),
        Request::Release("a".into()),
        Request::Reserve { more: false, bindings: Vec::new() },
        Request::Loopback6(vec![(types::PortProtocol::Tcp, 80)]),
        Request::Tunnels { more: false, tunnels: vec![tunnel()] },
        Request::TunnelsSeen,
        Request::Status,
        Request::Yield,
        Request::Stop { forget: true },
    ];
    let replies = [
        Reply::Hello { build: "one".into(), pid: 7 },
        Reply::Done,
        Reply::Served { port: 7, error: String::new() },
        Reply::Reserved { more: false, missing: Vec::new() },
        Reply::Tunnels { more: false, tunnels: vec![tunnel_status()] },
    ];
    let requests = requests.iter().map(|request| request.encode(2));
    let replies = replies.iter().map(|reply| reply.encode(2));
    vec![
        directory.collect::<Vec<_>>().concat(),
        requests.chain(replies).collect::<Vec<_>>().concat(),
    ]
}

fn tunnel() -> Tunnel {
    let peer = |number: u8, endpoint: Option<&str>| TunnelPeer {
        number: number.into(),
        key: NetworkKey([number; 32]),
        endpoint: endpoint.and_then(|text| text.parse().ok()),
        address: [10, 0, 0, number].into(),
        keepalive: endpoint.is_none(),
    };
    Tunnel {
        generation: 1,
        netns: "/proc/1/ns/net".into(),
        device: "wg1".into(),
        port: 7_947,
        address: [10, 0, 0, 1].into(),
        mtu: 1_440,
        key_file: "/key".into(),
        peers: vec![peer(2, Some("192.0.2.2:7947")), peer(3, Some("[fd00::3]:1")), peer(4, None)],
    }
}

fn tunnel_status() -> TunnelStatus {
    let drops = BTreeMap::from([("forged".to_owned(), 1), ("garbage".to_owned(), 2)]);
    let peer = TunnelPeerStatus {
        key: NetworkKey([2; 32]),
        endpoint: "[fd00::3]:1".parse().ok(),
        handshake_age: Some(Duration::from_secs(1)),
        has_session: true,
        traffic: TunnelTraffic { sent_bytes: 7, ..TunnelTraffic::default() },
        drops: drops.clone(),
    };
    TunnelStatus {
        generation: 1,
        key: Some(NetworkKey([1; 32])),
        failure: Some("none".into()),
        drops,
        peers: vec![peer],
        ..TunnelStatus::default()
    }
}
