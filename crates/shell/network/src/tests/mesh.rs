//! Published ports: from everywhere, over both families and protocols; and what stays closed.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ports::network::{ContainerNetwork, HostPort, Network};
use types::{PortBinding, PortProtocol};

use super::lab::*;
use crate::namespace::enter;

/// A service on port 8080 whose one task is on the second host.
async fn published(lab: &mut Lab) -> (Server, std::path::PathBuf) {
    lab.add_network(INGRESS);
    let service = lab.add_service(INGRESS, 1, &[(8080, 80)]);
    lab.add_task(INGRESS, 1, 20, Some(service));
    lab.tell_all().await;
    let web = lab.attach(1, &wanted("web", &[INGRESS], 20)).await;
    (Server::start(&web.netns, "web", 80), web.netns)
}

#[test]
fn the_clients_address_is_seen_over_both_families_and_protocols() {
    in_lab(2, async |lab| {
        let _web = published(lab).await;
        let (v4, v6) = ("web 192.0.2.100", "web fd12::100");
        for number in [11, 12] {
            for (to, answer) in [(host_v4(number), v4), (host_v6(number), v6)] {
                assert_eq!(ask(&lab.client, (to, 8080)).unwrap(), answer, "tcp through {to}");
                assert_eq!(ask_udp(&lab.client, (to, 8080)).unwrap(), answer, "udp through {to}");
            }
        }
        // Many bytes come whole, through a node without tasks.
        let (mut stream, _) = connect(&lab.client, (host_v4(11), 8080)).unwrap();
        io::Write::write_all(&mut stream, &[b'x'; 40]).unwrap();
        io::Write::write_all(&mut stream, b"\n").unwrap();
        assert_eq!(line(&mut stream).unwrap().len(), 40);
    });
}

#[test]
fn the_node_itself_and_containers_reach_published_ports() {
    in_lab(2, async |lab| {
        let (_web, own) = published(lab).await;
        for host in &lab.hosts {
            let here = &host.namespace;
            assert!(ask(here, (Ipv4Addr::LOCALHOST.into(), 8080)).unwrap().starts_with("web "));
            let answer = ask(here, (host.address, 8080)).unwrap();
            assert_eq!(answer, format!("web {}", host.address));
            let v6 = host_v6(10 + host.number as u16);
            assert_eq!(ask(here, (v6, 8080)).unwrap(), format!("web {v6}"));
        }
        // A container without networks, on either host, at both nodes' addresses.
        for host in 0..2 {
            let client = lab.attach(host, &plain("client")).await;
            let from = namespace_of(&client.netns);
            for number in [11, 12] {
                let answer = ask(&from, (host_v4(number), 8080)).unwrap();
                assert!(answer.starts_with("web "), "{answer}");
            }
            let nobody = ask(&from, (Ipv4Addr::LOCALHOST.into(), 8080));
            assert_eq!(nobody.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
        // The only backend comes to itself.
        for number in [11, 12] {
            for to in [host_v4(number), host_v6(number)] {
                let answer = ask(&namespace_of(&own), (to, 8080)).unwrap();
                assert!(answer.starts_with("web "), "{answer} through {to}");
            }
        }
    });
}

#[test]
fn what_is_not_published_stays_closed() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_network(2);
        let (_web, netns) = published(lab).await;
        let _hidden = Server::start(&netns, "hidden", 81);
        lab.add_task(1, 0, 30, None);
        lab.add_task(2, 0, 31, None);
        lab.add_task(2, 1, 32, None);
        lab.tell_all().await;
        let near = lab.attach(1, &wanted("near", &[INGRESS], 21)).await;
        let far = lab.attach(0, &wanted("far", &[INGRESS], 22)).await;
        let one = lab.attach(0, &wanted("one", &[1], 30)).await;
        let two = lab.attach(0, &wanted("two", &[2], 31)).await;
        let three = lab.attach(1, &wanted("three", &[2], 32)).await;
        let _servers =
            [Server::start(&two.netns, "two", 80), Server::start(&three.netns, "three", 80)];
        // A task's mesh address is nobody's business, on the same node and across nodes.
        for from in [&near, &far] {
            for (port, to) in [(80, v4(INGRESS, 20)), (81, v4(INGRESS, 20)), (81, v6(INGRESS, 20))]
            {
                let answer = ask(&namespace_of(&from.netns), (to, port));
                assert!(answer.is_err(), "{to}:{port} answered {answer:?}");
            }
        }
        // Nor is another network.
        for to in [v4(2, 31), v6(2, 31), v4(2, 32), v6(2, 32)] {
            let answer = ask(&namespace_of(&one.netns), (to, 80));
            assert!(answer.is_err(), "{to} answered {answer:?}");
        }
        // A host on the wire has no way in but the published port, even with a route.
        let host = lab.hosts[1].address;
        run_in(&lab.client, &format!("ip route add 10.0.9.0/24 via {host}"));
        run_in(&lab.client, &format!("ip route add 172.16.0.0/12 via {host}"));
        for to in [v4(INGRESS, 20), "172.30.240.2".parse().unwrap()] {
            assert!(ask(&lab.client, (to, 81)).is_err());
        }
        assert_eq!(ask(&lab.client, (host, 8080)).unwrap(), "web 192.0.2.100");
    });
}

