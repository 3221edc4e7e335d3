//! Paths to peers: who answers, what passes, who is suspected.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ports::network::Network;
use types::{NetworkId, PathTrouble};

use super::lab::*;
use crate::DataPath;

/// Watches until dropped.
struct Watching(tokio::task::JoinHandle<()>);

impl Watching {
    fn start(path: &DataPath) -> Self {
        let path = path.clone();
        Self(tokio::spawn(async move { path.watch_peers(std::future::pending()).await }))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn three_hosts(lab: &mut Lab) -> NetworkId {
    let network = lab.add_network(1);
    lab.add_network(INGRESS);
    network
}

#[test]
fn peers_answer_inside_the_networks_and_their_paths_are_measured() {
    in_lab(3, async |lab| {
        let network = three_hosts(lab);
        lab.tell_all().await;
        for id in [network, id(1000 + u128::from(INGRESS))] {
            let check = lab.hosts[0].path.examine(id).await.unwrap();
            assert_eq!(check.problems, Vec::<String>::new());
            assert!(check.strangers.is_empty());
            let nodes: Vec<_> = check.paths.iter().map(|path| path.node).collect();
            assert_eq!(nodes, [lab.node(1), lab.node(2)]);
            for path in check.paths {
                assert_eq!((path.loss_percent(), path.passes, path.wanted), (0, 1450, 1450));
                assert!(path.sent >= 20 && path.round_trip_us < 500_000, "{path:?}");
            }
        }
    });
}

#[test]
fn a_link_that_takes_only_smaller_packets_is_measured_to_the_byte() {
    in_lab(3, async |lab| {
        let network = three_hosts(lab);
        lab.tell_all().await;
        // The wire drops what is larger, and says nothing.
        lab.shrink(1, 1400);
        let check = lab.hosts[0].path.examine(network).await.unwrap();
        let found: Vec<_> = check.paths.iter().map(|p| (p.loss_percent(), p.passes)).collect();
        // 50 bytes are VXLAN's; a bridge lets pass four more than it should, for a VLAN's tag.
        assert_eq!(found, [(0, 1354), (0, 1450)]);
        let _watching = Watching::start(&lab.hosts[0].path);
        let bad = lab.hosts[0].path.bad_paths();
        eventually("the path is named", || !bad.borrow().is_empty()).await;
        let bad: Vec<_> = bad.borrow().iter().map(|bad| (bad.node, bad.trouble)).collect();
        assert!(bad.iter().all(|bad| *bad == (lab.node(1), PathTrouble::TooLarge(1450))));
    });
}

#[test]
fn a_silent_peer_is_noticed_and_gets_no_connections_until_it_answers() {
    in_lab(3, async |lab| {
        three_hosts(lab);
        let service = lab.add_service(1, 1, &[]);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 11, Some(service));
        lab.add_task(1, 2, 12, Some(service));
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let dead = lab.attach(1, &wanted("dead", &[1], 11)).await;
        let alive = lab.attach(2, &wanted("alive", &[1], 12)).await;
        let _dead = Server::start(&dead.netns, "dead", 80);
        let _alive = Server::start(&alive.netns, "alive", 80);
        let client = namespace_of(&client.netns);
        let path = lab.hosts[0].path.clone();
        path.set_alert(true);
        let _watching = Watching::start(&path);
        let silence = path.silence();
        eventually("both are watched", || silence.borrow().watched == 2).await;
        assert!(silence.borrow().silent.is_empty());
        lab.unplug(1);
        let begin = Instant::now();
        let silent = BTreeSet::from([lab.hosts[1].number]);
        eventually("it is silent", || silence.borrow().silent == silent).await;
        assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
        let update = path.set_suspected(silent).await.unwrap();
        assert_eq!(update.endpoints.len(), 1);
        assert!(!update.endpoints[0].serving);
        for _ in 0..20 {
            assert_eq!(ask(&client, (v4(1, 201), 80)).unwrap(), "alive 10.0.1.10");
        }
        assert_eq!(path.repair().await.unwrap(), 0, "that is what is wanted");
        lab.plug(1);
        eventually("it answers again", || silence.borrow().silent.is_empty()).await;
        let update = path.set_suspected(BTreeSet::new()).await.unwrap();
        assert!(update.endpoints[0].serving);
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            seen.insert(ask(&client, (v4(1, 201), 80)).unwrap());
        }
        assert_eq!(seen.len(), 2, "{seen:?}");
    });
}

#[test]
fn probes_go_on_when_a_hand_removed_the_device() {
    in_lab(2, async |lab| {
        three_hosts(lab);
        lab.tell_all().await;
        let path = lab.hosts[0].path.clone();
        let _watching = Watching::start(&path);
        let silence = path.silence();
        eventually("it is watched", || silence.borrow().watched == 1).await;
        let mesh = namespace_of(&lab.hosts[0].dir.path().join("sandboxes/mesh"));
        run_in(&mesh, "ip link del vx");
        let silent = BTreeSet::from([lab.hosts[1].number]);
        eventually("nothing comes back", || silence.borrow().silent == silent).await;
        path.repair().await.unwrap();
        eventually("it answers", || silence.borrow().silent.is_empty()).await;
    });
}

