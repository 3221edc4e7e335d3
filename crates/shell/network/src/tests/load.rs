//! Networks with very many endpoints, loaded as they are planned.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use netplan::{Scope, set};
use ports::network::Network;
use types::{DirectoryUpdate, EndpointPart, NetworkId, ServicePart};

use super::lab::*;
use crate::namespace::enter;
use crate::route::{self, RouteSocket, V4, V6};

const CROWD: u32 = 6_000;
const SERVICES: u32 = 600;

/// Very many further tasks on a network, a third of them on this host, the others on two more, one
/// of which is not there. Each has an IPv6 address of the network's own range.
fn add_crowd(update: &mut DirectoryUpdate, lab: &Lab, network: u8) {
    let base = u128::from(network) * 1_000_000;
    let id_of = |number: u32| id(base + u128::from(number));
    let address = |number: u32| v4_of(network, number);
    let absent = lab.hosts.len() as u32 + 1;
    for number in 0..SERVICES {
        update.services.push(ServicePart {
            network: id(1000 + u128::from(network)),
            service: id(base + 500_000 + u128::from(number)),
            name: format!("crowd{network}-{number}"),
            aliases: Vec::new(),
            mode: types::EndpointMode::Vip,
            v4: Some(address(100_000 + number)),
            v6: None,
            ports: Vec::new(),
        });
    }
    for number in 0..CROWD {
        let on = number % 3;
        let host = lab.hosts.get(on as usize);
        update.endpoints.push(EndpointPart {
            network: id(1000 + u128::from(network)),
            task: id_of(number),
            service: Some(id(base + 500_000 + u128::from(number % SERVICES))),
            node: host.map_or(id(900), |_| lab.node(on as usize)),
            number: host.map_or(absent, |host| host.number),
            v4: Some(address(number)),
            v6: Some(v6_of(network, number)),
            names: Vec::new(),
            serving: true,
        });
    }
    let peer = update.peers.iter().find(|peer| peer.network == id(1000 + u128::from(network)));
    let mut peer = peer.unwrap().clone();
    (peer.node, peer.number, peer.address) = (id(900), absent, "192.0.2.99".parse().unwrap());
    update.peers.push(peer);
}

fn v4_of(network: u8, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a80_0000 + (u32::from(network) << 18) + number)
}

fn v6_of(network: u8, number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits((0xfd99 << 112) + (u128::from(network) << 64) + (1 << 32))
        | Ipv6Addr::from_bits(u128::from(number))
}

fn sandbox(lab: &Lab, name: &str) -> OwnedFd {
    namespace_of(&lab.hosts[0].dir.path().join("sandboxes").join(name))
}

/// How many routes lead to other nodes' tasks.
fn routes(sandbox: &OwnedFd) -> usize {
    let mut socket = enter(sandbox, RouteSocket::open).unwrap();
    let mut all = socket.routes(V4).unwrap();
    all.extend(socket.routes(V6).unwrap());
    let range = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets()[0] == 10,
        IpAddr::V6(address) => address.segments()[0] == 0xfd99,
    };
    all.iter().filter(|route| route.via.is_some() && range(route.net.addr())).count()
}

