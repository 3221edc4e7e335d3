//! Connections that outlive changes, and those that are waited for.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use base::Millis;
use ports::network::{Drain, Network};
use types::{DirectoryUpdate, NetworkId};

use super::lab::*;
use crate::namespace::enter;
use crate::netlink::Socket;
use crate::tracking::{Connection, tcp_to};

/// TCP connections tracked in a namespace that were led to an address.
fn tracked(namespace: &OwnedFd, server: IpAddr) -> Vec<Connection> {
    enter(namespace, move || tcp_to(&mut Socket::open(libc::NETLINK_NETFILTER)?, &[server].into()))
        .unwrap()
}

fn sandbox(lab: &Lab, host: usize, name: &str) -> OwnedFd {
    namespace_of(&lab.hosts[host].dir.path().join("sandboxes").join(name))
}

#[test]
fn open_connections_are_remembered_for_a_day_in_every_table() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_network(INGRESS);
        let service = lab.add_service(1, 1, &[]);
        let web = lab.add_service(INGRESS, 2, &[(8080, 80)]);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 20, Some(service));
        lab.add_task(INGRESS, 1, 20, Some(web));
        lab.tell_all().await;
        for host in &lab.hosts {
            enter(&host.namespace, || {
                let file = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
                std::fs::write(file, "60")
            })
            .unwrap();
        }
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let server = lab.attach(1, &wanted("server", &[1, INGRESS], 20)).await;
        let _server = Server::start(&server.netns, "server", 80);
        let _by_name = connect(&namespace_of(&client.netns), (v4(1, 201), 80)).unwrap();
        let _by_port = connect(&lab.client, (lab.hosts[0].address, 8080)).unwrap();
        let network = id::<NetworkId>(1001).to_string();
        let mesh = lab.hosts[0].path.inner.node().links.mesh_v4().into();
        for (namespace, address) in [
            (sandbox(lab, 0, &network), v4(1, 20)),
            (sandbox(lab, 1, &network), v4(1, 20)),
            (sandbox(lab, 0, "mesh"), v4(INGRESS, 20)),
            (sandbox(lab, 1, "mesh"), v4(INGRESS, 20)),
            (lab.hosts[0].namespace.try_clone().unwrap(), mesh),
        ] {
            let all = tracked(&namespace, address);
            assert_eq!(all.len(), 1, "{address}");
            assert!(all[0].is_open() && all[0].seconds > 24 * 3_600, "{address}: {all:?}");
        }
        // Nothing of the mesh is tracked by the host of the task.
        assert_eq!(tracked(&lab.hosts[1].namespace, v4(INGRESS, 20)), []);
    });
}

#[test]
fn a_container_is_drained_when_its_last_connection_ends() {
    drains(true);
}

#[test]
fn a_container_is_drained_on_a_network_that_tracks_nothing_too() {
    drains(false);
}

fn drains(balanced: bool) {
    in_lab(2, async move |lab| {
        lab.add_network(1);
        let service = balanced.then(|| lab.add_service(1, 1, &[]));
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 20, service);
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let server = lab.attach(1, &wanted("server", &[1], 20)).await;
        let _server = Server::start(&server.netns, "server", 80);
        let address = v4(1, if balanced { 201 } else { 20 });
        let (stream, _) = connect(&namespace_of(&client.netns), (address, 80)).unwrap();
        let path = lab.hosts[1].path.clone();
        let limit = |min, max| Drain { min: Millis(min), max: Millis(max) };
        let begun = Instant::now();
        path.drain("server", limit(0, 400)).await;
        assert!(begun.elapsed() >= Duration::from_millis(400), "it was open to the limit");
        let draining = tokio::spawn({
            let path = path.clone();
            async move { path.drain("server", limit(0, 60_000)).await }
        });
        let begun = Instant::now();
        tokio::task::yield_now().await;
        drop(stream);
        draining.await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30), "it ended with the connection");
        let begun = Instant::now();
        path.drain("server", limit(300, 60_000)).await;
        assert!(begun.elapsed() >= Duration::from_millis(300), "names need their time");
        path.drain("nobody", limit(0, 60_000)).await;
    });
}

#[test]
fn datagrams_of_an_open_socket_leave_a_backend_that_left() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_network(INGRESS);
        let service = lab.add_service(1, 1, &[]);
        let web = lab.add_service(INGRESS, 2, &[(8080, 80)]);
        lab.add_task(1, 0, 10, None);
        for number in [20, 21] {
            lab.add_task(1, 1, number, Some(service));
            lab.add_task(INGRESS, 1, number, Some(web));
        }
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let mut servers = Vec::new();
        for number in [20, 21] {
            let name = format!("server{number}");
            let attached = lab.attach(1, &wanted(&name, &[1, INGRESS], number)).await;
            servers.push(Server::start(&attached.netns, &name, 80));
        }
        let socket = |from: &OwnedFd, to: IpAddr, port: u16| {
            enter(from, move || {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.set_read_timeout(Some(Duration::from_secs(3)))?;
                socket.connect((to, port))?;
                Ok(socket)
            })
            .unwrap()
        };
        let sockets = [
            socket(&namespace_of(&client.netns), v4(1, 201), 80),
            socket(&lab.client, lab.hosts[0].address, 8080),
        ];
        let who = |socket: &UdpSocket| {
            let mut buffer = [0; 64];
            // A datagram may be lost, as on any wire.
            let answer = (0..3).find_map(|_| {
                socket.send(b"?").unwrap();
                socket.recv(&mut buffer).ok()
            });
            let count = answer.expect("an answer");
            String::from_utf8(buffer[..count].to_vec()).unwrap()[..8].to_owned()
        };
        let before: Vec<String> = sockets.iter().map(who).collect();
        assert_eq!(before, sockets.iter().map(who).collect::<Vec<_>>(), "a flow stays");
        for (index, socket) in sockets.iter().enumerate() {
            let mut update = DirectoryUpdate::default();
            let network = if index == 0 { id::<NetworkId>(1001) } else { id(1009) };
            let number: u128 = if before[index] == "server20" { 3020 } else { 3021 };
            let ours = lab
                .directory
                .endpoints
                .iter()
                .find(|part| part.network == network && part.task == id(number));
            let mut part = ours.unwrap().clone();
            part.serving = false;
            update.endpoints.push(part);
            lab.hosts[0].path.update(update).await.unwrap();
            // The flow is forgotten soon after, apart from the update.
            let begun = Instant::now();
            while who(socket) == before[index] {
                assert!(begun.elapsed() < Duration::from_secs(5), "it still goes there");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
}
