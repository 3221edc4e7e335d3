//! Tunnels between the netds of two hosts, through real devices.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netd::{Client, Options, Tunnel, TunnelPeer, TunnelStatus};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tunnel::PrivateKey;
use types::NetworkKey;

use crate::Test;
use crate::names::rss_kib;
use crate::support::*;

pub(crate) const TESTS: &[Test] = &[
    ("packets_pass_through_a_tunnel_and_are_counted", pass),
    ("tunnels_of_a_killed_netd_are_back_within_a_second", killed),
    ("tunnels_go_on_without_a_daemon", without_daemon),
    ("tunnels_are_handed_to_another_build", handed_over),
    ("a_key_that_is_missing_or_open_to_others_is_said", keys),
    ("a_tunnel_follows_its_namespace", namespaces),
    ("a_port_of_another_program_is_waited_for", ports),
    ("keys_side_by_side_have_a_tunnel_each", generations),
    ("a_removed_peer_is_cut_off", removed),
    ("thousands_of_peers_come_in_pieces", many),
    ("without_tunnels_no_thread_of_them_runs", idle),
];

/// A namespace at a path, as the daemon makes them.
struct Mounted {
    path: PathBuf,
    space: Space,
}

impl Mounted {
    fn new(path: PathBuf) -> Self {
        File::create(&path).unwrap();
        let space = Space::new();
        let none = None::<&str>;
        mount(Some(&space.path()), &path, none, MsFlags::MS_BIND, none).unwrap();
        Self { path, space }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// A host with its netd, and the namespace that its tunnels end in.
struct Host {
    number: u8,
    space: Space,
    lab: Lab,
    inside: Option<Mounted>,
    keys: Vec<NetworkKey>,
}

impl Host {
    /// Two on one wire.
    fn pair() -> [Self; 2] {
        let hosts = [Self::new(1), Self::new(2)];
        let [near, far] = [hosts[0].space.path(), hosts[1].space.path()];
        ip(&format!(
            "link add eth0 netns {} type veth peer name eth0 netns {}",
            near.display(),
            far.display()
        ));
        for host in &hosts {
            host.space.run(|| {
                ip(&format!("addr add 192.0.2.{}/24 dev eth0", host.number));
                ip("link set eth0 up");
            });
        }
        hosts
    }

    fn new(number: u8) -> Self {
        let lab = Lab::new();
        let inside = Some(Mounted::new(lab.dir.path().join("enc")));
        let mut host = Self { number, space: Space::new(), lab, inside, keys: Vec::new() };
        for generation in 1..=2 {
            let key = PrivateKey::generate().unwrap();
            write_key(&host.key_file(generation), &key, 0o600);
            host.keys.push(NetworkKey(*key.public().as_bytes()));
        }
        host.address_inside();
        host
    }

    fn address_inside(&self) {
        self.inside(|| ip(&format!("addr add {}/32 dev lo", inner(self.number))));
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.inside.as_ref().unwrap().space.run(work)
    }

    fn key_file(&self, generation: u32) -> PathBuf {
        self.lab.dir.path().join(format!("key-{generation}"))
    }

    /// What is awaited goes on only meanwhile; netd is started where the host is.
    fn wait<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        self.space.run(|| self.lab.wait(work))
    }

    fn start(&self) -> Client {
        self.start_as(self.lab.options())
    }

    fn start_as(&self, options: Options) -> Client {
        self.wait(Client::connect_or_start(options)).unwrap()
    }

    /// As another host is told of it.
    fn peer(&self, generation: u32) -> TunnelPeer {
        TunnelPeer {
            number: self.number.into(),
            key: self.keys[generation as usize - 1],
            endpoint: Some(SocketAddr::from(([192, 0, 2, self.number], port(generation)))),
            address: inner(self.number),
            keepalive: false,
        }
    }

    fn tunnel(&self, generation: u32, peers: Vec<TunnelPeer>) -> Tunnel {
        Tunnel {
            generation,
            netns: self.inside.as_ref().unwrap().path.clone(),
            device: format!("wg{}", generation % 2),
            port: port(generation),
            address: inner(self.number),
            mtu: 1_440,
            key_file: self.key_file(generation),
            peers,
        }
    }

    /// Its one tunnel to the other host.
    fn serve(&self, client: &Client, other: &Self) {
        self.set(client, vec![self.tunnel(1, vec![other.peer(1)])]);
        self.route(other, "wg1");
    }

    fn set(&self, client: &Client, tunnels: Vec<Tunnel>) {
        self.wait(client.set_tunnels(tunnels)).unwrap();
    }

    /// As soon as the device is there.
    fn route(&self, other: &Self, device: &str) {
        let (to, own) = (inner(other.number), inner(self.number));
        self.inside(|| {
            let line = format!("route replace {to}/32 dev {device} src {own}");
            until("a route", || try_ip(&line));
        });
    }

    fn seen(&self, client: &Client) -> Vec<TunnelStatus> {
        self.wait(client.tunnels()).unwrap()
    }

    /// Of its first tunnel.
    fn first(&self, client: &Client) -> TunnelStatus {
        self.seen(client)[0].clone()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The lab's own end starts one if there is none, and must do so here.
        let options = self.lab.options();
        self.wait(async {
            if let Ok(client) = Client::connect_or_start(options).await {
                let _ = client.stop().await;
            }
        });
    }
}

/// Answers datagrams inside, until it is dropped.
struct Echo<'a> {
    stop: &'a AtomicBool,
}