#[test]
fn a_forged_source_and_a_forged_node_are_dropped() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 12, None);
        lab.tell_all().await;
        let one = lab.attach(0, &wanted("one", &[1], 10)).await;
        let two = lab.attach(1, &wanted("two", &[1], 12)).await;
        let heard = enter(&namespace_of(&two.netns), || {
            let socket = UdpSocket::bind("[::]:9")?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            Ok(socket)
        })
        .unwrap();
        let hears = || heard.recv_from(&mut [0; 64]).is_ok();
        let frame = frame(1, 2, Ipv4Addr::new(10, 0, 1, 10), Ipv4Addr::new(10, 0, 1, 12));
        let packet = vxlan(4097, &frame);
        let to = lab.hosts[1].address;
        // From a node of the network it arrives, so the packet is a good one.
        eventually("a member's packet arrives", || {
            send_udp(&lab.hosts[0].namespace, &packet, (to, 4789));
            hears()
        })
        .await;
        while hears() {}
        send_udp(&lab.client, &packet, (to, 4789));
        assert!(!hears(), "a stranger's packet");
        // A member of another network only is a stranger too.
        lab.add_network(2);
        let mut told = lab.told(1);
        told.peers.retain(|peer| peer.network != id(1001));
        lab.hosts[1].path.update(told).await.unwrap();
        send_udp(&lab.hosts[0].namespace, &packet, (to, 4789));
        assert!(!hears(), "a packet of a node that is not on this network");
        lab.hosts[1].path.update(lab.told(1)).await.unwrap();
        // No container pretends to be a node.
        send_udp(&namespace_of(&one.netns), &packet, (to, 4789));
        assert!(!hears(), "a container's packet");
        // Nor another container: the answer would go there.
        run_in(&namespace_of(&one.netns), "ip addr add 10.0.1.77/32 dev eth0");
        let begin = Instant::now();
        enter(&namespace_of(&one.netns), || {
            let socket = UdpSocket::bind("10.0.1.77:0")?;
            socket.send_to(b"x", "10.0.1.12:9").map(drop)
        })
        .unwrap();
        assert!(!hears(), "a forged source");
        assert!(begin.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn the_clusters_own_ports_are_no_containers_business() {
    in_lab(2, async |lab| {
        lab.add_network(INGRESS);
        lab.tell_all().await;
        let _managers: Vec<Server> = lab
            .hosts
            .iter()
            .flat_map(|host| {
                [2377, 7000].map(|port| Server::start_in(&host.namespace, "manager", port))
            })
            .collect();
        let client = lab.attach(0, &plain("client")).await;
        // One listens at an address that is no data path's.
        let manager = SocketAddr::from((host_v4(100), 2377));
        let _other = Server::start_in(&lab.client, "manager", 2377);
        lab.hosts[0].path.set_managers([manager].into()).await.unwrap();
        let from = namespace_of(&client.netns);
        let _else = Server::start_in(&lab.client, "else", 7000);
        for number in [11, 12, 100] {
            assert!(ask(&from, (host_v4(number), 7000)).is_ok());
            assert!(ask(&from, (host_v4(number), 2377)).is_err());
        }
        for host in &lab.hosts {
            for port in [4793, 4794, 4795] {
                let at = SocketAddr::new(host.address, port);
                let node = enter(&host.namespace, move || UdpSocket::bind(at)).unwrap();
                node.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                let _ =
                    enter(&from, move || UdpSocket::bind("0.0.0.0:0")?.send_to(b"!", at).map(drop));
                assert_eq!(node.recv(&mut [0; 8]).is_ok(), port == 4795, "{at}");
            }
        }
        let gateway = lab.hosts[0].path.inner.node().links.host_v4().into();
        assert!(ask(&from, (gateway, 7000)).is_ok());
        assert!(ask(&from, (gateway, 2377)).is_err());
    });
}

#[test]
fn an_internal_network_has_no_way_out() {
    in_lab(1, async |lab| {
        lab.add_network(1);
        lab.directory.networks[0].internal = true;
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 0, 11, None);
        lab.tell_all().await;
        let one = lab.attach(0, &wanted("one", &[1], 10)).await;
        let two = lab.attach(0, &wanted("two", &[1], 11)).await;
        let _server = Server::start(&two.netns, "two", 80);
        let host = lab.hosts[0].namespace.try_clone().unwrap();
        let _beyond = Server::start_in(&lab.client, "beyond", 80);
        let _host = Server::start_in(&host, "host", 80);
        let from = namespace_of(&one.netns);
        assert_eq!(ask(&from, (v4(1, 11), 80)).unwrap(), "two 10.0.1.10");
        for to in [host_v4(100), host_v4(11)] {
            assert!(ask(&from, (to, 80)).is_err(), "{to}");
        }
    });
}

