//! Encrypted networks between real daemons, with an ear on every port of the switch all the time.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use integration::{
    Capture, Host, IMAGE, LONG, Lab, Load, SHORT, Task, ask_with_word, booted, in_namespace,
    joined, load_image, wait_until,
};

/// What is said on the encrypted network, and on the one beside it.
const SECRET: &str = "word-of-the-encrypted-network";
const PLAIN: &str = "word-of-the-plain-network";

/// Three nodes with a task each on an encrypted network and on a plain one.
struct Nets {
    lab: Lab,
    secret: Vec<Task>,
    plain: Vec<Task>,
    /// The network identifiers of both.
    vnis: (u32, u32),
}

impl Nets {
    fn new() -> Self {
        Self::on(joined(1, 2).unwrap())
    }

    fn on(lab: Lab) -> Self {
        let nets = Self::made(lab);
        nets.all_cross();
        nets
    }

    fn made(lab: Lab) -> Self {
        let manager = lab.host(1);
        let network = |words: &[&str]| {
            let args = [&["network", "create", "-d", "overlay"], words].concat();
            manager.shoal(&args).unwrap().ok().unwrap();
        };
        network(&["-o", "encrypted", "secret"]);
        network(&["plain"]);
        for name in ["secret", "plain"] {
            let words = ["service", "create", "-d", "--mode", "global", "--name", name];
            let args = [&words[..], &["--network", name, IMAGE]].concat();
            manager.shoal(&args).unwrap().ok().unwrap();
        }
        let count = lab.hosts().len();
        let secret = manager.wait_for_running("secret", count, LONG).unwrap();
        let plain = manager.wait_for_running("plain", count, LONG).unwrap();
        let vnis = (manager.vni("secret").unwrap(), manager.vni("plain").unwrap());
        Self { lab, secret, plain, vnis }
    }

    /// Whether the task of one host gets an answer from that of another.
    fn crosses(&self, network: &str, from: usize, to: usize) -> anyhow::Result<()> {
        let (tasks, word) =
            if network == "secret" { (&self.secret, SECRET) } else { (&self.plain, PLAIN) };
        let (near, there) = (self.task_netns(tasks, from), self.task_on(tasks, to));
        let target = SocketAddr::new(address_on(&self.lab, there), 80);
        let seen = in_namespace(&near, move || ask_with_word(target, word))?;
        anyhow::ensure!(seen.task == there.name, "{} answered", seen.task);
        Ok(())
    }

    /// A stream of datagrams on the encrypted network, from the task of one host to another's.
    fn stream(&self, from: usize, to: usize, rate: u32) -> Load {
        let address = address_on(&self.lab, self.task_on(&self.secret, to));
        let [near, far] = [from, to].map(|number| self.task_netns(&self.secret, number));
        Load::begin(&near, &far, SocketAddr::new(address, 7777), rate, DATAGRAM).unwrap()
    }

    /// The one of these tasks that is on a host.
    fn task_on<'a>(&self, tasks: &'a [Task], number: usize) -> &'a Task {
        let host = self.lab.host(number);
        tasks.iter().find(|task| task.node == host.name()).unwrap()
    }

    fn task_netns(&self, tasks: &[Task], number: usize) -> PathBuf {
        self.lab.host(number).task_netns(&self.task_on(tasks, number).id)
    }

    fn all_cross(&self) {
        for network in ["secret", "plain"] {
            self.cross(network);
        }
    }

    /// Every task reaches every other one.
    fn cross(&self, network: &str) {
        let count = self.lab.hosts().len();
        for from in 1..=count {
            for to in (1..=count).filter(|to| *to != from) {
                let what = format!("{network} from {from} to {to}");
                wait_until(&what, LONG, || self.crosses(network, from, to).map(|()| true)).unwrap();
            }
        }
    }

    /// Nothing of the encrypted network was in clear, and all that is heard of is heard.
    fn assert_silence(&self, capture: &Capture) {
        let heard = capture.heard().unwrap();
        assert_eq!(heard.clear.get(&self.vnis.0), None, "{heard:?}");
        assert_eq!(capture.says(SECRET).unwrap(), 0);
        assert!(heard.clear.contains_key(&self.vnis.1), "{heard:?}");
        assert!(heard.encrypted > 0 && capture.says(PLAIN).unwrap() > 0, "{heard:?}");
    }
}

