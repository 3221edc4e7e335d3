//! Metrics: what a scrape of a node tells of it, and what `network inspect` shows of its tunnels.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use integration::{
    Host, IMAGE, LONG, Lab, SHORT, Task, in_namespace, joined, wait_for, wait_until,
};
use serde_json::Value;

const PORT: u16 = 9323;
const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0";

/// What a server of metrics says, asked from within a host.
fn ask(from: &Host, to: SocketAddr, request: &str) -> Result<String> {
    let request = request.to_owned();
    in_namespace(&from.netns(), move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

/// The samples of one scrape.
struct Scrape(String);

impl Scrape {
    /// Of a host, over the wire from another one.
    fn of(from: &Host, host: &Host) -> Result<Self> {
        let to = SocketAddr::new(host.address().parse()?, PORT);
        let head = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {OPEN_METRICS}\r\n\r\n");
        let answer = ask(from, to, &head)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
        anyhow::ensure!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
        anyhow::ensure!(body.ends_with("# EOF\n"), "{body}");
        Ok(Self(body.to_owned()))
    }

    /// The sample of that name that has all these labels.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let line = self.0.lines().find(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']))
                && labels.iter().all(|label| line.contains(label.as_str()))
        })?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    fn has_any(&self, prefix: &str) -> bool {
        self.0.lines().any(|line| line.starts_with(prefix))
    }
}

/// Two nodes that serve metrics and encrypt in user space.
fn measured() -> Lab {
    let lab = joined(1, 1).unwrap();
    let at = format!("0.0.0.0:{PORT}");
    for host in lab.hosts() {
        host.stop().unwrap();
        host.start_with(&["--metrics-addr", &at, "--encryption", "user-space"]);
        host.start().unwrap();
    }
    lab.host(1).wait_for_nodes(2, LONG).unwrap();
    for host in lab.hosts() {
        wait_until("the membership goes on", SHORT, || {
            Ok(Scrape::of(lab.host(1), host)?.has_any("swarm_node_info{"))
        })
        .unwrap();
    }
    lab
}

fn run(host: &Host, words: &[&str]) -> String {
    host.shoal(words).unwrap().ok().unwrap()
}

fn inspect(host: &Host, network: &str) -> Value {
    let shown = host.shoal(&["network", "inspect", network]).unwrap().json().unwrap();
    shown[0].clone()
}

/// A network with a task on each node, which have spoken to each other.
fn connected(lab: &Lab) -> Vec<Task> {
    let manager = lab.host(1);
    run(manager, &["network", "create", "-d", "overlay", "-o", "encrypted", "back"]);
    let words = ["--name", "db", "--network", "back", "--mode", "global"];
    run(manager, &[&["service", "create", "-d"], &words[..], &[IMAGE]].concat());
    let tasks = manager.wait_for_running("db", 2, LONG).unwrap();
    for (from, to) in [(1, 2), (2, 1)] {
        let (from, to) = (lab.host(from), lab.host(to));
        wait_until("a handshake is told", LONG, || {
            let scrape = Scrape::of(to, from)?;
            let labels = [("peer", to.name()), ("generation", "1")];
            let at = scrape.value("shoal_tunnel_peer_last_handshake_timestamp_seconds", &labels);
            let used = scrape.value("shoal_tunnel_peer_in_use", &labels);
            Ok(at.is_some_and(|at| at > 1_600_000_000.0) && used == Some(1.0))
        })
        .unwrap();
    }
    tasks
}

fn traffic(lab: &Lab, from: usize, to: usize) -> (f64, f64) {
    let (from, to) = (lab.host(from), lab.host(to));
    let scrape = Scrape::of(to, from).unwrap();
    let labels = [("peer", to.name()), ("generation", "1")];
    let of = |name: &str| scrape.value(name, &labels).unwrap();
    (of("shoal_tunnel_peer_sent_bytes_total"), of("shoal_tunnel_peer_received_bytes_total"))
}

