//! Hosts on one wire, a directory for them, and programs in containers.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base::Id;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use ports::network::{Attached, ContainerNetwork, Network};
use types::{
    Attachment, DirectoryUpdate, EndpointMode, EndpointPart, NetworkDriver, NetworkId, NetworkPart,
    NodeId, OwnEncryption, OwnPart, PeerPart, PortPart, PortProtocol, PublishMode, ServiceId,
    ServicePart,
};

use crate::namespace::{enter, own_namespace};
use crate::nft::table::NftSocket;
use crate::pair::{PairEnd, add_pair};
use crate::route::RouteSocket;
use crate::{DataPath, EncryptionMode, NetworkOptions};

pub(super) fn id<T: From<Id>>(number: u128) -> T {
    T::from(Id::from_u128(number).unwrap())
}

/// A wire, with hosts 192.0.2.11, .12 … and a client 192.0.2.100, each with fd12::11 and so on.
pub(super) struct Lab {
    wire: OwnedFd,
    pub(super) client: OwnedFd,
    pub(super) hosts: Vec<Host>,
    /// What every host is told, but for its own part and its peers.
    pub(super) directory: DirectoryUpdate,
    /// The nodes' data path has IPv6 addresses, and the hosts have no others.
    over_v6: bool,
}

pub(super) struct Host {
    pub(super) namespace: OwnedFd,
    pub(super) dir: tempfile::TempDir,
    pub(super) path: DataPath,
    pub(super) number: u32,
    pub(super) address: IpAddr,
}

/// What a test that failed left: a mount would hold its namespace for ever.
impl Drop for Host {
    fn drop(&mut self) {
        for dir in ["netns", "sandboxes"].map(|name| self.dir.path().join(name)) {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
            }
            let _ = umount2(&dir, MntFlags::MNT_DETACH);
        }
    }
}

pub(super) fn new_namespace() -> OwnedFd {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        own_namespace().unwrap()
    })
    .join()
    .unwrap()
}

/// In the namespace of the calling thread.
pub(super) fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

pub(super) fn run_in(namespace: &OwnedFd, line: &str) -> String {
    let line = line.to_owned();
    enter(namespace, move || Ok(run(&line))).unwrap()
}

/// All tables of everybody, as an administrator's reload takes them away.
pub(super) fn flush(namespace: &OwnedFd) {
    enter(namespace, || NftSocket::open()?.flush()).unwrap();
}

pub(super) fn host_options(dir: &Path, instance: &str, address: Option<IpAddr>) -> NetworkOptions {
    NetworkOptions {
        resolver_port: 61_053,
        run_dir: dir.to_owned(),
        instance_id: instance.into(),
        subnet: None,
        address,
        encryption: EncryptionMode::Auto,
    }
}

pub(super) async fn open_in(namespace: &OwnedFd, options: NetworkOptions) -> DataPath {
    let back = own_namespace().unwrap();
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
    let path = DataPath::open(options).await;
    setns(&back, CloneFlags::CLONE_NEWNET).unwrap();
    path.unwrap()
}

/// Runs a test in a thread of its own, whose namespaces end with it.
pub(super) fn in_lab(hosts: u32, test: impl AsyncFnOnce(&mut Lab) + Send + 'static) {
    in_lab_over(false, hosts, test);
}

/// The same, with hosts that have IPv6 addresses only.
pub(super) fn in_lab_over_v6(hosts: u32, test: impl AsyncFnOnce(&mut Lab) + Send + 'static) {
    in_lab_over(true, hosts, test);
}

fn in_lab_over(over_v6: bool, hosts: u32, test: impl AsyncFnOnce(&mut Lab) + Send + 'static) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut lab = Lab::new(over_v6, hosts).await;
            test(&mut lab).await;
            for host in &lab.hosts {
                host.path.remove_all().await.unwrap();
            }
        });
    })
    .join()
    .unwrap();
}

impl Lab {
    async fn new(over_v6: bool, count: u32) -> Self {
        let wire = new_namespace();
        run_in(&wire, "ip link add br0 type bridge");
        run_in(&wire, "ip link set br0 up");
        let client = plugged(&wire, 100);
        let directory = DirectoryUpdate::default();
        let mut lab = Self { wire, client, hosts: Vec::new(), directory, over_v6 };
        lab.directory.full = true;
        for number in 1..=count {
            lab.add_host(number).await;
        }
        lab
    }

