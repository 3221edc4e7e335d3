//! The targets.
//!
//! Owns: what is called with the input, and what must hold of a value that comes out.
//! Does not know: where inputs come from.
//! Invariant: nothing is kept from one input to the next.

use base::Id;
use pki::JoinToken;
use shim::proto::Decoder;
use tunnel::{Coalescer, Offload, OffloadHeader};
use types::{Constraint, ImageName, limits};

use crate::seeds::{checked_network, directory, question};

/// One decoder or parser.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 19] = [
    Target { name: "log_record", run: store::fuzzing::log_record },
    Target { name: "log_header", run: store::fuzzing::log_header },
    Target { name: "log_entry", run: store::fuzzing::log_entry },
    Target { name: "proposal", run: proposal },
    Target { name: "snapshot", run: snapshot },
    Target { name: "shim_frames", run: shim_frames },
    Target { name: "netd_frames", run: netd::fuzzing::frames },
    Target { name: "netd_journal", run: netd::fuzzing::journal },
    Target { name: "netd_question", run: netd_question },
    Target { name: "netd_server_answer", run: netd_server_answer },
    Target { name: "layer", run: layer },
    Target { name: "image_archive", run: image_archive },
    Target { name: "image_documents", run: runtime::fuzzing::image_documents },
    Target { name: "image_name", run: image_name },
    Target { name: "constraint", run: constraint },
    Target { name: "join_token", run: join_token },
    Target { name: "network_check", run: network_check },
    Target { name: "tunnel_split", run: tunnel_split },
    Target { name: "tunnel_join", run: tunnel_join },
];

/// The target of that name.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn target(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.name == name).expect("the name of a target")
}

fn proposal(bytes: &[u8]) {
    let Ok(proposal) = wire::decode_proposal(bytes) else { return };
    let again = wire::encode_proposal(&proposal);
    let read = wire::decode_proposal(&again).expect("what was written is read");
    assert_eq!(wire::encode_proposal(&read), again);
    // Any proposal may be applied to any state: it is refused, or the state is sound.
    let mut view = state::Snapshot::default();
    for atom in &proposal.atoms {
        let stamp = state::Stamp { index: view.index() + 1, time: proposal.time };
        drop(view.apply(stamp, atom, &mut Vec::new()));
    }
}

fn snapshot(mut bytes: &[u8]) {
    let Ok(view) = wire::decode_snapshot(&mut bytes) else { return };
    let mut again = Vec::new();
    let written = wire::encode_snapshot(&view, |piece| {
        again.extend_from_slice(piece);
        Ok::<(), std::convert::Infallible>(())
    });
    written.expect("memory takes everything");
    wire::decode_snapshot(&mut again.as_slice()).expect("what was written is read");
}

/// What a node says of a network is bounded, and may be judged whatever it is.
fn network_check(bytes: &[u8]) {
    let Some(check) = wire::fuzzing::network_check(bytes) else { return };
    assert!(check.paths.len() <= limits::CHECK_PATHS_MAX);
    assert!(check.problems.len().max(check.strangers.len()) <= limits::CHECK_TEXTS_MAX);
    let tunnels = check.paths.iter().filter_map(|path| path.tunnel.as_ref());
    for tunnel in tunnels.clone() {
        assert!(tunnel.drops.len() <= limits::TUNNEL_DROPS_MAX);
        assert!(tunnel.drops.keys().all(|cause| cause.len() <= limits::TUNNEL_DROP_BYTES_MAX));
    }
    let texts = check.problems.iter().chain(tunnels.map(|tunnel| &tunnel.trouble));
    for text in texts {
        assert!(text.len() <= limits::STATUS_TEXT_BYTES_MAX && !text.contains(char::is_control));
    }
    let (view, network) = checked_network();
    let nodes: Vec<_> = dispatch::members(&view, &network).into_iter().collect();
    let answers = nodes.iter().map(|node| (*node, Ok(check.clone()))).collect();
    let verdicts = dispatch::judge_paths(&view, &network, &answers);
    let most = nodes.len() * (limits::CHECK_TEXTS_MAX + limits::CHECK_TEXTS_MAX + nodes.len());
    assert!(verdicts.len() <= most);
}

