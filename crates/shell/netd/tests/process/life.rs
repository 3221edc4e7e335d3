//! Death, replacement and return of netd and of its daemon.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use netd::Client;

use crate::Test;
use crate::names::rss_kib;
use crate::support::*;

pub(crate) const TESTS: &[Test] = &[
    ("a_killed_netd_is_back_within_a_second", killed),
    ("the_port_is_the_usual_one_unless_the_container_has_it", usual_port),
    ("names_go_on_without_a_daemon", without_daemon),
    ("what_was_known_outlives_both", without_both),
    ("another_build_takes_over_without_a_gap", replaced),
    ("a_netd_that_hangs_is_replaced", hanging),
    ("after_stop_nothing_is_left", stopped),
    ("garbage_on_the_socket_harms_nobody", garbage),
];

fn killed() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    lab.serve(&client, "a", &space, &[1]);
    lab.wait(client.update(&directory())).unwrap();
    // Even if it remembers nothing.
    let before = client.ports().borrow().epoch;
    std::fs::remove_file(lab.dir.path().join("netd.state")).unwrap();
    let begun = Instant::now();
    kill_hard(lab.pid(&client));
    let mut ports = client.ports();
    let port = lab.wait(async {
        let ports = ports.wait_for(|ports| ports.epoch > before).await.unwrap();
        ports.by_container["a"]
    });
    assert_eq!(space.addresses(port, "web."), ["10.0.1.100"]);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

fn usual_port() {
    let (lab, free, taken) = (Lab::new(), Space::new(), Space::new());
    let client = lab.start();
    let at = ("0.0.0.0", netd::RESOLVER_PORT);
    let _application = taken.run(|| std::net::TcpListener::bind(at).unwrap());
    assert_eq!(lab.serve(&client, "free", &free, &[1]), netd::RESOLVER_PORT);
    let port = lab.serve(&client, "taken", &taken, &[1]);
    assert_ne!(port, netd::RESOLVER_PORT);
    lab.wait(client.update(&directory())).unwrap();
    assert_eq!(free.addresses(netd::RESOLVER_PORT, "web."), ["10.0.1.100"]);
    assert_eq!(taken.addresses(port, "web."), ["10.0.1.100"]);
}

fn without_daemon() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let port = lab.serve(&client, "a", &space, &[1]);
    lab.wait(client.update(&directory())).unwrap();
    let pid = lab.pid(&client);
    drop(client);
    assert_eq!(space.addresses(port, "web."), ["10.0.1.100"]);
    let client = lab.start();
    let status = lab.wait(client.status()).unwrap();
    assert_eq!((status.pid, status.index), (pid, 7));
    assert_eq!(status.containers, [("a".to_owned(), port)]);
    // Asked for again it stays what it is.
    assert_eq!(lab.serve(&client, "a", &space, &[1]), port);
    assert_eq!(client.ports().borrow().by_container["a"], port);
}

fn without_both() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    lab.serve(&client, "a", &space, &[1]);
    lab.wait(client.update(&directory())).unwrap();
    let update = types::DirectoryUpdate {
        index: 9,
        removed_endpoints: vec![(network_id(1), task_id(2))],
        ..types::DirectoryUpdate::default()
    };
    lab.wait(client.update(&update)).unwrap();
    let pid = lab.pid(&client);
    drop(client);
    kill_hard(pid);
    until("netd ends", || !runs(pid));
    // The state file may end in the middle of a request.
    let state = lab.dir.path().join("netd.state");
    let mut bytes = std::fs::read(&state).unwrap();
    bytes.extend([9, 0, 0, 0, 1]);
    std::fs::write(&state, bytes).unwrap();

    let client = lab.start();
    let status = lab.wait(client.status()).unwrap();
    assert_eq!((status.index, status.containers.len()), (9, 1));
    let port = status.containers[0].1;
    assert_eq!(space.addresses(port, "tasks.web."), ["10.0.1.1"]);
}

