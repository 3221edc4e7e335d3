//! Several hosts: overlays, virtual addresses, the mesh, repair.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use ports::network::{ContainerNetwork, Network};
use types::{DirectoryUpdate, NetworkId};

use super::lab::*;
use crate::namespace::enter;
use crate::nft::table::NftSocket;
use crate::route::RouteSocket;

#[test]
fn tasks_of_two_hosts_talk_and_a_virtual_address_is_spread() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        let service = lab.add_service(1, 1, &[]);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 0, 11, Some(service));
        lab.add_task(1, 1, 12, Some(service));
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let near = lab.attach(0, &wanted("near", &[1], 11)).await;
        let far = lab.attach(1, &wanted("far", &[1], 12)).await;
        let _near = Server::start(&near.netns, "near", 80);
        let _far = Server::start(&far.netns, "far", 80);
        let client = namespace_of(&client.netns);
        assert_eq!(ask(&client, (v4(1, 11), 80)).unwrap(), "near 10.0.1.10");
        assert_eq!(ask(&client, (v4(1, 12), 80)).unwrap(), "far 10.0.1.10");
        run_in(&client, "ping -c 1 -W 2 10.0.1.12");
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            seen.insert(ask(&client, (v4(1, 201), 80)).unwrap());
        }
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert_eq!(ask_udp(&client, (v4(1, 12), 80)).unwrap(), "far 10.0.1.10");
        assert_eq!(ask(&client, (v6(1, 11), 80)).unwrap(), "near fd99:0:0:1::a");
        assert_eq!(ask_udp(&client, (v6(1, 12), 80)).unwrap(), "far fd99:0:0:1::a");
        assert!(ask(&client, (v6(1, 201), 80)).unwrap().ends_with(" fd99:0:0:1::a"));
        // What is not there is said at once.
        let begin = std::time::Instant::now();
        assert!(ask(&client, (v4(1, 77), 80)).is_err());
        assert!(begin.elapsed() < std::time::Duration::from_secs(1));
    });
}

/// Whoever tries again and again until there is a task must not wait for a retransmission.
#[test]
fn a_service_without_tasks_refuses_every_connection_at_once() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        let _empty = lab.add_service(1, 1, &[]);
        lab.add_task(1, 0, 10, None);
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let from = namespace_of(&client.netns);
        for round in 0..40 {
            for to in [v4(1, 201), v6(1, 201), v4(1, 12), v6(1, 12)] {
                let begin = Instant::now();
                assert!(ask(&from, (to, 80)).is_err());
                let took = begin.elapsed();
                assert!(took < Duration::from_millis(900), "{to} in round {round}: {took:?}");
            }
        }
    });
}

#[test]
fn a_published_port_is_reached_through_a_node_without_tasks() {
    in_lab(2, async |lab| {
        lab.add_network(INGRESS);
        let service = lab.add_service(INGRESS, 1, &[(8080, 80)]);
        lab.add_task(INGRESS, 1, 20, Some(service));
        lab.tell_all().await;
        let web = lab.attach(1, &wanted("web", &[INGRESS], 20)).await;
        let _web = Server::start(&web.netns, "web", 80);
        for host in [&lab.hosts[0], &lab.hosts[1]] {
            let answer = ask(&lab.client, (host.address, 8080)).unwrap();
            assert_eq!(answer, "web 192.0.2.100", "through {}", host.address);
        }
    });
}