#[test]
fn a_scrape_tells_of_tunnels_and_of_the_cluster() {
    let lab = measured();
    let (manager, worker) = (lab.host(1), lab.host(2));
    let alone = Scrape::of(manager, worker).unwrap();
    assert!(!alone.has_any("shoal_tunnel_"), "{}", alone.0);
    assert!(!alone.has_any("swarm_manager_"), "a worker knows nothing of it: {}", alone.0);
    assert_eq!(alone.value("swarm_node_manager", &[]), Some(0.0));
    assert!(run(worker, &["info"]).contains(&format!("Metrics Address: 0.0.0.0:{PORT}\n")));

    let tasks = connected(&lab);
    let first = tasks.iter().find(|task| task.node == manager.name()).unwrap();
    let before = (traffic(&lab, 1, 2), traffic(&lab, 2, 1));
    let name = "the address of the service";
    let vip =
        wait_for(name, SHORT, || Ok(Some(manager.resolve(&first.id, "a", "db")?[0]))).unwrap();
    for _ in 0..40 {
        lab.ask_from(first, SocketAddr::new(vip, 80)).unwrap();
    }
    wait_until("both ends count what was sent", SHORT, || {
        let now = (traffic(&lab, 1, 2), traffic(&lab, 2, 1));
        let grown = |now: (f64, f64), before: (f64, f64)| {
            now.0 - before.0 > 5_000.0 && now.1 - before.1 > 5_000.0
        };
        Ok(grown(now.0, before.0) && grown(now.1, before.1))
    })
    .unwrap();

    let scrape = Scrape::of(worker, manager).unwrap();
    let of = |name: &str, labels: &[(&str, &str)]| scrape.value(name, labels);
    assert_eq!(of("shoal_encryption_info", &[("backend", "user-space")]), Some(1.0));
    assert_eq!(of("shoal_encryption_key_generation", &[]), Some(1.0));
    assert_eq!(of("shoal_tunnel_up", &[("generation", "1")]), Some(1.0));
    assert_eq!(of("swarm_node_manager", &[]), Some(1.0));
    assert_eq!(of("swarm_manager_leader", &[]), Some(1.0));
    assert_eq!(of("swarm_manager_nodes", &[("state", "ready")]), Some(2.0));
    assert_eq!(of("swarm_manager_nodes", &[("state", "down")]), Some(0.0));
    assert_eq!(of("swarm_manager_tasks_total", &[("state", "running")]), Some(2.0));
    assert_eq!(of("swarm_manager_services_total", &[]), Some(1.0));
    assert_eq!(of("swarm_manager_networks_total", &[]), Some(2.0));
    let id = run(manager, &["info", "--format", "{{.Swarm.NodeID}}"]);
    assert_eq!(of("swarm_node_info", &[("node_id", id.trim())]), Some(1.0));

    run(manager, &["service", "rm", "db"]);
    for host in lab.hosts() {
        wait_until("nothing is told of a peer that is gone", LONG, || {
            Ok(!Scrape::of(manager, host)?.has_any("shoal_tunnel_peer_"))
        })
        .unwrap();
    }
}

/// VXLAN of a network, as nobody may send it in clear.
fn clear_packet(vni: u32) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend([0; 60]);
    packet
}

fn send(from: &Host, to: SocketAddr, packet: Vec<u8>) {
    in_namespace(&from.netns(), move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // One that the host's own rules drop is refused here and there.
        let _ = socket.send_to(&packet, to);
        Ok(())
    })
    .unwrap();
}

#[test]
fn drops_are_told_by_cause_and_packets_in_clear_by_direction() {
    let lab = measured();
    let (near, far) = (lab.host(1), lab.host(2));
    connected(&lab);
    let to = |port: u16| SocketAddr::new(far.address().parse().unwrap(), port);
    for port in [4793, 4794] {
        for _ in 0..5 {
            send(near, to(port), vec![9; 40]);
        }
    }
    wait_until("what is no message is counted", SHORT, || {
        let labels = [("generation", "1"), ("cause", "garbage")];
        let count = Scrape::of(near, far)?.value("shoal_tunnel_dropped_packets_total", &labels);
        Ok(count == Some(5.0))
    })
    .unwrap();

    let vni = near.vni("back").unwrap();
    let clear = |host: &Host, direction: &str| -> Result<Option<f64>> {
        let labels = [("direction", direction)];
        let scrape = Scrape::of(near, host)?;
        Ok(scrape.value("shoal_encryption_clear_text_packets_total", &labels))
    };
    assert_eq!(clear(near, "out").unwrap(), Some(0.0));
    for _ in 0..3 {
        send(near, to(4789), clear_packet(vni));
    }
    wait_until("packets in clear are counted", SHORT, || Ok(clear(near, "out")? == Some(3.0)))
        .unwrap();
    assert_eq!(clear(far, "in").unwrap(), Some(0.0), "they did not leave");
}

