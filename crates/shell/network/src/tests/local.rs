//! Networks that a node has for itself.

use std::net::{IpAddr, SocketAddr};

use base::Timestamp;
use ports::network::{Attached, ContainerNetwork, Network};
use types::{
    Attachment, IpamPool, LocalNetwork, NetworkDriver, NetworkId, NetworkSpec, local_option,
};

use super::lab::*;
use crate::namespace::enter;
use crate::route::RouteSocket;
use crate::{DataPath, Joining};

fn network(
    number: u128,
    driver: NetworkDriver,
    subnet: &str,
    options: &[(&str, &str)],
) -> LocalNetwork {
    let pool = IpamPool { subnet: subnet.parse().ok(), ..IpamPool::default() };
    let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let spec = NetworkSpec {
        name: format!("own{number}"),
        driver,
        ipv4: true,
        ipam: if subnet.is_empty() { Vec::new() } else { vec![pool] },
        options: options.iter().map(pair).collect(),
        ..NetworkSpec::default()
    };
    LocalNetwork {
        id: id(5000 + number),
        created: Timestamp(0),
        spec,
        subnets: Vec::new(),
        swarm: false,
    }
}

/// Makes a network, with subnets chosen for it.
async fn make(path: &DataPath, mut network: LocalNetwork) -> Result<LocalNetwork, types::Fault> {
    network.subnets = path.plan_local(network.spec.clone()).await?;
    path.make_local(network.clone()).await?;
    Ok(network)
}

async fn bridge(path: &DataPath) -> LocalNetwork {
    make(path, LocalNetwork::predefined_bridge()).await.unwrap()
}

fn on(name: &str, networks: &[NetworkId]) -> ContainerNetwork {
    ContainerNetwork {
        id: name.into(),
        hostname: name.into(),
        names: vec![format!("{name}.1")],
        attachments: networks.iter().map(|id| Attachment::bare(*id)).collect(),
        ..ContainerNetwork::default()
    }
}

fn address(path: &DataPath, id: &str, network: NetworkId) -> IpAddr {
    let container = path.container(id).unwrap();
    let end = container.links.iter().find(|end| end.network == Some(network)).unwrap();
    end.v4.unwrap().into()
}

fn ask_in(netns: &Attached, to: (IpAddr, u16)) -> std::io::Result<String> {
    ask(&namespace_of(&netns.netns), to)
}

const CLIENT: [u8; 4] = [192, 0, 2, 100];

fn joining(network: NetworkId, v4: Option<&str>, aliases: &[&str]) -> Joining {
    let v4 = v4.map(|text| text.parse().unwrap());
    let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
    Joining { attachment: Attachment { network, v4, v6: None }, aliases }
}

#[test]
fn containers_on_a_bridge_reach_each_other_and_the_world_with_the_hosts_address() {
    in_lab(1, async |lab| {
        let host = &lab.hosts[0];
        let own = bridge(&host.path).await;
        assert_eq!(own.subnets[0].net.to_string(), "172.17.0.0/16");
        let first = lab.attach(0, &on("first", &[own.id])).await;
        let second = lab.attach(0, &on("second", &[own.id])).await;
        assert_eq!(lab.attach(0, &on("second", &[own.id])).await, second, "once more is the same");
        let (one, two) =
            (address(&host.path, "first", own.id), address(&host.path, "second", own.id));
        assert_eq!((one.to_string(), two.to_string()), ("172.17.0.2".into(), "172.17.0.3".into()));
        assert_eq!(first.hosts[0], (one, "first".into()));
        let _first = Server::start(&first.netns, "first", 80);
        let _beyond = Server::start_in(&lab.client, "beyond", 80);
        assert_eq!(ask_in(&second, (one, 80)).unwrap(), format!("first {two}"));
        assert_eq!(ask_in(&second, (CLIENT.into(), 80)).unwrap(), "beyond 192.0.2.11");
        assert_eq!(ask(&host.namespace, (one, 80)).unwrap(), "first 172.17.0.1");
        // It has its own network and nothing else: no link to the mesh, nothing published.
        let links = run_in(&namespace_of(&second.netns), "ip -o link");
        assert_eq!(links.lines().count(), 2, "{links}");
        // From outside nobody comes in that was not asked.
        run_in(&lab.client, "ip route add 172.17.0.0/16 via 192.0.2.11");
        assert!(ask(&lab.client, (one, 80)).is_err());
        host.path.detach("first").await.unwrap();
        let again = lab.attach(0, &on("third", &[own.id])).await;
        assert_eq!(again.hosts[0].0, one, "what nobody holds is free");
    });
}

