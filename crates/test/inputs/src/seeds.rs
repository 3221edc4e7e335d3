//! Inputs to begin from: one or more of each form that is read.
//!
//! Owns: making them from the product's own writers. Does not know: what becomes of them.
//! Invariant: they are the same each time.

use std::io::Write as _;

use base::Timestamp;
use flate2::Compression;
use flate2::write::GzEncoder;
use shim::proto::{FailureKind, Report, Request};
use state::{Author, Change, ChangeSet, Proposal};
use tar::{Builder, EntryType, Header};
use testkit::fixture;

const CLUSTER: &str = "node a ready
     node b ready
     service web replicas=3
     task web.1 @a running
     task web.2 @b assigned
     task web.3 pending";

/// The seeds of the target of that name.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    match target {
        "log_record" | "log_header" | "log_entry" => store::fuzzing::log_seeds(),
        "proposal" => vec![proposal()],
        "snapshot" => vec![snapshot()],
        "shim_frames" => vec![shim_frames()],
        "layer" => {
            let plain = layer();
            let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
            packed.write_all(&plain).expect("memory takes everything");
            vec![packed.finish().expect("memory takes everything"), plain]
        }
        "image_archive" => vec![archive()],
        "image_documents" => texts(&[CONFIG, MANIFEST, INDEX]),
        "image_name" => texts(&[
            "busybox",
            "docker.io/library/busybox:1.36",
            "localhost:5000/a/b-c.d_e@sha256:\
             0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "sha256:deadbeef",
            "[::1]:5000/x",
        ]),
        "constraint" => texts(&[
            "node.role==manager",
            "node.labels.zone != a b",
            "node.ip==10.0.0.0/8",
            "engine.labels.disk == ssd",
            "node.platform.arch==x86_64",
        ]),
        "join_token" => texts(&["SWMTKN-1-\
            3pu6hszjas19xyp7ghgosyx9k8atbfcr8p2is99znpy26u2lkl-1awxwuwd3z9j1z3puu7rcgdbx"]),
        _ => Vec::new(),
    }
}

const CONFIG: &str = r#"{"architecture":"amd64","os":"linux","created":"2026-01-01T00:00:00Z",
    "config":{"Env":["A=B"],"Cmd":["/x"],"User":"1:1","WorkingDir":"/","StopSignal":"SIGINT"},
    "rootfs":{"type":"layers","diff_ids":[]}}"#;
const MANIFEST: &str = r#"{"config":{"mediaType":"application/vnd.oci.image.config.v1+json",
    "digest":"sha256:00","size":2},"layers":[]}"#;
const INDEX: &str = r#"{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json",
    "digest":"sha256:00","platform":{"os":"linux","architecture":"arm64","variant":"v8"}}]}"#;

fn proposal() -> Vec<u8> {
    let view = fixture(CLUSTER).view;
    let nodes = view.nodes().map(|node| Change::CreateNode(Box::new(node.as_ref().clone())));
    let changes = nodes.collect();
    let atoms = vec![ChangeSet { author: Author::Api, changes }];
    wire::encode_proposal(&Proposal { time: Timestamp(7), atoms })
}

fn snapshot() -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = wire::encode_snapshot(&fixture(CLUSTER).view, |piece| {
        bytes.extend_from_slice(piece);
        Ok::<(), std::convert::Infallible>(())
    });
    written.expect("memory takes everything");
    bytes
}

fn shim_frames() -> Vec<u8> {
    let failed = Report::Failed { kind: FailureKind::User, code: 126, message: "no".into() };
    [
        Request::Signal(15).encode(),
        Request::KillAll.encode(),
        Report::Hello { shim_pid: 7 }.encode(),
        Report::Started { pid: 7, start_ticks: 8, at_ms: 9 }.encode(),
        failed.encode(),
        Report::Exited { code: 1, oom: true, at_ms: 2 }.encode(),
    ]
    .concat()
}

/// A file, a folder, links that lead out, a whiteout and a device.
fn layer() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    let mut add = |kind, name: &str, link: &str, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        // Set by hand: the library refuses names that lead out.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, content).expect("memory takes everything");
    };
    add(EntryType::Directory, "etc/", "", b"");
    add(EntryType::Regular, "etc/passwd", "", b"root:x:0:0::/:");
    add(EntryType::Symlink, "out", "../beside", b"");
    add(EntryType::Regular, "out/x", "", b"x");
    add(EntryType::Regular, "../beside/y", "", b"y");
    add(EntryType::Link, "hard", "../../etc/passwd", b"");
    add(EntryType::Regular, "etc/.wh.gone", "", b"");
    add(EntryType::Fifo, "pipe", "", b"");
    tar.into_inner().expect("memory takes everything")
}

/// As `docker save` writes it, without a layer.
fn archive() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    let manifest = r#"[{"Config":"c.json","RepoTags":["a/b:1"],"Layers":[]}]"#;
    for (name, content) in [("manifest.json", manifest), ("c.json", CONFIG)] {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, name, content.as_bytes()).expect("memory takes everything");
    }
    tar.into_inner().expect("memory takes everything")
}