fn shim_frames(bytes: &[u8]) {
    // In two pieces: a frame may be cut anywhere.
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let (mut requests, mut reports) = (Decoder::default(), Decoder::default());
    for piece in [first, second] {
        requests.push(piece);
        reports.push(piece);
        while let Ok(Some(request)) = requests.next_request() {
            let mut decoder = Decoder::default();
            decoder.push(&request.encode());
            assert_eq!(decoder.next_request(), Ok(Some(request)));
        }
        while let Ok(Some(_)) = reports.next_report() {}
    }
}

fn netd_question(bytes: &[u8]) {
    let (mut resolver, directory) = (netd::fuzzing::Resolver::default(), directory());
    resolver.apply(&directory);
    let networks: Vec<_> = directory.networks.iter().map(|part| part.id).collect();
    netd::fuzzing::query(bytes, &mut resolver, &networks);
    // Nobody else's names are given to one that is on no network.
    netd::fuzzing::query(bytes, &mut resolver, &[]);
}

/// To the question that the seed answers.
fn netd_server_answer(bytes: &[u8]) {
    netd::fuzzing::server_answer(bytes, &question("www.example", 1));
}

fn layer(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (dest, beside) = (folder.path().join("dest"), folder.path().join("beside"));
    for made in [&dest, &beside] {
        std::fs::create_dir(made).expect("a new folder");
    }
    runtime::fuzzing::layer(bytes, &dest);
    let count = |path| std::fs::read_dir(path).expect("it is there").count();
    assert_eq!((count(folder.path()), count(&beside)), (2, 0), "a layer left its folder");
}

fn image_archive(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    runtime::fuzzing::image_archive(bytes, folder.path());
}

fn image_name(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    runtime::fuzzing::image_wanted(text);
    let Ok(name) = ImageName::parse(text) else { return };
    let again = ImageName::parse(&name.to_string());
    assert_eq!(again.ok().as_ref(), Some(&name), "{text}");
}

fn constraint(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(constraint) = Constraint::parse(text) else { return };
    let again = Constraint::parse(&constraint.to_string());
    assert_eq!(again.ok().as_ref(), Some(&constraint), "{text}");
}

fn join_token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(token) = text.parse::<JoinToken>() {
        assert!(token.text().parse::<JoinToken>().is_ok(), "a token's own text is a token");
    }
    drop(text.parse::<Id>());
}

/// A frame of a TUN device: nothing that its header says is true.
fn tunnel_split(bytes: &[u8]) {
    let Some(header) = OffloadHeader::parse(bytes, TUNNEL_HEADER) else { return };
    let mut packet = bytes[TUNNEL_HEADER..].to_vec();
    let (length, mut count, mut longest) = (packet.len(), 0, 0);
    let cut = tunnel::split(&header, &mut packet, |segment| {
        count += 1;
        longest = longest.max(segment.len());
    });
    assert_eq!(cut.unwrap_or(0), count, "what is refused is refused whole");
    assert!(longest <= length && count <= 2048);
}

/// Packets one after another, each behind its length: each byte of theirs goes out once.
fn tunnel_join(bytes: &[u8]) {
    let mut coalescer = Coalescer::new(Offload::Tunnel);
    let (mut payload_in, mut payload_out) = (0, 0);
    let mut out = |frame: &mut [u8]| {
        let header = OffloadHeader::parse(frame, TUNNEL_HEADER).expect("a frame has a header");
        let mut packet = frame[TUNNEL_HEADER..].to_vec();
        let cut = tunnel::split(&header, &mut packet, |segment| payload_out += segment.len());
        cut.expect("what was joined can be cut");
    };
    let mut rest = bytes;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (packet, next) = tail.split_at(tail.len().min(u16::from_be_bytes(*length).into()));
        payload_in += packet.len();
        let open = |place: &mut [u8]| {
            place[..packet.len()].copy_from_slice(packet);
            Some(packet.len())
        };
        coalescer.receive(packet.len() + 16, open, &mut out);
        rest = next;
    }
    coalescer.flush(&mut out);
    assert_eq!(payload_out, payload_in);
}

const TUNNEL_HEADER: usize = 24;