#[test]
fn host_ports_lead_to_their_container_and_bound_ones_from_one_address() {
    in_lab(1, async |lab| {
        lab.add_network(INGRESS);
        lab.tell_all().await;
        run_in(&lab.hosts[0].namespace, "ip addr add 192.0.2.50/24 dev eth0");
        let port = |published, host: &str| HostPort {
            protocol: PortProtocol::Tcp,
            target: 80,
            published,
            host: host.to_owned(),
        };
        let asked = ContainerNetwork {
            host_ports: vec![
                port(9000, ""),
                port(9001, "192.0.2.50"),
                port(0, ""),
                port(9002, "lo"),
            ],
            ..plain("web")
        };
        let path = &lab.hosts[0].path;
        let attached = path.attach(&asked).await.unwrap();
        let chosen = attached.host_ports[2].published;
        assert_ne!(chosen, 0);
        assert_eq!(path.attach(&asked).await.unwrap(), attached, "chosen once");
        let _web = Server::start(&attached.netns, "web", 80);
        let answer = |from, address, port| ask(from, (address, port));
        for port in [9000, chosen] {
            assert_eq!(answer(&lab.client, host_v4(11), port).unwrap(), "web 192.0.2.100");
        }
        assert_eq!(answer(&lab.client, host_v6(11), 9000).unwrap(), "web fd12::100");
        assert_eq!(answer(&lab.client, host_v4(50), 9001).unwrap(), "web 192.0.2.100");
        assert!(answer(&lab.client, host_v4(11), 9001).is_err());
        assert!(answer(&lab.client, host_v4(11), 9002).is_err());
        let here = &lab.hosts[0].namespace;
        assert!(answer(here, Ipv4Addr::LOCALHOST.into(), 9002).is_ok());
        // Another container cannot have the same.
        let again = ContainerNetwork { host_ports: vec![port(9000, "")], ..plain("other") };
        let refused = path.attach(&again).await.unwrap_err().to_string();
        assert!(refused.contains("9000/tcp"), "{refused}");
        path.detach("web").await.unwrap();
        assert!(answer(&lab.client, host_v4(11), 9000).is_err());
        assert!(path.reservations().borrow().is_empty());
    });
}