#[test]
fn very_many_endpoints_are_loaded_as_they_are_planned() {
    in_lab(2, async |lab| {
        let network = lab.add_network(1);
        let name = network.to_string();
        lab.add_network(INGRESS);
        let service = lab.add_service(1, 1, &[]);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 12, Some(service));
        let small = lab.told(0);
        let mut told = small.clone();
        told.full = true;
        add_crowd(&mut told, lab, 1);
        add_crowd(&mut told, lab, INGRESS);
        let path = lab.hosts[0].path.clone();
        path.update(told.clone()).await.unwrap();
        assert_eq!(path.repair().await.unwrap(), 0, "as the plan, without comparing");
        for (name, more) in [(&*name, 2), ("mesh", 0)] {
            assert_eq!(routes(&sandbox(lab, name)), CROWD as usize * 2 / 3 * 2 + more, "{name}");
        }
        let known = |number: u32| {
            let shown = format!("ip route show {}", v4_of(1, number));
            run_in(&sandbox(lab, &name), &shown).contains("nhid")
        };
        assert!(!known(0) && known(1) && known(CROWD - 1));
        let spread = {
            let mut node = path.inner.node();
            let space = node.spaces.get_mut(&Scope::Overlay(network)).unwrap();
            space.elements_of(set::VIP4).unwrap().len()
        };
        assert_eq!(spread, SERVICES as usize + 1);
        // It works as any other.
        lab.hosts[1].path.update(lab.told(1)).await.unwrap();
        let near = lab.attach(0, &wanted("near", &[1], 10)).await;
        let far = lab.attach(1, &wanted("far", &[1], 12)).await;
        let _far = Server::start(&far.netns, "far", 80);
        let from = namespace_of(&near.netns);
        for to in [v4(1, 12), v6(1, 12), v4(1, 201), v6(1, 201)] {
            assert!(ask(&from, (to, 80)).unwrap().starts_with("far "), "{to}");
        }
        // The same again changes nothing, and without the crowd it goes.
        path.update(told).await.unwrap();
        assert_eq!(path.repair().await.unwrap(), 0);
        path.update(DirectoryUpdate { full: true, ..small }).await.unwrap();
        assert_eq!(routes(&sandbox(lab, &name)), 2);
        assert_eq!(path.repair().await.unwrap(), 0);
        assert!(ask(&from, (v4(1, 12), 80)).unwrap().starts_with("far "));
    });
}

/// Whatever happens to a network while it is loaded, the load leaves it whole or a repair does.
#[test]
fn a_load_that_is_disturbed_ends_as_any_other() {
    in_lab(2, async |lab| {
        let network: NetworkId = lab.add_network(1);
        lab.add_task(1, 0, 10, None);
        lab.add_task(1, 1, 12, None);
        let mut told = lab.told(0);
        told.full = true;
        add_crowd(&mut told, lab, 1);
        let path = lab.hosts[0].path.clone();
        let namespaces = lab.hosts[0].dir.path().join("sandboxes");
        for laid in [0, 100, 3_000] {
            let place = namespaces.join(network.to_string());
            let (stop, stopped) = std::sync::mpsc::sync_channel::<()>(1);
            let disturber = std::thread::spawn(move || {
                let limit = Instant::now() + Duration::from_secs(20);
                let mut socket = None;
                while Instant::now() < limit && stopped.try_recv().is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                    if socket.is_none() && std::fs::metadata(&place).is_ok() {
                        socket = std::fs::File::open(&place)
                            .ok()
                            .and_then(|place| enter(&place.into(), RouteSocket::open).ok());
                    }
                    let Some(socket) = &mut socket else { continue };
                    let Ok(Some(device)) = socket.index_of("vx") else { continue };
                    if socket.routes(V4).unwrap().len() >= laid {
                        return socket.request(route::delete_link(device)).is_ok();
                    }
                }
                false
            });
            let loaded = path.update(told.clone()).await;
            let _ = stop.send(());
            let disturbed = disturber.join().unwrap();
            assert!(loaded.is_ok() || disturbed, "{loaded:?}");
            let mut rounds = 0;
            while path.repair().await.map_or(true, |differing| differing > 0) {
                rounds += 1;
                assert!(rounds < 4, "{laid}");
            }
            let sandbox = sandbox(lab, &network.to_string());
            assert_eq!(routes(&sandbox), CROWD as usize * 2 / 3 * 2 + 2, "{laid}");
            let left = DirectoryUpdate { full: true, own: told.own.clone(), ..Default::default() };
            path.update(left).await.unwrap();
            assert!(!namespaces.join(network.to_string()).exists());
        }
    });
}