#[test]
fn what_a_hand_removed_comes_back() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_network(INGRESS);
        let service = lab.add_service(1, 1, &[]);
        let published = lab.add_service(INGRESS, 2, &[(8080, 80)]);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 12, Some(service));
        lab.add_task(INGRESS, 1, 12, Some(published));
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let far = lab.attach(1, &wanted("far", &[1, INGRESS], 12)).await;
        let _far = Server::start(&far.netns, "far", 80);
        let client = namespace_of(&client.netns);
        let works = |lab: &Lab| {
            assert_eq!(ask(&client, (v4(1, 201), 80)).unwrap(), "far 10.0.1.10");
            let answer = ask(&lab.client, (lab.hosts[0].address, 8080)).unwrap();
            assert_eq!(answer, "far 192.0.2.100");
        };
        works(lab);
        let sandbox = |host: usize, name: String| {
            namespace_of(&lab.hosts[host].dir.path().join("sandboxes").join(name))
        };
        let network: NetworkId = id(1001);
        for host in 0..2 {
            let overlay = sandbox(host, network.to_string());
            let mesh = sandbox(host, "mesh".to_owned());
            for sandbox in [&overlay, &mesh] {
                flush(sandbox);
                run_in(sandbox, "ip link del vx");
            }
            flush(&lab.hosts[host].namespace);
            assert!(lab.hosts[host].path.repair().await.unwrap() > 0);
            assert_eq!(lab.hosts[host].path.repair().await.unwrap(), 0, "nothing is left to do");
        }
        works(lab);
        for (host, id) in [(0, "client"), (1, "far")] {
            let gateway = crate::names::Names::of(&format!("h{}", host + 1)).unwrap().gateway;
            run_in(&lab.hosts[host].namespace, &format!("ip link del {gateway}"));
            let overlay = sandbox(host, network.to_string());
            run_in(&overlay, "ip route flush proto static");
            run_in(&overlay, "ip neigh flush nud permanent");
            let links = lab.hosts[host].path.container(id).unwrap().links;
            run_in(&overlay, &format!("ip link del {}", links[0].link));
            assert!(lab.hosts[host].path.repair().await.unwrap() > 0);
        }
        works(lab);
        assert_eq!(lab.hosts[0].path.observe().await.unwrap(), ["client"]);
    });
}

#[test]
fn open_connections_survive_a_change_of_backends() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        let service = lab.add_service(1, 1, &[]);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 0, 11, Some(service));
        lab.add_task(1, 1, 12, Some(service));
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let near = lab.attach(0, &wanted("near", &[1], 11)).await;
        let far = lab.attach(1, &wanted("far", &[1], 12)).await;
        let _near = Server::start(&near.netns, "near", 80);
        let _far = Server::start(&far.netns, "far", 80);
        let client = namespace_of(&client.netns);
        let (mut stream, _) =
            std::iter::repeat_with(|| connect(&client, (v4(1, 201), 80)).unwrap())
                .take(100)
                .find(|(_, text)| text.starts_with("far"))
                .unwrap();
        lab.directory.endpoints[2].serving = false;
        let mut update = DirectoryUpdate::default();
        update.endpoints.push(lab.directory.endpoints[2].clone());
        lab.hosts[0].path.update(update).await.unwrap();
        for _ in 0..20 {
            assert_eq!(ask(&client, (v4(1, 201), 80)).unwrap(), "near 10.0.1.10");
        }
        stream.write_all(b"still here\n").unwrap();
        assert_eq!(line(&mut stream).unwrap(), "still here");
    });
}

#[test]
fn the_loop_mends_without_being_asked() {
    in_lab(1, async |lab| {
        lab.add_network(1);
        lab.add_service(1, 1, &[]);
        lab.tell_all().await;
        let path = lab.hosts[0].path.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn({
            let path = path.clone();
            async move { path.run(async { stopped.await.unwrap_or_default() }).await }
        });
        let network: NetworkId = id(1001);
        let sandboxes = lab.hosts[0].dir.path().join("sandboxes");
        let sandbox = namespace_of(&sandboxes.join(network.to_string()));
        flush(&sandbox);
        run_in(&sandbox, "ip link del vx");
        eventually("device and table are back", || {
            let found = enter(&sandbox, || {
                let links = RouteSocket::open()?.links()?;
                let chains = NftSocket::open()?.base_chains()?;
                Ok(links.iter().any(|link| link.name == "vx") && chains.len() == 4)
            });
            found.unwrap()
        })
        .await;
        assert_eq!(path.check(network).await.unwrap(), Vec::<String>::new());
        stop.send(()).unwrap();
        running.await.unwrap();
    });
}