    async fn add_host(&mut self, number: u32) {
        let namespace = plugged(&self.wire, 10 + number);
        let mut address = IpAddr::from([192, 0, 2, 10 + number as u8]);
        if self.over_v6 {
            run_in(&namespace, "ip -4 addr flush dev eth0");
            address = format!("fd12::{}", 10 + number).parse().unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let options = host_options(dir.path(), &format!("h{number}"), Some(address));
        let path = open_in(&namespace, options).await;
        self.hosts.push(Host { namespace, dir, path, number, address });
    }

    /// A network 10.0.N.0/24 and fd99:0:0:N::/64.
    pub(super) fn add_network(&mut self, number: u8) -> NetworkId {
        let network: NetworkId = id(1000 + u128::from(number));
        self.directory.networks.push(NetworkPart {
            id: network,
            name: format!("net{number}"),
            driver: NetworkDriver::Overlay,
            vni: 4096 + u32::from(number),
            mtu: if self.over_v6 { 1430 } else { 1450 },
            ingress: number == INGRESS,
            internal: false,
            encrypted: false,
            subnets: vec![
                (format!("10.0.{number}.0/24").parse().unwrap(), v4(number, 1)),
                (format!("fd99:0:0:{number:x}::/64").parse().unwrap(), v6(number, 1)),
            ],
            options: Default::default(),
            config_from: String::new(),
        });
        network
    }

    pub(super) fn add_service(
        &mut self,
        network: u8,
        number: u8,
        ports: &[(u16, u16)],
    ) -> ServiceId {
        let service: ServiceId = id(2000 + u128::from(number));
        let port = |(published, target): &(u16, u16)| {
            [PortProtocol::Tcp, PortProtocol::Udp].map(|protocol| PortPart {
                name: String::new(),
                protocol,
                target: *target,
                published: *published,
                mode: PublishMode::Ingress,
                host: String::new(),
            })
        };
        self.directory.services.push(ServicePart {
            network: id(1000 + u128::from(network)),
            service,
            name: format!("service{number}"),
            aliases: Vec::new(),
            mode: EndpointMode::Vip,
            v4: ipv4(v4(network, 200 + number)),
            v6: ipv6(v6(network, 200 + u16::from(number))),
            ports: ports.iter().flat_map(port).collect(),
        });
        service
    }

    /// A task on a host; its address ends with its number.
    pub(super) fn add_task(
        &mut self,
        network: u8,
        host: usize,
        number: u8,
        service: Option<ServiceId>,
    ) {
        let part = EndpointPart {
            network: id(1000 + u128::from(network)),
            task: id(3000 + u128::from(number)),
            service,
            node: self.node(host),
            number: self.hosts[host].number,
            v4: ipv4(v4(network, number)),
            v6: ipv6(v6(network, u16::from(number))),
            names: Vec::new(),
            serving: true,
        };
        self.directory.endpoints.push(part);
    }

    pub(super) fn node(&self, host: usize) -> NodeId {
        id(1 + u128::from(self.hosts[host].number))
    }

    pub(super) fn told(&self, host: usize) -> DirectoryUpdate {
        let mut update = self.directory.clone();
        update.own = Some(OwnPart {
            node: self.node(host),
            number: self.hosts[host].number,
            data_path_port: 4789,
            encryption: OwnEncryption::default(),
        });
        for network in &self.directory.networks {
            for (index, peer) in self.hosts.iter().enumerate().filter(|(index, _)| *index != host) {
                update.peers.push(PeerPart {
                    network: network.id,
                    node: self.node(index),
                    name: format!("h{}", peer.number),
                    number: peer.number,
                    address: peer.address,
                    mtu: 0,
                    encryption: None,
                });
            }
        }
        update
    }

    pub(super) async fn tell_all(&self) {
        for (index, host) in self.hosts.iter().enumerate() {
            host.path.update(self.told(index)).await.unwrap();
        }
    }

    /// The wire of one host takes packets of so many bytes, and drops larger ones.
    pub(super) fn shrink(&self, host: usize, mtu: u32) {
        let name = self.port(host);
        run_in(&self.wire, &format!("ip link set {name} mtu {mtu}"));
    }

    /// What joins the hosts.
    pub(super) fn wire(&self) -> &OwnedFd {
        &self.wire
    }

    pub(super) fn unplug(&self, host: usize) {
        run_in(&self.wire, &format!("ip link set {} down", self.port(host)));
    }

    pub(super) fn plug(&self, host: usize) {
        run_in(&self.wire, &format!("ip link set {} up", self.port(host)));
    }

    fn port(&self, host: usize) -> String {
        format!("p{}", 10 + self.hosts[host].number)
    }

    pub(super) async fn attach(&self, host: usize, wanted: &ContainerNetwork) -> Attached {
        self.hosts[host].path.attach(wanted).await.unwrap()
    }
}

/// A namespace with `eth0` on the wire.
fn plugged(wire: &OwnedFd, number: u32) -> OwnedFd {
    let namespace = new_namespace();
    let fd = namespace.try_clone().unwrap();
    let name = format!("p{number}");
    let near = name.clone();
    enter(wire, move || {
        let mut socket = RouteSocket::open()?;
        let hardware = |side| [2, 0, 0, 0, side, number as u8];
        let wired = PairEnd { name: &near, hardware: hardware(1), mtu: 1500, namespace: None };
        let inner =
            PairEnd { name: "eth0", hardware: hardware(2), mtu: 1500, namespace: Some(&fd) };
        socket.request(add_pair(&wired, &inner))
    })
    .unwrap();
    run_in(wire, &format!("ip link set {name} master br0 up"));
    run_in(&namespace, &format!("ip addr add 192.0.2.{number}/24 dev eth0"));
    run_in(&namespace, &format!("ip addr add fd12::{number}/64 dev eth0 nodad"));
    run_in(&namespace, "ip link set eth0 up");
    // The kernel's own address comes with the carrier, which is seen when the link is asked for, or
    // up to a second later. It would be a change of the host in the middle of a test.
    for _ in 0..500 {
        run_in(&namespace, "ip link show dev eth0");
        if !run_in(&namespace, "ip -6 addr show dev eth0 scope link").is_empty() {
            return namespace;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("host {number} gets no address of the link");
}

pub(super) const INGRESS: u8 = 9;

pub(super) fn v4(network: u8, host: u8) -> IpAddr {
    [10, 0, network, host].into()
}

pub(super) fn v6(network: u8, host: u16) -> IpAddr {
    [0xfd99, 0, 0, u16::from(network), 0, 0, 0, host].into()
}

fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn ipv6(address: IpAddr) -> Option<std::net::Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

/// A container on networks, by number, with the address that ends so.
pub(super) fn wanted(name: &str, networks: &[u8], number: u8) -> ContainerNetwork {
    let attachment = |network: u8| Attachment {
        network: id(1000 + u128::from(network)),
        v4: ipv4(v4(network, number)),
        v6: ipv6(v6(network, u16::from(number))),
    };
    ContainerNetwork {
        id: name.into(),
        hostname: name.into(),
        attachments: networks.iter().filter(|n| **n != INGRESS).map(|n| attachment(*n)).collect(),
        mesh: networks.contains(&INGRESS).then(|| attachment(INGRESS)),
        ..ContainerNetwork::default()
    }
}

/// A server that says its name and who is asking, until it is dropped.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(namespace: &Path, name: &str, port: u16) -> Self {
        Self::start_in(&namespace_of(namespace), name, port)
    }

    pub(super) fn start_in(namespace: &OwnedFd, name: &str, port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let file = namespace.try_clone().unwrap();
        let (tcp, udp) = std::thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
            (TcpListener::bind(("::", port)).unwrap(), UdpSocket::bind(("::", port)).unwrap())
        })
        .join()
        .unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (name, stopped) = (name.to_owned(), Arc::clone(&stop));
        let greeting = name.clone();
        threads.push(std::thread::spawn(move || {
            let mut open = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((mut stream, peer)) = tcp.accept() {
                    let _ = writeln!(stream, "{greeting} {}", plain(peer.ip()));
                    stream.set_nonblocking(true).unwrap();
                    open.push(stream);
                }
                // Echoes what comes on the connections that stay open.
                open.retain_mut(|stream| {
                    let mut buffer = [0; 64];
                    match stream.read(&mut buffer) {
                        Ok(0) => false,
                        Ok(count) => stream.write_all(&buffer[..count]).is_ok(),
                        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
                    }
                });
                std::thread::sleep(Duration::from_millis(1));
            }
        }));
        let stopped = Arc::clone(&stop);
        threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let answer = format!("{name} {}", plain(peer.ip()));
                    let _ = udp.send_to(answer.as_bytes(), peer);
                }
            }
        }));
        Self { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

pub(super) fn namespace_of(path: &Path) -> OwnedFd {
    std::fs::File::open(path).unwrap().into()
}

/// Connects and reads the first line.
pub(super) fn ask(from: &OwnedFd, to: (IpAddr, u16)) -> io::Result<String> {
    let to = SocketAddr::from(to);
    enter(from, move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        line(&mut stream)
    })
}

