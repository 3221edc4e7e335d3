//! What not every kernel has: SCTP through the mesh and host ports, and links that lose and delay.
//!
//! A test whose part is missing here says so and passes; the guest's kernel has all of them.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, sockopt,
};
use nix::sys::time::TimeVal;
use ports::network::{ContainerNetwork, HostPort, Network};
use types::{PortPart, PortProtocol, PublishMode};

use super::lab::*;
use crate::namespace::enter;

/// A socket that behaves as one of TCP does.
fn sctp_socket(family: AddressFamily) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket::socket(family, SockType::Stream, flags, SockProtocol::Sctp)
}

fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Whether there is none here, and why that ends a test.
fn without_sctp() -> bool {
    let missing = sctp_socket(AddressFamily::Inet).err();
    if let Some(error) = &missing {
        println!("skipped: this kernel has no SCTP: {error}");
    }
    missing.is_some()
}

/// Says its name and who is asking, until it is dropped.
struct SctpServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SctpServer {
    fn start(namespace: &Path, name: &str, at: IpAddr, port: u16) -> Self {
        let listener = enter(&namespace_of(namespace), move || {
            let at = SocketAddr::from((at, port));
            let socket = sctp_socket(family_of(at.ip()))?;
            socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
            socket::listen(&socket, socket::Backlog::new(16)?)?;
            Ok(TcpListener::from(socket))
        })
        .unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, name) = (Arc::new(AtomicBool::new(false)), name.to_owned());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut open = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, peer)) => {
                        let _ = writeln!(stream, "{name} {}", peer.ip().to_canonical());
                        open.push(stream);
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for SctpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn ask_sctp(from: &OwnedFd, to: (IpAddr, u16)) -> io::Result<String> {
    let to = SocketAddr::from(to);
    enter(from, move || {
        let socket = sctp_socket(family_of(to.ip()))?;
        let patience = TimeVal::new(5, 0);
        socket::setsockopt(&socket, sockopt::SendTimeout, &patience)?;
        socket::setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        line(&mut TcpStream::from(socket))
    })
}

fn on_wire(number: u16) -> [IpAddr; 2] {
    let v4 = IpAddr::from([192, 0, 2, number as u8]);
    [v4, format!("fd12::{number}").parse().unwrap()]
}

#[test]
fn sctp_comes_through_every_node_to_a_published_port_with_the_clients_address() {
    if without_sctp() {
        return;
    }
    in_lab(2, async |lab| {
        lab.add_network(INGRESS);
        let service = lab.add_service(INGRESS, 1, &[]);
        lab.directory.services[0].ports.push(PortPart {
            name: String::new(),
            protocol: PortProtocol::Sctp,
            target: 80,
            published: 8080,
            mode: PublishMode::Ingress,
            host: String::new(),
        });
        lab.add_task(INGRESS, 1, 20, Some(service));
        lab.tell_all().await;
        let web = lab.attach(1, &wanted("web", &[INGRESS], 20)).await;
        let _web = SctpServer::start(&web.netns, "web", ANY, 80);
        for number in [11, 12] {
            let [v4, v6] = on_wire(number);
            assert_eq!(ask_sctp(&lab.client, (v4, 8080)).unwrap(), "web 192.0.2.100", "{v4}");
            assert_eq!(ask_sctp(&lab.client, (v6, 8080)).unwrap(), "web fd12::100", "{v6}");
        }
        for host in &lab.hosts {
            let answer = ask_sctp(&host.namespace, (Ipv4Addr::LOCALHOST.into(), 8080));
            assert!(answer.unwrap().starts_with("web "), "from host {}", host.number);
        }
        let near = lab.attach(0, &plain("near")).await;
        let answer = ask_sctp(&namespace_of(&near.netns), (on_wire(12)[0], 8080)).unwrap();
        assert!(answer.starts_with("web "), "{answer}");
        assert!(ask(&lab.client, (on_wire(11)[0], 8080)).is_err(), "TCP is not published");
    });
}

#[test]
fn sctp_comes_to_a_tasks_own_port_and_to_a_virtual_address() {
    if without_sctp() {
        return;
    }
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_network(INGRESS);
        let service = lab.add_service(1, 1, &[]);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 11, Some(service));
        lab.tell_all().await;
        let port = |published, host: &str| HostPort {
            protocol: PortProtocol::Sctp,
            target: 80,
            published,
            host: host.to_owned(),
        };
        let host_ports = vec![port(9000, ""), port(9001, "192.0.2.12")];
        let own = lab.attach(1, &ContainerNetwork { host_ports, ..plain("own") }).await;
        let _own = SctpServer::start(&own.netns, "own", ANY, 80);
        let [here, here6] = on_wire(12);
        for port in [9000, 9001] {
            let answer = ask_sctp(&lab.client, (here, port)).unwrap();
            assert_eq!(answer, "own 192.0.2.100", "{port}");
        }
        assert_eq!(ask_sctp(&lab.client, (here6, 9000)).unwrap(), "own fd12::100");
        assert!(ask_sctp(&lab.client, (here6, 9001)).is_err());

        // Of a server with several interfaces SCTP chooses the address: it has to bind to one.
        let web = lab.attach(1, &wanted("web", &[1], 11)).await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let client = namespace_of(&client.netns);
        for (at, vip, from) in
            [(v4(1, 11), v4(1, 201), "10.0.1.10"), (v6(1, 11), v6(1, 201), "fd99:0:0:1::a")]
        {
            let _web = SctpServer::start(&web.netns, "web", at, 80);
            for to in [at, vip] {
                assert_eq!(ask_sctp(&client, (to, 80)).unwrap(), format!("web {from}"), "{to}");
            }
        }
    });
}