impl Drop for Echo<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` while the inside of that host answers.
fn with_echo<T>(host: &Host, work: impl FnOnce() -> T) -> T {
    let address = inner(host.number);
    let socket = host.inside(|| UdpSocket::bind((address, ECHO)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 2_048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        let _echo = Echo { stop: &stop };
        work()
    })
}

/// Sends to the echo until it answers; gives how long that took.
fn ping(from: &Host, to: &Host, limit: Duration) -> Option<Duration> {
    from.inside(|| {
        let begun = Instant::now();
        let socket = UdpSocket::bind((inner(from.number), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let mut buffer = [0; 2_048];
        while begun.elapsed() < limit {
            // Refused while there is no route.
            let _ = socket.send_to(&[7; 1_200], (inner(to.number), ECHO));
            if socket.recv(&mut buffer).is_ok_and(|length| length == 1_200) {
                return Some(begun.elapsed());
            }
        }
        None
    })
}

fn try_ip(line: &str) -> bool {
    Command::new("ip").args(line.split(' ')).output().unwrap().status.success()
}

fn ip(line: &str) {
    assert!(try_ip(line), "ip {line}");
}

fn inner(number: u8) -> Ipv4Addr {
    [10, 99, 0, number].into()
}

fn port(generation: u32) -> u16 {
    7_960 + (generation % 2) as u16
}

fn write_key(path: &Path, key: &PrivateKey, mode: u32) {
    let mut options = File::options();
    let mut file = options.write(true).create_new(true).mode(mode).open(path).unwrap();
    file.write_all(key.to_text().as_bytes()).unwrap();
}

fn threads(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // One may end meanwhile.
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    tasks.filter_map(|task| name(task.unwrap())).collect()
}

/// Two hosts with a tunnel that works.
fn connected() -> ([Host; 2], [Client; 2]) {
    let hosts = Host::pair();
    let clients = [hosts[0].start(), hosts[1].start()];
    hosts[0].serve(&clients[0], &hosts[1]);
    hosts[1].serve(&clients[1], &hosts[0]);
    with_echo(&hosts[1], || ping(&hosts[0], &hosts[1], DEADLINE).unwrap());
    (hosts, clients)
}

fn pass() {
    let (hosts, clients) = connected();
    let seen = hosts[0].first(&clients[0]);
    assert_eq!((seen.generation, seen.key), (1, Some(hosts[0].keys[0])));
    assert_eq!((seen.failure, seen.starts), (None, 1));
    assert!(["none", "tcp", "udp", "tunnel"].contains(&seen.offload.as_str()));
    let peer = &seen.peers[0];
    assert_eq!((peer.key, peer.endpoint), (hosts[1].keys[0], hosts[1].peer(1).endpoint));
    assert!(peer.has_session && peer.handshake_age.is_some_and(|age| age < DEADLINE));
    assert!(peer.traffic.sent_bytes >= 1_228 && peer.traffic.received_packets >= 1);
    // The same again changes nothing.
    hosts[0].serve(&clients[0], &hosts[1]);
    assert_eq!(hosts[0].first(&clients[0]).starts, 1);
    // Another MTU is taken over without a new beginning.
    let mut tunnel = hosts[0].tunnel(1, vec![hosts[1].peer(1)]);
    tunnel.mtu = 1_400;
    hosts[0].set(&clients[0], vec![tunnel]);
    hosts[0].inside(|| until("the other MTU", || mtu_is("wg1", 1_400)));
    assert_eq!(hosts[0].first(&clients[0]).starts, 1);
}

fn mtu_is(device: &str, mtu: u32) -> bool {
    let shown = Command::new("ip").args(["-o", "link", "show", device]).output().unwrap();
    String::from_utf8_lossy(&shown.stdout).contains(&format!("mtu {mtu} "))
}

fn killed() {
    let (hosts, clients) = connected();
    let pid = hosts[0].wait(clients[0].status()).unwrap().pid;
    with_echo(&hosts[0], || {
        assert!(ping(&hosts[1], &hosts[0], DEADLINE).is_some());
        let begun = Instant::now();
        kill_hard(pid);
        // Whoever keeps it sees that it is gone, and starts another one.
        let keeping = || hosts[0].wait(clients[0].status()).unwrap().pid;
        let answer = std::thread::scope(|scope| {
            let kept = scope.spawn(keeping);
            let answer = ping(&hosts[1], &hosts[0], DEADLINE);
            assert_ne!(kept.join().unwrap(), pid);
            answer
        });
        assert!(answer.is_some());
        eprintln!("packets pass {:?} after netd was killed", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    });
}

fn without_daemon() {
    let (hosts, clients) = connected();
    let pid = hosts[0].wait(clients[0].status()).unwrap().pid;
    let [near, far] = clients;
    drop(near);
    with_echo(&hosts[1], || {
        assert!(ping(&hosts[0], &hosts[1], DEADLINE).is_some());
        // Nor without netd, once somebody starts another: it knows what it was told.
        kill_hard(pid);
        until("netd ends", || !runs(pid));
        let near = hosts[0].start();
        assert!(ping(&hosts[0], &hosts[1], DEADLINE).is_some());
        let seen = hosts[0].first(&near);
        assert_eq!((seen.failure, seen.peers.len()), (None, 1));
        let state = std::fs::read(hosts[0].lab.dir.path().join("netd.state")).unwrap();
        let key = std::fs::read(hosts[0].key_file(1)).unwrap();
        let private = PrivateKey::from_text(std::str::from_utf8(&key).unwrap()).unwrap();
        let has = |what: &[u8]| state.windows(what.len()).any(|window| window == what);
        assert!(has(&hosts[1].keys[0].0), "the peer is kept");
        assert!(!has(&key) && !has(&*private.to_bytes()), "a private key is kept");
    });
    drop(far);
}

fn handed_over() {
    let (hosts, clients) = connected();
    let old = hosts[0].wait(clients[0].status()).unwrap().pid;
    let [near, _far] = clients;
    drop(near);
    let mut options = hosts[0].lab.options();
    options.build = "two".into();
    options.handover = DEADLINE;
    with_echo(&hosts[0], || {
        let begun = Instant::now();
        let near = hosts[0].start_as(options.clone());
        assert!(ping(&hosts[1], &hosts[0], DEADLINE).is_some());
        eprintln!("packets pass {:?} after another build was started", begun.elapsed());
        // The old one still answers names, without a thread of tunnels.
        assert!(runs(old) && !threads(old).iter().any(|name| name.starts_with("tunnel")));
        assert_eq!(hosts[0].first(&near).failure, None);
        hosts[0].wait(near.stop()).unwrap();
    });
}

fn keys() {
    let hosts = Host::pair();
    let clients = [hosts[0].start(), hosts[1].start()];
    hosts[1].serve(&clients[1], &hosts[0]);
    let path = hosts[0].key_file(1);
    let kept = path.with_extension("kept");
    std::fs::rename(&path, &kept).unwrap();
    let tunnel = hosts[0].tunnel(1, vec![hosts[1].peer(1)]);
    hosts[0].set(&clients[0], vec![tunnel]);
    let fails = |with: &str| {
        let failure = || hosts[0].first(&clients[0]).failure.unwrap_or_default();
        until(&format!("a failure with {with}"), || failure().contains(with));
    };
    fails("cannot be read: No such file");
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(&kept, mode(0o640)).unwrap();
    std::fs::rename(&kept, &path).unwrap();
    fails("has mode 0640");
    std::os::unix::fs::symlink(&path, &kept).unwrap();
    let mut tunnel = hosts[0].tunnel(1, vec![hosts[1].peer(1)]);
    tunnel.key_file = kept;
    hosts[0].set(&clients[0], vec![tunnel]);
    fails("cannot be read");
    std::fs::write(hosts[0].key_file(2), "no key").unwrap();
    let mut tunnel = hosts[0].tunnel(1, vec![hosts[1].peer(1)]);
    tunnel.key_file = hosts[0].key_file(2);
    hosts[0].set(&clients[0], vec![tunnel]);
    fails("holds no key");
    // It is tried until it works.
    std::fs::set_permissions(&path, mode(0o600)).unwrap();
    hosts[0].serve(&clients[0], &hosts[1]);
    with_echo(&hosts[1], || assert!(ping(&hosts[0], &hosts[1], DEADLINE).is_some()));
    assert_eq!(hosts[0].first(&clients[0]).failure, None);
}

fn namespaces() {
    let (mut hosts, clients) = connected();
    let path = hosts[0].inside.take().map(|inside| inside.path.clone()).unwrap();
    let failure = || hosts[0].first(&clients[0]).failure;
    until("a failure", || failure().is_some());
    hosts[0].inside = Some(Mounted::new(path));
    hosts[0].address_inside();
    hosts[0].route(&hosts[1], "wg1");
    with_echo(&hosts[1], || assert!(ping(&hosts[0], &hosts[1], DEADLINE).is_some()));
    let seen = hosts[0].first(&clients[0]);
    assert_eq!((seen.failure, seen.starts), (None, 2));
    // The same for a device that somebody removes.
    hosts[0].inside(|| ip("link del wg1"));
    hosts[0].route(&hosts[1], "wg1");
    with_echo(&hosts[1], || assert!(ping(&hosts[0], &hosts[1], DEADLINE).is_some()));
}

fn ports() {
    let hosts = Host::pair();
    let clients = [hosts[0].start(), hosts[1].start()];
    let held = hosts[0].space.run(|| UdpSocket::bind(("0.0.0.0", port(1))).unwrap());
    hosts[1].serve(&clients[1], &hosts[0]);
    let tunnel = hosts[0].tunnel(1, vec![hosts[1].peer(1)]);
    hosts[0].set(&clients[0], vec![tunnel]);
    let failure = || hosts[0].first(&clients[0]).failure.unwrap_or_default();
    let told = format!("UDP port {} cannot be had", port(1));
    until("a failure with the port", || failure().contains(&told));
    drop(held);
    hosts[0].route(&hosts[1], "wg1");
    with_echo(&hosts[1], || assert!(ping(&hosts[0], &hosts[1], DEADLINE).is_some()));
}

fn generations() {
    let (hosts, clients) = connected();
    for (at, other) in [(0, 1), (1, 0)] {
        let both = [1, 2].map(|g| hosts[at].tunnel(g, vec![hosts[other].peer(g)]));
        hosts[at].set(&clients[at], both.to_vec());
    }
    let session = |at: usize, g: usize| {
        let seen = hosts[at].seen(&clients[at]);
        seen.get(g).is_some_and(|seen| seen.peers.iter().any(|peer| peer.has_session))
    };
    until("sessions of both", || (0..4).all(|n| session(n / 2, n % 2)));
    // From one key to the next nothing is begun anew.
    hosts[0].route(&hosts[1], "wg0");
    with_echo(&hosts[1], || assert!(ping(&hosts[0], &hosts[1], DEADLINE).is_some()));
    hosts[1].route(&hosts[0], "wg0");
    for (at, other) in [(0, 1), (1, 0)] {
        hosts[at].set(&clients[at], vec![hosts[at].tunnel(2, vec![hosts[other].peer(2)])]);
        // With the key goes the device.
        hosts[at].inside(|| assert!(!try_ip("link show wg1") && try_ip("link show wg0")));
    }
    with_echo(&hosts[1], || assert!(ping(&hosts[0], &hosts[1], DEADLINE).is_some()));
    assert_eq!(hosts[0].first(&clients[0]).starts, 1);
}

fn removed() {
    let (hosts, clients) = connected();
    with_echo(&hosts[0], || {
        assert!(ping(&hosts[1], &hosts[0], DEADLINE).is_some());
        hosts[0].set(&clients[0], vec![hosts[0].tunnel(1, Vec::new())]);
        assert_eq!(ping(&hosts[1], &hosts[0], Duration::from_millis(300)), None);
        // Two that cannot be told apart: the first is served, and whoever it is not is named.
        let twice = vec![hosts[1].peer(1), TunnelPeer { number: 77, ..hosts[1].peer(1) }];
        hosts[0].set(&clients[0], vec![hosts[0].tunnel(1, twice)]);
        assert!(ping(&hosts[1], &hosts[0], DEADLINE).is_some());
    });
    let seen = hosts[0].first(&clients[0]);
    assert!(seen.failure.is_some_and(|failure| failure.ends_with(": 77")));
    hosts[0].set(&clients[0], Vec::new());
    hosts[0].inside(|| assert!(!try_ip("link show wg1"), "the device is there"));
}

fn many() {
    let host = Host::new(1);
    let client = host.start();
    let before = host.wait(client.status()).unwrap();
    let before = rss_kib(before.pid);
    let peers: Vec<TunnelPeer> = (0..3_000_u32)
        .map(|number| {
            let mut key = [9; 32];
            key[..4].copy_from_slice(&number.to_le_bytes());
            let [_, a, b, c] = (number + 1_000).to_be_bytes();
            TunnelPeer {
                number,
                key: NetworkKey(key),
                endpoint: None,
                address: [10, a, b, c].into(),
                keepalive: false,
            }
        })
        .collect();
    host.set(&client, vec![host.tunnel(1, peers)]);
    until("all of them", || host.first(&client).peers.len() == 3_000);
    let pid = host.wait(client.status()).unwrap().pid;
    let used = rss_kib(pid) - before;
    eprintln!("3,000 peers take {used} KiB");
    assert!(used < 3 * 16 * 1_024, "{used} KiB for 3,000 peers");
    // A successor reads them all from the file.
    kill_hard(pid);
    until("all of them again", || host.first(&client).peers.len() == 3_000);
}

fn idle() {
    let (hosts, clients) = connected();
    let pid = hosts[0].wait(clients[0].status()).unwrap().pid;
    let has_threads = || threads(pid).iter().any(|name| name.starts_with("tunnel"));
    assert!(has_threads());
    hosts[0].set(&clients[0], Vec::new());
    assert!(!has_threads(), "{:?}", threads(pid));
    assert_eq!(hosts[0].seen(&clients[0]), []);
}

const ECHO: u16 = 7;