/// One connection that stays open.
pub(super) fn connect(from: &OwnedFd, to: (IpAddr, u16)) -> io::Result<(TcpStream, String)> {
    let to = SocketAddr::from(to);
    enter(from, move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let text = line(&mut stream)?;
        Ok((stream, text))
    })
}

pub(super) fn line(stream: &mut TcpStream) -> io::Result<String> {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte)? == 1 && byte != *b"\n" {
        text.push(byte[0]);
    }
    String::from_utf8(text).map_err(io::Error::other)
}

pub(super) fn ask_udp(from: &OwnedFd, to: (IpAddr, u16)) -> io::Result<String> {
    let to = SocketAddr::from(to);
    enter(from, move || {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"?")?;
        let mut buffer = [0; 128];
        let count = socket.recv(&mut buffer)?;
        String::from_utf8(buffer[..count].to_vec()).map_err(io::Error::other)
    })
}

/// One datagram with a source of one's choice.
///
/// The port is the kernel's choice: one given twice in a row may still be held by the copy that
/// another test's child has between its fork and its exec.
pub(super) fn say(from: &OwnedFd, own: IpAddr, to: (IpAddr, u16)) {
    enter(from, move || {
        let socket = UdpSocket::bind((own, 0))?;
        socket.send_to(b"!", SocketAddr::from(to))?;
        Ok(())
    })
    .unwrap();
}

