//! What a container is answered.

use std::time::Instant;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use types::{DirectoryUpdate, EndpointPart, ServicePart};

use crate::Test;
use crate::support::*;

pub(crate) const TESTS: &[Test] = &[
    ("each_container_is_answered_from_its_own_networks", own_networks),
    ("changes_are_answered_at_once", changes),
    ("a_released_port_is_free_at_once", released),
    ("datagrams_are_cut_and_connections_are_not", sizes),
    ("services_by_the_thousand_load_in_no_time", many_services),
    ("a_thousand_containers_are_served", many_containers),
];

fn own_networks() {
    let (lab, front, both) = (Lab::new(), Space::new(), Space::new());
    let client = lab.start();
    let front_port = lab.serve(&client, "a", &front, &[1]);
    let both_port = lab.serve(&client, "b", &both, &[2, 1]);
    lab.wait(client.update(&directory())).unwrap();

    assert_eq!(front.addresses(front_port, "web."), ["10.0.1.100"]);
    assert_eq!(front.addresses(front_port, "WEB."), ["10.0.1.100"]);
    assert_eq!(front.addresses(front_port, "tasks.web."), ["10.0.1.1", "10.0.1.2"]);
    assert_eq!(front.addresses(front_port, "web.2."), ["10.0.1.2"]);
    assert_eq!(front.addresses(front_port, "web.front."), ["10.0.1.100"]);
    let refused = front.ask(front_port, "db.", RecordType::A);
    assert_eq!(refused.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(both.addresses(both_port, "db."), ["10.0.2.1"]);
    assert_eq!(both.addresses(both_port, "web."), ["10.0.1.100"]);
    // The name is there, the type is not.
    let none = front.ask(front_port, "web.", RecordType::AAAA);
    assert_eq!(addresses(&none), Vec::<String>::new());

    let by_tcp = both.ask_by_tcp(both_port, "tasks.web.", RecordType::A);
    assert_eq!(addresses(&by_tcp), ["10.0.1.1", "10.0.1.2"]);
    let names = both.ask(both_port, "1.2.0.10.in-addr.arpa.", RecordType::PTR);
    let RData::PTR(name) = &names.answers[0].data else { panic!("{names:?}") };
    assert_eq!(name.0.to_ascii(), "db.1.ghi.back.");
    let ports = both.ask(both_port, "_http._tcp.db.", RecordType::SRV);
    let RData::SRV(found) = &ports.answers[0].data else { panic!("{ports:?}") };
    assert_eq!((found.port, found.target.to_ascii().as_str()), (8_080, "db.1.ghi."));
}

fn changes() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let port = lab.serve(&client, "a", &space, &[1]);
    lab.wait(client.update(&directory())).unwrap();
    let update = DirectoryUpdate {
        index: 8,
        removed_endpoints: vec![(network_id(1), task_id(1))],
        endpoints: vec![endpoint(1, 9, 1, "10.0.1.9", &["web.1.xyz", "web.1"])],
        ..DirectoryUpdate::default()
    };
    lab.wait(client.update(&update)).unwrap();
    assert_eq!(space.addresses(port, "tasks.web."), ["10.0.1.2", "10.0.1.9"]);
    assert_eq!(space.addresses(port, "web.1."), ["10.0.1.9"]);
    let gone = space.ask(port, "web.1.abc.", RecordType::A);
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);

    // The port stays when only the networks change, and another namespace is another port.
    assert_eq!(lab.serve(&client, "a", &space, &[2]), port);
    assert_eq!(space.addresses(port, "db."), ["10.0.2.1"]);
    let other = Space::new();
    let moved = lab.serve(&client, "a", &other, &[2]);
    assert_eq!(other.addresses(moved, "db."), ["10.0.2.1"]);
    lab.wait(client.release("a")).unwrap();
    assert!(other.run(|| std::net::UdpSocket::bind(("127.0.0.11", moved))).is_ok());
}

fn released() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    for _ in 0..300 {
        let port = lab.serve(&client, "a", &space, &[1]);
        lab.wait(client.release("a")).unwrap();
        space.run(|| {
            std::net::UdpSocket::bind(("127.0.0.11", port)).unwrap();
            std::net::TcpListener::bind(("127.0.0.11", port)).unwrap();
        });
    }
}

