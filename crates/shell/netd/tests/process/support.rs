//! Namespaces, questions and directories for tests.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base::Id;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use netd::{Client, Container, Forward, Options};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use types::{
    DirectoryUpdate, EndpointMode, EndpointPart, NetworkDriver, NetworkId, NetworkPart, NodeId,
    PortPart, PortProtocol, PublishMode, ServiceId, ServicePart, TaskId,
};

/// Whatever is waited for happens within this time, on a machine with other work too.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Puts the calling thread into a network namespace of its own, with its loopback up.
pub(crate) fn enter_new_space() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(status.success());
}

/// The network namespace of a container.
pub(crate) struct Space {
    file: File,
}

impl Space {
    pub(crate) fn new() -> Self {
        std::thread::spawn(|| {
            enter_new_space();
            Self { file: File::open("/proc/thread-self/ns/net").unwrap() }
        })
        .join()
        .unwrap()
    }

    /// Leads any process to it, as long as this one has it open.
    pub(crate) fn path(&self) -> PathBuf {
        let fd = self.file.as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()))
    }

    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }

    /// Asks the resolver of this container.
    pub(crate) fn ask(&self, port: u16, name: &str, kind: RecordType) -> Message {
        let question = question(name, kind);
        let answer = self.run(|| exchange(port, &question.to_vec().unwrap())).unwrap();
        Message::from_vec(&answer).unwrap()
    }

    pub(crate) fn ask_by_tcp(&self, port: u16, name: &str, kind: RecordType) -> Message {
        let question = question(name, kind).to_vec().unwrap();
        self.run(|| {
            let mut stream = TcpStream::connect(("127.0.0.11", port)).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            Message::from_vec(&exchange_framed(&mut stream, &question).unwrap()).unwrap()
        })
    }

    /// Addresses, in order.
    pub(crate) fn addresses(&self, port: u16, name: &str) -> Vec<String> {
        addresses(&self.ask(port, name, RecordType::A))
    }
}

pub(crate) fn exchange(port: u16, question: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.connect(("127.0.0.11", port))?;
    socket.send(question)?;
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

pub(crate) fn exchange_framed(stream: &mut TcpStream, question: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(&(question.len() as u16).to_be_bytes())?;
    stream.write_all(question)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

pub(crate) fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

pub(crate) fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

pub(crate) fn addresses(message: &Message) -> Vec<String> {
    assert_eq!(message.metadata.response_code, ResponseCode::NoError, "{message:?}");
    let mut all: Vec<IpAddr> = message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(a) => Some(IpAddr::V6(a.0)),
            _ => None,
        })
        .collect();
    all.sort_unstable();
    all.iter().map(IpAddr::to_string).collect()
}

/// A run directory and what talks to its netd; netd ends with it.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { dir: tempfile::tempdir().unwrap(), runtime }
    }

    pub(crate) fn options(&self) -> Options {
        Options::new(self.dir.path().to_owned(), "one".into())
    }

    pub(crate) fn start(&self) -> Client {
        self.wait(Client::connect_or_start(self.options())).unwrap()
    }

    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(crate) fn serve(&self, client: &Client, id: &str, space: &Space, on: &[u128]) -> u16 {
        self.wait(client.serve(container(id, space, on, Forward::None))).unwrap()
    }

    pub(crate) fn pid(&self, client: &Client) -> u32 {
        self.wait(client.status()).unwrap().pid
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self
            .runtime
            .block_on(async { Client::connect_or_start(self.options()).await?.stop().await });
    }
}

pub(crate) fn container(id: &str, space: &Space, on: &[u128], forward: Forward) -> Container {
    let networks = on.iter().map(|number| network_id(*number)).collect();
    Container { id: id.into(), netns: space.path(), networks, forward }
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn kill_hard(pid: u32) {
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
}

pub(crate) fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z"))
}

pub(crate) fn network_id(number: u128) -> NetworkId {
    NetworkId(Id::from_u128(100 + number).unwrap())
}

pub(crate) fn service_id(number: u128) -> ServiceId {
    ServiceId(Id::from_u128(1_000 + number).unwrap())
}

pub(crate) fn task_id(number: u128) -> TaskId {
    TaskId(Id::from_u128(1_000_000 + number).unwrap())
}

pub(crate) fn network(number: u128, name: &str, subnet: &str) -> NetworkPart {
    let net: ipnet::IpNet = subnet.parse().unwrap();
    NetworkPart {
        id: network_id(number),
        name: name.into(),
        driver: NetworkDriver::Overlay,
        vni: 0,
        mtu: 0,
        ingress: false,
        internal: false,
        encrypted: false,
        subnets: vec![(net, net.hosts().next().unwrap())],
        options: [].into(),
        config_from: String::new(),
    }
}

pub(crate) fn service(network: u128, number: u128, name: &str, vip: &str) -> ServicePart {
    ServicePart {
        network: network_id(network),
        service: service_id(number),
        name: name.into(),
        aliases: vec![],
        mode: if vip.is_empty() { EndpointMode::Dnsrr } else { EndpointMode::Vip },
        v4: vip.parse().ok(),
        v6: None,
        ports: vec![PortPart {
            name: "http".into(),
            protocol: PortProtocol::Tcp,
            target: 8_080,
            published: 0,
            mode: PublishMode::Ingress,
            host: String::new(),
        }],
    }
}

pub(crate) fn endpoint(
    network: u128,
    number: u128,
    service: u128,
    address: &str,
    names: &[&str],
) -> EndpointPart {
    EndpointPart {
        network: network_id(network),
        task: task_id(number),
        service: Some(service_id(service)),
        node: NodeId::MIN,
        number: 1,
        v4: address.parse().ok(),
        v6: None,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        serving: true,
    }
}

/// Two networks: on `front` the service web with a virtual address and two tasks, on `back` the
/// service db by the addresses of its one task.
pub(crate) fn directory() -> DirectoryUpdate {
    DirectoryUpdate {
        full: true,
        index: 7,
        networks: vec![network(1, "front", "10.0.1.0/24"), network(2, "back", "10.0.2.0/24")],
        services: vec![service(1, 1, "web", "10.0.1.100"), service(2, 2, "db", "")],
        endpoints: vec![
            endpoint(1, 1, 1, "10.0.1.1", &["web.1.abc", "web.1"]),
            endpoint(1, 2, 1, "10.0.1.2", &["web.2.def", "web.2"]),
            endpoint(2, 3, 2, "10.0.2.1", &["db.1.ghi", "db.1"]),
        ],
        ..DirectoryUpdate::default()
    }
}
