//! Encrypted networks: that they work, and that nothing of them is ever in clear.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use ports::network::Network;
use tunnel::PrivateKey;
use types::{ConditionCode, DirectoryUpdate, EncryptionBackend, NetworkKey, PeerEncryption};

use super::encrypted::*;
use super::lab::{Heard as Sources, *};
use crate::DataPath;
use crate::namespace::enter;
use crate::netlink::Message;
use crate::nft::expression::{Base, Rule};
use crate::nft::table::{Chain, NftSocket, Table};
use crate::nft::{INET, hook};
use crate::node::Node;
use crate::route::{self, Elsewhere, RouteSocket, Vxlan};
use crate::tables::UDP;
use crate::tables::host::{CLEAR_IN, CLEAR_OUT};
use crate::tables::tunnel::STRANGE;

async fn counts(path: &DataPath) -> BTreeMap<String, u64> {
    path.with("count", |node: &mut Node| {
        let mut all = node.host.counts()?;
        if let Some(space) = node.spaces.get_mut(&netplan::Scope::Tunnel) {
            all.extend(space.counts()?);
        }
        Ok(all)
    })
    .await
    .unwrap()
}

#[test]
fn an_encrypted_network_is_one_beside_a_plain_one_and_is_never_seen_in_clear() {
    in_lab(2, async |lab| {
        let mut keepers = keepers(lab);
        let ear = Ear::start(lab.wire());
        let pair = pair(lab, &mut keepers).await;
        assert!(pair.passes());
        assert!(pair.plain_passes());
        let answer = ask(&pair.client, (v6(1, 12), 80)).unwrap();
        assert_eq!(answer, format!("{WORD} fd99:0:0:1::a"));
        let heard = ear.heard();
        assert_eq!(heard.clear.keys().collect::<Vec<_>>(), [&vni(2)], "the plain one is");
        assert!(heard.says(PLAIN_WORD) && !heard.says(WORD));
        assert!(heard.encrypted > 10, "{}", heard.encrypted);
        for host in &lab.hosts {
            assert_eq!(host.path.repair().await.unwrap(), 0);
            assert_eq!(host.path.rotation().borrow().sends_with, 1);
        }
        keepers[0].serve(&lab.hosts[0]).await;
        let check = lab.hosts[0].path.examine(network(1)).await.unwrap();
        assert_eq!(check.problems, Vec::<String>::new());
        assert_eq!((check.paths[0].loss_percent(), check.paths[0].passes), (0, MTU));
        let seen = check.paths[0].tunnel.clone().unwrap();
        let backend = lab.hosts[0].path.encryption_seen().backend.unwrap();
        assert_eq!((seen.backend, seen.generation), (backend, 1));
        assert!(seen.sent_bytes > 0 && seen.received_bytes > 0 && seen.handshake_age.is_some());
        assert_eq!(seen.trouble, "");
        let plain = lab.hosts[0].path.examine(network(2)).await.unwrap();
        assert_eq!(plain.paths[0].tunnel, None);
        let path = &lab.hosts[0].path;
        let to = path.tunnels_to(network(1)).await.unwrap();
        assert_eq!((to.len(), to[0].address), (1, lab.hosts[1].address));
        assert_eq!((to[0].check.generation, to[0].check.trouble.as_str()), (1, ""));
        assert_eq!(path.tunnels_to(network(2)).await.unwrap(), [], "it is not encrypted");
        let survey = lab.hosts[0].path.survey(Some(lab.hosts[0].address)).await.unwrap();
        let told = survey.encryption.unwrap();
        assert_eq!((told.backend, told.sends_with), (backend, 1));
        assert_eq!(told.keys.len(), 1);
        assert!(told.udp_segmentation, "a pair of virtual links does it");
    });
}

#[test]
fn without_an_engine_nothing_passes_and_nothing_is_in_clear() {
    in_lab(2, async |lab| {
        for host in &mut lab.hosts {
            force_user_space(host).await;
        }
        let mut keepers = keepers(lab);
        let ear = Ear::start(lab.wire());
        let pair = pair(lab, &mut keepers).await;
        assert!(pair.passes());
        keepers[0].is_dead = true;
        keepers[0].serve(&lab.hosts[0]).await;
        assert!(pair.nothing_passes());
        assert!(pair.plain_passes());
        lab.hosts[0].path.repair().await.unwrap();
        assert!(pair.nothing_passes());
        assert_silence(&ear, 1);
        keepers[0].is_dead = false;
        connect_all(lab, &mut keepers).await;
        assert!(pair.passes());
        assert_silence(&ear, 1);
    });
}

