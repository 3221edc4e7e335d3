//! Hosts whose tunnels are served by the real engine, in place of the process that hosts it, and an
//! ear on the wire between them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ports::network::Network;
use tunnel::{Engine, EngineOptions, Lifetime, Offload, PeerConfig, PrivateKey, PublicKey, Tun};
use types::{DirectoryUpdate, NetworkId, NetworkKey, PeerEncryption};

use super::lab::*;
use crate::namespace::enter;
use crate::node::Node;
use crate::{EncryptionMode, NetworkOptions, PeerSeen, Tunnel, TunnelKey, TunnelSeen};

/// Of every encrypted network here.
pub(super) const MTU: u32 = 1370;

/// The keys of one host, and the engines that serve its tunnels.
pub(super) struct Keeper {
    dir: tempfile::TempDir,
    private: BTreeMap<u32, PrivateKey>,
    engines: BTreeMap<u32, (Engine, u64)>,
    /// Nobody serves.
    pub(super) is_dead: bool,
}

impl Keeper {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, private: BTreeMap::new(), engines: BTreeMap::new(), is_dead: false }
    }

    /// A key of the next generation.
    pub(super) fn make(&mut self, generation: u32) {
        let key = PrivateKey::generate().unwrap();
        std::fs::write(self.path(generation), STANDARD.encode(*key.to_bytes())).unwrap();
        self.private.insert(generation, key);
    }

    pub(super) fn drop_key(&mut self, generation: u32) {
        self.private.remove(&generation);
        std::fs::remove_file(self.path(generation)).unwrap();
    }

    fn path(&self, generation: u32) -> PathBuf {
        self.dir.path().join(format!("network-key-{generation}"))
    }

    pub(super) fn keys(&self) -> BTreeMap<u32, TunnelKey> {
        let key = |(generation, key): (&u32, &PrivateKey)| {
            let public = NetworkKey(*key.public().as_bytes());
            (*generation, TunnelKey { public, private: self.path(*generation) })
        };
        self.private.iter().map(key).collect()
    }

    fn public(&self) -> BTreeMap<u32, NetworkKey> {
        self.keys().into_iter().map(|(generation, key)| (generation, key.public)).collect()
    }

    /// Serves what is asked for, and says what is seen.
    pub(super) async fn serve(&mut self, host: &Host) {
        let wanted = host.path.tunnels().borrow().clone();
        self.engines.retain(|generation, (_, inode)| {
            let same = |t: &&Tunnel| t.generation == *generation && t.netns_inode == *inode;
            wanted.iter().any(|tunnel| same(&tunnel))
        });
        if self.is_dead {
            self.engines.clear();
            return;
        }
        let broken = |engine: &Engine| engine.observe().failure.is_some();
        self.engines.retain(|_, (engine, _)| !broken(engine));
        for tunnel in &wanted {
            let (engine, _) = self.engines.entry(tunnel.generation).or_insert_with(|| {
                (start(host, tunnel, &self.private[&tunnel.generation]), tunnel.netns_inode)
            });
            let peers: Vec<PeerConfig> = tunnel
                .peers
                .iter()
                .map(|peer| PeerConfig {
                    key: PublicKey::from_bytes(peer.key.0),
                    endpoint: peer.endpoint,
                    address: peer.address,
                    keepalive: None,
                })
                .collect();
            engine.set_peers(&peers).unwrap();
        }
        let seen = self.engines.iter().map(|(generation, (engine, _))| seen(*generation, engine));
        host.path.set_tunnels_seen(seen.collect()).await.unwrap();
        // Where the kernel encrypts it is looked at by itself.
        host.path.with("look", |node: &mut Node| node.look_at_tunnel(true)).await.unwrap();
    }
}

/// Before it has anything to encrypt.
pub(super) async fn force_user_space(host: &mut Host) {
    let options = host_options(host.dir.path(), &format!("h{}", host.number), Some(host.address));
    let options = NetworkOptions { encryption: EncryptionMode::UserSpace, ..options };
    host.path = open_in(&host.namespace, options).await;
}

