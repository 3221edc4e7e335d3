//! Nodes on one wire, and traffic between them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use tunnel::{
    Engine, EngineOptions, Lifetime, Observed, Offload, PeerConfig, PeerObserved, PrivateKey,
    Socket, Tun,
};

/// A network namespace.
pub(crate) struct Space(OwnedFd);

impl Space {
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip link set lo up");
            Self(File::open("/proc/thread-self/ns/net").unwrap().into())
        });
        made.join().unwrap()
    }

    pub(crate) fn try_clone(&self) -> Self {
        Self(self.0.try_clone().unwrap())
    }

    /// Something that names it to `ip`.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Does something inside, in a thread of its own.
    pub(crate) fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let space = self.try_clone();
        let inside = move || {
            setns(&space.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::spawn(inside).join().unwrap()
    }

    pub(crate) fn run(&self, line: &str) -> String {
        let line = line.to_owned();
        self.enter(move || run(&line))
    }

    pub(crate) fn tries(&self, line: &str) -> Result<String, String> {
        let line = line.to_owned();
        self.enter(move || tries(&line))
    }
}

fn tries(line: &str) -> Result<String, String> {
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output().map_err(|e| format!("{line}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)))
}

pub(crate) fn run(line: &str) -> String {
    tries(line).unwrap()
}

/// The wire, 192.0.2.0/24 and fd12::/64.
pub(crate) struct Wire(Space);

impl Wire {
    pub(crate) fn new() -> Self {
        let wire = Space::new();
        wire.run("ip link add br0 type bridge");
        wire.run("ip link set br0 up");
        Self(wire)
    }

    /// A host that is 192.0.2.NUMBER.
    pub(crate) fn plug(&self, number: u8) -> Space {
        let host = Space::new();
        let far = host.path();
        self.0.run(&format!("ip link add p{number} type veth peer name eth0 netns {far}"));
        self.0.run(&format!("ip link set p{number} master br0 up"));
        host.run(&format!("ip addr add 192.0.2.{number}/24 dev eth0"));
        host.run(&format!("ip addr add fd12::{number}/64 dev eth0 nodad"));
        host.run("ip link set eth0 up");
        host
    }
}

/// A node: its host, the namespace of the tunnel, and an engine between them.
pub(crate) struct Node {
    pub(crate) number: u8,
    pub(crate) host: Space,
    pub(crate) inside: Space,
    pub(crate) key: PrivateKey,
    pub(crate) port: u16,
    pub(crate) engine: Option<Engine>,
    /// The wire is there as long as a node is.
    _wire: Space,
}

impl Node {
    /// Without an engine.
    pub(crate) fn new(wire: &Wire, number: u8) -> Self {
        let (host, inside) = (wire.plug(number), Space::new());
        inside.run(&format!("ip addr add {}/32 dev lo", inner(number)));
        let key = PrivateKey::generate().unwrap();
        Self { number, host, inside, key, port: PORT, engine: None, _wire: wire.0.try_clone() }
    }

    pub(crate) fn started(wire: &Wire, number: u8) -> Self {
        let mut node = Self::new(wire, number);
        node.start(Offload::Tunnel);
        node
    }

    /// Two that know each other.
    pub(crate) fn pair(most: Offload) -> [Self; 2] {
        let wire = Wire::new();
        let mut nodes = [Self::new(&wire, 1), Self::new(&wire, 2)];
        nodes.iter_mut().for_each(|node| node.start(most));
        nodes[0].set_peers(&[nodes[1].config()]);
        nodes[1].set_peers(&[nodes[0].config()]);
        nodes
    }

    pub(crate) fn start(&mut self, most: Offload) {
        self.start_with(most, Lifetime::Temporary, 1000);
    }

    pub(crate) fn start_with(&mut self, most: Offload, lifetime: Lifetime, handshakes: u32) {
        let tun = self.inside.enter(move || {
            let limit = Instant::now() + PATIENCE;
            let tun = loop {
                match Tun::open("wg0", lifetime, most) {
                    // A process that was killed has not quite let go of it.
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        assert!(Instant::now() < limit, "{error}");
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    opened => break opened.unwrap(),
                }
            };
            tun.set_queue_length(10_000).unwrap();
            tun
        });
        // A persistent one has all this already.
        if self.inside.tries("ip route show 10.99.0.0/24").unwrap().is_empty() {
            self.inside.run(&format!("ip link set wg0 mtu {MTU} up"));
            let own = inner(self.number);
            self.inside.run(&format!("ip route add 10.99.0.0/24 dev wg0 src {own}"));
        }
        self.start_on(tun, handshakes);
    }

    pub(crate) fn start_on(&mut self, tun: Tun, handshakes: u32) {
        let port = self.port;
        let socket =
            self.host.enter(move || Socket::open((IpAddr::from([0_u16; 8]), port).into()).unwrap());
        let address = inner(self.number);
        let options = EngineOptions { address, handshakes_per_second: handshakes };
        self.engine = Some(Engine::start(&self.key, tun, socket, options).unwrap());
    }

    pub(crate) fn stop(&mut self) {
        self.engine.take().unwrap().stop();
    }

    /// As others are told of it.
    pub(crate) fn config(&self) -> PeerConfig {
        PeerConfig {
            key: self.key.public(),
            endpoint: Some((outer(self.number), self.port).into()),
            address: inner(self.number),
            keepalive: None,
        }
    }

    pub(crate) fn set_peers(&self, peers: &[PeerConfig]) {
        self.engine.as_ref().unwrap().set_peers(peers).unwrap();
    }

    pub(crate) fn observe(&self) -> Observed {
        self.engine.as_ref().unwrap().observe()
    }

    /// Of its only peer.
    pub(crate) fn peer(&self) -> PeerObserved {
        self.observe().peers[0].clone()
    }

    /// Waits for sessions with all peers.
    pub(crate) fn await_sessions(&self) {
        let all = || self.observe().peers.iter().all(|peer| peer.has_session);
        eventually("sessions with all peers", all);
    }
}

/// The address inside the tunnel.
pub(crate) fn inner(number: u8) -> Ipv4Addr {
    [10, 99, 0, number].into()
}

pub(crate) fn outer(number: u8) -> IpAddr {
    [192, 0, 2, number].into()
}

/// A connection over which so many bytes go and come back; answers how long that took.
pub(crate) fn echo_tcp(from: &Space, to: &Space, address: IpAddr, bytes: usize) -> Duration {
    let listener = to.enter(move || TcpListener::bind((address, 0)).unwrap());
    let there = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut all = vec![0; bytes];
        stream.read_exact(&mut all).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&all).unwrap();
    });
    let took = from.enter(move || {
        let begun = Instant::now();
        let mut stream = TcpStream::connect_timeout(&there, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let sent: Vec<u8> = (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect();
        stream.write_all(&sent).unwrap();
        let mut back = vec![0; bytes];
        stream.read_exact(&mut back).unwrap();
        assert!(sent == back, "what came back is not what went");
        begun.elapsed()
    });
    server.join().unwrap();
    took
}

/// Answers every datagram, until it is dropped.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    _stop: std::sync::mpsc::SyncSender<()>,
}