/// Where the packets of a network go to a peer.
fn point(sandbox: &OwnedFd, peer: u32, at: IpAddr) {
    enter(sandbox, move || {
        let mut socket = RouteSocket::open()?;
        let index = socket.index_of("vx")?.unwrap();
        socket.request(route::add_forwarding(index, netplan::node_hardware(peer), at))
    })
    .unwrap();
}

#[test]
fn a_wrong_entry_leads_nowhere_and_is_mended() {
    in_lab(2, async |lab| {
        let mut keepers = keepers(lab);
        let ear = Ear::start(lab.wire());
        let pair = pair(lab, &mut keepers).await;
        let inside = sandbox(lab, 0, &network(1).to_string());
        point(&inside, lab.hosts[1].number, lab.hosts[1].address);
        assert!(pair.nothing_passes());
        assert!(pair.plain_passes());
        assert_silence(&ear, 1);
        assert!(lab.hosts[0].path.repair().await.unwrap() > 0);
        assert!(pair.passes());
        assert_eq!(lab.hosts[0].path.repair().await.unwrap(), 0);
        assert_silence(&ear, 1);
    });
}

fn send(from: &OwnedFd, bytes: &[u8], to: (IpAddr, u16)) {
    let bytes = bytes.to_vec();
    enter(from, move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(&bytes, to).map(drop)
    })
    .unwrap();
}

#[test]
fn packets_in_clear_are_not_taken_and_are_said() {
    in_lab(2, async |lab| {
        let mut keepers = keepers(lab);
        let pair = pair(lab, &mut keepers).await;
        let heard = Sources::start(&pair.far, 9);
        let [near, far] = [0, 1].map(|host| lab.hosts[host].number);
        let forged = |number: u8| {
            let end = if number == 1 { 12 } else { 13 };
            let source = Ipv4Addr::new(10, 0, number, 10);
            vxlan(vni(number), &frame(near, far, source, Ipv4Addr::new(10, 0, number, end)))
        };
        let path = &lab.hosts[1].path;
        let said = async || {
            let all = path.with("look", Node::conditions).await.unwrap();
            all.into_iter().find(|condition| condition.code == ConditionCode::ClearText)
        };
        assert_eq!(said().await, None);
        // From a peer's own address, and from a stranger's.
        for from in [&lab.hosts[0].namespace, &lab.client] {
            for _ in 0..5 {
                let _ = enter(from, {
                    let (bytes, to) = (forged(1), (lab.hosts[1].address, 4789));
                    move || UdpSocket::bind("0.0.0.0:0")?.send_to(&bytes, to).map(drop)
                });
            }
        }
        assert!(heard.sources().is_empty());
        let near_counts = counts(&lab.hosts[0].path).await;
        assert_eq!(near_counts[CLEAR_OUT], 5, "it did not leave the peer");
        assert_eq!(counts(path).await[CLEAR_IN], 5, "the stranger's");
        assert!(said().await.unwrap().message.contains("come to this host"));
        let status = path.encryption_status().await.unwrap();
        assert_eq!((status.clear_in, status.clear_out, status.strange), (5, 0, 0));
        let check = path.examine(network(1)).await.unwrap();
        assert_eq!(check.strangers, [IpAddr::from([192, 0, 2, 100])]);
        // Those of the plain one are taken from the peer.
        let plain_end = lab.attach(1, &wanted("plain", &[2], 13)).await;
        let plain = Sources::start(&plain_end.netns, 9);
        send(&lab.hosts[0].namespace, &forged(2), (lab.hosts[1].address, 4789));
        eventually("the plain one is delivered", || !plain.sources().is_empty()).await;
        assert!(heard.sources().is_empty());
        assert_eq!(path.repair().await.unwrap(), 0, "counting is no change of a rule");
    });
}