#[test]
fn bridges_are_kept_apart_and_an_internal_one_has_no_way_out() {
    in_lab(1, async |lab| {
        let path = lab.hosts[0].path.clone();
        let own = bridge(&path).await;
        let mut closed = network(1, NetworkDriver::Bridge, "10.77.0.0/24", &[]);
        closed.spec.internal = true;
        let closed = make(&path, closed).await.unwrap();
        let open = lab.attach(0, &on("open", &[own.id])).await;
        let [inner, other] = ["inner", "other"].map(|name| on(name, &[closed.id]));
        let (inner, other) = (lab.attach(0, &inner).await, lab.attach(0, &other).await);
        let (_a, _b) =
            (Server::start(&open.netns, "open", 80), Server::start(&inner.netns, "in", 80));
        let _beyond = Server::start_in(&lab.client, "beyond", 80);
        let (to_open, to_inner) =
            (address(&path, "open", own.id), address(&path, "inner", closed.id));
        assert!(ask_in(&other, (to_inner, 80)).is_ok());
        assert!(ask_in(&other, (CLIENT.into(), 80)).is_err());
        assert!(ask_in(&other, (to_open, 80)).is_err());
        assert!(ask_in(&open, (to_inner, 80)).is_err());
        // Not even with a route of its own making.
        run_in(&namespace_of(&other.netns), "ip route add default via 10.77.0.1");
        assert!(ask_in(&other, (CLIENT.into(), 80)).is_err());
        assert!(ask_in(&other, (to_open, 80)).is_err());
        assert!(ask_in(&open, (CLIENT.into(), 80)).is_ok());
    });
}

#[test]
fn what_a_hand_removed_of_a_bridge_is_there_again() {
    in_lab(1, async |lab| {
        let host = &lab.hosts[0];
        let own = bridge(&host.path).await;
        let first = lab.attach(0, &on("first", &[own.id])).await;
        let second = lab.attach(0, &on("second", &[own.id])).await;
        let _first = Server::start(&first.netns, "first", 80);
        let _beyond = Server::start_in(&lab.client, "beyond", 80);
        let one = address(&host.path, "first", own.id);
        let works = || {
            ask_in(&second, (one, 80)).is_ok()
                && ask_in(&second, (CLIENT.into(), 80))
                    .is_ok_and(|text| text == "beyond 192.0.2.11")
        };
        assert!(works());
        let device = host.path.inner.node().local_device(&own);
        for removal in [format!("ip link del {device}"), format!("ip addr flush dev {device}")] {
            run_in(&host.namespace, &removal);
            assert!(host.path.repair().await.unwrap() > 0, "{removal}");
            assert!(works(), "{removal}");
        }
        flush(&host.namespace);
        run_in(&namespace_of(&second.netns), "ip link del eth0");
        assert!(host.path.repair().await.unwrap() > 0);
        assert!(works());
        assert_eq!(host.path.repair().await.unwrap(), 0, "nothing is left to be mended");
    });
}

#[test]
fn a_new_daemon_finds_networks_and_connections_as_they_were() {
    in_lab(1, async |lab| {
        lab.add_network(1);
        lab.add_task(1, 0, 20, None);
        lab.tell_all().await;
        let own = make(&lab.hosts[0].path, network(1, NetworkDriver::Bridge, "10.77.0.0/24", &[]));
        let own = own.await.unwrap();
        let task = lab.attach(0, &wanted("task", &[1], 20)).await;
        let path = lab.hosts[0].path.clone();
        path.join("task", joining(own.id, Some("10.77.0.9"), &["db"])).await.unwrap();
        let before = path.containers();
        drop(path);
        let options = host_options(lab.hosts[0].dir.path(), "h1", Some(lab.hosts[0].address));
        lab.hosts[0].path = open_in(&lab.hosts[0].namespace, options).await;
        let path = &lab.hosts[0].path;
        path.set_local(vec![own.clone()]).await.unwrap();
        path.update(lab.told(0)).await.unwrap();
        assert_eq!(path.containers(), before);
        assert_eq!(before[0].1.links.last().unwrap().aliases, ["db"]);
        assert_eq!(path.repair().await.unwrap(), 0);
        let _task = Server::start(&task.netns, "task", 80);
        let at: IpAddr = [10, 77, 0, 9].into();
        assert_eq!(ask(&lab.hosts[0].namespace, (at, 80)).unwrap(), "task 10.77.0.1");
        // A service's own networks are mended without touching what was connected.
        assert_eq!(lab.attach(0, &wanted("task", &[1], 20)).await, task);
        assert_eq!(lab.hosts[0].path.containers(), before);
    });
}