#[test]
fn a_port_that_somebody_else_holds_is_not_published() {
    in_lab(2, async |lab| {
        let _web = published(lab).await;
        let path = lab.hosts[0].path.clone();
        let binding = |protocol| PortBinding { protocol, port: 8080, address: None };
        let both: BTreeSet<PortBinding> =
            [PortProtocol::Tcp, PortProtocol::Udp].map(binding).into_iter().collect();
        assert_eq!(*path.reservations().borrow(), both);
        let _own = Server::start_in(&lab.hosts[0].namespace, "own", 8080);
        path.set_unavailable([binding(PortProtocol::Tcp)].into()).await.unwrap();
        assert_eq!(ask(&lab.client, (host_v4(11), 8080)).unwrap(), "own 192.0.2.100");
        assert_eq!(ask_udp(&lab.client, (host_v4(11), 8080)).unwrap(), "web 192.0.2.100");
        assert_eq!(ask(&lab.client, (host_v4(12), 8080)).unwrap(), "web 192.0.2.100");
        path.set_unavailable(BTreeSet::new()).await.unwrap();
        assert_eq!(ask(&lab.client, (host_v4(11), 8080)).unwrap(), "web 192.0.2.100");
    });
}

#[test]
fn a_port_that_a_node_chose_for_a_container_stays_the_containers() {
    in_lab(1, async |lab| {
        lab.add_network(INGRESS);
        lab.tell_all().await;
        let path = lab.hosts[0].path.clone();
        let any =
            HostPort { protocol: PortProtocol::Tcp, target: 80, published: 0, host: String::new() };
        let one = ContainerNetwork { host_ports: vec![any], ..plain("one") };
        let one = path.attach(&one).await.unwrap();
        let _one = Server::start(&one.netns, "one", 80);
        let port = one.host_ports[0].published;
        // Nobody else knows of it, and a service is given the same.
        let web = lab.add_service(INGRESS, 1, &[(port, 80)]);
        lab.add_task(INGRESS, 0, 20, Some(web));
        lab.tell_all().await;
        let web = lab.attach(0, &wanted("web", &[INGRESS], 20)).await;
        let _web = Server::start(&web.netns, "web", 80);
        assert_eq!(ask(&lab.client, (host_v4(11), port)).unwrap(), "one 192.0.2.100");
        let said = path.inner.node().conditions().unwrap();
        assert_eq!(said[0].code, types::ConditionCode::PortTaken);
        assert!(said[0].message.contains(&format!("{port}/tcp is a container's")), "{said:?}");
        let binding = PortBinding { protocol: PortProtocol::Tcp, port, address: None };
        assert_eq!(said[0].ports, [binding]);
        path.detach("one").await.unwrap();
        assert_eq!(ask(&lab.client, (host_v4(11), port)).unwrap(), "web 192.0.2.100");
        assert_eq!(path.inner.node().conditions().unwrap(), []);
    });
}

fn plain(id: &str) -> ContainerNetwork {
    ContainerNetwork { id: id.to_owned(), hostname: id.to_owned(), ..ContainerNetwork::default() }
}

fn host_v4(number: u16) -> IpAddr {
    [192, 0, 2, number as u8].into()
}

/// Written as the decimal number is, as the lab does it.
fn host_v6(number: u16) -> IpAddr {
    format!("fd12::{number}").parse().unwrap()
}

fn send_udp(from: &std::os::fd::OwnedFd, bytes: &[u8], to: (IpAddr, u16)) {
    let bytes = bytes.to_vec();
    enter(from, move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(&bytes, to).map(drop)
    })
    .unwrap();
}

