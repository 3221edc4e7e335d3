//! Frames as released versions wrote them.
//!
//! Owns: one frame of each kind and of each form that it has, and one part of each kind.
//! Does not know: the code that writes them. Invariant: a line never changes; new ones are added.

use std::collections::BTreeMap;
use std::time::Duration;

use base::Id;
use types::{
    DirectoryUpdate, EndpointMode, EndpointPart, NetworkDriver, NetworkKey, NetworkPart, NodeId,
    PortPart, PublishMode, ServiceId, ServicePart, TaskId,
};

use super::*;
use crate::names::Directory;
use crate::part::Change;
use crate::tunnels::{TunnelPeer, TunnelPeerStatus, TunnelTraffic};

const TAG: u32 = 0x0403_0201;

fn id(number: u128) -> Id {
    Id::from_u128(number).unwrap()
}

fn requests_v1() -> Vec<(&'static str, Request)> {
    let upstream = |text: &str, from| Upstream { address: text.parse().unwrap(), from };
    let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 2);
    let servers = vec![
        upstream("192.0.2.1:53", Origin::Container),
        upstream("127.0.0.53:5353", Origin::Host),
        Upstream { address: scoped.into(), from: Origin::Host },
    ];
    let container = |networks: &[u128], forward| Container {
        id: "c1".into(),
        netns: "/n/1".into(),
        networks: networks.iter().map(|number| NetworkId(id(*number))).collect(),
        forward,
    };
    vec![
        (
            "17000000 01 01 01020304 0001000201000000000000020000000708",
            Request::Directory {
                scope: Scope::Cluster,
                full: true,
                more: false,
                index: 258,
                piece: vec![7, 8],
            },
        ),
        (
            "15000000 01 01 01020304 010001000000000000000000000000",
            Request::Directory {
                scope: Scope::Node,
                full: false,
                more: true,
                index: 0,
                piece: vec![],
            },
        ),
        (
            "3d000000 01 02 01020304 020000006331040000002f6e2f310200000000000000000000000000\
             000000000001000000000000000000000000000000020000000000",
            Request::Serve(container(&[1, 2], Forward::None)),
        ),
        (
            "4d000000 01 02 01020304 020000006331040000002f6e2f3100000000010300000004c0000201\
             35000000000000047f000035e914000000000110fe80000000000000000000000000000135000200\
             000001",
            Request::Serve(container(&[], Forward::Servers(servers))),
        ),
        ("0c000000 01 03 01020304 020000006331", Request::Release("c1".into())),
        ("06000000 01 06 01020304", Request::Status),
        ("07000000 01 07 01020304 01", Request::Stop { forget: true }),
        ("06000000 01 08 01020304", Request::Yield),
    ]
    .into_iter()
    .chain(port_requests_v1())
    .chain(tunnel_requests_v1())
    .collect()
}

fn tunnel_requests_v1() -> Vec<(&'static str, Request)> {
    let peer = |number: u8, endpoint: Option<SocketAddr>| TunnelPeer {
        number: number.into(),
        key: NetworkKey([number; 32]),
        endpoint,
        address: [10, 0, 0, number].into(),
        keepalive: number == 2,
    };
    let tunnel = Tunnel {
        generation: 1,
        netns: "/n/e".into(),
        device: "wg1".into(),
        port: 7_947,
        address: [10, 0, 0, 1].into(),
        mtu: 1_440,
        key_file: "/k/1".into(),
        peers: vec![
            peer(2, Some("192.0.2.2:7947".parse().unwrap())),
            peer(3, Some(SocketAddrV6::new("fe80::3".parse().unwrap(), 7_947, 0, 2).into())),
            peer(4, None),
        ],
    };
    vec![
        (
            "ce000000 01 09 01020304 010100000001000000040000002f6e2f65030000007767310b1f\
             0a000001a0050000040000002f6b2f3103000000020000000202020202020202020202020202\
             02020202020202020202020202020202020204c00002020b1f0a000002010300000003030303\
             0303030303030303030303030303030303030303030303030303030310fe8000000000000000\
             000000000000030b1f020000000a000003000400000004040404040404040404040404040404\
             04040404040404040404040404040404000a00000400",
            Request::Tunnels { more: true, tunnels: vec![tunnel] },
        ),
        (
            "0b000000 01 09 01020304 0000000000",
            Request::Tunnels { more: false, tunnels: Vec::new() },
        ),
        ("06000000 01 0a 01020304", Request::TunnelsSeen),
    ]
}