#[test]
fn a_task_comes_to_itself_by_its_services_address() {
    in_lab(1, async |lab| {
        lab.add_network(1);
        let service = lab.add_service(1, 1, &[]);
        lab.add_task(1, 0, 11, Some(service));
        lab.tell_all().await;
        let own = lab.attach(0, &wanted("own", &[1], 11)).await;
        let _own = Server::start(&own.netns, "own", 80);
        let from = namespace_of(&own.netns);
        assert_eq!(ask(&from, (v4(1, 201), 80)).unwrap(), "own 10.0.1.1");
        assert_eq!(ask(&from, (v6(1, 201), 80)).unwrap(), "own fd99:0:0:1::1");
        assert_eq!(ask_udp(&from, (v4(1, 201), 80)).unwrap(), "own 10.0.1.1");
    });
}

#[test]
fn a_task_on_two_networks_has_both_in_order_and_the_mesh_last() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_network(2);
        for network in [1, 2] {
            lab.add_task(network, 0, 10 + network, None);
            lab.add_task(network, 1, 20 + network, None);
        }
        lab.tell_all().await;
        let both = ContainerNetwork {
            hosts: vec!["db:10.1.2.3".into(), "me=host-gateway".into(), "six:[fd00::1]".into()],
            ..wanted("both", &[2, 1], 11)
        };
        let mut both = both;
        both.attachments[0].v4 = "10.0.2.12".parse().ok();
        both.attachments[0].v6 = "fd99:0:0:2::c".parse().ok();
        let attached = lab.attach(0, &both).await;
        let one = lab.attach(1, &wanted("one", &[1], 21)).await;
        let two = lab.attach(1, &wanted("two", &[2], 22)).await;
        let _servers = [Server::start(&one.netns, "one", 80), Server::start(&two.netns, "two", 80)];
        let from = namespace_of(&attached.netns);
        assert_eq!(ask(&from, (v4(1, 21), 80)).unwrap(), "one 10.0.1.11");
        assert_eq!(ask(&from, (v4(2, 22), 80)).unwrap(), "two 10.0.2.12");
        let text = |line: &str| run_in(&from, line);
        assert!(text("ip -4 -o addr show dev eth0").contains("10.0.2.12/24"));
        assert!(text("ip -4 -o addr show dev eth0").contains("noprefixroute"));
        assert!(text("ip -4 -o addr show dev eth1").contains("10.0.1.11/24"));
        assert!(text("ip route show default").contains("dev eth2"));
        assert!(text("ip route get 10.0.1.99").contains("via 10.0.1.1 dev eth1"));
        // The node has no way out for IPv6, so the container has none either.
        assert_eq!(text("ip -6 route show default"), "");
        let (gateway, _) = attached.hosts[3];
        assert_eq!(attached.hosts[0], (v4(2, 12), "both".to_owned()));
        assert_eq!(attached.hosts[1], (v6(2, 12), "both".to_owned()));
        assert_eq!(attached.hosts[2], ("10.1.2.3".parse().unwrap(), "db".to_owned()));
        assert_eq!(attached.hosts[4], ("fd00::1".parse().unwrap(), "six".to_owned()));
        let _host = Server::start_in(&lab.hosts[0].namespace, "host", 7000);
        assert!(ask(&from, (gateway, 7000)).unwrap().starts_with("host "));
    });
}

#[test]
fn more_backends_than_a_class_of_its_own_are_all_reached() {
    in_lab(1, async |lab| {
        lab.add_network(1);
        let service = lab.add_service(1, 1, &[]);
        lab.add_task(1, 0, 10, None);
        for number in 20..100 {
            lab.add_task(1, 0, number, Some(service));
        }
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        // One container with all the addresses stands for eighty.
        let all = lab.attach(0, &wanted("all", &[1], 20)).await;
        let sandbox =
            lab.hosts[0].dir.path().join("sandboxes").join(id::<NetworkId>(1001).to_string());
        let link = {
            let node = lab.hosts[0].path.inner.node();
            node.planner.containers()["all"].links[0].link.clone()
        };
        for number in 21..100 {
            run_in(&namespace_of(&all.netns), &format!("ip addr add 10.0.1.{number}/32 dev eth0"));
            run_in(
                &namespace_of(&sandbox),
                &format!("ip route add 10.0.1.{number}/32 via 10.0.1.20 dev {link} onlink"),
            );
        }
        let _server = Server::start(&all.netns, "all", 80);
        let client = namespace_of(&client.netns);
        for _ in 0..300 {
            assert_eq!(ask(&client, (v4(1, 201), 80)).unwrap(), "all 10.0.1.10");
        }
        assert!(lab.hosts[0].path.repair().await.unwrap() >= 79, "what a hand added goes");
    });
}