/// The address of a task on its network: that of its first interface.
fn address_on(lab: &Lab, task: &Task) -> IpAddr {
    let host = lab.host_of(task);
    let args = ["-4", "-o", "addr", "show", "dev", "eth0"];
    let text = host.inside_task(&task.id, "ip", &args).unwrap().ok().unwrap();
    let net = text.split_whitespace().nth(3).unwrap();
    net.split('/').next().unwrap().parse().unwrap()
}

/// What the node of a host knows of a network: its namespace, and the device that leads out.
struct Sandbox {
    path: PathBuf,
    vni: u32,
}

impl Sandbox {
    fn new(host: &Host, vni: u32) -> Self {
        let entries = std::fs::read_dir(host.run_dir().join("sandboxes")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let of_network = |path: &PathBuf| {
            let words = ["-d", "link", "show", "type", "vxlan"];
            let text = inside(path, "ip", &words).unwrap_or_default();
            text.contains(&format!("vxlan id {vni} "))
        };
        let mut found: Vec<PathBuf> = paths.filter(of_network).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        Self { path: found.remove(0), vni }
    }

    fn run(&self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        inside(&self.path, words[0], &words[1..]).unwrap()
    }

    /// The hardware address that the node has on this network.
    fn hardware(&self) -> String {
        let text = self.run("ip -o link show vx");
        let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether");
        words.nth(1).unwrap().to_owned()
    }

    /// Makes the device anew, as it should never be: in the namespace of the host, and with its
    /// routes; it leads to the addresses of `others`.
    fn make_in_clear(&self, host: &Host, others: &[(&Self, &Host)]) {
        let hardware = self.hardware();
        let routes = self.run("ip route show table all dev vx");
        let neighbours = self.run("ip -6 neigh show dev vx");
        let mtu = "mtu 1370";
        self.run("ip link del vx");
        let make = format!(
            "ip link add vx address {hardware} {mtu} type vxlan id {} dstport 4789 local {} \
             nolearning",
            self.vni,
            host.address(),
        );
        on_host(host, &make);
        on_host(host, &format!("ip link set vx netns {}", self.path.display()));
        self.run("ip link set vx up");
        for (other, at) in others {
            let (to, dst) = (other.hardware(), at.address());
            self.run(&format!("bridge fdb replace {to} dev vx dst {dst} self permanent"));
        }
        for line in neighbours.lines().filter(|line| line.contains("PERMANENT")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (hop, to) = (words[0], words[2]);
            self.run(&format!("ip -6 neigh replace {hop} lladdr {to} dev vx nud permanent"));
        }
        for line in routes.lines().filter(|line| line.contains("via")) {
            self.run(&format!("ip route replace {} dev vx onlink", line.replace("onlink", "")));
        }
    }
}

fn inside(netns: &Path, program: &str, args: &[&str]) -> anyhow::Result<String> {
    let net = format!("--net={}", netns.display());
    let out = Command::new("nsenter").arg(net).arg(program).args(args).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    anyhow::ensure!(out.status.success(), "{program} {args:?}: {}", text(&out.stderr));
    Ok(text(&out.stdout))
}

fn on_host(host: &Host, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    host.inside(words[0], &words[1..]).unwrap().ok().unwrap()
}

/// A VXLAN packet in clear with a datagram from one task to port 9 of another.
fn forged(vni: u32, hardware: [&str; 2], ends: [IpAddr; 2]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    let mut packet = vec![8, 0, 0, 0, a, b, c, 0];
    for hardware in hardware.iter().rev() {
        packet.extend(hardware.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    packet.extend([8, 0]);
    let mut header = vec![0x45, 0, 0, 29, 0, 1, 0, 0, 64, 17, 0, 0];
    for end in ends {
        let IpAddr::V4(end) = end else { panic!("{end}") };
        header.extend(end.octets());
    }
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    header[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    packet.extend(header);
    // Without a checksum, as UDP allows it.
    packet.extend([0x30, 0x39, 0, 9, 0, 9, 0, 0, b'x']);
    packet
}

#[test]
fn nothing_of_an_encrypted_network_is_in_clear_while_daemons_and_netd_die() {
    let nets = Nets::new();
    let third = nets.lab.host(3);
    let capture = Capture::begin(&nets.lab, &[SECRET, PLAIN]).unwrap();
    nets.all_cross();
    nets.assert_silence(&capture);
    // The daemon alone: the tunnel goes on.
    third.kill().unwrap();
    nets.all_cross();
    // Nobody encrypts: the plain network goes on.
    third.kill_netd().unwrap();
    for (from, to) in [(1, 3), (3, 1), (2, 3), (3, 2)] {
        nets.crosses("secret", from, to).unwrap_err();
    }
    nets.cross("plain");
    nets.crosses("secret", 1, 2).unwrap();
    nets.assert_silence(&capture);
    third.start().unwrap();
    nets.all_cross();
    nets.assert_silence(&capture);
}

#[test]
fn a_wrong_forwarding_entry_leads_nowhere_and_is_mended() {
    let nets = Nets::new();
    let capture = Capture::begin(&nets.lab, &[SECRET, PLAIN]).unwrap();
    nets.all_cross();
    let (second, third) = (nets.lab.host(2), nets.lab.host(3));
    let vni = nets.vnis.0;
    let (here, there) = (Sandbox::new(second, vni), Sandbox::new(third, vni));
    // Nobody mends it meanwhile.
    second.freeze().unwrap();
    let to = there.hardware();
    here.run(&format!("bridge fdb replace {to} dev vx dst {} self permanent", third.address()));
    nets.crosses("secret", 2, 3).unwrap_err();
    nets.crosses("secret", 2, 1).unwrap();
    nets.crosses("plain", 2, 3).unwrap();
    nets.assert_silence(&capture);
    second.thaw().unwrap();
    nets.all_cross();
    nets.assert_silence(&capture);
}

/// What shows that the other tests would hear something.
#[test]
fn an_ear_hears_a_device_that_was_made_in_clear_until_it_is_made_anew() {
    let nets = Nets::new();
    let capture = Capture::begin(&nets.lab, &[SECRET, PLAIN]).unwrap();
    nets.all_cross();
    nets.assert_silence(&capture);
    let vni = nets.vnis.0;
    let hosts = [nets.lab.host(2), nets.lab.host(3)];
    let sandboxes = hosts.map(|host| Sandbox::new(host, vni));
    for host in hosts {
        host.freeze().unwrap();
    }
    // Both in the wrong namespace, and without the belt.
    for (own, other) in [(0, 1), (1, 0)] {
        on_host(hosts[own], "nft flush ruleset");
        sandboxes[own].make_in_clear(hosts[own], &[(&sandboxes[other], hosts[other])]);
    }
    nets.crosses("secret", 2, 3).expect("it works, in clear");
    let heard = capture.heard().unwrap();
    assert!(heard.clear.contains_key(&vni), "{heard:?}");
    assert!(capture.says(SECRET).unwrap() > 0);
    for host in hosts {
        host.thaw().unwrap();
    }
    wait_until("devices of the tunnel's namespace", LONG, || {
        let local = |at: usize| {
            inside(&sandboxes[at].path, "ip", &["-d", "link", "show", "vx"]).map(|text| {
                let of_host = format!("local {} ", hosts[at].address());
                text.contains("local 10.") && !text.contains(&of_host)
            })
        };
        Ok(local(0)? && local(1)?)
    })
    .unwrap();
    nets.all_cross();
    let again = Capture::begin(&nets.lab, &[SECRET, PLAIN]).unwrap();
    nets.all_cross();
    nets.assert_silence(&again);
}

#[test]
fn packets_in_clear_are_not_taken_and_are_a_condition_of_the_node() {
    let mut lab = joined(1, 2).unwrap();
    lab.add_client().unwrap();
    let nets = Nets::on(lab);
    let (second, third) = (nets.lab.host(2), nets.lab.host(3));
    let forge = |vni: u32, tasks: &[Task]| {
        let ends = [2, 3].map(|number| address_on(&nets.lab, nets.task_on(tasks, number)));
        let [from, to] = [second, third].map(|host| Sandbox::new(host, vni).hardware());
        forged(vni, [&from, &to], ends)
    };
    let listen = |tasks: &[Task]| {
        let task = tasks.iter().find(|task| task.node == third.name()).unwrap();
        let socket =
            in_namespace(&third.task_netns(&task.id), || Ok(UdpSocket::bind("0.0.0.0:9")?));
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket
    };
    let send = |from: &Host, packet: &[u8]| {
        let (packet, to) = (packet.to_vec(), third.port_v4(4789));
        // The belt says to the sender that it may not.
        let _ = in_namespace(&from.netns(), move || {
            Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(&packet, to)?)
        });
    };
    let (secret, plain) = (listen(&nets.secret), listen(&nets.plain));
    let (of_secret, of_plain) = (forge(nets.vnis.0, &nets.secret), forge(nets.vnis.1, &nets.plain));
    for from in [second, nets.lab.client()] {
        for _ in 0..5 {
            send(from, &of_secret);
        }
    }
    secret.recv(&mut [0; 16]).unwrap_err();
    // It is the network that makes the difference: a member's packet of the plain one is taken.
    send(second, &of_plain);
    plain.recv(&mut [0; 16]).unwrap();
    // A stranger's is not.
    send(nets.lab.client(), &of_plain);
    plain.recv(&mut [0; 16]).unwrap_err();
    wait_until("the condition", LONG, || {
        let format = "{{.Hostname}} {{.Conditions}}";
        let text = nets.lab.host(1).shoal(&["node", "ls", "--format", format])?.ok()?;
        let says = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.contains("encrypted")
        };
        anyhow::ensure!(says("h2") && says("h3") && !says("h1"), "{text}");
        Ok(true)
    })
    .unwrap();
    nets.all_cross();
}

/// What `node inspect` says of a node's end of encrypted networks.
fn said(manager: &Host, node: &str) -> serde_json::Value {
    let shown = manager.shoal(&["node", "inspect", "--format", "{{json .}}", node]);
    shown.unwrap().json().unwrap()["Description"]["Encryption"].clone()
}

#[test]
fn keys_are_changed_under_load_without_a_lost_packet() {
    let nets = Nets::new();
    let (manager, third) = (nets.lab.host(1), nets.lab.host(3));
    let capture = Capture::begin(&nets.lab, &[SECRET, PLAIN]).unwrap();
    for generation in 2..=3 {
        let before = said(manager, "h3");
        let streams = [nets.stream(1, 3, RATE), nets.stream(3, 2, RATE / 10)];
        let sent = |count: u64| {
            wait_until("datagrams", LONG, || Ok(streams[0].sent() > count)).unwrap();
        };
        sent(u64::from(RATE) / 2);
        // One node is told 300 ms after the others.
        third.freeze().unwrap();
        let rotate = ["swarm", "rotate-network-key", "--detach"];
        manager.shoal(&rotate).unwrap().ok().unwrap();
        // Meanwhile there is no other one.
        let refused = manager.shoal(&rotate).unwrap().failure().unwrap();
        assert!(refused.contains("h3"), "{refused}");
        std::thread::sleep(Duration::from_millis(300));
        third.thaw().unwrap();
        wait_until("one key of each node", LONG, || {
            for node in ["h1", "h2", "h3"] {
                let now = said(manager, node);
                let keys = now["Keys"].as_object().unwrap();
                let only = keys.len() == 1 && keys.contains_key(&generation.to_string());
                anyhow::ensure!(only && now["SendsWith"] == generation, "{node}: {now}");
            }
            Ok(true)
        })
        .unwrap();
        sent(streams[0].sent() + u64::from(RATE) / 2);
        for stream in streams {
            let arrived = stream.end().unwrap();
            println!("generation {generation}: {arrived:?}");
            assert_eq!(arrived.received, arrived.sent, "{arrived:?}");
        }
        assert_ne!(said(manager, "h3")["Keys"], before["Keys"]);
    }
    nets.all_cross();
    nets.assert_silence(&capture);
}

const DATAGRAM: usize = 1_300;
/// Of [`DATAGRAM`] bytes: 100 Mb/s.
const RATE: u32 = 9_615;

/// It does not know that it is none any more, and goes on sending.
#[test]
fn a_removed_node_is_no_peer_at_once() {
    let nets = Nets::new();
    let (manager, third) = (nets.lab.host(1), nets.lab.host(3));
    third.freeze().unwrap();
    nets.crosses("secret", 3, 1).unwrap();
    wait_until("h3 to be down", LONG, || {
        let args = ["node", "ls", "--format", "{{.Hostname}} {{.Status}}"];
        Ok(manager.shoal(&args)?.ok()?.contains("h3 Down"))
    })
    .unwrap();
    manager.shoal(&["node", "rm", "--force", "h3"]).unwrap().ok().unwrap();
    wait_until("nothing from h3", SHORT, || {
        Ok([(3, 1), (3, 2)].iter().all(|(from, to)| nets.crosses("secret", *from, *to).is_err()))
    })
    .unwrap();
    nets.crosses("secret", 1, 2).unwrap();
    third.thaw().unwrap();
}

#[test]
fn a_peer_is_followed_to_another_address() {
    // It names no address of its own.
    let lab = booted(3).unwrap();
    let manager = lab.host(1);
    manager.shoal(&["swarm", "init", "--advertise-addr", manager.address()]).unwrap().ok().unwrap();
    for host in [lab.host(2), lab.host(3)] {
        host.join_with(manager, "worker", &[]).unwrap();
    }
    manager.wait_for_nodes(3, LONG).unwrap();
    load_image(&lab).unwrap();
    let nets = Nets::on(lab);
    let third = nets.lab.host(3);
    let capture = Capture::begin(&nets.lab, &[SECRET, PLAIN]).unwrap();
    nets.all_cross();
    // With the first address its network's others go, too.
    on_host(third, "ip addr add 10.254.0.33/24 dev eth0");
    on_host(third, &format!("ip addr del {}/24 dev eth0", third.address()));
    on_host(third, "ip addr replace 10.254.0.33/24 dev eth0");
    nets.all_cross();
    nets.assert_silence(&capture);
}

/// The others take its handshakes for repeated ones.
#[test]
fn a_node_whose_clock_is_set_back_an_hour_is_reached_again() {
    let nets = Nets::new();
    let third = nets.lab.host(3);
    third.kill().unwrap();
    third.kill_netd().unwrap();
    third.start_under(&["faketime", "-f", "-1h"]);
    third.start().unwrap();
    nets.all_cross();
}

#[test]
fn two_encrypted_networks_of_one_subnet_do_not_meet() {
    let lab = joined(1, 2).unwrap();
    let manager = lab.host(1);
    for name in ["red", "blue"] {
        let words = ["network", "create", "-d", "overlay", "-o", "encrypted", "-o", "overlap"];
        let args = [&words[..], &["--subnet", "10.77.0.0/24", name]].concat();
        manager.shoal(&args).unwrap().ok().unwrap();
        let words = ["service", "create", "-d", "--mode", "global", "--name", name];
        let args = [&words[..], &["--network", name, IMAGE]].concat();
        manager.shoal(&args).unwrap().ok().unwrap();
    }
    let red = manager.wait_for_running("red", 3, LONG).unwrap();
    let blue = manager.wait_for_running("blue", 3, LONG).unwrap();
    for (own, other) in [(&red, &blue), (&blue, &red)] {
        for client in own {
            for server in own {
                let to = SocketAddr::new(address_on(&lab, server), 80);
                wait_until("its own network's", LONG, || {
                    let seen = lab.ask_from(client, to)?;
                    anyhow::ensure!(seen.task == server.name, "{} answered", seen.task);
                    Ok(true)
                })
                .unwrap();
            }
            let addresses: Vec<IpAddr> = own.iter().map(|task| address_on(&lab, task)).collect();
            for server in other {
                let address = address_on(&lab, server);
                if !addresses.contains(&address) {
                    lab.ask_from(client, SocketAddr::new(address, 80)).unwrap_err();
                }
            }
        }
    }
}

#[test]
fn a_closed_port_is_what_network_check_says() {
    let nets = Nets::new();
    let (manager, third) = (nets.lab.host(1), nets.lab.host(3));
    let check = || {
        let answer = manager.shoal(&["network", "check", "secret"]).unwrap();
        format!("{}{}", answer.out, answer.err)
    };
    wait_until("nothing wrong", LONG, || {
        let text = check();
        anyhow::ensure!(!text.contains("4794") && !text.contains("4793"), "{text}");
        Ok(true)
    })
    .unwrap();
    let backend = said(manager, "h2");
    assert_eq!(backend["Backend"], "user-space", "{backend}");
    // Of which no rule of ours can know: a firewall on the way.
    on_host(third, "nft add table netdev closed");
    let chain = "{ type filter hook ingress device eth0 priority 0 ; }";
    on_host(third, &format!("nft add chain netdev closed in {chain}"));
    on_host(third, "nft add rule netdev closed in udp dport { 4793, 4794 } drop");
    third.kill().unwrap();
    third.kill_netd().unwrap();
    third.start().unwrap();
    wait_until("the closed port", LONG, || {
        let text = check();
        anyhow::ensure!(text.contains("no handshake") && text.contains("h3"), "{text}");
        anyhow::ensure!(text.contains("4793") || text.contains("4794"), "{text}");
        Ok(true)
    })
    .unwrap();
    on_host(third, "nft delete table netdev closed");
    nets.all_cross();
}

/// As at a home's router: it reaches the others, and they do not reach it first.
#[test]
fn a_node_behind_a_translator_of_addresses_is_on_encrypted_networks() {
    let mut lab = booted(3).unwrap();
    lab.add_client().unwrap();
    let (manager, third, router) = (lab.host(1), lab.host(3), lab.client());
    for line in [
        "ip addr flush dev eth0",
        "ip link set eth0 down",
        "ip link add lan type veth peer name lan0",
    ] {
        on_host(third, line);
    }
    on_host(third, &format!("ip link set lan0 netns {}", router.namespace()));
    for (host, lines) in [
        (third, &["ip addr add 192.168.77.3/24 dev lan", "ip link set lan up"][..]),
        (router, &["ip addr add 192.168.77.1/24 dev lan0", "ip link set lan0 up"]),
        (third, &["ip route add default via 192.168.77.1"]),
        (router, &["nft add table ip nat"]),
    ] {
        lines.iter().for_each(|line| drop(on_host(host, line)));
    }
    let script = "echo 1 > /proc/sys/net/ipv4/ip_forward; \
                  nft 'add chain ip nat out { type nat hook postrouting priority 100 ; }'; \
                  nft add rule ip nat out oifname eth0 masquerade";
    router.inside("sh", &["-ec", script]).unwrap().ok().unwrap();
    manager.shoal(&["swarm", "init", "--advertise-addr", manager.address()]).unwrap().ok().unwrap();
    lab.host(2).join(manager, "worker").unwrap();
    third.join_with(manager, "worker", &[]).unwrap();
    manager.wait_for_nodes(3, LONG).unwrap();
    load_image(&lab).unwrap();
    let nets = Nets::made(lab);
    nets.cross("secret");
}
