//! Engines with each other.

use std::net::{IpAddr, UdpSocket};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use tunnel::{DropCause, Offload, PeerConfig, PrivateKey, TunnelError};

use crate::spaces::{Echo, Node, PORT, Space, Wire, container, echo_tcp, eventually, inner, ping};

#[test]
fn tcp_passes_on_every_rung_of_the_ladder() {
    for most in [Offload::Tunnel, Offload::Udp, Offload::Tcp, Offload::None] {
        let [near, far] = Node::pair(most);
        assert!(near.observe().offload <= most);
        near.await_sessions();
        echo_tcp(&near.inside, &far.inside, inner(2).into(), 8 << 20);
        echo_tcp(&far.inside, &near.inside, inner(1).into(), 1 << 20);
        let (here, there) = (near.observe(), far.observe());
        assert_eq!((here.failure, there.failure), (None, None));
        let peer = &here.peers[0];
        assert!(peer.traffic.sent_bytes > 9 << 20 && peer.traffic.received_bytes > 9 << 20);
        assert!(peer.traffic.sent_packets > 6000, "{:?}", peer.traffic);
        assert!(peer.handshake_age.is_some_and(|age| age < Duration::from_secs(60)));
        for drops in [here.drops, there.drops] {
            // What the kernel says to all neighbours, an initiation that came too early, and the
            // answer to one that was given up for another.
            let usual = [DropCause::NoPeer, DropCause::UnknownPeer, DropCause::UnknownSession];
            let other = drops.iter().find(|(cause, _)| !usual.contains(cause));
            assert_eq!(other, None, "{most:?}");
        }
    }
}

#[test]
fn both_directions_are_heavy_and_quiet_in_turn() {
    let [near, far] = Node::pair(Offload::Tunnel);
    near.await_sessions();
    let echo = Echo::start(&far.inside, inner(2).into());
    for _ in 0..3 {
        std::thread::scope(|scope| {
            scope.spawn(|| echo_tcp(&near.inside, &far.inside, inner(2).into(), 4 << 20));
            scope.spawn(|| echo_tcp(&far.inside, &near.inside, inner(1).into(), 4 << 20));
        });
        // Whoever minds the device now, somebody does.
        for _ in 0..50 {
            let limit = Duration::from_secs(1);
            assert!(ping(&near.inside, inner(1).into(), echo.address, limit).is_some());
        }
    }
    for node in [&near, &far] {
        assert_eq!(node.observe().failure, None);
        assert_eq!(node.observe().drops.of(DropCause::Replayed), 0);
    }
}

#[test]
fn vxlan_passes_between_containers_on_every_rung() {
    for most in [Offload::Tunnel, Offload::Udp, Offload::Tcp, Offload::None] {
        let [near, far] = Node::pair(most);
        let one = container(&near.inside, 1, 2);
        let other = container(&far.inside, 2, 1);
        echo_tcp(&one, &other, [10, 77, 0, 2].into(), 8 << 20);
        let echo = Echo::start(&other, [10, 77, 0, 2].into());
        let answer = ping(&one, [10, 77, 0, 1].into(), echo.address, Duration::from_secs(5));
        assert!(answer.is_some());
        for node in [&near, &far] {
            assert_eq!(node.observe().drops.of(DropCause::Malformed), 0);
            assert_eq!(node.observe().drops.of(DropCause::WriteFailed), 0);
        }
    }
}

#[test]
fn nodes_speak_over_ipv6() {
    let wire = Wire::new();
    let nodes = [Node::started(&wire, 1), Node::started(&wire, 2)];
    let by_v6 = |number: u16| PeerConfig {
        endpoint: Some((IpAddr::from([0xfd12, 0, 0, 0, 0, 0, 0, number]), PORT).into()),
        ..nodes[usize::from(number) - 1].config()
    };
    nodes[0].set_peers(&[by_v6(2)]);
    nodes[1].set_peers(&[by_v6(1)]);
    echo_tcp(&nodes[0].inside, &nodes[1].inside, inner(2).into(), 4 << 20);
    assert!(nodes[1].peer().endpoint.unwrap().is_ipv6());
}