fn tunnel_replies_v1() -> Vec<(&'static str, Reply)> {
    let traffic =
        TunnelTraffic { sent_bytes: 1, sent_packets: 2, received_bytes: 3, received_packets: 4 };
    let drops = BTreeMap::from([("forged".to_owned(), 5)]);
    let peer = TunnelPeerStatus {
        key: NetworkKey([2; 32]),
        endpoint: Some("192.0.2.2:7947".parse().unwrap()),
        handshake_age: Some(Duration::from_millis(258)),
        has_session: true,
        traffic,
        drops: drops.clone(),
    };
    let silent = TunnelPeerStatus {
        key: NetworkKey([3; 32]),
        endpoint: None,
        handshake_age: None,
        has_session: false,
        traffic: TunnelTraffic::default(),
        drops: BTreeMap::new(),
    };
    let works = TunnelStatus {
        generation: 1,
        key: Some(NetworkKey([1; 32])),
        offload: "udp".into(),
        failure: None,
        starts: 6,
        traffic,
        drops,
        peers: vec![peer, silent],
    };
    let fails = TunnelStatus { generation: 2, failure: Some("no".into()), ..Default::default() };
    vec![(
        "72010000 01 85 01020304 0002000000010000000101010101010101010101010101010101\
             0101010101010101010101010101010103000000756470000000000006000000000000000100\
             0000000000000200000000000000030000000000000004000000000000000100000006000000\
             666f726765640500000000000000020000000202020202020202020202020202020202020202\
             02020202020202020202020204c00002020b1f02010000000000000101000000000000000200\
             000000000000030000000000000004000000000000000100000006000000666f726765640500\
             0000000000000303030303030303030303030303030303030303030303030303030303030303\
             00ffffffffffffffff0000000000000000000000000000000000000000000000000000000000\
             000000000000000002000000000000000001020000006e6f0000000000000000000000000000\
             00000000000000000000000000000000000000000000000000000000000000000000",
        Reply::Tunnels { more: false, tunnels: vec![works, fails] },
    )]
}

fn port_requests_v1() -> Vec<(&'static str, Request)> {
    let binding = |protocol, port, address: Option<&str>| PortBinding {
        protocol,
        port,
        address: address.map(|text| text.parse().unwrap()),
    };
    vec![
        (
            "2b000000 01 04 01020304 010300000006500000113500047f0000018409001000000000000000\
             000000000000000001",
            Request::Reserve {
                more: true,
                bindings: vec![
                    binding(PortProtocol::Tcp, 80, None),
                    binding(PortProtocol::Udp, 53, Some("127.0.0.1")),
                    binding(PortProtocol::Sctp, 9, Some("::1")),
                ],
            },
        ),
        (
            "10000000 01 05 01020304 02000000065000113500",
            Request::Loopback6(vec![(PortProtocol::Tcp, 80), (PortProtocol::Udp, 53)]),
        ),
    ]
}

fn replies_v1() -> Vec<(&'static str, Reply)> {
    let missing = vec![PortBinding { protocol: PortProtocol::Tcp, port: 80, address: None }];
    let plain = vec![
        (
            "10000000 01 80 01020304 02000000623139300000",
            Reply::Hello { build: "b1".into(), pid: 12_345 },
        ),
        ("06000000 01 81 01020304", Reply::Done),
        (
            "0c000000 01 82 01020304 409c00000000",
            Reply::Served { port: 40_000, error: String::new() },
        ),
        ("0e000000 01 82 01020304 0000020000006e6f", Reply::Served { port: 0, error: "no".into() }),
        ("0f000000 01 83 01020304 000100000006500000", Reply::Reserved { more: false, missing }),
        (
            "2f000000 01 84 01020304 01020100000000000002000000010000000000000002000000000000\
             0001000000020000006331409c",
            Reply::Status {
                more: true,
                index: 258,
                counters: vec![1, 2],
                containers: vec![("c1".into(), 40_000)],
            },
        ),
    ];
    plain.into_iter().chain(tunnel_replies_v1()).collect()
}

