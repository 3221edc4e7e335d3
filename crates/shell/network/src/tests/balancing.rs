//! Networks with virtual addresses and without: what is tracked, and how one becomes the other.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use ports::network::Network;
use types::{DirectoryUpdate, EndpointMode, NetworkId, ServiceId};

use super::lab::*;
use crate::namespace::enter;
use crate::netlink::Socket;
use crate::tracking;

fn tracks(lab: &Lab, host: usize) -> bool {
    let name = id::<NetworkId>(1001).to_string();
    let sandbox = namespace_of(&lab.hosts[host].dir.path().join("sandboxes").join(name));
    let empty = || tracking::is_empty(&mut Socket::open(libc::NETLINK_NETFILTER)?);
    !enter(&sandbox, empty).unwrap()
}

fn goes_on(connection: &mut TcpStream) {
    connection.write_all(b"still there\n").unwrap();
    assert_eq!(line(connection).unwrap(), "still there");
}

fn only_services(lab: &Lab) -> DirectoryUpdate {
    DirectoryUpdate { services: lab.directory.services.clone(), ..DirectoryUpdate::default() }
}

struct Talk {
    server: OwnedFd,
    client: OwnedFd,
    _programs: Server,
}

/// One task on each of two hosts, on a network where nothing is balanced.
async fn talk(lab: &mut Lab, service: Option<ServiceId>) -> Talk {
    lab.add_task(1, 0, 10, None);
    lab.add_task(1, 1, 20, service);
    lab.tell_all().await;
    let client = lab.attach(0, &wanted("client", &[1], 10)).await;
    let server = lab.attach(1, &wanted("server", &[1], 20)).await;
    Talk {
        _programs: Server::start(&server.netns, "server", 80),
        server: namespace_of(&server.netns),
        client: namespace_of(&client.netns),
    }
}

#[test]
fn connections_are_tracked_from_the_first_virtual_address_on() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        let Talk { server, client, .. } = &talk(lab, None).await;
        let mut early = Vec::new();
        for address in [v4(1, 20), v6(1, 20)] {
            let (connection, text) = connect(client, (address, 80)).unwrap();
            assert!(text.starts_with("server "), "{text}");
            early.push(connection);
        }
        assert!(!tracks(lab, 0) && !tracks(lab, 1));
        // The service has names only: nothing is balanced for it.
        let service = lab.add_service(1, 1, &[]);
        lab.directory.services[0].mode = EndpointMode::Dnsrr;
        for host in &lab.hosts {
            host.path.update(only_services(lab)).await.unwrap();
        }
        ask(client, (v4(1, 20), 80)).unwrap();
        assert!(!tracks(lab, 0) && !tracks(lab, 1));
        assert!(ask(client, (v4(1, 201), 80)).is_err());

        lab.directory.services[0].mode = EndpointMode::Vip;
        lab.directory.endpoints[1].service = Some(service);
        for host in &lab.hosts {
            let endpoints = vec![lab.directory.endpoints[1].clone()];
            host.path.update(DirectoryUpdate { endpoints, ..only_services(lab) }).await.unwrap();
        }
        for address in [v4(1, 201), v6(1, 201)] {
            assert!(ask(client, (address, 80)).unwrap().starts_with("server "));
            // A task comes to itself, though it was there before.
            assert!(ask(server, (address, 80)).unwrap().starts_with("server "));
        }
        early.iter_mut().for_each(goes_on);
        assert!(tracks(lab, 0) && tracks(lab, 1));
        assert_eq!(lab.hosts[0].path.repair().await.unwrap(), 0);
    });
}

#[test]
fn a_new_daemon_keeps_connections_whose_virtual_address_is_gone() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        let service = lab.add_service(1, 1, &[]);
        let Talk { client, .. } = &talk(lab, Some(service)).await;
        let mut open =
            [v4(1, 201), v6(1, 201)].map(|address| connect(client, (address, 80)).unwrap().0);
        // The service was removed, and its task is stopping.
        lab.directory.services.clear();
        lab.directory.endpoints[1].service = None;
        lab.tell_all().await;
        open.iter_mut().for_each(goes_on);
        let options = host_options(lab.hosts[0].dir.path(), "h1", Some(lab.hosts[0].address));
        lab.hosts[0].path = open_in(&lab.hosts[0].namespace, options).await;
        lab.hosts[0].path.update(lab.told(0)).await.unwrap();
        lab.hosts[0].path.repair().await.unwrap();
        open.iter_mut().for_each(goes_on);
        assert!(ask(client, (v4(1, 201), 80)).is_err());
        assert!(ask(client, (v4(1, 20), 80)).is_ok());
    });
}

/// The kernel itself would say so a few times a second only.
#[test]
fn a_task_that_is_gone_refuses_every_connection_on_a_network_that_tracks_nothing() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        let Talk { client, .. } = &talk(lab, None).await;
        for address in [v4(1, 99), v6(1, 99)] {
            for attempt in 0..40 {
                let error = ask(client, (address, 80)).unwrap_err();
                let refused = std::io::ErrorKind::ConnectionRefused;
                assert_eq!(error.kind(), refused, "{address}, attempt {attempt}: {error}");
            }
        }
        assert!(!tracks(lab, 0));
    });
}

#[test]
fn two_services_that_change_places_in_one_update_are_reached_at_their_new_ones() {
    in_lab(1, async |lab| {
        lab.add_network(1);
        lab.add_network(INGRESS);
        let mut servers = Vec::new();
        for (number, name) in [(1, "one"), (2, "two")] {
            let address = 10 + number;
            let service = lab.add_service(1, number, &[]);
            lab.add_task(1, 0, address, Some(service));
            let service = lab.add_service(INGRESS, 2 + number, &[(8000 + u16::from(number), 80)]);
            lab.add_task(INGRESS, 0, address, Some(service));
            lab.tell_all().await;
            let task = lab.attach(0, &wanted(name, &[1, INGRESS], address)).await;
            servers.push((Server::start(&task.netns, name, 80), namespace_of(&task.netns)));
        }
        let from = servers[0].1.try_clone().unwrap();
        for (first, second) in [("one", "two"), ("two", "one"), ("one", "two")] {
            for (number, name) in [(1, first), (2, second)] {
                for address in [v4(1, 200 + number), v6(1, 200 + u16::from(number))] {
                    let answer = ask(&from, (address, 80)).unwrap();
                    assert!(answer.starts_with(name), "{address}: {answer}");
                }
                let port = (lab.hosts[0].address, 8000 + u16::from(number));
                let answer = ask(&lab.client, port).unwrap();
                assert!(answer.starts_with(name), "{port:?}: {answer}");
            }
            for [one, other] in [[0, 2], [1, 3]] {
                let services = &mut lab.directory.services;
                let (v4, v6, ports) =
                    (services[one].v4, services[one].v6, services[one].ports.clone());
                (services[one].v4, services[one].v6) = (services[other].v4, services[other].v6);
                services[one].ports = std::mem::replace(&mut services[other].ports, ports);
                (services[other].v4, services[other].v6) = (v4, v6);
            }
            lab.hosts[0].path.update(only_services(lab)).await.unwrap();
            assert_eq!(lab.hosts[0].path.repair().await.unwrap(), 0);
        }
    });
}
