//! Callers that talk garbage, slowly or not at all, on every port and socket: the cluster works on
//! beside them within bounds, and what they held comes back.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::{
    Callers, Host, IMAGE, LONG, Lab, SHORT, Target, Usage, booted, client_hello, joined,
    load_image, wait_until,
};

/// A command while hostile callers are at work, in a debug build on a loaded machine.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// What callers may cost in memory: two thousand connections at 32 KiB, and room for allocators.
const MEMORY_MAX: u64 = 128 << 20;
/// Connections that come and go by themselves: sessions, commands of this test.
const FILES_SLACK: usize = 40;
/// The greeting of an HTTP/2 client.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[test]
fn only_the_managers_and_the_data_paths_ports_listen() {
    let lab = joined(1, 1).unwrap();
    let listening = |host: &Host| {
        let lines = host.inside("ss", &["-Hltnu"]).unwrap().lines().unwrap();
        let address = |line: &String| line.split_whitespace().nth(4).map(str::to_owned);
        let port = |address: String| address.rsplit(':').next().map(str::to_owned);
        let ports = lines.iter().filter_map(address).filter_map(port);
        ports.collect::<BTreeSet<String>>()
    };
    // VXLAN's socket is the kernel's, and takes packets of members only.
    assert_eq!(listening(lab.host(1)), ["2377", "4789"].map(str::to_owned).into());
    assert_eq!(listening(lab.host(2)), ["4789"].map(str::to_owned).into());
}

#[test]
fn hostile_callers_on_the_managers_port_harm_nobody() {
    let lab = manager_worker_joiner();
    let manager = lab.host(1);
    let token = manager.shoal(&["swarm", "join-token", "-q", "worker"]).unwrap().ok().unwrap();
    let hello = client_hello(&token).unwrap();
    let target = Target::port(lab.host(3), manager).unwrap();
    let before = manager.usage().unwrap();

    let mut callers = Callers::noisy(&target, 4, b"");
    // A TLS record that announces its greatest length, and a request of another protocol.
    callers.extend(Callers::noisy(&target, 2, &[0x16, 3, 3, 0x40, 0]));
    callers.extend(Callers::noisy(&target, 2, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
    callers.push(Callers::silent(&target, 1_000, b"").unwrap());
    callers.push(Callers::silent(&target, 200, &hello).unwrap());
    callers.push(Callers::silent(&target, 200, &hello[..hello.len() / 2]).unwrap());
    callers.push(Callers::slow(&target, 100, &hello));
    callers.push(Callers::strangers(&target, 200, &token).unwrap());

    cluster_works(&lab);
    check_usage(manager, before, callers);
}

#[test]
fn hostile_callers_on_the_sockets_harm_nobody() {
    let lab = manager_worker_joiner();
    let hosts = [lab.host(1), lab.host(2)];
    let before = hosts.map(|host| host.usage().unwrap());
    let callers = hosts.map(|host| {
        let target = Target::socket(host);
        let mut callers = Callers::noisy(&target, 2, b"");
        callers.extend(Callers::noisy(&target, 2, PREFACE));
        callers.push(Callers::silent(&target, 1_000, b"").unwrap());
        callers.push(Callers::silent(&target, 300, &PREFACE[..8]).unwrap());
        callers.push(Callers::silent(&target, 300, PREFACE).unwrap());
        callers.push(Callers::slow(&target, 100, PREFACE));
        callers
    });

    cluster_works(&lab);
    let worker = lab.host(2);
    let refused = worker.shoal(&["node", "ls"]).unwrap().failure().unwrap();
    assert!(refused.contains("not a swarm manager"), "{refused}");
    let images = worker.shoal(&["image", "ls", "--format", "{{.Repository}}"]).unwrap();
    assert_eq!(images.ok().unwrap(), "shoal/whoami\n");
    for ((host, before), callers) in hosts.into_iter().zip(before).zip(callers) {
        check_usage(host, before, callers);
    }
}

/// A manager, a worker, and a host that is in no cluster yet.
fn manager_worker_joiner() -> Lab {
    let lab = booted(3).unwrap();
    let manager = lab.host(1);
    let args = ["swarm", "init", "--advertise-addr", manager.address()];
    manager.shoal(&args).unwrap().ok().unwrap();
    lab.host(2).join(manager, "worker").unwrap();
    load_image(&lab).unwrap();
    manager.wait_for_nodes(2, LONG).unwrap();
    lab
}

/// Reads, a join and a service that comes to run on all nodes, each in its time.
fn cluster_works(lab: &Lab) {
    let manager = lab.host(1);
    for args in [&["node", "ls", "-q"][..], &["info"], &["service", "ls"]] {
        let begun = Instant::now();
        manager.shoal(args).unwrap().ok().unwrap();
        assert!(begun.elapsed() < ANSWER_MAX, "{args:?} took {:?}", begun.elapsed());
    }
    let begun = Instant::now();
    lab.host(3).join(manager, "worker").unwrap();
    manager.wait_for_nodes(3, SHORT).unwrap();
    let joined = begun.elapsed();
    let args = ["service", "create", "--name", "web", "--replicas", "6", "--wait-timeout", "1m"];
    manager.shoal(&[&args[..], &[IMAGE]].concat()).unwrap().ok().unwrap();
    let spread = manager.spread("web").unwrap();
    assert!(spread.len() == 3 && spread.values().all(|count| *count == 2), "{spread:?}");
    println!("joined after {joined:?}, running after {:?}", begun.elapsed() - joined);
}

/// Memory is bounded while the callers are there, and their files are given back when they go.
fn check_usage(host: &Host, before: Usage, callers: Vec<Callers>) {
    assert_eq!(host.ended().unwrap(), None);
    let during = host.usage().unwrap();
    println!("{}: {before:?} before, {during:?} with callers", host.name());
    assert!(during.bytes < before.bytes + MEMORY_MAX, "{before:?} before, {during:?} with callers");
    drop(callers);
    wait_until("the files of callers that are gone", SHORT, || {
        let after = host.usage()?;
        ensure!(after.files < before.files + FILES_SLACK, "{before:?} before, {after:?} after");
        Ok(true)
    })
    .unwrap();
}