#[test]
fn a_running_container_is_connected_and_disconnected_and_its_connections_go_on() {
    in_lab(1, async |lab| {
        lab.add_network(1);
        for number in [20, 21] {
            lab.add_task(1, 0, number, None);
        }
        lab.tell_all().await;
        let path = lab.hosts[0].path.clone();
        let own =
            make(&path, network(1, NetworkDriver::Bridge, "10.77.0.0/24", &[])).await.unwrap();
        let task = lab.attach(0, &wanted("task", &[1], 20)).await;
        let peer = lab.attach(0, &wanted("peer", &[1], 21)).await;
        let other = lab.attach(0, &on("other", &[own.id])).await;
        let _task = Server::start(&task.netns, "task", 80);
        let _beyond = Server::start_in(&lab.client, "beyond", 80);
        let (mut open, _) = connect(&namespace_of(&peer.netns), (v4(1, 20), 80)).unwrap();
        let mut alive = move || {
            use std::io::Write;
            open.write_all(b"x\n").unwrap();
            line(&mut open).unwrap() == "x"
        };
        path.join("task", joining(own.id, None, &[])).await.unwrap();
        let at = address(&path, "task", own.id);
        assert!(ask_in(&other, (at, 80)).unwrap().starts_with("task 10.77.0."));
        assert!(alive(), "what was open goes on");
        // eth0 is the overlay's, eth1 the mesh's; the way out stays where it was.
        let inside = namespace_of(&task.netns);
        assert!(run_in(&inside, "ip -o addr show dev eth2").contains(&at.to_string()));
        assert!(run_in(&inside, "ip route").starts_with("default via 172.30.240.5 dev eth1"));
        for (wish, part) in [
            (joining(own.id, None, &[]), "already exists in network own1"),
            (joining(id(9999), None, &[]), "not found"),
        ] {
            let fault = path.join("task", wish).await.unwrap_err();
            assert!(fault.message.contains(part), "{}", fault.message);
        }
        for (wish, part) in [
            (joining(own.id, Some("10.77.0.1"), &[]), "is no address"),
            (joining(own.id, Some("10.78.0.9"), &[]), "is no address"),
            (joining(own.id, Some("10.77.0.2"), &[]), "Address already in use"),
        ] {
            let fault = path.join("peer", wish).await.unwrap_err();
            assert!(fault.field == "--ip" && fault.message.contains(part), "{}", fault.message);
        }
        let fault = path.remove_local(own.id).await.unwrap_err();
        assert!(fault.message.contains("has active endpoints: other.1, task"), "{}", fault.message);
        let fault = path.part("other", own.id).await.unwrap_err();
        assert!(fault.message.contains("because its service is"), "{}", fault.message);
        path.part("task", own.id).await.unwrap();
        assert!(path.part("task", own.id).await.unwrap_err().message.contains("is not connected"));
        assert!(ask_in(&other, (at, 80)).is_err());
        assert!(!run_in(&inside, "ip -o link").contains("eth2"));
        assert_eq!(run_in(&inside, "ip rule").lines().count(), 3, "no rule is left");
        assert!(alive());
        // With the last container gone, so may the network be.
        path.detach("other").await.unwrap();
        path.remove_local(own.id).await.unwrap();
        assert_eq!(own_links(lab), ["gw"]);
    });
}

/// Ends of the names of links of ours in the host's namespace.
fn own_links(lab: &Lab) -> Vec<String> {
    let links = enter(&lab.hosts[0].namespace, || RouteSocket::open()?.links()).unwrap();
    let own = links.iter().filter(|link| crate::is_own_link(&link.name));
    own.map(|link| link.name[6..].to_owned()).collect()
}