#[test]
fn a_network_that_is_inspected_shows_the_tunnels_of_the_node_that_is_asked() {
    let lab = measured();
    connected(&lab);
    for (own, peer) in [(1, 2), (2, 1)] {
        let (own, peer) = (lab.host(own), lab.host(peer));
        // Nodes look at their paths to each other by themselves.
        let shown = wait_for("bytes are counted", SHORT, || {
            let shown = inspect(own, "back");
            let count = |field: &str| shown["Tunnels"][0][field].as_u64();
            let any = count("SentBytes") > Some(0) && count("ReceivedBytes") > Some(0);
            Ok(any.then_some(shown))
        })
        .unwrap();
        let tunnels = shown["Tunnels"].as_array().unwrap();
        assert_eq!(tunnels.len(), 1, "{shown}");
        let tunnel = &tunnels[0];
        assert_eq!(tunnel["Name"], peer.name());
        assert_eq!(tunnel["IP"], peer.address());
        let id = run(peer, &["info", "--format", "{{.Swarm.NodeID}}"]);
        assert_eq!(tunnel["NodeID"], id.trim());
        assert_eq!(
            (&tunnel["Encryption"], &tunnel["Generation"]),
            (&"user-space".into(), &1.into())
        );
        assert!(tunnel["HandshakeAgeMs"].as_u64().unwrap() < 180_000, "{tunnel}");
        assert_eq!(tunnel["Problem"], "");
        let format = "{{range .Tunnels}}{{.Name}} {{.Generation}}{{end}}";
        let line = run(own, &["network", "inspect", "--format", format, "back"]);
        assert_eq!(line.trim(), format!("{} 1", peer.name()));
    }
    let plain = inspect(lab.host(1), "ingress");
    assert!(plain.get("Tunnels").is_none(), "{plain}");
}

#[test]
fn an_address_that_cannot_be_had_is_refused_by_its_field() {
    let lab = Lab::new(1).unwrap();
    let host = lab.host(1);
    let file = host.folder().join("shoal.toml");
    std::fs::write(&file, "metrics_addr = \"localhost:9323\"\n").unwrap();
    let holder = in_namespace(&host.netns(), || Ok(TcpListener::bind(("127.0.0.1", PORT))?));
    let taken = format!("127.0.0.1:{PORT}");
    for (options, words) in [
        (["--metrics-addr", "9323"], "--metrics-addr: `9323` is not an IP address and a port"),
        (["--config", file.to_str().unwrap()], "metrics_addr: `localhost:9323` is not an IP"),
        (["--metrics-addr", &taken], "--metrics-addr 127.0.0.1:9323: cannot listen: Address"),
        (["--metrics-addr", "192.0.2.99:1"], "--metrics-addr 192.0.2.99:1: cannot listen: Cannot"),
    ] {
        host.start_with(&options);
        host.spawn().unwrap();
        wait_until("the daemon ends", SHORT, || Ok(host.ended()?.is_some())).unwrap();
        assert!(host.log_tail(3).contains(words), "{words}\n{}", host.log_tail(3));
    }
    drop(holder);
    host.start_with(&["--metrics-addr", &taken]);
    host.start().unwrap();
    let to: SocketAddr = taken.parse().unwrap();
    let get = ask(host, to, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(get.contains("\nshoal_build_info{version="), "{get}");
    assert!(!get.contains("swarm_"), "it is in no cluster: {get}");
    let other = ask(host, to, "GET /debug HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(other.starts_with("HTTP/1.1 404"), "{other}");
    assert!(host.log().contains("metrics are served"), "{}", host.log());
}