#[test]
fn a_peer_behind_another_address_is_seen_as_a_stranger() {
    in_lab(2, async |lab| {
        let network = three_hosts(lab);
        lab.tell_all().await;
        // What the second sends comes from where nobody expects it, as behind a translation.
        run_in(&lab.hosts[1].namespace, "ip addr add 192.0.2.77/24 dev eth0");
        let elsewhere: IpAddr = [192, 0, 2, 77].into();
        lab.hosts[1].path.set_address(Some(elsewhere)).await.unwrap();
        let (near, far) = (&lab.hosts[0].path, &lab.hosts[1].path);
        let (near, far) =
            (near.examine(network).await.unwrap(), far.examine(network).await.unwrap());
        assert_eq!(near.paths[0].loss_percent(), 100);
        assert_eq!(far.paths[0].loss_percent(), 100);
        let seen = lab.hosts[0].path.examine(network).await.unwrap();
        assert_eq!(seen.strangers, [elsewhere]);
    });
}

#[test]
fn hosts_with_ipv6_addresses_only_carry_networks_of_both_families() {
    in_lab_over_v6(3, async |lab| {
        let network = three_hosts(lab);
        let service = lab.add_service(1, 1, &[]);
        let published = lab.add_service(INGRESS, 2, &[(8080, 80)]);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 11, Some(service));
        lab.add_task(INGRESS, 1, 11, Some(published));
        lab.tell_all().await;
        let client = lab.attach(0, &wanted("client", &[1], 10)).await;
        let far = lab.attach(1, &wanted("far", &[1, INGRESS], 11)).await;
        let _far = Server::start(&far.netns, "far", 80);
        let client = namespace_of(&client.netns);
        for (to, own) in [(v4(1, 11), "10.0.1.10"), (v6(1, 11), "fd99:0:0:1::a")] {
            assert_eq!(ask(&client, (to, 80)).unwrap(), format!("far {own}"));
            assert_eq!(ask_udp(&client, (to, 80)).unwrap(), format!("far {own}"));
        }
        for vip in [v4(1, 201), v6(1, 201)] {
            assert!(ask(&client, (vip, 80)).unwrap().starts_with("far "));
        }
        // The mesh, through a node without tasks; the client has IPv6 on the wire.
        let edge = lab.hosts[2].address;
        assert_eq!(ask(&lab.client, (edge, 8080)).unwrap(), "far fd12::100");
        run_in(&client, "ping -c 1 -W 2 -M do -s 1402 10.0.1.11");
        let check = lab.hosts[0].path.examine(network).await.unwrap();
        assert_eq!(check.problems, Vec::<String>::new());
        assert!(check.paths.iter().all(|path| (path.loss_percent(), path.passes) == (0, 1430)));
        // Packets of the network from elsewhere are dropped, and seen.
        let stranger = &lab.client;
        run_in(
            stranger,
            "ip link add vx type vxlan id 4097 local fd12::100 dstport 4789 nolearning",
        );
        run_in(stranger, "ip link set vx up");
        run_in(stranger, "bridge fdb append to 00:00:00:00:00:00 dst fd12::11 dev vx");
        run_in(stranger, "ip addr add 10.9.9.9/24 dev vx");
        let seen = "fd12::100".parse::<IpAddr>().unwrap();
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            let _ = ask_udp(stranger, ([10, 9, 9, 8].into(), 9));
            let check = lab.hosts[0].path.examine(network).await.unwrap();
            if check.strangers == [seen] {
                break;
            }
            assert!(Instant::now() < limit, "{:?}", check.strangers);
        }
    });
}

#[test]
fn a_container_sends_with_its_own_addresses_only() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        let service = lab.add_service(1, 1, &[]);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 0, 11, None);
        lab.add_task(1, 1, 12, Some(service));
        lab.tell_all().await;
        let liar = lab.attach(0, &wanted("liar", &[1], 10)).await;
        let _honest = lab.attach(0, &wanted("honest", &[1], 11)).await;
        let server = lab.attach(1, &wanted("server", &[1], 12)).await;
        let _server = Server::start(&server.netns, "server", 80);
        let heard = Heard::start(&server.netns, 81);
        let liar = namespace_of(&liar.netns);
        for (own, others, to) in [
            (v4(1, 10), [v4(1, 11), v4(1, 12), v4(1, 99)], [v4(1, 12), v4(1, 201)]),
            (v6(1, 10), [v6(1, 11), v6(1, 12), v6(1, 99)], [v6(1, 12), v6(1, 201)]),
        ] {
            for other in others {
                let prefix = if other.is_ipv4() { 32 } else { 128 };
                let nodad = if other.is_ipv4() { "" } else { " nodad" };
                run_in(&liar, &format!("ip addr add {other}/{prefix} dev eth0{nodad}"));
                for to in to {
                    say(&liar, other, (to, 81));
                }
                run_in(&liar, &format!("ip addr del {other}/{prefix} dev eth0"));
            }
            // What is its own comes through, after all the others.
            for to in to {
                say(&liar, own, (to, 81));
                assert!(ask(&liar, (to, 80)).is_ok());
            }
            eventually("its own is heard", || heard.sources().contains(&own)).await;
        }
        assert_eq!(heard.sources(), BTreeSet::from([v4(1, 10), v6(1, 10)]));
        assert_eq!(lab.hosts[0].path.repair().await.unwrap(), 0);
    });
}
