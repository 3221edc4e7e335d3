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
use std::time::{Duration, Instant};

use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, sockopt,
};
use nix::sys::time::TimeVal;
use ports::network::{ContainerNetwork, HostPort, Network};
use tunnel::PrivateKey;
use types::{
    DirectoryUpdate, EncryptionBackend, NetworkKey, PeerEncryption, PeerPart, PortPart,
    PortProtocol, PublishMode,
};

use super::encrypted::*;
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
        if let Err(problem) = shape(lab, 1, "delay 150ms") {
            println!("skipped: this kernel has no netem: {problem}");
            return;
        }
        let check = lab.hosts[0].path.examine(network).await.unwrap();
        let [slow, other] = [lab.node(1), lab.node(2)]
            .map(|node| check.paths.iter().find(|path| path.node == node).unwrap().clone());
        assert_eq!((slow.loss_percent(), slow.passes), (0, 1450), "{slow:?}");
        assert!(slow.round_trip_us >= 150_000, "{slow:?}");
        // An emulated machine that is busy takes tens of milliseconds for the other.
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

/// Whether there is none here, and why that ends a test.
fn without_wireguard() -> bool {
    let found = crate::tunnel::wireguard::probe().unwrap();
    assert!(found || std::env::var_os("KERNEL_WIREGUARD_REQUIRED").is_none(), "it has to be here");
    if !found {
        println!("skipped: this kernel has no WireGuard");
    }
    !found
}

#[test]
fn the_kernel_encrypts_to_itself_and_what_a_hand_changed_is_mended() {
    if without_wireguard() {
        return;
    }
    in_lab(2, async |lab| {
        let mut keepers = keepers(lab);
        let ear = Ear::start(lab.wire());
        let pair = pair(lab, &mut keepers).await;
        assert!(pair.passes() && pair.plain_passes());
        let path = lab.hosts[0].path.clone();
        assert_eq!(path.encryption_seen().backend, Some(EncryptionBackend::Kernel));
        assert!(path.tunnels().borrow().is_empty(), "nobody else is to serve them");
        let check = path.examine(network(1)).await.unwrap();
        assert_eq!(check.problems, Vec::<String>::new());
        assert_eq!((check.paths[0].loss_percent(), check.paths[0].passes), (0, MTU));
        let seen = check.paths[0].tunnel.clone().unwrap();
        assert_eq!((seen.backend, seen.trouble.as_str()), (EncryptionBackend::Kernel, ""));
        assert!(seen.handshake_age.is_some() && seen.received_bytes > 0, "{seen:?}");
        let tunnel = sandbox(lab, 0, "enc");
        let peer = run_in(&tunnel, "wg show wg1 peers").trim().to_owned();
        let wrongs = [
            format!("wg set wg1 peer {peer} remove"),
            format!("wg set wg1 peer {peer} allowed-ips 10.9.9.9/32"),
            "wg set wg1 listen-port 4999".to_owned(),
            "wg set wg1 private-key /dev/null".to_owned(),
            "ip link set wg1 down".to_owned(),
            "ip link del wg1".to_owned(),
        ];
        for wrong in wrongs {
            run_in(&tunnel, &wrong);
            if wrong.starts_with("wg") && !wrong.contains("listen-port") {
                assert!(pair.nothing_passes(), "{wrong}");
            }
            path.repair().await.unwrap();
            eventually(&wrong, || pair.passes()).await;
            path.repair().await.unwrap();
            assert_eq!(path.repair().await.unwrap(), 0, "{wrong}");
        }
        // A device that is gone, with what was to be encrypted.
        run_in(&tunnel, "ip link del wg1");
        assert!(pair.nothing_passes());
        let heard = ear.heard();
        assert!(!heard.clear.contains_key(&vni(1)) && !heard.says(WORD));
    });
}

