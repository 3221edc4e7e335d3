//! Engines that go and come again.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tunnel::{
    DropCause, Engine, EngineOptions, Lifetime, Offload, PeerConfig, PrivateKey, Socket, Tun,
};

use crate::spaces::{Echo, MTU, Node, PORT, Wire, eventually, inner, outer, ping};

#[test]
fn a_restarted_engine_is_reached_within_a_second() {
    let [mut near, far] = Node::pair(Offload::Tunnel);
    near.await_sessions();
    far.await_sessions();
    near.stop();
    near.start(Offload::Tunnel);
    let begun = Instant::now();
    near.set_peers(&[far.config()]);
    // The far side has an old session and knows nothing.
    let echo = Echo::start(&near.inside, inner(1).into());
    let answer = ping(&far.inside, inner(2).into(), echo.address, Duration::from_secs(5));
    assert!(answer.is_some() && begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn descriptors_are_handed_to_a_successor() {
    let [mut near, far] = Node::pair(Offload::Tunnel);
    near.await_sessions();
    let engine = near.engine.take().unwrap();
    let (tun, socket) = (engine.tun().try_clone_fd().unwrap(), engine.socket().try_clone());
    let link = near.inside.run("ip -o link show wg0");
    engine.stop();
    let tun = Tun::adopt(tun, Offload::Tunnel).unwrap();
    assert_eq!(tun.name(), "wg0");
    let socket = Socket::adopt(socket.unwrap()).unwrap();
    assert_eq!(socket.local_addr().unwrap().port(), PORT);
    let options = EngineOptions { address: inner(1), handshakes_per_second: 100 };
    near.engine = Some(Engine::start(&near.key, tun, socket, options).unwrap());
    near.set_peers(&[far.config()]);
    let echo = Echo::start(&near.inside, inner(1).into());
    assert!(ping(&far.inside, inner(2).into(), echo.address, Duration::from_secs(1)).is_some());
    assert_eq!(near.inside.run("ip -o link show wg0"), link);
    // What is no such device is refused.
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(Tun::adopt(file.into(), Offload::Tunnel).is_err());
}

/// A process with an engine of that node, perhaps with another clock.
fn child(node: &Node, peer: &PeerConfig, clock: Option<&str>) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut command = match clock {
        Some(offset) => {
            let mut command = Command::new("faketime");
            // Only the time of day; the rest would stop waiting threads.
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            command.args(["-f", offset]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.args(["--exact", "restart::engine_of_another_process", "--nocapture"]);
    let paths = [node.host.path(), node.inside.path()].join(" ");
    command.env(SPACES, paths).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let input = child.stdin.as_mut().unwrap();
    input.write_all(&*node.key.to_bytes()).unwrap();
    input.write_all(peer.key.as_bytes()).unwrap();
    input.write_all(&[node.number]).unwrap();
    let mut output = BufReader::new(child.stdout.as_mut().unwrap());
    let mut line = String::new();
    while !line.contains("engine runs") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the other process ended");
    }
    child
}

/// Not a test by itself: what [`child`] starts. With nothing in the environment it does nothing.
#[test]
fn engine_of_another_process() {
    let Ok(spaces) = std::env::var(SPACES) else { return };
    let (host, inside) = spaces.split_once(' ').unwrap();
    let mut input = std::io::stdin().lock();
    let (mut own, mut peer, mut number) = ([0; 32], [0; 32], [0]);
    input.read_exact(&mut own).unwrap();
    input.read_exact(&mut peer).unwrap();
    input.read_exact(&mut number).unwrap();
    let number = number[0];
    let enter = |path: &str| {
        let space = std::fs::File::open(path).unwrap();
        nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    };
    enter(inside);
    let tun = Tun::open("wg0", Lifetime::Persistent, Offload::Tunnel).unwrap();
    enter(host);
    let socket = Socket::open(([0, 0, 0, 0], PORT).into()).unwrap();
    let options = EngineOptions { address: inner(number), handshakes_per_second: 100 };
    let engine = Engine::start(&PrivateKey::from_bytes(own), tun, socket, options).unwrap();
    let other = 3 - number;
    let config = PeerConfig {
        key: tunnel::PublicKey::from_bytes(peer),
        endpoint: Some((outer(other), PORT).into()),
        address: inner(other),
        keepalive: None,
    };
    engine.set_peers(&[config]).unwrap();
    println!("engine runs");
    // Until it is killed.
    let _ = input.read_to_end(&mut Vec::new());
}

/// Nodes 1 and 2, of which the first has a persistent device and an engine in another process.
fn with_child(clock: Option<&str>) -> (Node, Node, Child) {
    let wire = Wire::new();
    let (mut near, far) = (Node::new(&wire, 1), Node::started(&wire, 2));
    near.start_with(Offload::Tunnel, Lifetime::Persistent, 100);
    near.stop();
    far.set_peers(&[near.config()]);
    let child = child(&near, &far.config(), clock);
    far.await_sessions();
    (near, far, child)
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    // With another clock it is the parent of the engine's process, which ends with its input.
    drop(child.stdin.take());
    child.wait().unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn the_device_outlives_a_killed_process_and_packets_pass_within_a_second() {
    let (mut near, far, child) = with_child(None);
    let echo = Echo::start(&near.inside, inner(1).into());
    let trip = || ping(&far.inside, inner(2).into(), echo.address, Duration::from_secs(5));
    assert!(trip().is_some());
    let link = near.inside.run("ip -o link show wg0");
    kill(child);
    let begun = Instant::now();
    assert!(near.inside.run("ip route show 10.99.0.0/24").contains("wg0"));
    near.start_with(Offload::Tunnel, Lifetime::Persistent, 100);
    near.set_peers(&[far.config()]);
    assert!(trip().is_some());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let index = |line: &str| line.split(':').next().map(str::to_owned);
    assert_eq!(index(&near.inside.run("ip -o link show wg0")), index(&link));
}

#[test]
fn a_clock_that_was_set_back_is_forgiven() {
    let (mut near, far, child) = with_child(Some("+1h"));
    kill(child);
    let begun = Instant::now();
    near.start_with(Offload::Tunnel, Lifetime::Persistent, 100);
    near.set_peers(&[far.config()]);
    eventually("the old time is refused", || far.peer().drops.of(DropCause::Replayed) > 0);
    let echo = Echo::start(&near.inside, inner(1).into());
    let answer = ping(&far.inside, inner(2).into(), echo.address, Duration::from_secs(5));
    assert!(answer.is_some(), "{:?}", far.observe());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// A second engine of a node, with a key, a device and a port of its own.
fn second(node: &Node) -> (PrivateKey, Engine) {
    let key = PrivateKey::generate().unwrap();
    let tun = node.inside.enter(|| {
        let tun = Tun::open("wg1", Lifetime::Temporary, Offload::Tunnel).unwrap();
        tun.set_queue_length(10_000).unwrap();
        tun
    });
    node.inside.run(&format!("ip link set wg1 mtu {MTU} up"));
    let any = ([0, 0, 0, 0], PORT + 1).into();
    let socket = node.host.enter(move || Socket::open(any).unwrap());
    let options = EngineOptions { address: inner(node.number), handshakes_per_second: 100 };
    let engine = Engine::start(&key, tun, socket, options).unwrap();
    (key, engine)
}

#[test]
fn keys_are_exchanged_without_a_lost_packet() {
    let [near, far] = Node::pair(Offload::Tunnel);
    near.await_sessions();
    far.await_sessions();
    let echo = Echo::start(&far.inside, inner(2).into());
    let (near_key, near_engine) = second(&near);
    let (far_key, far_engine) = second(&far);
    let config = |node: &Node, key: &PrivateKey| PeerConfig {
        key: key.public(),
        endpoint: Some((outer(node.number), PORT + 1).into()),
        ..node.config()
    };
    near_engine.set_peers(&[config(&far, &far_key)]).unwrap();
    far_engine.set_peers(&[config(&near, &near_key)]).unwrap();
    let socket = near.inside.enter(|| UdpSocket::bind((inner(1), 0)).unwrap());
    socket.connect(echo.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let answers = socket.try_clone().unwrap();
    let answered = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&answered);
    let counting = std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while counter.load(Relaxed) < DATAGRAMS && answers.recv(&mut buffer).is_ok() {
            counter.fetch_add(1, Relaxed);
        }
    });
    let switch = |node: &Node| {
        let (own, other) = (inner(node.number), inner(3 - node.number));
        node.inside.run(&format!("ip route add {other}/32 dev wg1 src {own}"));
    };
    let has_session = |engine: &Engine| engine.observe().peers[0].has_session;
    eventually("sessions of the new keys", || {
        has_session(&near_engine) && has_session(&far_engine)
    });
    for number in 0..DATAGRAMS {
        socket.send(&[7; 1200]).unwrap();
        std::thread::sleep(Duration::from_micros(500));
        // No more on the way than the sockets of this test hold, on a busy machine too.
        eventually("answers", || number - answered.load(Relaxed).min(number) < 32);
        // The far node is late.
        match number {
            500 => switch(&near),
            900 => switch(&far),
            _ => {}
        }
    }
    counting.join().unwrap();
    assert_eq!(answered.load(Relaxed), DATAGRAMS);
    assert!(near_engine.observe().traffic.sent_packets > 0);
    assert!(far_engine.observe().traffic.sent_packets > 0);
}

const DATAGRAMS: usize = 1500;
const SPACES: &str = "TUNNEL_TEST_SPACES";