impl Echo {
    pub(crate) fn start(space: &Space, address: IpAddr) -> Self {
        let socket = space.enter(move || UdpSocket::bind((address, 0)).unwrap());
        let address = socket.local_addr().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (stop, stopped) = std::sync::mpsc::sync_channel::<()>(1);
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Self { address, _stop: stop }
    }
}

/// Sends datagrams until one is answered; answers how long that took.
pub(crate) fn ping(
    from: &Space,
    source: IpAddr,
    to: SocketAddr,
    limit: Duration,
) -> Option<Duration> {
    from.enter(move || {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        socket.connect(to).unwrap();
        let begun = Instant::now();
        for wait in (1..).map(|n| Duration::from_millis(10).min(limit / n)) {
            socket.set_read_timeout(Some(wait.max(Duration::from_millis(1)))).unwrap();
            let _ = socket.send(&[7; 1200]);
            let mut buffer = [0; 2048];
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    assert_eq!(buffer[..length], [7; 1200]);
                    return Some(begun.elapsed());
                }
                Err(error) => assert!(is_silence(&error), "{error}"),
            }
            if begun.elapsed() > limit {
                return None;
            }
        }
        None
    })
}

fn is_silence(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(libc::ECONNREFUSED)
}

/// A container of a network over the tunnel: VXLAN made where the tunnel is, then moved.
pub(crate) fn container(inside: &Space, own: u8, remote: u8) -> Space {
    let space = Space::new();
    let (local, far) = (inner(own), inner(remote));
    inside.run(&format!(
        "ip link add vx type vxlan id 4097 local {local} remote {far} dstport 4789 \
         nolearning noudpcsum"
    ));
    inside.run(&format!("ip link set vx netns {}", space.path()));
    space.run(&format!("ip addr add 10.77.0.{own}/24 dev vx"));
    space.run(&format!("ip link set vx mtu {} up", MTU - 50));
    space
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < limit, "not so in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) const PORT: u16 = 51_900;
pub(crate) const MTU: u16 = 1420;
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