#[test]
fn every_backend_of_several_blocks_is_reached() {
    in_lab(1, async |lab| {
        lab.add_network(1);
        let service = lab.add_service(1, 1, &[]);
        lab.add_task(1, 0, 10, None);
        for number in 20..32 {
            lab.add_task(1, 0, number, Some(service));
        }
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let mut servers = Vec::new();
        for number in 20..32 {
            let name = format!("task{number}");
            let task = lab.attach(0, &wanted(&name, &[1], number)).await;
            servers.push(Server::start(&task.netns, &name, 80));
        }
        let client = namespace_of(&client.netns);
        for address in [v4(1, 201), v6(1, 201)] {
            let mut seen: BTreeSet<String> = BTreeSet::new();
            for _ in 0..400 {
                let answer = ask(&client, (address, 80)).unwrap();
                seen.insert(answer.split(' ').next().unwrap().to_owned());
            }
            assert_eq!(seen.len(), 12, "{seen:?}");
        }
        assert_eq!(lab.hosts[0].path.repair().await.unwrap(), 0);
    });
}

#[test]
fn many_endpoints_of_a_node_share_a_next_hop_and_a_route_is_as_any_other() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_task(1, 0, 10, None);
        for number in 20..180 {
            lab.add_task(1, 1, number, None);
        }
        lab.tell_all().await;
        let near = lab.attach(0, &wanted("near", &[1], 10)).await;
        let _far = lab.attach(1, &wanted("far", &[1], 20)).await;
        let from = namespace_of(&near.netns);
        run_in(&from, "ping -c 1 -W 2 10.0.1.20");
        run_in(&from, "ping -c 1 -W 2 fd99:0:0:1::14");
        let path = lab.hosts[0].path.clone();
        let sandbox = lab.hosts[0].dir.path().join("sandboxes");
        let sandbox = namespace_of(&sandbox.join(id::<NetworkId>(1001).to_string()));
        for shown in ["ip route show 10.0.1.21", "ip -6 route show fd99:0:0:1::15"] {
            assert!(run_in(&sandbox, shown).contains("nhid"), "{shown}");
        }
        assert_eq!(path.repair().await.unwrap(), 0);
        // Another object has the number: the routes that it takes along come back without.
        run_in(&sandbox, "ip nexthop flush");
        assert!(path.repair().await.unwrap() >= 320);
        run_in(&sandbox, "ip nexthop flush");
        for number in [2, 0x53_0002] {
            run_in(&sandbox, &format!("ip nexthop replace id {number} via fe80::99 dev vx onlink"));
        }
        assert!(path.repair().await.unwrap() >= 320);
        assert_eq!(path.repair().await.unwrap(), 0);
        run_in(&from, "ping -c 1 -W 2 10.0.1.20");
        // One of them goes, and one gets another size.
        let all = lab.told(0).endpoints;
        let part = all.iter().find(|one| one.v4 == "10.0.1.21".parse().ok()).unwrap();
        let update = DirectoryUpdate {
            removed_endpoints: vec![(part.network, part.task)],
            ..DirectoryUpdate::default()
        };
        path.update(update).await.unwrap();
        assert_eq!(run_in(&sandbox, "ip route show 10.0.1.21"), "");
        let mut peer = lab.told(0).peers[0].clone();
        peer.mtu = 1300;
        let update = DirectoryUpdate { peers: vec![peer], ..DirectoryUpdate::default() };
        path.update(update).await.unwrap();
        assert!(run_in(&sandbox, "ip route show 10.0.1.22").contains("mtu 1300"));
        assert_eq!(path.repair().await.unwrap(), 0);
        run_in(&from, "ping -c 1 -W 2 10.0.1.20");
    });
}