#[test]
fn a_container_without_a_way_out_gets_one_with_a_bridge() {
    in_lab(1, async |lab| {
        lab.add_network(1);
        lab.directory.networks[0].internal = true;
        lab.add_task(1, 0, 20, None);
        lab.tell_all().await;
        let path = lab.hosts[0].path.clone();
        let own = bridge(&path).await;
        let task = lab.attach(0, &wanted("task", &[1], 20)).await;
        let _beyond = Server::start_in(&lab.client, "beyond", 80);
        assert!(ask_in(&task, (CLIENT.into(), 80)).is_err());
        path.join("task", joining(own.id, None, &[])).await.unwrap();
        assert_eq!(ask_in(&task, (CLIENT.into(), 80)).unwrap(), "beyond 192.0.2.11");
        assert_eq!(path.repair().await.unwrap(), 0);
        path.part("task", own.id).await.unwrap();
        assert!(ask_in(&task, (CLIENT.into(), 80)).is_err());
        assert_eq!(path.repair().await.unwrap(), 0);
    });
}

#[test]
fn a_published_port_leads_to_a_container_on_a_bridge() {
    in_lab(1, async |lab| {
        let path = lab.hosts[0].path.clone();
        let own = bridge(&path).await;
        let port = ports::network::HostPort {
            protocol: types::PortProtocol::Tcp,
            target: 80,
            published: 8080,
            host: String::new(),
        };
        let wanted = ContainerNetwork { host_ports: vec![port], ..on("web", &[own.id]) };
        let web = lab.attach(0, &wanted).await;
        let other = lab.attach(0, &on("other", &[own.id])).await;
        let _web = Server::start(&web.netns, "web", 80);
        let _beyond = Server::start_in(&lab.client, "beyond", 80);
        let node = (lab.hosts[0].address, 8080);
        assert_eq!(ask(&lab.client, node).unwrap(), "web 192.0.2.100", "the client is seen");
        let seen = ask_in(&other, node).unwrap();
        assert_eq!(seen, format!("web {}", address(&path, "other", own.id)));
        // It goes out by its bridge.
        assert_eq!(ask_in(&web, (CLIENT.into(), 80)).unwrap(), "beyond 192.0.2.11");
        let routes = run_in(&namespace_of(&web.netns), "ip route");
        assert!(routes.starts_with("default via 172.17.0.1 dev eth0"), "{routes}");
    });
}

#[test]
fn containers_on_bridges_do_not_reach_the_managers_ports() {
    in_lab(2, async |lab| {
        lab.add_network(INGRESS);
        lab.tell_all().await;
        let path = lab.hosts[0].path.clone();
        let own = bridge(&path).await;
        let from = lab.attach(0, &on("task", &[own.id])).await;
        let namespaces = [&lab.hosts[0].namespace, &lab.hosts[1].namespace, &lab.client];
        let _servers: Vec<Server> = namespaces
            .iter()
            .flat_map(|namespace| [2377, 7000].map(|port| Server::start_in(namespace, "x", port)))
            .collect();
        path.set_managers([SocketAddr::from((CLIENT, 2377))].into()).await.unwrap();
        for last in [11, 12, 100] {
            let at = IpAddr::from([192, 0, 2, last]);
            assert!(ask_in(&from, (at, 7000)).is_ok(), "{at}");
            assert!(ask_in(&from, (at, 2377)).is_err(), "{at}");
        }
        assert!(ask_in(&from, ([172, 17, 0, 1].into(), 2377)).is_err());
    });
}

#[test]
fn options_of_bridges_are_obeyed() {
    in_lab(1, async |lab| {
        let path = lab.hosts[0].path.clone();
        let host = lab.hosts[0].namespace.try_clone().unwrap();
        run_in(&host, "ip link add theirs type bridge");
        let options = [
            (local_option::BETWEEN, "false"),
            (local_option::MASQUERADE, "false"),
            (local_option::BRIDGE_NAME, "theirs"),
            (NetworkSpec::MTU, "1400"),
        ];
        let named = network(1, NetworkDriver::Bridge, "10.77.0.0/24", &options);
        let own = make(&path, named).await.unwrap();
        run_in(&host, "ip link set theirs up");
        let one = lab.attach(0, &on("one", &[own.id])).await;
        let two = lab.attach(0, &on("two", &[own.id])).await;
        let _one = Server::start(&one.netns, "one", 80);
        assert!(ask_in(&two, (address(&path, "one", own.id), 80)).is_err(), "icc is off");
        assert!(ask(&host, (address(&path, "one", own.id), 80)).is_ok());
        let _beyond = Server::start_in(&lab.client, "beyond", 80);
        run_in(&lab.client, "ip route add 10.77.0.0/24 via 192.0.2.11");
        let seen = ask_in(&one, (CLIENT.into(), 80)).unwrap();
        assert_eq!(seen, "beyond 10.77.0.2", "no masquerade");
        assert!(run_in(&namespace_of(&one.netns), "ip link show eth0").contains("mtu 1400"));
        for (number, options, part) in [
            (2, [(local_option::BRIDGE_NAME, "theirs")], "is that of network own1 already"),
            (3, [(local_option::BRIDGE_NAME, "eth0")], "is no bridge"),
        ] {
            let other = network(number, NetworkDriver::Bridge, "10.78.0.0/24", &options);
            let fault = make(&path, other).await.unwrap_err();
            assert!(fault.message.contains(part), "{}", fault.message);
        }
        let overlapping = network(4, NetworkDriver::Bridge, "192.0.2.128/25", &[]);
        let fault = make(&path, overlapping).await.unwrap_err();
        assert!(
            fault.message.contains("route of this host (eth0) 192.0.2.0/24"),
            "{}",
            fault.message
        );
        for id in ["one", "two"] {
            path.detach(id).await.unwrap();
        }
        path.remove_local(own.id).await.unwrap();
        assert!(run_in(&host, "ip link show theirs").contains("theirs"), "it is not ours");
    });
}