#[test]
fn two_containers_have_the_same_port_on_different_addresses_of_a_node() {
    in_lab(2, async |lab| {
        lab.add_network(INGRESS);
        lab.tell_all().await;
        let (host, path) = (&lab.hosts[0], lab.hosts[0].path.clone());
        run_in(&host.namespace, "ip addr add 192.0.2.50/24 dev eth0");
        run_in(&host.namespace, "ip addr add fd12::50/64 dev eth0 nodad");
        // The mesh learns of them.
        path.repair().await.unwrap();
        let ports = |address: &str| {
            [PortProtocol::Tcp, PortProtocol::Udp].map(|protocol| HostPort {
                protocol,
                target: 80,
                published: 9000,
                host: address.to_owned(),
            })
        };
        let on = |name: &str, addresses: [&str; 2]| ContainerNetwork {
            host_ports: addresses.iter().flat_map(|address| ports(address)).collect(),
            ..plain(name)
        };
        let (first, second) = (on("first", ["192.0.2.11", "fd12::11"]), ["192.0.2.50", "fd12::50"]);
        let second = on("second", second);
        let first = path.attach(&first).await.unwrap();
        let again = path.attach(&second).await.unwrap();
        assert_eq!(path.attach(&second).await.unwrap(), again, "it keeps its own");
        let _first = Server::start(&first.netns, "first", 80);
        let _second = Server::start(&again.netns, "second", 80);
        // From outside, from the node itself, and from containers of both nodes.
        let near = lab.attach(0, &self::plain("near")).await;
        let far = lab.attach(1, &self::plain("far")).await;
        let from = [
            lab.client.try_clone().unwrap(),
            host.namespace.try_clone().unwrap(),
            namespace_of(&near.netns),
            namespace_of(&far.netns),
            namespace_of(&first.netns),
        ];
        for (number, from) in from.iter().enumerate() {
            for (name, own) in [("first ", 11), ("second ", 50)] {
                for to in [host_v4(own), host_v6(own)] {
                    let answer = ask(from, (to, 9000)).unwrap();
                    assert!(answer.starts_with(name), "{number}: {answer} at {to}");
                    if number != 1 {
                        let answer = ask_udp(from, (to, 9000)).unwrap();
                        assert!(answer.starts_with(name), "{number}: udp {answer} at {to}");
                    }
                }
            }
        }
        assert_eq!(ask(&lab.client, (host_v4(50), 9000)).unwrap(), "second 192.0.2.100");
        assert!(ask(&lab.client, (host_v4(12), 9000)).is_err());
        // Nobody can have all addresses beside them, nor one of them.
        for address in ["", "192.0.2.50"] {
            let third = ContainerNetwork { host_ports: ports(address).into(), ..plain("third") };
            let refused = path.attach(&third).await.unwrap_err().to_string();
            assert!(refused.contains("9000/tcp"), "{refused}");
        }
        flush(&host.namespace);
        assert!(path.repair().await.unwrap() > 0);
        assert_eq!(ask(&lab.client, (host_v4(50), 9000)).unwrap(), "second 192.0.2.100");
        path.detach("second").await.unwrap();
        assert!(ask(&lab.client, (host_v4(50), 9000)).is_err());
        assert_eq!(ask(&lab.client, (host_v4(11), 9000)).unwrap(), "first 192.0.2.100");
        path.detach("first").await.unwrap();
        assert!(path.reservations().borrow().is_empty());
        assert_eq!(path.repair().await.unwrap(), 0);
    });
}

#[test]
fn containers_find_a_mesh_port_of_one_address_at_that_address_only() {
    in_lab(2, async |lab| {
        lab.add_network(INGRESS);
        let service = lab.add_service(INGRESS, 1, &[(8080, 80), (8081, 80)]);
        for port in &mut lab.directory.services[0].ports {
            if port.published == 8080 {
                port.host = "192.0.2.11".to_owned();
            }
        }
        lab.add_task(INGRESS, 1, 20, Some(service));
        lab.tell_all().await;
        let web = lab.attach(1, &wanted("web", &[INGRESS], 20)).await;
        let _web = Server::start(&web.netns, "web", 80);
        for host in 0..2 {
            let client = lab.attach(host, &plain("client")).await;
            let client = namespace_of(&client.netns);
            assert!(ask(&client, (host_v4(11), 8080)).unwrap().starts_with("web "));
            for other in [host_v4(12), host_v6(11), host_v6(12)] {
                let answer = ask(&client, (other, 8080));
                assert!(answer.is_err(), "on host {host}: {other} answered {answer:?}");
            }
            for any in [host_v4(11), host_v4(12), host_v6(12)] {
                assert!(ask(&client, (any, 8081)).unwrap().starts_with("web "), "{any}");
            }
        }
        assert_eq!(ask(&lab.client, (host_v4(11), 8080)).unwrap(), "web 192.0.2.100");
        assert!(ask(&lab.client, (host_v4(12), 8080)).is_err());
    });
}