#[test]
fn a_dead_task_is_said_at_once_across_hosts_and_a_smaller_peer_is_respected() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 12, None);
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let _far = lab.attach(1, &wanted("far", &[1], 12)).await;
        let from = namespace_of(&client.netns);
        run_in(&from, "ping -c 1 -W 2 10.0.1.12");
        lab.hosts[1].path.detach("far").await.unwrap();
        for to in [v4(1, 12), v6(1, 12)] {
            let begin = Instant::now();
            assert!(ask(&from, (to, 80)).is_err());
            assert!(begin.elapsed() < Duration::from_secs(1), "{to}: {:?}", begin.elapsed());
        }
        // A peer that takes less has its own size on its routes.
        let mut update = DirectoryUpdate::default();
        let mut peer = lab.told(0).peers[0].clone();
        peer.mtu = 1300;
        update.peers.push(peer.clone());
        lab.hosts[0].path.update(update.clone()).await.unwrap();
        let sandbox = lab.hosts[0].dir.path().join("sandboxes");
        let sandbox = namespace_of(&sandbox.join(id::<NetworkId>(1001).to_string()));
        assert!(run_in(&sandbox, "ip route show 10.0.1.12").contains("mtu 1300"));
        assert_eq!(lab.hosts[0].path.repair().await.unwrap(), 0);
        let table = run_in(&sandbox, "ip -6 route show fd99:0:0:1::c");
        assert!(table.contains("mtu 1300"), "{table}");
    });
}

#[test]
fn a_peer_moves_to_another_address() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 12, None);
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let far = lab.attach(1, &wanted("far", &[1], 12)).await;
        let _far = Server::start(&far.netns, "far", 80);
        let from = namespace_of(&client.netns);
        let (mut stream, _) = connect(&from, (v4(1, 12), 80)).unwrap();
        run_in(&lab.hosts[1].namespace, "ip addr add 192.0.2.60/24 dev eth0");
        run_in(&lab.hosts[1].namespace, "ip addr del 192.0.2.12/24 dev eth0");
        run_in(&lab.hosts[1].namespace, "ip addr replace 192.0.2.60/24 dev eth0");
        lab.hosts[1].address = "192.0.2.60".parse().unwrap();
        lab.hosts[1].path.set_address(Some(lab.hosts[1].address)).await.unwrap();
        lab.tell_all().await;
        stream.write_all(b"still here\n").unwrap();
        assert_eq!(line(&mut stream).unwrap(), "still here");
        assert_eq!(ask(&from, (v4(1, 12), 80)).unwrap(), "far 10.0.1.10");
    });
}

#[test]
fn a_network_that_goes_leaves_nothing_of_it() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_network(INGRESS);
        let service = lab.add_service(INGRESS, 1, &[(8080, 80)]);
        lab.add_task(1, 1, 12, None);
        lab.add_task(INGRESS, 1, 20, Some(service));
        lab.tell_all().await;
        let web = lab.attach(1, &wanted("web", &[INGRESS], 20)).await;
        let _web = Server::start(&web.netns, "web", 80);
        let full = lab.told(0);
        let mut empty = DirectoryUpdate { full: true, ..DirectoryUpdate::default() };
        empty.own.clone_from(&full.own);
        let host = &lab.hosts[0];
        host.path.update(empty).await.unwrap();
        let sandboxes = host.dir.path().join("sandboxes");
        assert!(!sandboxes.join(id::<NetworkId>(1001).to_string()).exists());
        assert!(ask(&lab.client, (host.address, 8080)).is_err());
        assert!(host.path.reservations().borrow().is_empty());
        assert_eq!(host.path.repair().await.unwrap(), 0);
        let mesh = namespace_of(&sandboxes.join("mesh"));
        assert!(!run_in(&mesh, "ip route show table all").contains("10.0.9."));
        // And it comes again.
        host.path.update(full).await.unwrap();
        assert_eq!(ask(&lab.client, (host.address, 8080)).unwrap(), "web 192.0.2.100");
    });
}