fn replaced() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let old_port = lab.serve(&client, "a", &space, &[1]);
    lab.wait(client.update(&directory())).unwrap();
    let old = lab.pid(&client);
    drop(client);

    let mut options = lab.options();
    options.build = "two".into();
    options.handover = DEADLINE;
    let client = lab.wait(Client::connect_or_start(options.clone())).unwrap();
    // Where it listens is known before anybody asks for the container again.
    let mut ports = client.ports();
    let port = lab.wait(async {
        let ports = ports.wait_for(|ports| !ports.by_container.is_empty()).await.unwrap();
        ports.by_container["a"]
    });
    assert_eq!(lab.serve(&client, "a", &space, &[1]), port);
    assert_ne!(lab.pid(&client), old);
    // What was known is known, and both answer until containers ask the new one.
    for port in [old_port, port] {
        assert_eq!(space.addresses(port, "web."), ["10.0.1.100"]);
    }
    assert!(runs(old));
    let epoch = client.ports().borrow().epoch;
    lab.wait(client.settled(epoch)).unwrap();
    lab.wait(async {
        // The one task of the client needs turns.
        while runs(old) {
            client.status().await.unwrap();
        }
    });
    assert_eq!(space.addresses(port, "web."), ["10.0.1.100"]);
    // Unless asked to, the old one goes after the time given.
    let second = lab.pid(&client);
    drop(client);
    options.build = "three".into();
    options.handover = Duration::from_millis(50);
    let client = lab.wait(Client::connect_or_start(options)).unwrap();
    lab.wait(async {
        while runs(second) {
            client.status().await.unwrap();
        }
        client.stop().await.unwrap();
    });
}

fn hanging() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    lab.serve(&client, "a", &space, &[1]);
    lab.wait(client.update(&directory())).unwrap();
    let pid = lab.pid(&client);
    let target = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGSTOP).unwrap();
    // The call waits until another one is there.
    assert_ne!(lab.pid(&client), pid);
    let port = client.ports().borrow().by_container["a"];
    assert_eq!(space.addresses(port, "web."), ["10.0.1.100"]);
}

fn stopped() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let mode = std::fs::metadata(lab.dir.path().join("netd.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    lab.serve(&client, "a", &space, &[1]);
    let pid = lab.pid(&client);
    lab.wait(client.stop()).unwrap();
    until("netd ends", || !runs(pid));
    assert!(lab.wait(client.status()).is_err());
    let names = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let left: Vec<_> = std::fs::read_dir(lab.dir.path()).unwrap().map(names).collect();
    assert_eq!(left, ["netd.log"]);
}

/// Whoever may open the socket may say anything; it stays one that answers, and as small as it was.
fn garbage() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let port = lab.serve(&client, "a", &space, &[1]);
    lab.wait(client.update(&directory())).unwrap();
    let (pid, before) = (lab.pid(&client), rss_kib(lab.pid(&client)));
    let socket = lab.dir.path().join("netd.sock");
    let say = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // Closed in the middle of it, when it makes no sense.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    };
    let seeds = netd::fuzzing::seeds(&directory());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % bound as u64) as usize
    };
    for _ in 0..2_000 {
        // Not the one that asks it to stop.
        let mut bytes = seeds[0].clone();
        for _ in 0..4 {
            // Kinds stay, for the same reason.
            let at = 10 + below(bytes.len() - 10);
            bytes[at] = below(256) as u8;
        }
        bytes.truncate(bytes.len() - below(2) * below(bytes.len() / 2));
        say(&bytes);
    }
    // A frame without an end, and one that is longer than any.
    say(&[&[0xff, 0xff, 15, 0, 1, 1, 0, 0, 0, 0], &[7_u8; 1_000_000][..]].concat());
    say(&[0xff; 4_096]);
    // Those that say nothing are bounded.
    let mut silent: Vec<UnixStream> =
        (0..200).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let refused = silent.iter_mut().filter_map(|stream| {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.read(&mut [0; 64]).ok().filter(|length| *length == 0)
    });
    assert!(refused.count() > 150);
    drop(silent);

    assert_eq!(lab.pid(&client), pid, "it is the same process");
    lab.wait(client.update(&directory())).unwrap();
    assert_eq!(space.addresses(port, "web."), ["10.0.1.100"]);
    let after = rss_kib(pid);
    assert!(after < before + 16 * 1024, "{before} KiB before, {after} KiB after");
}
