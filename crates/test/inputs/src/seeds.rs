//! Inputs to begin from: one or more of each form that is read.
//!
//! Owns: making them from the product's own writers. Does not know: what becomes of them.
//! Invariant: they are the same each time.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;

use base::{Id, Millis, Timestamp};
use flate2::Compression;
use flate2::write::GzEncoder;
use shim::proto::{FailureKind, Report, Request};
use state::{Author, Change, ChangeSet, Proposal, Snapshot};
use tar::{Builder, EntryType, Header};
use testkit::fixture;
use tunnel::OffloadHeader;
use types::{
    DirectoryUpdate, EncryptionBackend, EndpointMode, EndpointPart, Meta, Network, NetworkCheck,
    NetworkDriver, NetworkId, NetworkPart, NetworkSpec, NodeId, PathCheck, PortPart, PortProtocol,
    PublishMode, ServiceId, ServicePart, TaskId, TunnelCheck,
};

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
        "netd_frames" | "netd_journal" => netd::fuzzing::seeds(&directory()),
        "netd_question" => QUESTIONS.iter().map(|(name, kind)| question(name, *kind)).collect(),
        "netd_server_answer" => vec![server_answer()],
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
        "network_check" => vec![network_check()],
        "tunnel_split" => vec![super_packet(&[]), super_packet(&VXLAN), vec![0; 60]],
        "tunnel_join" => vec![segments(&super_packet(&[])), segments(&super_packet(&VXLAN))],
        _ => Vec::new(),
    }
}

