//! What goes on while parts of a node are replaced, die, or get another address.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use integration::{
    Host, IMAGE, LONG, Lab, SHORT, Task, ask_tcp, booted, in_namespace, joined, load_image,
    wait_until,
};
use nix::sys::signal::{Signal, kill};

/// A task of one service on each of three nodes.
fn cluster() -> (Lab, Vec<Task>) {
    let mut lab = joined(3, 0).unwrap();
    lab.add_client().unwrap();
    let tasks = everywhere(lab.host(1));
    (lab, tasks)
}

fn everywhere(manager: &Host) -> Vec<Task> {
    manager.shoal(&["network", "create", "-d", "overlay", "back"]).unwrap().ok().unwrap();
    let create = ["service", "create", "-d", "--name", "db", "--network", "back", "-p", "8080:80"];
    let args = [&create[..], &["--mode", "global", IMAGE]].concat();
    manager.shoal(&args).unwrap().ok().unwrap();
    manager.wait_for_running("db", 3, LONG).unwrap()
}

fn task_on<'a>(tasks: &'a [Task], host: &Host) -> &'a Task {
    tasks.iter().find(|task| task.node == host.name()).unwrap()
}

/// Asks again and again; the longest time from one success to the next is what `end` gives.
struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Asking {
    fn begin(ask: impl Fn() -> bool + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !flag.load(Relaxed) {
                if ask() {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                // It must not be what slows down the one that it waits for.
                std::thread::sleep(Duration::from_millis(5));
            }
            longest.max(last.elapsed())
        });
        Self { stop, thread }
    }

    fn end(self) -> Duration {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

/// Names and new connections of one container, and published ports of its node.
fn all_ways(lab: &Lab, host: &Host, task: &Task) -> Vec<(&'static str, Asking)> {
    let vip = SocketAddr::new(host.address_of(task, "db").unwrap(), 80);
    let (inside, client) = (host.task_netns(&task.id), lab.client().netns());
    let mesh = host.port_v4(8080);
    let (names, services) = (inside.clone(), inside);
    vec![
        ("names", Asking::begin(move || in_namespace(&names, look_up).is_ok())),
        ("services", Asking::begin(move || in_namespace(&services, move || ask_tcp(vip)).is_ok())),
        ("ports", Asking::begin(move || in_namespace(&client, move || ask_tcp(mesh)).is_ok())),
    ]
}

/// One question for `db`, with an answer within a tenth of a second.
fn look_up() -> anyhow::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("127.0.0.11:53")?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.send(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x02db\0\0\x01\0\x01")?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    anyhow::ensure!(length > 12 && answer[7] > 0, "no address");
    Ok(())
}

#[test]
fn another_build_of_the_daemon_takes_over_without_a_gap() {
    let (lab, tasks) = cluster();
    let (manager, third) = (lab.host(1), lab.host(3));
    let task = task_on(&tasks, third);
    let before = third.netd().unwrap();
    let ways = all_ways(&lab, third, task);
    third.kill().unwrap();
    third.start_another_build().unwrap();
    third.start().unwrap();
    manager.wait_for_nodes(3, LONG).unwrap();
    wait_until("another process that keeps names", SHORT, || Ok(third.netd()? != before)).unwrap();
    // The one before may have been asked until now.
    std::thread::sleep(Duration::from_secs(1));
    for (what, asking) in ways {
        let gap = asking.end();
        assert!(gap < Duration::from_secs(1), "{what} were away for {gap:?}");
    }
    assert_eq!(manager.wait_for_running("db", 3, LONG).unwrap(), tasks, "the same containers");
}

#[test]
fn netd_that_is_killed_is_back_within_a_second() {
    let (lab, tasks) = cluster();
    let third = lab.host(3);
    let task = task_on(&tasks, third);
    let ways = all_ways(&lab, third, task);
    let before = third.netd().unwrap();
    kill(before, Signal::SIGKILL).unwrap();
    wait_until("another process that keeps names", SHORT, || {
        Ok(third.netd().is_ok_and(|pid| pid != before))
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    for (what, asking) in ways {
        let gap = asking.end();
        assert!(gap < Duration::from_secs(1), "{what} were away for {gap:?}");
    }
    // By ::1, too: its forwarder is a part of the same process.
    let loopback: SocketAddr = "[::1]:8080".parse().unwrap();
    wait_until("an answer by ::1", SHORT, || Ok(third.ask(loopback).is_ok())).unwrap();
}

#[test]
fn a_node_is_reached_when_its_host_has_another_address() {
    let lab = booted(3).unwrap();
    let (manager, third) = (lab.host(1), lab.host(3));
    manager.shoal(&["swarm", "init", "--advertise-addr", manager.address()]).unwrap().ok().unwrap();
    // One names a link, the other nothing at all; the third keeps its address.
    third.join_with(manager, "worker", &["--data-path-addr", "eth0"]).unwrap();
    lab.host(2).join_with(manager, "worker", &[]).unwrap();
    load_image(&lab).unwrap();
    let tasks = everywhere(manager);
    for (host, address) in [(third, "10.254.0.33/24"), (lab.host(2), "10.254.0.22/24")] {
        moves(manager, host, &tasks, address);
    }
}

/// All of a host's IPv4 addresses give way to another one.
fn moves(manager: &Host, third: &Host, tasks: &[Task], address: &str) {
    let (here, there) = (task_on(tasks, manager), task_on(tasks, third));
    let far = SocketAddr::new(manager.address_of(here, &there.name).unwrap(), 80);
    let inside = manager.task_netns(&here.id);
    let reaches = move |to| in_namespace(&inside, move || ask_tcp(to)).is_ok();
    assert!(reaches(far));
    let old = format!("{}/24", third.address());
    // With the first one its network's others go, too.
    for words in [["add", address], ["del", &old], ["replace", address]] {
        let args = [&["addr"], &words[..], &["dev", "eth0"]].concat();
        third.inside("ip", &args).unwrap().ok().unwrap();
    }
    wait_until("the task at the new address", LONG, || Ok(reaches(far))).unwrap();
}