/// Makes the device of a network by hand, in the namespace of the host.
fn make_by_hand(lab: &Lab, host: usize, local: IpAddr) {
    let own = &lab.hosts[host];
    let inside = sandbox(lab, host, &network(1).to_string());
    run_in(&inside, "ip link del vx");
    let vxlan = Vxlan { vni: vni(1), port: 4789, local: Some(local) };
    let hardware = netplan::node_hardware(own.number);
    let target = inside.try_clone().unwrap();
    enter(&own.namespace, move || {
        let device = Elsewhere { name: "vx", mtu: MTU, namespace: &target };
        let message: Message = route::add_vxlan(&device, &vxlan, hardware, false);
        RouteSocket::open()?.request(message)
    })
    .unwrap();
    run_in(&inside, "ip link set vx up");
}

#[test]
fn a_device_of_the_hosts_own_is_seen_by_the_ear_and_is_made_anew() {
    in_lab(2, async |lab| {
        let mut keepers = keepers(lab);
        let ear = Ear::start(lab.wire());
        let pair = pair(lab, &mut keepers).await;
        assert!(pair.passes());
        assert_silence(&ear, 1);
        // The protection is off: in the wrong namespace, and without the belt.
        for host in 0..2 {
            make_by_hand(lab, host, lab.hosts[host].address);
            flush(&lab.hosts[host].namespace);
        }
        for (host, other) in [(0, 1), (1, 0)] {
            let inside = sandbox(lab, host, &network(1).to_string());
            let peer = lab.hosts[other].number;
            let hop = netplan::link_v6(peer);
            let hardware = netplan::node_hardware(peer);
            point(&inside, peer, lab.hosts[other].address);
            let to = if host == 0 { v4(1, 12) } else { v4(1, 10) };
            enter(&inside, move || {
                let mut socket = RouteSocket::open()?;
                let index = socket.index_of("vx")?.unwrap();
                let (via, link) = (Some(hop.into()), Some(index));
                socket.request(route::add_neighbour(index, hop.into(), hardware))?;
                let way = route::RouteTo { link, via, hop: None, source: None, mtu: 0 };
                socket.request(route::add_route(netplan::MAIN_TABLE, to.into(), way))
            })
            .unwrap();
        }
        assert!(pair.passes(), "it works, in clear");
        let heard = ear.heard();
        assert!(heard.clear.contains_key(&vni(1)) && heard.says(WORD), "the ear hears it");
        // With the belt alone nothing leaves, and nothing of it is taken.
        let before = heard.clear[&vni(1)];
        for host in &lab.hosts {
            host.path.with("belt", |node| node.repair_scope(netplan::Scope::Host)).await.unwrap();
        }
        assert!(pair.nothing_passes());
        assert!(counts(&lab.hosts[0].path).await[CLEAR_OUT] > 0);
        assert_eq!(ear.heard().clear[&vni(1)], before);
        // The devices are found out, though nothing but their namespace is wrong.
        make_by_hand(lab, 0, netplan::tunnel_v4(lab.hosts[0].number).into());
        for host in &lab.hosts {
            assert!(host.path.repair().await.unwrap() > 0);
            assert_eq!(host.path.repair().await.unwrap(), 0);
        }
        assert!(pair.passes());
        assert_eq!(ear.heard().clear[&vni(1)], before, "and it is encrypted");
    });
}