#[test]
fn services_take_time_that_grows_as_they_do() {
    in_lab(1, async |lab| {
        lab.add_network(1);
        let mut told = lab.told(0);
        let add = |from: u32, to: u32, update: &mut DirectoryUpdate| {
            for number in from..to {
                let service = id(50_000 + u128::from(number));
                let address = |host: u32| std::net::Ipv4Addr::from_bits(0x0a00_0000 | host).into();
                update.services.push(types::ServicePart {
                    network: id(1001),
                    service,
                    name: format!("s{number}"),
                    aliases: Vec::new(),
                    mode: types::EndpointMode::Vip,
                    v4: address(0x10_0000 + number),
                    v6: None,
                    ports: Vec::new(),
                });
                for backend in 0..4 {
                    update.endpoints.push(types::EndpointPart {
                        network: id(1001),
                        task: id(90_000 + u128::from(number * 4 + backend)),
                        service: Some(service),
                        node: id(77),
                        number: 77,
                        v4: address(0x20_0000 + number * 4 + backend),
                        v6: None,
                        names: Vec::new(),
                        serving: true,
                    });
                }
            }
        };
        let path = &lab.hosts[0].path;
        path.update(told.clone()).await.unwrap();
        let mut times = Vec::new();
        // One by one, as a stack of them comes up.
        for number in 0..500 {
            let mut update = DirectoryUpdate::default();
            add(number, number + 1, &mut update);
            let begin = Instant::now();
            path.update(update).await.unwrap();
            times.push(begin.elapsed());
        }
        let sum = |part: &[Duration]| part.iter().sum::<Duration>();
        let (first, last) = (sum(&times[..100]), sum(&times[400..]));
        println!("100 services: the first {first:?}, the last {last:?}");
        assert!(last < first * 4, "{first:?} {last:?}");
        assert_eq!(path.repair().await.unwrap(), 0);
        // A new daemon that is told the same finds nothing to do but what it cannot know.
        add(0, 500, &mut told);
        path.update(told).await.unwrap();
        assert_eq!(path.repair().await.unwrap(), 0);
        // All of it at once, and routes beside it, where there is no table any more.
        let name = id::<NetworkId>(1001).to_string();
        let sandbox = namespace_of(&lab.hosts[0].dir.path().join("sandboxes").join(name));
        flush(&sandbox);
        run_in(&sandbox, "ip link del vx");
        assert!(path.repair().await.unwrap() > 2_000);
        assert_eq!(path.repair().await.unwrap(), 0);
        // And it still hears of what others do.
        run_in(&sandbox, "ip link del vx");
        assert!(path.inner.node().repair(false).unwrap() > 2_000);
    });
}

#[test]
fn what_a_hand_removed_inside_a_container_comes_back() {
    in_lab(1, async |lab| {
        lab.add_network(1);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 0, 11, None);
        lab.tell_all().await;
        let path = &lab.hosts[0].path;
        let one = lab.attach(0, &wanted("one", &[1], 10)).await;
        let two = lab.attach(0, &wanted("two", &[1], 11)).await;
        path.set_resolver("one", 5353).await.unwrap();
        let _two = Server::start(&two.netns, "two", 80);
        let from = namespace_of(&one.netns);
        assert_eq!(path.repair().await.unwrap(), 0);
        flush(&from);
        run_in(&from, "ip addr flush dev eth0");
        run_in(&from, "ip route del default");
        assert!(path.repair().await.unwrap() > 2);
        assert_eq!(path.repair().await.unwrap(), 0);
        assert_eq!(ask(&from, (v4(1, 11), 80)).unwrap(), "two 10.0.1.10");
        assert_eq!(ask(&from, (v6(1, 11), 80)).unwrap(), "two fd99:0:0:1::a");
        let chains = enter(&from, || NftSocket::open()?.base_chains()).unwrap();
        assert_eq!(chains.len(), 1, "the way to the resolver");
    });
}