fn start(host: &Host, tunnel: &Tunnel, key: &PrivateKey) -> Engine {
    let (name, address) = (tunnel.device.clone(), tunnel.address);
    let namespace = namespace_of(&tunnel.netns);
    let tun =
        enter(&namespace, move || Tun::open(&name, Lifetime::Persistent, Offload::Tunnel)).unwrap();
    let v6 = host.address.is_ipv6();
    let any: SocketAddr = if v6 { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap();
    let at = SocketAddr::new(any.ip(), tunnel.port);
    let socket = enter(&host.namespace, move || tunnel::Socket::open(at)).unwrap();
    let options = EngineOptions { address, handshakes_per_second: 100 };
    Engine::start(key, tun, socket, options).unwrap()
}

fn seen(generation: u32, engine: &Engine) -> TunnelSeen {
    let observed = engine.observe();
    let drops = |drops: tunnel::Drops| {
        drops.iter().map(|(cause, count)| (cause.name().to_owned(), count)).collect()
    };
    let peer = |peer: tunnel::PeerObserved| PeerSeen {
        key: NetworkKey(*peer.key.as_bytes()),
        endpoint: peer.endpoint,
        handshake_age: peer.handshake_age,
        sent_bytes: peer.traffic.sent_bytes,
        received_bytes: peer.traffic.received_bytes,
        drops: drops(peer.drops),
    };
    TunnelSeen {
        generation,
        peers: observed.peers.into_iter().map(peer).collect(),
        drops: drops(observed.drops),
        failure: observed.failure,
    }
}

/// A network that is encrypted.
pub(super) fn add_encrypted(lab: &mut Lab, number: u8) -> NetworkId {
    let network = lab.add_network(number);
    let part = lab.directory.networks.last_mut().unwrap();
    (part.encrypted, part.mtu) = (true, MTU);
    network
}

/// As it is told, with everybody's keys.
pub(super) fn told(lab: &Lab, keepers: &[Keeper], host: usize) -> DirectoryUpdate {
    let mut update = lab.told(host);
    for peer in &mut update.peers {
        let index = lab.hosts.iter().position(|host| host.number == peer.number).unwrap();
        let sends_with = lab.hosts[index].path.rotation().borrow().sends_with;
        peer.encryption = Some(PeerEncryption { keys: keepers[index].public(), sends_with });
    }
    update
}

/// Tells all hosts what all are to know, serves them, and waits until each has heard of each.
pub(super) async fn settle(lab: &Lab, keepers: &mut [Keeper]) {
    for (index, host) in lab.hosts.iter().enumerate() {
        host.path.set_keys(keepers[index].keys()).await.unwrap();
    }
    for (index, host) in lab.hosts.iter().enumerate() {
        host.path.update(told(lab, keepers, index)).await.unwrap();
    }
    connect_all(lab, keepers).await;
}

/// Serves until each host has had a handshake with each of its peers.
pub(super) async fn connect_all(lab: &Lab, keepers: &mut [Keeper]) {
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let mut connected = true;
        for (host, keeper) in lab.hosts.iter().zip(keepers.iter_mut()) {
            // Twice: it may be told of its device by the first.
            keeper.serve(host).await;
            keeper.serve(host).await;
            let tunnels = host.path.encryption_seen().tunnels;
            let shaken =
                |tunnel: &TunnelSeen| tunnel.peers.iter().all(|peer| peer.handshake_age.is_some());
            connected &= keeper.is_dead || (!tunnels.is_empty() && tunnels.iter().all(shaken));
        }
        if connected {
            return;
        }
        // Who answered a handshake counts it with the first packet that follows. When that one is
        // lost, the next says it, as those do by which nodes look at their paths.
        if limit.saturating_duration_since(Instant::now()) < Duration::from_secs(15) {
            for host in &lab.hosts {
                let _ = host.path.examine(network(1)).await;
            }
        }
        let seen = || lab.hosts.iter().map(|host| host.path.encryption_seen()).collect::<Vec<_>>();
        assert!(Instant::now() < limit, "no handshakes within 20 s: {:?}", seen());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(super) fn keepers(lab: &Lab) -> Vec<Keeper> {
    let keeper = |_| {
        let mut keeper = Keeper::new();
        keeper.make(1);
        keeper
    };
    lab.hosts.iter().map(keeper).collect()
}

/// Everything that passes on the wire, until it is dropped.
pub(super) struct Ear {
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Heard>>,
    thread: Option<JoinHandle<()>>,
}

/// What was heard.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    pub(super) frames: usize,
    /// Datagrams to ports of encrypted networks.
    pub(super) encrypted: usize,
    /// VXLAN in clear, by identifier.
    pub(super) clear: BTreeMap<u32, usize>,
    /// All bytes, for those who look for a word.
    bytes: Vec<u8>,
}

impl Heard {
    pub(super) fn says(&self, word: &str) -> bool {
        self.bytes.windows(word.len()).any(|window| window == word.as_bytes())
    }

    fn take(&mut self, frame: &[u8]) {
        self.frames += 1;
        self.bytes.extend_from_slice(frame);
        let (protocol, transport) = match frame.get(12..14) {
            Some([8, 0]) => (frame.get(23), 14 + 20),
            Some([0x86, 0xdd]) => (frame.get(20), 14 + 40),
            _ => return,
        };
        let (Some(17), Some(udp)) = (protocol, frame.get(transport..transport + 20)) else {
            return;
        };
        match u16::from_be_bytes([udp[2], udp[3]]) {
            4789 => {
                let vni = u32::from_be_bytes([0, udp[12], udp[13], udp[14]]);
                *self.clear.entry(vni).or_default() += 1;
            }
            4793 | 4794 => self.encrypted += 1,
            _ => {}
        }
    }
}

impl Ear {
    /// On every link of a namespace.
    pub(super) fn start(namespace: &OwnedFd) -> Self {
        let socket = enter(namespace, || {
            let all = (libc::ETH_P_ALL as u16).to_be();
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            // SAFETY: three numbers; the result is a new descriptor that we own.
            let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(all)) };
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            // SAFETY: just made, known to nobody else.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            let limit = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
            crate::netlink::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit)?;
            let size: libc::c_int = 16 << 20;
            crate::netlink::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &size)?;
            Ok(socket)
        })
        .unwrap();
        let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Heard>>::default());
        let (stopped, into) = (Arc::clone(&stop), Arc::clone(&heard));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 70_000];
            while !stopped.load(Ordering::Relaxed) {
                // SAFETY: the buffer is live and as long as said.
                let count = unsafe {
                    let place = buffer.as_mut_ptr().cast();
                    libc::recv(socket.as_raw_fd(), place, buffer.len(), 0)
                };
                if let Some(frame) = usize::try_from(count).ok().and_then(|n| buffer.get(..n)) {
                    into.lock().unwrap().take(frame);
                }
            }
        });
        Self { stop, heard, thread: Some(thread) }
    }

    /// What was heard by now; what is under way is waited for.
    pub(super) fn heard(&self) -> Heard {
        let frames = || self.heard.lock().unwrap().frames;
        let mut before = frames();
        loop {
            std::thread::sleep(Duration::from_millis(60));
            let now = frames();
            if now == before {
                return self.heard.lock().unwrap().clone();
            }
            before = now;
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

pub(super) const WORD: &str = "quite-secret";
pub(super) const PLAIN_WORD: &str = "for-all-to-see";

pub(super) fn sandbox(lab: &Lab, host: usize, name: &str) -> OwnedFd {
    namespace_of(&lab.hosts[host].dir.path().join("sandboxes").join(name))
}

pub(super) fn network(number: u8) -> NetworkId {
    id(1000 + u128::from(number))
}

pub(super) fn vni(number: u8) -> u32 {
    4096 + u32::from(number)
}

/// Two hosts with an encrypted network, 1, and a plain one, 2; a client on both and a server on
/// each.
pub(super) struct Pair {
    pub(super) client: OwnedFd,
    pub(super) far: std::path::PathBuf,
    _servers: Vec<Server>,
}

pub(super) async fn pair(lab: &mut Lab, keepers: &mut [Keeper]) -> Pair {
    add_encrypted(lab, 1);
    lab.add_network(2);
    for (network, host, number) in [(1, 0, 10), (2, 0, 10), (1, 1, 12), (2, 1, 13)] {
        lab.add_task(network, host, number, None);
    }
    settle(lab, keepers).await;
    let client = lab.attach(0, &wanted("client", &[1, 2], 10)).await;
    let far = lab.attach(1, &wanted("far", &[1], 12)).await;
    let plain = lab.attach(1, &wanted("plain", &[2], 13)).await;
    let servers =
        vec![Server::start(&far.netns, WORD, 80), Server::start(&plain.netns, PLAIN_WORD, 80)];
    Pair { client: namespace_of(&client.netns), far: far.netns, _servers: servers }
}

impl Pair {
    pub(super) fn passes(&self) -> bool {
        let answer = ask(&self.client, (v4(1, 12), 80));
        answer.as_deref().ok() == Some(&format!("{WORD} 10.0.1.10"))
    }

    pub(super) fn plain_passes(&self) -> bool {
        let answer = ask(&self.client, (v4(2, 13), 80));
        answer.as_deref().ok() == Some(&format!("{PLAIN_WORD} 10.0.2.10"))
    }

    /// Nothing arrives, for as long as a few attempts take.
    pub(super) fn nothing_passes(&self) -> bool {
        (0..3).all(|_| {
            let from = self.client.try_clone().unwrap();
            let heard = enter(&from, || {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(Duration::from_millis(200)))?;
                let sent = socket.send_to(WORD.as_bytes(), (v4(1, 12), 80));
                Ok(sent.is_ok() && socket.recv(&mut [0; 64]).is_ok())
            });
            !heard.unwrap()
        })
    }
}

pub(super) fn assert_silence(ear: &Ear, number: u8) {
    let heard = ear.heard();
    assert_eq!(heard.clear.get(&vni(number)), None, "in clear");
    assert!(!heard.says(WORD), "in clear");
}

/// Numbered datagrams from one container to another.
pub(super) struct Flow {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    received: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Flow {
    pub(super) fn start(from: &OwnedFd, to: &Path, at: IpAddr) -> Self {
        let [sent, received] = [0; 2].map(|_| Arc::new(AtomicUsize::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let ear = enter(&namespace_of(to), || UdpSocket::bind("0.0.0.0:7777")).unwrap();
        ear.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mouth = enter(from, || UdpSocket::bind("0.0.0.0:0")).unwrap();
        let (count, ended) = (Arc::clone(&sent), Arc::clone(&stop));
        let sender = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                mouth.send_to(&[7; 1000], (at, 7777)).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let (count, ended) = (Arc::clone(&received), Arc::clone(&stop));
        let receiver = std::thread::spawn(move || {
            loop {
                match ear.recv(&mut [0; 2000]) {
                    Ok(_) => drop(count.fetch_add(1, Ordering::Relaxed)),
                    Err(_) if ended.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        });
        Self { stop, sent, received, threads: vec![sender, receiver] }
    }

    pub(super) fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }

    /// Sent and received.
    pub(super) fn end(mut self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        (self.sent.load(Ordering::Relaxed), self.received())
    }
}

/// Every host learns of the new keys, one after another; then old ones go as they may.
pub(super) async fn rotate(lab: &Lab, keepers: &mut [Keeper], skew: Duration) {
    for index in 0..keepers.len() {
        keepers[index].make(2);
        lab.hosts[index].path.set_keys(keepers[index].keys()).await.unwrap();
        // It is published before anybody has it.
        for host in 0..keepers.len() {
            lab.hosts[host].path.update(told(lab, keepers, host)).await.unwrap();
        }
        let until = Instant::now() + skew;
        while Instant::now() < until {
            for (host, keeper) in lab.hosts.iter().zip(keepers.iter_mut()) {
                keeper.serve(host).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    connect_all(lab, keepers).await;
    let limit = Instant::now() + Duration::from_secs(20);
    while keepers.iter().any(|keeper| keeper.keys().len() > 1) {
        assert!(Instant::now() < limit, "the old keys stay");
        for index in 0..keepers.len() {
            keepers[index].serve(&lab.hosts[index]).await;
            lab.hosts[index].path.update(told(lab, keepers, index)).await.unwrap();
            let rotation = lab.hosts[index].path.rotation().borrow().clone();
            if rotation.droppable.contains(&1) {
                assert_eq!(rotation.sends_with, 2);
                keepers[index].drop_key(1);
                lab.hosts[index].path.set_keys(keepers[index].keys()).await.unwrap();
            }
        }
    }
}