/// Remembers where datagrams came from, until it is dropped.
pub(super) struct Heard {
    stop: Arc<AtomicBool>,
    sources: Arc<Mutex<BTreeSet<IpAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl Heard {
    pub(super) fn start(namespace: &Path, port: u16) -> Self {
        let (stop, sources) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let namespace = namespace_of(namespace);
        let socket = enter(&namespace, move || UdpSocket::bind(("::", port))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (stopped, known) = (Arc::clone(&stop), Arc::clone(&sources));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = socket.recv_from(&mut [0; 8]) {
                    let known: &Mutex<BTreeSet<IpAddr>> = &known;
                    known.lock().unwrap().insert(plain(peer.ip()));
                }
            }
        });
        Self { stop, sources, thread: Some(thread) }
    }

    pub(super) fn sources(&self) -> BTreeSet<IpAddr> {
        self.sources.lock().unwrap().clone()
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Waits until something is so.
pub(super) async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < limit, "not so in 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const PATIENCE: Duration = Duration::from_secs(3);

/// An Ethernet frame between two nodes: a datagram to port 9 of a container.
pub(super) fn frame(from: u32, to: u32, source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = netplan::node_hardware(to).to_vec();
    frame.extend(netplan::node_hardware(from));
    frame.extend([8, 0]);
    let mut ip = vec![0x45, 0, 0, 29, 0, 1, 0, 0, 64, 17, 0, 0];
    ip.extend(source.octets());
    ip.extend(target.octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    // Without a checksum, as UDP allows it.
    frame.extend([0x30, 0x39, 0, 9, 0, 9, 0, 0, b'x']);
    frame
}

/// As it stands in a datagram between two hosts (RFC 7348, section 5).
pub(super) fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    let mut packet = vec![8, 0, 0, 0, a, b, c, 0];
    packet.extend(frame);
    packet
}