fn sizes() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let port = lab.serve(&client, "a", &space, &[1]);
    let addresses_of = |count: u128| -> Vec<EndpointPart> {
        (0..count)
            .map(|n| endpoint(1, n, 1, &format!("10.0.{}.{}", n / 256, n % 256), &[]))
            .collect()
    };
    let update = DirectoryUpdate {
        full: true,
        services: vec![service(1, 1, "web", "")],
        endpoints: addresses_of(1_000),
        ..DirectoryUpdate::default()
    };
    lab.wait(client.update(&update)).unwrap();
    let cut = space.ask(port, "web.", RecordType::A);
    assert!(cut.metadata.truncation && cut.to_vec().unwrap().len() <= 512);
    let question = with_edns(question("web.", RecordType::A), 4_096).to_vec().unwrap();
    let larger = space.run(|| exchange(port, &question)).unwrap();
    assert!(larger.len() > 3_900 && larger.len() <= 4_096, "{}", larger.len());
    assert_eq!(space.ask_by_tcp(port, "web.", RecordType::A).answers.len(), 1_000);
}

fn many_services() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let port = lab.serve(&client, "a", &space, &[1]);
    let services: Vec<ServicePart> = (0..10_000)
        .map(|n| service(1, n, &format!("service-{n}"), &format!("10.9.{}.{}", n / 256, n % 256)))
        .collect();
    let endpoints = (0..100_000)
        .map(|n| {
            let (slot, service) = (n % 10, n / 10);
            let address = format!("10.{}.{}.{}", 10 + n / 65_536, n / 256 % 256, n % 256);
            let names =
                [format!("service-{service}.{slot}.{n}"), format!("service-{service}.{slot}")];
            endpoint(1, n, service, &address, &[&names[0], &names[1]])
        })
        .collect();
    let update = DirectoryUpdate { full: true, services, endpoints, ..DirectoryUpdate::default() };
    let begun = Instant::now();
    lab.wait(client.update(&update)).unwrap();
    let took = begun.elapsed();
    let used = rss_kib(lab.pid(&client));
    println!("  10,000 services x 10: {took:?}, {used} KiB");
    // Without optimisation it takes several times as long.
    assert!(took.as_secs() < 10, "{took:?}");
    assert!(used < 40 * 1024, "{used} KiB");
    assert_eq!(space.addresses(port, "service-9999."), ["10.9.39.15"]);
    assert_eq!(space.addresses(port, "tasks.service-9999.").len(), 10);

    // One that leaves is not given out any more at once, among so many too.
    let leaves = DirectoryUpdate {
        removed_endpoints: vec![(network_id(1), task_id(99_999))],
        ..DirectoryUpdate::default()
    };
    let begun = Instant::now();
    lab.wait(client.update(&leaves)).unwrap();
    assert_eq!(space.addresses(port, "tasks.service-9999.").len(), 9);
    let took = begun.elapsed();
    println!("  one of them withdrawn: {took:?}");
    assert!(took.as_millis() < 200, "{took:?}");
}

fn many_containers() {
    let lab = Lab::new();
    let client = lab.start();
    lab.wait(client.update(&directory())).unwrap();
    let idle = rss_kib(lab.pid(&client));
    // A namespace may hold many resolvers: ports tell them apart.
    let spaces: Vec<Space> = (0..50).map(|_| Space::new()).collect();
    let begun = Instant::now();
    let ports: Vec<u16> = (0..1_000)
        .map(|n| lab.serve(&client, &format!("c{n}"), &spaces[n % 50], &[1 + n as u128 % 2]))
        .collect();
    println!("  1,000 containers: {:?}, {idle} KiB before", begun.elapsed());
    for (n, port) in ports.iter().enumerate().step_by(37) {
        let name = if n % 2 == 0 { ("web.", "10.0.1.100") } else { ("db.", "10.0.2.1") };
        assert_eq!(spaces[n % 50].addresses(*port, name.0), [name.1]);
    }
    let all = lab.wait(client.status()).unwrap();
    assert_eq!(all.containers.len(), 1_000);
    let each = (rss_kib(all.pid) - idle) / 1_000;
    assert!(each < 32, "{each} KiB a container");
    // They are all back after the worst.
    let before = client.ports().borrow().epoch;
    kill_hard(all.pid);
    let mut watched = client.ports();
    lab.wait(async {
        let all_back =
            watched.wait_for(|ports| ports.epoch > before && ports.by_container.len() == 1_000);
        drop(tokio::time::timeout(DEADLINE, all_back).await.unwrap().unwrap());
    });
}

pub(crate) fn rss_kib(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