#[test]
fn a_container_on_macvlan_is_a_host_of_the_wire() {
    in_lab(2, async |lab| {
        let path = lab.hosts[0].path.clone();
        let options = [(local_option::PARENT, "eth0")];
        let lan = network(1, NetworkDriver::Macvlan, "192.0.2.0/24", &options);
        let lan = make(&path, lan).await.unwrap();
        lab.add_network(1);
        lab.add_task(1, 0, 20, None);
        lab.tell_all().await;
        let first = lab.attach(0, &wanted("first", &[1], 20)).await;
        path.join("first", joining(lan.id, Some("192.0.2.50"), &[])).await.unwrap();
        let second = lab.attach(0, &on("second", &[lan.id])).await;
        let _first = Server::start(&first.netns, "first", 80);
        let _beyond = Server::start_in(&lab.client, "beyond", 80);
        let (one, two) = ([192, 0, 2, 50].into(), address(&path, "second", lan.id));
        assert_eq!(ask(&lab.client, (one, 80)).unwrap(), "first 192.0.2.100");
        assert_eq!(ask(&lab.hosts[1].namespace, (one, 80)).unwrap(), "first 192.0.2.12");
        assert_eq!(ask_in(&second, (one, 80)).unwrap(), format!("first {two}"));
        assert_eq!(ask_in(&second, (CLIENT.into(), 80)).unwrap(), format!("beyond {two}"));
        assert_eq!(path.repair().await.unwrap(), 0);
        path.part("first", lan.id).await.unwrap();
        assert!(ask(&lab.client, (one, 80)).is_err());
        path.detach("second").await.unwrap();
        path.remove_local(lan.id).await.unwrap();
        assert_eq!(own_links(lab), ["gw"]);
    });
}

#[test]
fn clients_beyond_a_router_are_answered_by_macvlan() {
    in_lab(1, async |lab| {
        let path = lab.hosts[0].path.clone();
        // The client is the router of the wire, too.
        run_in(&lab.client, "ip addr add 198.51.100.1/32 dev lo");
        let mut lan = network(1, NetworkDriver::Macvlan, "192.0.2.0/24", &[("parent", "eth0")]);
        lan.spec.ipam[0].gateway = Some(CLIENT.into());
        let lan = make(&path, lan).await.unwrap();
        let task = lab.attach(0, &on("task", &[])).await;
        path.join("task", joining(lan.id, Some("192.0.2.50"), &[])).await.unwrap();
        let _task = Server::start(&task.netns, "task", 80);
        // By the router's far side, as a client beyond it would come.
        run_in(&lab.client, "ip route add 192.0.2.50/32 dev eth0 src 198.51.100.1");
        let to = ([192, 0, 2, 50].into(), 80);
        assert_eq!(ask(&lab.client, to).unwrap(), "task 198.51.100.1");
        let table = run_in(&namespace_of(&task.netns), "ip route get 198.51.100.1 from 192.0.2.50");
        assert!(table.contains("via 192.0.2.100 dev eth1"), "{table}");
        let free = run_in(&namespace_of(&task.netns), "ip route get 198.51.100.1");
        assert!(free.contains("dev eth0"), "{free}");
    });
}