#[test]
fn a_member_of_one_network_does_not_reach_another_through_the_tunnel() {
    in_lab(3, async |lab| {
        let mut keepers = keepers(lab);
        for number in [1, 2] {
            add_encrypted(lab, number);
            lab.add_task(number, 0, 10, None);
        }
        // Host 2 is on network 1 only.
        for (index, host) in lab.hosts.iter().enumerate() {
            host.path.set_keys(keepers[index].keys()).await.unwrap();
            let mut update = told(lab, &keepers, index);
            let stranger = lab.hosts[2].number;
            update.peers.retain(|peer| peer.network == network(1) || peer.number != stranger);
            if index == 2 {
                update.networks.retain(|part| part.id == network(1));
                update.peers.retain(|peer| peer.network == network(1));
                update.endpoints.retain(|part| part.network == network(1));
            }
            host.path.update(update).await.unwrap();
        }
        connect_all(lab, &mut keepers).await;
        let target = lab.attach(0, &wanted("target", &[1, 2], 10)).await;
        let heard = Sources::start(&target.netns, 9);
        let tunnel = sandbox(lab, 2, "enc");
        let [to, from] = [0, 2].map(|host| lab.hosts[host].number);
        let forge = |number: u8| {
            let source = Ipv4Addr::new(10, 0, number, 77);
            let frame = frame(from, to, source, Ipv4Addr::new(10, 0, number, 10));
            send(&tunnel, &vxlan(vni(number), &frame), (netplan::tunnel_v4(to).into(), 4789));
        };
        for _ in 0..5 {
            forge(2);
        }
        forge(1);
        eventually("its own network's arrives", || !heard.sources().is_empty()).await;
        assert_eq!(heard.sources(), [IpAddr::from([10, 0, 1, 77])].into());
        assert_eq!(counts(&lab.hosts[0].path).await[STRANGE], 5);
        // Nor does anything else of the tunnel's.
        run_in(&tunnel, "ip addr show");
        send(&tunnel, b"hello", (netplan::tunnel_v4(to).into(), 9));
        let path = lab.hosts[0].path.clone();
        let limit = Instant::now() + Duration::from_secs(5);
        while counts(&path).await[STRANGE] < 6 {
            assert!(Instant::now() < limit, "it was not dropped");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn two_encrypted_networks_have_the_same_subnet() {
    in_lab(2, async |lab| {
        let mut keepers = keepers(lab);
        let ear = Ear::start(lab.wire());
        for number in [1, 2] {
            add_encrypted(lab, number);
            for (host, task) in [(0, 10), (1, 12)] {
                lab.add_task(number, host, task, None);
            }
        }
        let first = lab.directory.networks[0].subnets.clone();
        lab.directory.networks[1].subnets = first;
        for part in &mut lab.directory.endpoints {
            part.v4 = part.v4.map(|v4| Ipv4Addr::from([10, 0, 1, v4.octets()[3]]));
            part.v6 = None;
        }
        settle(lab, &mut keepers).await;
        let mut servers = Vec::new();
        for number in [1u8, 2] {
            for (host, task) in [(0, 10), (1, 12)] {
                let name = format!("c{number}-{task}");
                let mut container = wanted(&name, &[number], task);
                container.attachments[0].v4 = Some([10, 0, 1, task].into());
                container.attachments[0].v6 = None;
                let attached = lab.attach(host, &container).await;
                if host == 1 {
                    servers.push(Server::start(&attached.netns, &name, 80));
                }
            }
        }
        for number in [1, 2] {
            let from = namespace_of(&lab.hosts[0].path.netns(&format!("c{number}-10")));
            let answer = ask(&from, (v4(1, 12), 80)).unwrap();
            assert_eq!(answer, format!("c{number}-12 10.0.1.10"));
        }
        assert!(ear.heard().clear.is_empty());
    });
}

#[test]
fn keys_are_changed_without_a_lost_packet() {
    in_lab(3, async |lab| {
        let mut keepers = keepers(lab);
        let ear = Ear::start(lab.wire());
        let pair = pair(lab, &mut keepers).await;
        let flow = Flow::start(&pair.client, &pair.far, v4(1, 12));
        eventually("packets come", || flow.received() > 100).await;
        rotate(lab, &mut keepers, Duration::from_millis(300)).await;
        let before = flow.received();
        eventually("packets come with the new keys", || flow.received() > before + 100).await;
        let (sent, received) = flow.end();
        println!("{sent} sent, {} lost", sent - received);
        assert_eq!(sent, received);
        for host in &lab.hosts {
            assert_eq!(host.path.rotation().borrow().sends_with, 2);
            host.path.repair().await.unwrap();
            assert_eq!(host.path.repair().await.unwrap(), 0);
        }
        let links = run_in(&sandbox(lab, 0, "enc"), "ip -o link show");
        assert!(links.contains("wg0") && !links.contains("wg1"), "{links}");
        assert!(pair.passes());
        assert_silence(&ear, 1);
    });
}

#[test]
fn a_removed_peer_is_unreachable_at_once_and_a_last_network_takes_the_tunnel_along() {
    in_lab(2, async |lab| {
        let mut keepers = keepers(lab);
        let ear = Ear::start(lab.wire());
        let pair = pair(lab, &mut keepers).await;
        assert!(pair.passes());
        let (path, other) = (lab.hosts[0].path.clone(), lab.node(1));
        let gone = DirectoryUpdate {
            removed_peers: vec![(network(1), other)],
            ..DirectoryUpdate::default()
        };
        path.update(gone).await.unwrap();
        assert!(path.tunnels().borrow().iter().all(|tunnel| tunnel.peers.is_empty()));
        assert!(pair.nothing_passes());
        assert!(pair.plain_passes());
        settle(lab, &mut keepers).await;
        assert!(pair.passes());
        let gone =
            DirectoryUpdate { removed_networks: vec![network(1)], ..DirectoryUpdate::default() };
        path.update(gone).await.unwrap();
        assert!(path.tunnels().borrow().is_empty());
        let place = lab.hosts[0].dir.path().join("sandboxes/enc");
        assert!(!place.exists());
        keepers[0].serve(&lab.hosts[0]).await;
        assert_eq!(path.repair().await.unwrap(), 0);
        assert_silence(&ear, 1);
        settle(lab, &mut keepers).await;
        assert!(place.exists());
        // The container gets its link again.
        path.repair().await.unwrap();
        assert_eq!(path.repair().await.unwrap(), 0);
        assert!(pair.passes());
        assert_silence(&ear, 1);
    });
}

#[test]
fn a_new_daemon_goes_on_with_the_tunnel_and_mends_it() {
    in_lab(2, async |lab| {
        let mut keepers = keepers(lab);
        let ear = Ear::start(lab.wire());
        let pair = pair(lab, &mut keepers).await;
        let flow = Flow::start(&pair.client, &pair.far, v4(1, 12));
        eventually("packets come", || flow.received() > 100).await;
        let host = &lab.hosts[0];
        let options = host_options(host.dir.path(), "h1", Some(host.address));
        let path = open_in(&host.namespace, options).await;
        path.update(told(lab, &keepers, 0)).await.unwrap();
        path.set_keys(keepers[0].keys()).await.unwrap();
        lab.hosts[0].path = path.clone();
        connect_all(lab, &mut keepers).await;
        let before = flow.received();
        eventually("packets come", || flow.received() > before + 100).await;
        let (sent, received) = flow.end();
        assert_eq!(sent, received, "nothing is lost on the way");
        assert_eq!(path.repair().await.unwrap(), 0);
        let tunnel = sandbox(lab, 0, "enc");
        let wrongs: [(&str, &dyn Fn()); 5] = [
            ("rules", &|| flush(&tunnel)),
            ("a route", &|| drop(run_in(&tunnel, "ip route del 10.0.0.2"))),
            ("an address", &|| drop(run_in(&tunnel, "ip addr flush dev lo"))),
            ("a device that is down", &|| drop(run_in(&tunnel, "ip link set wg1 down"))),
            ("a device", &|| drop(run_in(&tunnel, "ip link del wg1"))),
        ];
        for (what, wrong) in wrongs {
            wrong();
            path.repair().await.unwrap();
            connect_all(lab, &mut keepers).await;
            path.repair().await.unwrap();
            assert_eq!(path.repair().await.unwrap(), 0, "{what}");
            assert!(pair.passes(), "{what}");
        }
        // The namespace itself.
        let place = lab.hosts[0].dir.path().join("sandboxes/enc");
        umount2(&place, MntFlags::MNT_DETACH).unwrap();
        drop(tunnel);
        assert!(path.repair().await.unwrap() > 0);
        connect_all(lab, &mut keepers).await;
        path.repair().await.unwrap();
        assert_eq!(path.repair().await.unwrap(), 0);
        assert!(pair.passes());
        assert_silence(&ear, 1);
    });
}

#[test]
fn hosts_with_ipv6_addresses_only_carry_an_encrypted_network() {
    in_lab_over_v6(2, async |lab| {
        let mut keepers = keepers(lab);
        let ear = Ear::start(lab.wire());
        add_encrypted(lab, 1);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 12, None);
        settle(lab, &mut keepers).await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let far = lab.attach(1, &wanted("far", &[1], 12)).await;
        let _far = Server::start(&far.netns, WORD, 80);
        let client = namespace_of(&client.netns);
        for to in [v4(1, 12), v6(1, 12)] {
            assert!(ask(&client, (to, 80)).unwrap().starts_with(WORD));
        }
        let check = lab.hosts[0].path.examine(network(1)).await.unwrap();
        assert_eq!((check.paths[0].loss_percent(), check.paths[0].passes), (0, MTU));
        let heard = ear.heard();
        assert!(heard.clear.is_empty() && heard.encrypted > 10 && !heard.says(WORD));
    });
}

#[test]
fn what_is_wrong_with_a_tunnel_is_said() {
    in_lab(2, async |lab| {
        let mut keepers = keepers(lab);
        add_encrypted(lab, 1);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 12, None);
        let path = lab.hosts[0].path.clone();
        let trouble = async || {
            let check = path.examine(network(1)).await.unwrap();
            check.paths[0].tunnel.clone().unwrap().trouble
        };
        path.update(lab.told(0)).await.unwrap();
        let said = trouble().await;
        assert!(said.contains("this node has no key of its own"), "{said}");
        path.set_keys(keepers[0].keys()).await.unwrap();
        let said = trouble().await;
        assert!(said.contains("has published no key of generation 1 yet"), "{said}");
        // The other end has a key, and its port is closed.
        let wall = Rule::new().protocol(UDP).load(Base::Transport, 2, 2, 0);
        let wall = wall.is(0, &4794u16.to_be_bytes()).drop();
        let hook = Chain::base("input", "filter", hook::PREROUTING, 0, vec![wall]);
        let table = Table::new(INET, "wall", Vec::new(), Vec::new(), vec![hook]);
        for host in &lab.hosts {
            let table = table.clone();
            enter(&host.namespace, move || NftSocket::open()?.install(&table, &[])).unwrap();
        }
        path.update(told(lab, &keepers, 0)).await.unwrap();
        keepers[0].serve(&lab.hosts[0]).await;
        keepers[0].serve(&lab.hosts[0]).await;
        let said = trouble().await;
        assert!(said.contains("is UDP port 4794 closed at 192.0.2.12"), "{said}");
        for host in &lab.hosts {
            enter(&host.namespace, || NftSocket::open()?.remove(INET, "wall")).unwrap();
        }
        settle(lab, &mut keepers).await;
        assert_eq!(trouble().await, "");
        // The way takes less than it should, and says nothing. A bridge lets joined packets pass.
        for host in &lab.hosts {
            run_in(&host.namespace, "ip link set eth0 gso_max_segs 1");
        }
        lab.shrink(1, 1400);
        keepers[0].serve(&lab.hosts[0]).await;
        let said = trouble().await;
        assert!(said.contains("packets of 1370 bytes do not pass"), "{said}");
        lab.shrink(1, 1500);
        // Its key is another one than it says.
        keepers[1].make(1);
        let mut wrong = told(lab, &keepers, 0);
        for peer in &mut wrong.peers {
            let key = NetworkKey(*PrivateKey::generate().unwrap().public().as_bytes());
            peer.encryption = Some(PeerEncryption { keys: [(1, key)].into(), sends_with: 1 });
        }
        path.update(wrong).await.unwrap();
        keepers[0].serve(&lab.hosts[0]).await;
        let said = trouble().await;
        assert!(said.contains("no handshake with it"), "{said}");
    });
}

#[test]
fn the_status_tells_of_the_peers_that_are_told_of_and_ages() {
    in_lab(2, async |lab| {
        for host in &mut lab.hosts {
            force_user_space(host).await;
        }
        let path = lab.hosts[0].path.clone();
        let before = path.encryption_status().await.unwrap();
        assert_eq!((before.tunnels.len(), before.sends_with), (0, 0));
        let mut keepers = keepers(lab);
        let pair = pair(lab, &mut keepers).await;
        assert!(pair.passes());
        keepers[0].serve(&lab.hosts[0]).await;
        let seen = path.encryption_seen().tunnels[0].peers[0].clone();
        let first = path.encryption_status().await.unwrap();
        assert_eq!((first.backend, first.sends_with), (Some(EncryptionBackend::UserSpace), 1));
        let tunnel = &first.tunnels[0];
        assert_eq!((tunnel.generation, tunnel.works, tunnel.peers.len()), (1, true, 1));
        let peer = &tunnel.peers[0];
        assert!(peer.used && peer.seen.sent_bytes > 0 && peer.seen.received_bytes > 0);
        assert!(peer.seen.handshake_age > seen.handshake_age, "it has grown older since");
        let second = path.encryption_status().await.unwrap();
        assert!(second.tunnels[0].peers[0].seen.handshake_age > peer.seen.handshake_age);

        // Of a peer that is gone nothing is said, though the engine may still know of it.
        let mut update = told(lab, &keepers, 0);
        update.peers.clear();
        path.update(update).await.unwrap();
        let alone = path.encryption_status().await.unwrap();
        assert!(alone.tunnels.iter().all(|tunnel| tunnel.peers.is_empty()), "{alone:?}");
        assert_eq!(path.tunnels_to(network(1)).await.unwrap(), []);
    });
}