/// The pieces of directories, and the updates that they are made of.
fn pieces_v1() -> Vec<(&'static str, DirectoryUpdate)> {
    vec![
        (
            "01000000000000000000000000000000013600000001000000000000000000000000000000000500\
             000066726f6e7402000000040a0001001810fd000000000000000000000000000000400100000000\
             0000000000000000000000012d0000000200000000000000000000000000000002020a0001020200\
             03776562017701000000040000006874747006500001000000000000000000000000000000011c00\
             00000200000000000000000000000000000003010100037765620000000001000000000000000000\
             000000000000014000000003000000000000000000000000000000040f0a000103fd000000000000\
             000000000000000003000000000000000000000000000000020200057765622e3101780100000000\
             000000000000000000000001180000000300000000000000000000000000000006020a0001030000",
            parts(),
        ),
        (
            "00000000000000000000000000000000010100000000000000000000000000000000000000000000\
             00000000000000000000010200000000000000000000000000000002000000000000000000000000\
             00000000010300000000000000000000000000000004",
            removals(),
        ),
    ]
}

fn parts() -> DirectoryUpdate {
    let (network, service) = (NetworkId(id(1)), ServiceId(id(2)));
    let port = PortPart {
        name: "http".into(),
        protocol: PortProtocol::Tcp,
        target: 80,
        published: 8_080,
        mode: PublishMode::Ingress,
        host: String::new(),
    };
    let plain = ServicePart {
        network,
        service,
        name: "web".into(),
        aliases: vec!["w".into()],
        mode: EndpointMode::Vip,
        v4: Some([10, 0, 1, 2].into()),
        v6: None,
        ports: vec![port],
    };
    let turns = ServicePart {
        service: ServiceId(id(3)),
        aliases: vec![],
        mode: EndpointMode::Dnsrr,
        v4: None,
        ports: vec![],
        ..plain.clone()
    };
    let endpoint = EndpointPart {
        network,
        task: TaskId(id(4)),
        service: Some(service),
        node: NodeId(id(5)),
        number: 6,
        v4: Some([10, 0, 1, 3].into()),
        v6: Some("fd00::3".parse().unwrap()),
        names: vec!["web.1".into(), "x".into()],
        serving: true,
    };
    let attached = EndpointPart {
        task: TaskId(id(6)),
        service: None,
        v6: None,
        names: vec![],
        serving: false,
        ..endpoint.clone()
    };
    DirectoryUpdate {
        networks: vec![NetworkPart {
            id: network,
            name: "front".into(),
            driver: NetworkDriver::Overlay,
            vni: 7,
            mtu: 1_450,
            ingress: false,
            internal: false,
            encrypted: false,
            subnets: vec![
                ("10.0.1.0/24".parse().unwrap(), [10, 0, 1, 1].into()),
                ("fd00::/64".parse().unwrap(), "fd00::1".parse().unwrap()),
            ],
            options: [].into(),
            config_from: String::new(),
        }],
        services: vec![plain, turns],
        endpoints: vec![endpoint, attached],
        ..DirectoryUpdate::default()
    }
}