#[test]
fn a_session_is_there_before_the_first_packet() {
    let wire = Wire::new();
    let nodes: Vec<Node> = (1..=5).map(|number| Node::started(&wire, number)).collect();
    let all: Vec<PeerConfig> = nodes.iter().map(Node::config).collect();
    for node in &nodes {
        let others = all.iter().filter(|peer| peer.address != inner(node.number)).copied();
        node.set_peers(&others.collect::<Vec<_>>());
    }
    for node in &nodes {
        node.await_sessions();
        assert_eq!(node.observe().peers.len(), 4);
        assert_eq!(node.observe().traffic.sent_bytes, 0);
    }
}

#[test]
fn the_first_packet_waits_for_the_session_and_is_not_lost() {
    let [near, far] = Node::pair(Offload::Tunnel);
    let socket = far.inside.enter(|| UdpSocket::bind((inner(2), 700)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let begun = Instant::now();
    near.inside.enter(|| {
        UdpSocket::bind((inner(1), 0)).unwrap().send_to(b"first", (inner(2), 700)).unwrap();
    });
    let mut buffer = [0; 16];
    assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn a_peer_behind_translation_is_known_by_what_it_sends() {
    let wire = Wire::new();
    let nodes = [Node::started(&wire, 1), Node::started(&wire, 2)];
    nodes[0].set_peers(&[PeerConfig { endpoint: None, ..nodes[1].config() }]);
    let keepalive = NonZeroU16::new(1);
    nodes[1].set_peers(&[PeerConfig { keepalive, ..nodes[0].config() }]);
    eventually("an endpoint", || nodes[0].peer().endpoint == nodes[1].config().endpoint);
    echo_tcp(&nodes[0].inside, &nodes[1].inside, inner(2).into(), 1000);
    // Told again that it is not known: what was learned stays.
    nodes[0].set_peers(&[PeerConfig { endpoint: None, ..nodes[1].config() }]);
    assert_eq!(nodes[0].peer().endpoint, nodes[1].config().endpoint);
}

#[test]
fn a_changed_endpoint_is_learned_and_told() {
    let [mut near, far] = Node::pair(Offload::Tunnel);
    near.await_sessions();
    far.await_sessions();
    // Learned: another port of the host, which nobody is told.
    near.stop();
    near.port = PORT + 1;
    near.start(Offload::Tunnel);
    near.set_peers(&[far.config()]);
    eventually("the other port", || far.peer().endpoint == near.config().endpoint);
    let echo = Echo::start(&near.inside, inner(1).into());
    assert!(ping(&far.inside, inner(2).into(), echo.address, Duration::from_secs(1)).is_some());
    // Told: another address, from which nothing has come yet.
    near.host.run("ip addr add 192.0.2.51/24 dev eth0");
    let endpoint = Some(([192, 0, 2, 51], PORT + 1).into());
    far.set_peers(&[PeerConfig { endpoint, ..near.config() }]);
    assert_eq!(far.peer().endpoint, endpoint);
    assert!(far.peer().has_session, "the session ended with the endpoint");
    assert!(ping(&far.inside, inner(2).into(), echo.address, Duration::from_secs(1)).is_some());
}

#[test]
fn a_removed_peer_is_cut_off_at_once() {
    let [near, far] = Node::pair(Offload::Tunnel);
    near.await_sessions();
    let echo = Echo::start(&far.inside, inner(2).into());
    assert!(ping(&near.inside, inner(1).into(), echo.address, Duration::from_secs(2)).is_some());
    far.set_peers(&[]);
    let answer = ping(&near.inside, inner(1).into(), echo.address, Duration::from_millis(300));
    assert_eq!(answer, None);
    assert!(far.observe().drops.of(DropCause::UnknownPeer) > 0);
    assert!(far.observe().peers.is_empty());
    // And back: the other side need not do anything.
    far.set_peers(&[near.config()]);
    assert!(ping(&near.inside, inner(1).into(), echo.address, Duration::from_secs(1)).is_some());
}

#[test]
fn a_path_that_takes_less_is_served_with_fragments() {
    let [near, far] = Node::pair(Offload::Tunnel);
    near.await_sessions();
    // Of both: what is larger is dropped where it arrives, but for super-packets.
    for node in [&near, &far] {
        node.host.run("ip link set eth0 mtu 1300");
    }
    echo_tcp(&near.inside, &far.inside, inner(2).into(), 2 << 20);
    assert_eq!(near.observe().drops.of(DropCause::SendFailed), 0);
}

#[test]
fn packets_for_a_peer_without_a_session_are_bounded() {
    let wire = Wire::new();
    let near = Node::started(&wire, 1);
    let absent = Node::new(&wire, 2);
    near.set_peers(&[absent.config()]);
    near.inside.enter(|| {
        let socket = UdpSocket::bind((inner(1), 0)).unwrap();
        for _ in 0..2000 {
            socket.send_to(&[1; 1000], (inner(2), 9)).unwrap();
        }
    });
    eventually("the rest is dropped", || near.peer().drops.of(DropCause::NoSession) >= 1936);
    near.inside.enter(|| {
        let socket = UdpSocket::bind((inner(1), 0)).unwrap();
        socket.send_to(&[1; 1000], (inner(77), 9)).unwrap();
    });
    eventually("no such peer", || near.observe().drops.of(DropCause::NoPeer) >= 1);
}

#[test]
fn peers_that_cannot_be_told_apart_are_refused() {
    let wire = Wire::new();
    let near = Node::started(&wire, 1);
    let peer = |number| PeerConfig {
        key: PrivateKey::generate().unwrap().public(),
        endpoint: None,
        address: inner(number),
        keepalive: None,
    };
    let engine = near.engine.as_ref().unwrap();
    let (one, two) = (peer(2), peer(3));
    let same_key = PeerConfig { key: one.key, ..two };
    let result = engine.set_peers(&[one, same_key]);
    assert!(matches!(result, Err(TunnelError::SameKey { key }) if key == one.key));
    let result = engine.set_peers(&[one, PeerConfig { address: one.address, ..two }]);
    assert!(matches!(result, Err(TunnelError::SameAddress { .. })));
    let own = PeerConfig { key: near.key.public(), ..one };
    assert!(matches!(engine.set_peers(&[own]), Err(TunnelError::SameKey { .. })));
    let own = PeerConfig { address: inner(1), ..one };
    assert!(matches!(engine.set_peers(&[own]), Err(TunnelError::SameAddress { .. })));
    assert!(engine.observe().peers.is_empty());
}

#[test]
fn wrong_addresses_inside_are_dropped() {
    let [near, far] = Node::pair(Offload::Tunnel);
    near.await_sessions();
    far.await_sessions();
    near.inside.run("ip addr add 10.99.0.9/32 dev lo");
    far.inside.run("ip addr add 10.99.0.8/32 dev lo");
    let send = |from: &Space, source: u8, to: u8| {
        from.enter(move || {
            let socket = UdpSocket::bind((inner(source), 0)).unwrap();
            socket.send_to(b"x", (inner(to), 9)).unwrap();
        });
    };
    send(&near.inside, 9, 2);
    eventually("a wrong source", || far.peer().drops.of(DropCause::WrongSource) == 1);
    // The sender believes that the peer has another address.
    near.set_peers(&[PeerConfig { address: inner(8), ..far.config() }]);
    near.await_sessions();
    send(&near.inside, 1, 8);
    eventually("a wrong destination", || far.peer().drops.of(DropCause::WrongDestination) == 1);
    assert_eq!(far.observe().traffic.received_bytes, 0);
}
