//! Attackers on the wire.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use tunnel::{DropCause, Lifetime, Offload, PeerConfig, PrivateKey, PublicKey};

use crate::spaces::{Echo, Node, PORT, Wire, eventually, inner, outer, ping};

/// Somebody in the middle, who passes everything on and keeps what goes to the far node.
struct Middle {
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
    /// From which the far node hears the near one.
    towards_far: UdpSocket,
    far: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Middle {
    fn between(wire: &Wire, near: &Node, far: &Node) -> Self {
        let host = wire.plug(66);
        let bind = |port: u16| host.enter(move || UdpSocket::bind((outer(66), port)).unwrap());
        let (towards_near, towards_far) = (bind(1000), bind(2000));
        let (kept, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let mut middle = Self {
            kept: Arc::clone(&kept),
            towards_far: towards_far.try_clone().unwrap(),
            far: (outer(far.number), PORT).into(),
            stop,
            threads: Vec::new(),
        };
        let near_address = SocketAddr::from((outer(near.number), PORT));
        middle.pass(towards_near.try_clone().unwrap(), towards_far.try_clone().unwrap(), {
            let far = middle.far;
            move |message: &[u8]| {
                kept.lock().unwrap().push(message.to_vec());
                far
            }
        });
        middle.pass(towards_far, towards_near, move |_: &[u8]| near_address);
        near.set_peers(&[PeerConfig { endpoint: Some((outer(66), 1000).into()), ..far.config() }]);
        far.set_peers(&[PeerConfig { endpoint: Some((outer(66), 2000).into()), ..near.config() }]);
        middle
    }

    fn pass(
        &mut self,
        from: UdpSocket,
        to: UdpSocket,
        target: impl Fn(&[u8]) -> SocketAddr + Send + 'static,
    ) {
        let stop = Arc::clone(&self.stop);
        from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        self.threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, _)) = from.recv_from(&mut buffer) {
                    let _ = to.send_to(&buffer[..length], target(&buffer[..length]));
                }
            }
        }));
    }

    /// What went to the far node, of that kind.
    fn kept(&self, kind: u8) -> Vec<Vec<u8>> {
        self.kept.lock().unwrap().iter().filter(|message| message[0] == kind).cloned().collect()
    }

    fn inject(&self, message: &[u8]) {
        self.towards_far.send_to(message, self.far).unwrap();
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn changed(message: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[at..at + bytes.len()].copy_from_slice(bytes);
    message
}

#[test]
fn repeated_altered_and_cut_messages_are_dropped_by_cause() {
    let wire = Wire::new();
    let [near, far] = [Node::started(&wire, 1), Node::started(&wire, 2)];
    let middle = Middle::between(&wire, &near, &far);
    near.await_sessions();
    far.await_sessions();
    let echo = Echo::start(&far.inside, inner(2).into());
    let trip = || ping(&near.inside, inner(1).into(), echo.address, Duration::from_secs(5));
    trip().unwrap();
    let (data, initiations) = (middle.kept(4), middle.kept(1));
    let (data, initiation) = (data.last().unwrap(), initiations.last().unwrap());
    let received = far.observe().traffic.received_packets;
    let drops = |cause| far.peer().drops.of(cause);
    let counter = &(1_u64 << 40).to_le_bytes();
    let cases: [(DropCause, Vec<u8>); 5] = [
        (DropCause::Replayed, data.clone()),
        (DropCause::Forged, changed(data, 8, counter)),
        (DropCause::Forged, changed(data, 8, counter)[..50].to_vec()),
        (DropCause::Replayed, initiation.clone()),
        (DropCause::UnknownSession, changed(data, 4, &[data[4] ^ 0x81])),
    ];
    for (cause, message) in &cases {
        let before = drops(*cause);
        // The first time, an initiation may be news: the far node was told of its peer later.
        eventually(cause.name(), || {
            middle.inject(message);
            drops(*cause) > before
        });
    }
    let all = |cause| far.observe().drops.of(cause);
    let strange: [(DropCause, Vec<u8>); 6] = [
        (DropCause::WrongKey, changed(initiation, 20, &[initiation[20] ^ 1])),
        (DropCause::UnknownPeer, changed(data, 5, &[0xee, 0xee, 0xee])),
        (DropCause::Garbage, data[..31].to_vec()),
        (DropCause::Garbage, initiation[..147].to_vec()),
        (DropCause::Garbage, vec![9; 148]),
        (DropCause::Garbage, vec![1]),
    ];
    for (cause, message) in &strange {
        let before = all(*cause);
        middle.inject(message);
        eventually(cause.name(), || all(*cause) > before);
    }
    assert_eq!(far.observe().traffic.received_packets, received);
    trip().unwrap();
}

/// A message of somebody who knows the node's public key and nothing else.
fn strangers_initiation(to: PublicKey) -> Vec<u8> {
    let secret = x25519::StaticSecret::from(*PrivateKey::generate().unwrap().to_bytes());
    let public = x25519::PublicKey::from(*to.as_bytes());
    let mut stranger = Tunn::new(secret, public, None, None, 7, None);
    let mut buffer = [0; 148];
    match stranger.format_handshake_initiation(&mut buffer, true) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flood_of_handshakes_is_limited_and_peers_still_get_through() {
    let wire = Wire::new();
    let mut near = Node::started(&wire, 1);
    let mut far = Node::new(&wire, 2);
    far.start_with(Offload::Tunnel, Lifetime::Temporary, 20);
    near.set_peers(&[far.config()]);
    far.set_peers(&[near.config()]);
    near.await_sessions();
    let flood = strangers_initiation(far.key.public());
    let attacker = wire.plug(66);
    let stop = Arc::new(AtomicBool::new(false));
    let flooding = {
        let (stop, target) = (Arc::clone(&stop), SocketAddr::from((outer(2), PORT)));
        let socket = attacker.enter(|| UdpSocket::bind((outer(66), 0)).unwrap());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // As much as a program without optimisation still reads on a busy machine.
                for _ in 0..2 {
                    socket.send_to(&flood, target).unwrap();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    let memory = resident_kib();
    eventually("the flood is limited", || far.observe().drops.of(DropCause::Limited) > 1000);
    // A peer that must prove its address first.
    near.stop();
    near.start(Offload::Tunnel);
    near.set_peers(&[far.config()]);
    near.await_sessions();
    let echo = Echo::start(&far.inside, inner(2).into());
    let answer = ping(&near.inside, inner(1).into(), echo.address, Duration::from_secs(5));
    assert!(answer.is_some(), "{:?}", far.observe());
    stop.store(true, Ordering::Relaxed);
    flooding.join().unwrap();
    let drops = far.observe().drops;
    assert!(drops.of(DropCause::UnknownPeer) * 4 < drops.of(DropCause::Limited), "{drops:?}");
    // Other tests of this process have their share in it.
    assert!(resident_kib() < memory + 64 * 1024, "{memory} KiB before, {} after", resident_kib());
}

#[test]
fn garbage_of_all_lengths_is_counted_and_harms_nobody() {
    let wire = Wire::new();
    let [near, far] = [Node::started(&wire, 1), Node::started(&wire, 2)];
    near.set_peers(&[far.config()]);
    far.set_peers(&[near.config()]);
    near.await_sessions();
    let before = far.observe().traffic.received_packets;
    let attacker = wire.plug(66);
    attacker.enter(|| {
        let socket = UdpSocket::bind((outer(66), 0)).unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut message = vec![0; 1400];
        for number in 0..4000 {
            for byte in &mut message {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 56) as u8;
            }
            // Every second one says that it is a message of some kind.
            if number % 2 == 0 {
                message[..4].copy_from_slice(&[1 + (number / 2 % 4) as u8, 0, 0, 0]);
            }
            let length = [number % 1400, 148, 92, 64, 32][number % 5];
            socket.send_to(&message[..length], (outer(2), PORT)).unwrap();
        }
    });
    let dropped = || {
        let drops = far.observe().drops;
        let causes = [DropCause::Garbage, DropCause::UnknownPeer, DropCause::WrongKey];
        causes.iter().map(|cause| drops.of(*cause)).sum::<u64>()
    };
    // An empty datagram is nothing, and some may be lost on the way.
    eventually("all are counted", || dropped() > 3000);
    assert_eq!(far.observe().traffic.received_packets, before);
    assert_eq!(far.observe().failure, None);
    let echo = Echo::start(&far.inside, inner(2).into());
    ping(&near.inside, inner(1).into(), echo.address, Duration::from_secs(5)).unwrap();
}

fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
}