fn removals() -> DirectoryUpdate {
    DirectoryUpdate {
        removed_networks: vec![NetworkId(id(1))],
        removed_services: vec![(NetworkId(id(1)), ServiceId(id(2)))],
        removed_endpoints: vec![(NetworkId(id(1)), TaskId(id(4)))],
        ..DirectoryUpdate::default()
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn one_frame(bytes: &[u8]) -> Frame {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    let frame = decoder.next_frame().unwrap().unwrap();
    assert!(decoder.next_frame().unwrap().is_none(), "more than a frame");
    frame
}

#[test]
fn recorded_frames_of_version_1_are_read_and_written() {
    for (hex, request) in requests_v1() {
        assert_eq!(Request::decode(&one_frame(&bytes(hex))), Ok(Some(request.clone())), "{hex}");
        assert_eq!(request.encode(TAG), bytes(hex), "{request:?}");
    }
    for (hex, reply) in replies_v1() {
        let frame = one_frame(&bytes(hex));
        assert_eq!((frame.tag, Reply::decode(&frame)), (TAG, Ok(Some(reply.clone()))), "{hex}");
        assert_eq!(reply.encode(TAG), bytes(hex), "{reply:?}");
    }
}

#[test]
fn recorded_parts_of_version_1_are_read_and_written() {
    for (hex, update) in pieces_v1() {
        let pieces: Vec<Vec<u8>> = Change::of(&update).pieces(PIECE_BYTES_MAX).collect();
        assert_eq!(pieces, [bytes(hex)], "{update:?}");
        let mut change = Change::default();
        change.take_piece(&bytes(hex)).unwrap();
        assert_eq!(change, Change::of(&update));
    }
    let [(parts, update), (removals, _)] = <[_; 2]>::try_from(pieces_v1()).unwrap();
    let mut directory = Directory::default();
    assert_eq!(directory.take_piece(&bytes(parts)), Ok(0), "none is unreadable");
    let count = update.networks.len() + update.services.len() + update.endpoints.len();
    assert_eq!(directory.len(), count);
    directory.take_piece(&bytes(removals)).unwrap();
    assert_eq!(directory.len(), 0);
}

/// What follows the fields that are known, a kind of frame, and a kind of part.
#[test]
fn a_later_version_may_add_fields_and_kinds() {
    let mut stop = bytes("0a000000 02 07 01020304 01 beef00");
    assert_eq!(Request::decode(&one_frame(&stop)), Ok(Some(Request::Stop { forget: true })));
    stop[5] = 0x70;
    let unknown = one_frame(&stop);
    assert_eq!((Request::decode(&unknown), Reply::decode(&unknown)), (Ok(None), Ok(None)));

    let (parts, _) = &pieces_v1()[0];
    let network = bytes("00000000000000000000000000000001");
    // A part of kind 9, and an endpoint with two bytes more.
    let object = bytes("00000000000000000000000000000007");
    let later: Vec<u8> = [&[1], &network[..], &[18, 0, 0, 0], &[9], &object, &[0xff]].concat();
    let longer: Vec<u8> =
        [&[1], &network[..], &[22, 0, 0, 0], &[3], &object, &[0, 0, 0, 0xbe, 0xef]].concat();
    let mut directory = Directory::default();
    let piece = [bytes(parts), later, longer].concat();
    assert_eq!(directory.take_piece(&piece), Ok(0), "none is unreadable");
    assert_eq!(directory.len(), 6);
}

#[test]
fn what_is_no_frame_is_refused() {
    let mut decoder = Decoder::default();
    decoder.push(&bytes("ffffffff"));
    let length = 0xffff_ffff;
    assert_eq!(decoder.next_frame().unwrap_err(), FrameError::Length { length });
    let mut decoder = Decoder::default();
    decoder.push(&bytes("05000000 01 06 000000"));
    assert_eq!(decoder.next_frame().unwrap_err(), FrameError::Length { length: 5 });
    let refused = |hex: &str| Request::decode(&one_frame(&bytes(hex))).unwrap_err();
    for (hex, kind, source) in [
        // A text that ends early, one that is none, a scope, and a protocol.
        ("0b000000 01 03 01020304 02000000 63", 3, CodecError::Short),
        ("0c000000 01 03 01020304 02000000 ffff", 3, CodecError::Text),
        ("07000000 01 01 01020304 05", 1, CodecError::Value("a scope")),
        ("0c000000 01 04 01020304 00 01000000 07", 4, CodecError::Value("a protocol")),
    ] {
        assert_eq!(refused(hex), FrameError::Payload { kind, source }, "{hex}");
    }
    // As many as that cannot be in so few bytes, and nothing is set aside for them.
    let many = "0b000000 01 04 01020304 00 ffffffff";
    assert_eq!(refused(many), FrameError::Payload { kind: 4, source: CodecError::Short });
}

#[test]
fn frames_come_in_any_pieces() {
    let mut decoder = Decoder::default();
    let mut seen = Vec::new();
    for (hex, _) in requests_v1() {
        for byte in bytes(hex) {
            decoder.push(&[byte]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                seen.push(Request::decode(&frame).unwrap().unwrap());
            }
        }
    }
    let all: Vec<Request> = requests_v1().into_iter().map(|(_, request)| request).collect();
    assert_eq!(seen, all);
}