#[test]
fn a_parent_that_is_not_there_is_made_and_taken_down_again() {
    in_lab(1, async |lab| {
        let path = lab.hosts[0].path.clone();
        let host = lab.hosts[0].namespace.try_clone().unwrap();
        let links = || run_in(&host, "ip -o link");
        let before = links().lines().count();
        for (number, options) in [(1, &[(local_option::PARENT, "eth0.7")][..]), (2, &[])] {
            let lan = network(number, NetworkDriver::Macvlan, "10.9.0.0/24", options);
            let lan = match make(&path, lan).await {
                Ok(lan) => lan,
                Err(fault) => {
                    println!("skipped: {}", fault.message);
                    continue;
                }
            };
            let first = lab.attach(0, &on("first", &[lan.id])).await;
            let second = lab.attach(0, &on("second", &[lan.id])).await;
            let _first = Server::start(&first.netns, "first", 80);
            assert!(ask_in(&second, (address(&path, "first", lan.id), 80)).is_ok());
            let device = path.inner.node().local_device(&lan);
            run_in(&host, &format!("ip link del {device}"));
            assert!(path.repair().await.unwrap() > 0);
            assert!(links().contains(&device), "it is there again");
            for id in ["first", "second"] {
                path.detach(id).await.unwrap();
            }
            path.remove_local(lan.id).await.unwrap();
            assert_eq!(links().lines().count(), before);
        }
    });
}

#[test]
fn what_the_kernel_cannot_do_is_refused_when_it_is_asked_for() {
    in_lab(1, async |lab| {
        let path = lab.hosts[0].path.clone();
        for (driver, options, part) in [
            (NetworkDriver::Macvlan, &[("parent", "eth9")][..], "this host has no such link"),
            (NetworkDriver::Macvlan, &[("parent", "lo")], "the loopback cannot be"),
            (NetworkDriver::Ipvlan, &[("parent", "eth9.7")], "this host has no such link"),
        ] {
            let fault = make(&path, network(1, driver, "10.9.0.0/24", options)).await.unwrap_err();
            assert!(fault.message.contains(part), "{}", fault.message);
        }
        let lan = network(1, NetworkDriver::Ipvlan, "192.0.2.0/24", &[("parent", "eth0")]);
        if let Err(fault) = make(&path, lan).await {
            assert_eq!(fault.field, "--driver");
            assert!(fault.message.contains("this kernel has no ipvlan links"), "{}", fault.message);
        }
        let alone = network(2, NetworkDriver::Macvlan, "10.9.0.0/24", &[]);
        if let Err(fault) = make(&path, alone).await {
            assert!(fault.message.contains("parent: name the link"), "{}", fault.message);
        }
    });
}

#[test]
fn containers_on_ipvlan_share_the_parents_hardware_address() {
    in_lab(2, async |lab| {
        let path = lab.hosts[0].path.clone();
        for (number, mode) in [(1, "l2"), (2, "l3")] {
            let options = [("parent", "eth0"), (local_option::IPVLAN_MODE, mode)];
            let subnet = if mode == "l2" { "192.0.2.0/24" } else { "10.88.0.0/24" };
            let lan = network(number, NetworkDriver::Ipvlan, subnet, &options);
            let lan = match make(&path, lan).await {
                Ok(lan) => lan,
                Err(fault) => {
                    println!("skipped: {}", fault.message);
                    return;
                }
            };
            let first = lab.attach(0, &on("first", &[lan.id])).await;
            let second = lab.attach(0, &on("second", &[lan.id])).await;
            let (one, two) = (address(&path, "first", lan.id), address(&path, "second", lan.id));
            let _first = Server::start(&first.netns, "first", 80);
            let _beyond = Server::start_in(&lab.client, "beyond", 80);
            assert_eq!(ask_in(&second, (one, 80)).unwrap(), format!("first {two}"));
            if mode == "l3" {
                run_in(&lab.client, "ip route add 10.88.0.0/24 via 192.0.2.11");
                run_in(&lab.hosts[0].namespace, "ip route add 10.88.0.0/24 dev eth0");
            }
            assert_eq!(ask(&lab.client, (one, 80)).unwrap(), "first 192.0.2.100", "{mode}");
            assert_eq!(ask_in(&second, (CLIENT.into(), 80)).unwrap(), format!("beyond {two}"));
            assert_eq!(path.repair().await.unwrap(), 0);
            for id in ["first", "second"] {
                path.detach(id).await.unwrap();
            }
            path.remove_local(lan.id).await.unwrap();
        }
    });
}