/// A frame with three and a half segments of TCP, perhaps with headers of a tunnel around it.
fn super_packet(outer: &[u8]) -> Vec<u8> {
    let (size, payload) = (40_u16, [7; 140]);
    let mut packet = outer.to_vec();
    packet.extend(IP_TCP);
    packet.extend(payload);
    let (inner, whole) = (packet.len() - outer.len(), packet.len());
    let mut length = |at: usize, value: usize| {
        packet[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
    };
    length(outer.len() + 2, inner);
    let at = outer.len() as u16;
    let (gso_type, tunnel) = if outer.is_empty() {
        (1, [0, 0])
    } else {
        length(2, whole);
        length(24, whole - 20);
        (0x21, [20, at])
    };
    let words = [at + 40, size, at + 20, 16, 0, 0, 0, 0, 0, tunnel[0], tunnel[1]];
    let mut frame = vec![1, gso_type];
    frame.extend(words.into_iter().flat_map(u16::to_ne_bytes));
    frame.extend(packet);
    frame
}

/// What becomes of a frame on the way, each behind its length.
fn segments(frame: &[u8]) -> Vec<u8> {
    let header = OffloadHeader::parse(frame, 24).expect("a header");
    let (mut packet, mut all) = (frame[24..].to_vec(), Vec::new());
    let cut = tunnel::split(&header, &mut packet, |segment| {
        all.extend((segment.len() as u16).to_be_bytes());
        all.extend(segment);
    });
    cut.expect("the seed is sound");
    all
}

/// From 10.0.0.1 to 10.0.0.2, with a pushed end; lengths are filled in.
const IP_TCP: [u8; 40] = [
    0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 80, 0, 0,
    0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
];

/// IPv4, UDP, VXLAN and Ethernet; lengths are filled in.
const VXLAN: [u8; 50] = [
    0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2, 0xc3, 0x50, 0x12, 0xb5, 0,
    0, 0, 0, 8, 0, 0, 0, 0, 16, 1, 0, 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0,
];

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

/// The encrypted network of the mesh, which all nodes are on.
pub(crate) fn checked_network() -> (Snapshot, Network) {
    let mut spec = NetworkSpec::ingress();
    spec.options.insert("encrypted".into(), String::new());
    let id = NetworkId(Id::from_u128(1).expect("a small number"));
    let network = Network {
        id,
        meta: Meta::default(),
        spec: Arc::new(spec),
        vni: 4_096,
        mtu: 1_370,
        subnets: Vec::new(),
    };
    (fixture(CLUSTER).view, network)
}

/// What one of its nodes found: with itself, one that is there, and one that is unknown.
fn network_check() -> Vec<u8> {
    let (view, network) = checked_network();
    let tunnel = TunnelCheck {
        backend: EncryptionBackend::UserSpace,
        generation: 2,
        handshake_age: Some(Millis(61_000)),
        sent_bytes: 1 << 40,
        received_bytes: 7,
        drops: [("wrong-key".into(), 3), ("forged".into(), 1)].into(),
        trouble: "no handshake with it".into(),
    };
    let path = |node: NodeId| PathCheck {
        node,
        sent: 50,
        answered: 49,
        round_trip_us: 812,
        wanted: 1_370,
        passes: 1_300,
        tunnel: Some(tunnel.clone()),
    };
    let nodes = view.nodes().map(|node| node.id).chain([NodeId::MAX]);
    wire::fuzzing::network_check_seed(&NetworkCheck {
        network: network.id,
        problems: vec!["the device is missing".into()],
        paths: nodes.map(path).collect(),
        strangers: vec![[192, 0, 2, 7].into()],
    })
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

/// One network, a service with a virtual address and one by its tasks.
pub(crate) fn directory() -> DirectoryUpdate {
    let id = |number| Id::from_u128(number).expect("a small number");
    let network = NetworkId(id(1));
    let subnet = "10.0.1.0/24".parse().expect("a subnet");
    let port = PortPart {
        name: "http".into(),
        protocol: PortProtocol::Tcp,
        target: 80,
        published: 0,
        mode: PublishMode::Ingress,
        host: String::new(),
    };
    let service = |number, name: &str, v4| ServicePart {
        network,
        service: ServiceId(id(number)),
        name: name.into(),
        aliases: vec!["alias".into()],
        mode: if v4 == 0 { EndpointMode::Dnsrr } else { EndpointMode::Vip },
        v4: (v4 != 0).then(|| [10, 0, 1, v4].into()),
        v6: None,
        ports: vec![port.clone()],
    };
    let endpoint = |number: u8| EndpointPart {
        network,
        task: TaskId(id(100 + u128::from(number))),
        service: Some(ServiceId(id(3))),
        node: NodeId(id(9)),
        number: 9,
        v4: Some([10, 0, 1, number].into()),
        v6: Some([0xfd00, 0, 0, 0, 0, 0, 0, number.into()].into()),
        names: vec![format!("db.{number}.x"), format!("db.{number}")],
        serving: true,
    };
    DirectoryUpdate {
        full: true,
        index: 7,
        networks: vec![NetworkPart {
            id: network,
            name: "front".into(),
            driver: NetworkDriver::Overlay,
            vni: 7,
            mtu: 1_450,
            ingress: false,
            internal: false,
            encrypted: false,
            subnets: vec![(subnet, [10, 0, 1, 1].into())],
            options: BTreeMap::new(),
            config_from: String::new(),
        }],
        services: vec![service(2, "web", 2), service(3, "db", 0)],
        endpoints: (3..40).map(endpoint).collect(),
        ..DirectoryUpdate::default()
    }
}

/// Names, and types of records: A, PTR, AAAA, SRV, and any.
const QUESTIONS: [(&str, u16); 7] = [
    ("web", 1),
    ("tasks.db.front", 28),
    ("DB", 255),
    ("2.1.0.10.in-addr.arpa", 12),
    ("_http._tcp.db", 33),
    ("http.tcp.web.front", 33),
    ("www.example", 1),
];

/// A question as a C library sends it, with the size that it takes.
pub(crate) fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    // OPT: 1,232 bytes.
    bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// Two addresses, for different times.
fn server_answer() -> Vec<u8> {
    let mut bytes = question("www.example", 1);
    let opt = bytes.split_off(bytes.len() - 11);
    bytes[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 2]);
    for (ttl, last) in [(60, 1), (300, 2)] {
        bytes.extend([0xc0, 12, 0, 1, 0, 1]);
        bytes.extend(u32::to_be_bytes(ttl));
        bytes.extend([0, 4, 192, 0, 2, last]);
    }
    [bytes, opt].concat()
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