#[test]
fn the_kernel_and_user_space_encrypt_to_each_other_and_change_keys_under_load() {
    if without_wireguard() {
        return;
    }
    in_lab(2, async |lab| {
        force_user_space(&mut lab.hosts[1]).await;
        let mut keepers = keepers(lab);
        let ear = Ear::start(lab.wire());
        let pair = pair(lab, &mut keepers).await;
        assert!(pair.passes() && pair.plain_passes());
        for (host, backend) in [(0, EncryptionBackend::Kernel), (1, EncryptionBackend::UserSpace)] {
            let seen = lab.hosts[host].path.encryption_seen();
            assert_eq!(seen.backend, Some(backend));
        }
        for (host, keeper) in lab.hosts.iter().zip(&mut keepers) {
            keeper.serve(host).await;
            let check = host.path.examine(network(1)).await.unwrap();
            assert_eq!((check.paths[0].loss_percent(), check.paths[0].passes), (0, MTU));
            assert_eq!(check.paths[0].tunnel.clone().unwrap().trouble, "");
        }
        let flow = Flow::start(&pair.client, &pair.far, v4(1, 12));
        eventually("packets come", || flow.received() > 20).await;
        rotate(lab, &mut keepers, Duration::from_millis(300)).await;
        let before = flow.received();
        eventually("packets come with the new keys", || flow.received() > before + 20).await;
        let (sent, received) = flow.end();
        println!("{sent} sent, {} lost", sent - received);
        assert_eq!(sent, received);
        assert_silence(&ear, 1);
    });
}

#[test]
fn loss_and_delay_do_not_end_a_tunnel() {
    if without_wireguard() {
        return;
    }
    in_lab(2, async |lab| {
        force_user_space(&mut lab.hosts[1]).await;
        let mut keepers = keepers(lab);
        if let Err(problem) = shape(lab, 1, "delay 30ms loss 10%") {
            println!("skipped: this kernel has no netem: {problem}");
            return;
        }
        let ear = Ear::start(lab.wire());
        let pair = pair(lab, &mut keepers).await;
        eventually("it passes all the same", || pair.passes()).await;
        keepers[0].serve(&lab.hosts[0]).await;
        let check = lab.hosts[0].path.examine(network(1)).await.unwrap();
        let path = &check.paths[0];
        assert!(path.answered > 0 && path.round_trip_us >= 30_000, "{path:?}");
        assert_eq!(path.tunnel.clone().unwrap().trouble, "");
        rotate(lab, &mut keepers, Duration::from_millis(300)).await;
        eventually("it passes after a change of keys", || pair.passes()).await;
        assert_silence(&ear, 1);
    });
}

#[test]
fn the_kernel_has_a_thousand_peers_and_is_told_of_what_differs() {
    if without_wireguard() {
        return;
    }
    in_lab(1, async |lab| {
        let keepers = keepers(lab);
        add_encrypted(lab, 1);
        let path = lab.hosts[0].path.clone();
        path.set_keys(keepers[0].keys()).await.unwrap();
        let mut update = told(lab, &keepers, 0);
        let peer = |number: u32| PeerPart {
            network: network(1),
            node: id(10_000 + u128::from(number)),
            name: format!("n{number}"),
            number,
            address: Ipv4Addr::from_bits(0xc633_6400 + number).into(),
            mtu: 0,
            encryption: Some(PeerEncryption {
                keys: [(1, NetworkKey(*PrivateKey::generate().unwrap().public().as_bytes()))]
                    .into(),
                sends_with: 1,
            }),
        };
        update.peers.extend((100..1_100).map(peer));
        let begin = Instant::now();
        path.update(update).await.unwrap();
        println!("1,000 peers: {:?}", begin.elapsed());
        let peers = |seen: crate::EncryptionSeen| seen.tunnels[0].peers.len();
        assert_eq!(peers(path.encryption_seen()), 1_000);
        assert_eq!(path.repair().await.unwrap(), 0);
        let gone = DirectoryUpdate {
            removed_peers: (100..600u128).map(|n| (network(1), id(10_000 + n))).collect(),
            ..DirectoryUpdate::default()
        };
        path.update(gone).await.unwrap();
        assert_eq!(peers(path.encryption_seen()), 500);
        let tunnel = sandbox(lab, 0, "enc");
        let allowed = run_in(&tunnel, "wg show wg1 allowed-ips");
        assert_eq!(allowed.lines().count(), 500);
        assert!(allowed.contains("\t10.0.2.88/32\n"), "{}", &allowed[..200]);
    });
}