const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn plain(id: &str) -> ContainerNetwork {
    ContainerNetwork { id: id.to_owned(), hostname: id.to_owned(), ..ContainerNetwork::default() }
}

/// How packets leave one host; what is refused is the kernel's answer.
fn shape(lab: &Lab, host: usize, words: &str) -> Result<(), String> {
    let line = format!("qdisc replace dev eth0 root netem {words}");
    let answer = enter(&lab.hosts[host].namespace, move || {
        Command::new("tc").args(line.split(' ')).output()
    });
    match answer {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("tc: {error}")),
    }
}

#[test]
fn loss_and_delay_of_a_link_are_measured() {
    in_lab(3, async |lab| {
        let network = lab.add_network(1);
        lab.tell_all().await;
        if let Err(problem) = shape(lab, 1, "delay 30ms") {
            println!("skipped: this kernel has no netem: {problem}");
            return;
        }
        let check = lab.hosts[0].path.examine(network).await.unwrap();
        let [slow, other] = [lab.node(1), lab.node(2)]
            .map(|node| *check.paths.iter().find(|path| path.node == node).unwrap());
        assert_eq!((slow.loss_percent(), slow.passes), (0, 1450), "{slow:?}");
        assert!(slow.round_trip_us >= 30_000, "{slow:?}");
        assert!(slow.round_trip_us >= other.round_trip_us + 20_000, "{slow:?} {other:?}");

        shape(lab, 1, "loss 30%").unwrap();
        let check = lab.hosts[0].path.examine(network).await.unwrap();
        let lossy = check.paths.iter().find(|path| path.node == lab.node(1)).unwrap();
        assert!((5..=70).contains(&lossy.loss_percent()), "{lossy:?}");
        assert_eq!(lossy.passes, 1450, "what is lost by chance is no matter of size: {lossy:?}");
        let back = lab.hosts[1].path.examine(network).await.unwrap();
        let same = back.paths.iter().find(|path| path.node == lab.node(0)).unwrap();
        assert!(same.loss_percent() >= 5, "the other end sees it, too: {same:?}");

        shape(lab, 1, "loss 100%").unwrap();
        let check = lab.hosts[0].path.examine(network).await.unwrap();
        let dead = check.paths.iter().find(|path| path.node == lab.node(1)).unwrap();
        assert_eq!((dead.answered, dead.passes), (0, 0));
    });
}
