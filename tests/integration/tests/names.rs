//! Names as containers ask for them: every kind of record, servers of others, what leaves.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use integration::{
    Host, IMAGE, LONG, Lab, SHORT, Task, ask_tcp, in_namespace, joined, load_image, wait_for,
    wait_until,
};

fn done(host: &Host, args: &[&str]) -> String {
    host.shoal(args).unwrap().ok().unwrap()
}

fn create(host: &Host, words: &[&str]) {
    done(host, &[&["service", "create", "-d"], words, &[IMAGE]].concat());
}

/// How long a C library waits for an answer at the first time.
const PATIENCE: Duration = Duration::from_secs(5);

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(4_711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message.to_vec().unwrap()
}

/// Asks the resolver of the container whose network namespace is at `netns`.
fn ask(netns: &Path, name: &str, kind: RecordType) -> Result<Message> {
    let question = question(name, kind);
    in_namespace(netns, move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect("127.0.0.11:53")?;
        socket.send(&question)?;
        let mut buffer = [0; 4_096];
        let length = socket.recv(&mut buffer).context("no answer")?;
        Ok(Message::from_vec(&buffer[..length])?)
    })
}

fn ask_by_tcp(netns: &Path, name: &str, kind: RecordType) -> Result<Message> {
    let question = question(name, kind);
    in_namespace(netns, move || {
        let mut stream = TcpStream::connect("127.0.0.11:53")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&(question.len() as u16).to_be_bytes())?;
        stream.write_all(&question)?;
        Ok(Message::from_vec(&read_framed(&mut stream)?)?)
    })
}

fn read_framed(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn addresses(message: &Message) -> BTreeSet<IpAddr> {
    let address = |record: &Record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(a) => Some(IpAddr::V6(a.0)),
        _ => None,
    };
    message.answers.iter().filter_map(address).collect()
}

/// Of a name that must be there, with the seconds for which they may be kept.
fn found(netns: &Path, name: &str, kind: RecordType) -> Result<(BTreeSet<IpAddr>, u32)> {
    let answer = ask(netns, name, kind)?;
    let code = answer.metadata.response_code;
    ensure!(code == ResponseCode::NoError, "{name} {kind}: {code}");
    let ttl = answer.answers.first().with_context(|| format!("no {kind} of {name}"))?.ttl;
    Ok((addresses(&answer), ttl))
}

fn code(netns: &Path, name: &str, kind: RecordType) -> ResponseCode {
    ask(netns, name, kind).unwrap().metadata.response_code
}

/// A server for names of others, in a host's namespace: every name has the address 192.0.2.7.
struct Server {
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn start(host: &Host, address: IpAddr) -> Self {
        let asked = Arc::<AtomicUsize>::default();
        let (by_datagram, by_stream) = (Arc::clone(&asked), Arc::clone(&asked));
        let sockets = in_namespace(&host.netns(), move || {
            Ok((UdpSocket::bind((address, 53))?, TcpListener::bind((address, 53))?))
        });
        let (udp, tcp) = sockets.unwrap();
        // They end with this program.
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                by_datagram.fetch_add(1, Relaxed);
                let _ = udp.send_to(&Self::answer(&buffer[..length]), from);
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                by_stream.fetch_add(1, Relaxed);
                let mut stream = stream;
                let Ok(question) = read_framed(&mut stream) else { continue };
                let answer = Self::answer(&question);
                let _ = stream.write_all(&(answer.len() as u16).to_be_bytes());
                let _ = stream.write_all(&answer);
            }
        });
        Self { asked }
    }

    fn answer(question: &[u8]) -> Vec<u8> {
        let question = Message::from_vec(question).unwrap();
        let name = question.queries[0].name().clone();
        let mut answer = question.into_response();
        let data = RData::A(A(Self::ADDRESS));
        answer.add_answer(Record::from_rdata(name, 300, data));
        answer.to_vec().unwrap()
    }

    fn count(&self) -> usize {
        self.asked.load(Relaxed)
    }

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
}

fn others() -> BTreeSet<IpAddr> {
    [IpAddr::V4(Server::ADDRESS)].into()
}

/// The file of this name that a task's container has.
fn file_of(host: &Host, task: &Task, name: &str) -> String {
    let mut folders = vec![host.data_dir(), host.run_dir()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_its = path.parent().is_some_and(|parent| parent.ends_with(&task.id));
            if is_its && path.ends_with(name) {
                return std::fs::read_to_string(path).unwrap();
            }
            // Not what the container itself sees.
            if entry.file_type().unwrap().is_dir() && !path.ends_with("rootfs") {
                folders.push(path);
            }
        }
    }
    panic!("no {name} of {}", task.name);
}

#[test]
fn every_kind_of_record_is_answered_and_an_application_may_listen_on_port_53() {
    let mut lab = joined(1, 2).unwrap();
    lab.add_client().unwrap();
    let manager = lab.host(1);
    done(manager, &["network", "create", "-d", "overlay", "--ipv6", "back"]);
    let port = ["-p", "name=http,target=80,published=8080"];
    let named = ["--name", "db", "--network", "name=back,alias=Store", "--replicas", "3"];
    create(manager, &[&named[..], &port].concat());
    let turns = ["--name", "turns", "--network", "back", "--endpoint-mode", "dnsrr"];
    create(manager, &[&turns[..], &["--replicas", "2"]].concat());
    let tasks = manager.wait_for_running("db", 3, LONG).unwrap();
    let by_turns = manager.wait_for_running("turns", 2, LONG).unwrap();
    for task in [&tasks[0], &by_turns[0]] {
        let (host, netns) = (lab.host_of(task), lab.host_of(task).task_netns(&task.id));
        answers_of(&netns, &tasks, task == &tasks[0]);
        let text = file_of(host, task, "resolv.conf");
        assert!(text.starts_with("nameserver 127.0.0.11\n"), "{text}");
        assert!(text.lines().any(|line| line == "options ndots:0"), "{text}");
    }

    // Applications on all addresses, by both protocols, are no one's hindrance.
    let netns = lab.host_of(&tasks[0]).task_netns(&tasks[0].id);
    let own = found(&netns, &format!("{}.{}", tasks[0].name, tasks[0].id), RecordType::A).unwrap();
    let own = *own.0.first().unwrap();
    let (udp, tcp) = in_namespace(&netns, || {
        Ok((UdpSocket::bind("0.0.0.0:53")?, TcpListener::bind("0.0.0.0:53")?))
    })
    .unwrap();
    answers_of(&netns, &tasks, true);
    let peer = lab.host_of(&tasks[1]).task_netns(&tasks[1].id);
    in_namespace(&peer, move || {
        UdpSocket::bind("0.0.0.0:0")?.send_to(b"to the application", (own, 53))?;
        Ok(TcpStream::connect((own, 53))?)
    })
    .unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut said = [0; 64];
    assert_eq!(udp.recv(&mut said).unwrap(), b"to the application".len());
    tcp.accept().unwrap();

    // Cut off, a node says what it last knew.
    let third = lab.host(3);
    let there = tasks.iter().find(|task| task.node == "h3").expect("they are spread");
    let netns = third.task_netns(&there.id);
    let (known, _) = found(&netns, "db", RecordType::A).unwrap();
    third.cut().unwrap();
    wait_until("the managers to miss it", LONG, || {
        let list = done(manager, &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"]);
        Ok(list.contains("h3 Down"))
    })
    .unwrap();
    assert_eq!(found(&netns, "db", RecordType::A).unwrap().0, known);
    for task in &tasks {
        let name = format!("{}.{}", task.name, task.id);
        assert_eq!(found(&netns, &name, RecordType::A).unwrap().0.len(), 1, "{name}");
    }
    third.mend().unwrap();
}

/// Everything that is known of the service db, from one container.
fn answers_of(netns: &Path, tasks: &[Task], of_its_own: bool) {
    let whole = |name: &str, kind| {
        wait_for(name, SHORT, || {
            let (all, ttl) = found(netns, name, kind)?;
            Ok((all.len() == tasks.len()).then_some((all, ttl)))
        })
        .unwrap()
    };
    let (vip, ttl) = found(netns, "db", RecordType::A).unwrap();
    assert_eq!((vip.len(), ttl), (1, 30), "of_its_own: {of_its_own}");
    for name in ["DB", "db.back", "store", "STORE.Back"] {
        assert_eq!(found(netns, name, RecordType::A).unwrap(), (vip.clone(), 30), "{name}");
    }
    let (vip6, ttl) = found(netns, "db", RecordType::AAAA).unwrap();
    assert!(vip6.len() == 1 && vip6.iter().all(IpAddr::is_ipv6) && ttl == 30, "{vip6:?}");
    let (each, ttl) = whole("tasks.db", RecordType::A);
    assert!(each.is_disjoint(&vip) && ttl == 1, "{each:?} for {ttl} s");
    assert_eq!(whole("tasks.store.back", RecordType::A), (each.clone(), 1));
    assert_eq!(addresses(&ask_by_tcp(netns, "tasks.db", RecordType::A).unwrap()), each);
    assert!(whole("tasks.db", RecordType::AAAA).0.iter().all(IpAddr::is_ipv6));
    let (turns, ttl) = found(netns, "turns", RecordType::A).unwrap();
    assert!(turns.len() == 2 && ttl == 1, "{turns:?} for {ttl} s");
    // The name is there, the type is not.
    let none = ask(netns, "db", RecordType::MX).unwrap();
    assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));

    for task in tasks {
        let (full, short) = (format!("{}.{}", task.name, task.id), &task.id[..12]);
        let (own, ttl) = found(netns, &full, RecordType::A).unwrap();
        assert!(own.is_subset(&each) && own.len() == 1 && ttl == 1, "{own:?} for {ttl} s");
        assert_eq!(found(netns, &task.name, RecordType::A).unwrap().0, own);
        assert_eq!(found(netns, short, RecordType::A).unwrap().0, own);
        assert_eq!(name_of(netns, *own.first().unwrap()), format!("{full}.back."));
    }
    assert_eq!(name_of(netns, *vip.first().unwrap()), "db.back.");
    assert_eq!(name_of(netns, *vip6.first().unwrap()), "db.back.");
    let located = ask(netns, "_http._tcp.db", RecordType::SRV).unwrap();
    let RData::SRV(port) = &located.answers[0].data else { panic!("{located:?}") };
    assert_eq!((port.port, port.target.to_ascii().as_str()), (80, "db."));
    assert_eq!(code(netns, "_nosuch._tcp.db", RecordType::SRV), ResponseCode::NXDomain);
    let located = ask(netns, "_http._tcp.tasks.db", RecordType::SRV).unwrap();
    assert_eq!(located.answers.len(), tasks.len());
}

fn name_of(netns: &Path, address: IpAddr) -> String {
    let answer = ask(netns, &Name::from(address).to_ascii(), RecordType::PTR).unwrap();
    let RData::PTR(name) = &answer.answers[0].data else { panic!("{answer:?}") };
    name.0.to_ascii()
}

#[test]
fn other_names_are_asked_for_as_the_service_says_and_never_from_internal_networks() {
    let mut lab = joined(1, 1).unwrap();
    lab.add_client().unwrap();
    let (manager, client) = (lab.host(1), lab.client());
    let server = Server::start(client, client.address().parse().unwrap());
    done(manager, &["network", "create", "-d", "overlay", "back"]);
    done(manager, &["network", "create", "-d", "overlay", "--internal", "inner"]);
    let dns =
        ["--dns", client.address(), "--dns-search", "example.org", "--dns-option", "timeout:3"];
    for (name, network, host) in [("web", "back", "h1"), ("closed", "inner", "h2")] {
        let place = format!("node.hostname=={host}");
        let place = ["--constraint", &place];
        create(
            manager,
            &[&["--name", name, "--network", network][..], &place[..], &dns[..]].concat(),
        );
    }
    let web = manager.wait_for_running("web", 1, LONG).unwrap().remove(0);
    let closed = manager.wait_for_running("closed", 1, LONG).unwrap().remove(0);
    let netns = lab.host_of(&web).task_netns(&web.id);
    let text = file_of(lab.host_of(&web), &web, "resolv.conf");
    let expected = "nameserver 127.0.0.11\nsearch example.org\noptions timeout:3 ndots:0\n";
    assert_eq!(text, expected);

    assert_eq!(found(&netns, "www.example.org", RecordType::A).unwrap().0, others());
    assert_eq!(server.count(), 1);
    let by_tcp = ask_by_tcp(&netns, "tcp.example.org", RecordType::A).unwrap();
    assert_eq!((addresses(&by_tcp), server.count()), (others(), 2));
    // What the server said is remembered.
    let (again, ttl) = found(&netns, "WWW.example.org", RecordType::A).unwrap();
    assert!(again == others() && ttl <= 300 && server.count() == 2, "{again:?} for {ttl} s");

    let inside = lab.host_of(&closed).task_netns(&closed.id);
    assert_eq!(found(&inside, "closed", RecordType::A).unwrap().0.len(), 1);
    for name in ["www.example.org", "web", "web.back"] {
        assert_eq!(code(&inside, name, RecordType::A), ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(server.count(), 2, "nobody was asked");

    // Connected while nobody says which networks are internal: it stays as it was, also then.
    let host = lab.host(2);
    host.cut().unwrap();
    host.kill().unwrap();
    host.start().unwrap();
    assert_eq!(code(&inside, "n1.example.org", RecordType::A), ResponseCode::NXDomain);
    done(host, &["network", "create", "--internal", "--subnet", "10.77.0.0/24", "lan"]);
    done(host, &["network", "connect", "lan", &closed.id]);
    assert_eq!(code(&inside, "n2.example.org", RecordType::A), ResponseCode::NXDomain);
    host.mend().unwrap();
    manager.wait_for_nodes(2, LONG).unwrap();
    assert_eq!(code(&inside, "n3.example.org", RecordType::A), ResponseCode::NXDomain);

    // Another server for the same service: its containers are new, and ask that one.
    let change = ["--dns-rm", client.address(), "--dns-add", manager.address()];
    let change = [&["service", "update", "--wait-timeout", "1m"], &change[..], &["web"]].concat();
    let second = Server::start(manager, manager.address().parse().unwrap());
    done(manager, &change);
    let web = manager.wait_for_running("web", 1, LONG).unwrap().remove(0);
    let netns = lab.host_of(&web).task_netns(&web.id);
    assert_eq!(found(&netns, "www.example.org", RecordType::A).unwrap().0, others());
    assert_eq!(second.count(), 1);
}

/// Its first process; for hosts whose mounts are not to be seen from here.
fn process_of(task: &Task) -> Option<PathBuf> {
    std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).find(|process| {
        let read = |name: &str| std::fs::read_to_string(process.join(name)).unwrap_or_default();
        read("comm") == "whoami\n" && read("cgroup").contains(&task.id)
    })
}

#[test]
fn a_resolver_on_the_hosts_loopback_is_asked_from_the_host() {
    let lab = Lab::new(1).unwrap();
    let host = lab.host(1);
    let server = Server::start(host, "127.0.0.53".parse().unwrap());
    let own = lab.folder().join("resolv.conf");
    std::fs::write(&own, "nameserver 127.0.0.53\nsearch lab.example\n").unwrap();
    // The host's own file, seen by its daemon alone.
    let mount = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", own.display());
    host.start_under(&["unshare", "-m", "sh", "-c", &mount, "sh"]);
    host.start().unwrap();
    done(host, &["swarm", "init", "--advertise-addr", host.address()]);
    load_image(&lab).unwrap();
    done(host, &["network", "create", "-d", "overlay", "back"]);
    create(host, &["--name", "web", "--network", "back"]);
    let task = host.wait_for_running("web", 1, LONG).unwrap().remove(0);
    let process = wait_for("its process", SHORT, || Ok(process_of(&task))).unwrap();
    let netns = process.join("ns/net");
    assert_eq!(found(&netns, "www.example.org", RecordType::A).unwrap().0, others());
    assert_eq!(server.count(), 1);
    let text = std::fs::read_to_string(process.join("root/etc/resolv.conf")).unwrap();
    assert_eq!(text, "nameserver 127.0.0.11\nsearch lab.example\noptions ndots:0\n");
}

/// A client that asks for `tasks.db` and goes where it is sent, without a pause.
struct Follower {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(usize, Vec<String>)>,
}

impl Follower {
    fn begin(netns: PathBuf) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut answered, mut failed) = (0, Vec::new());
            while !ended.load(Relaxed) && failed.len() < 10 {
                let (all, _) = match found(&netns, "tasks.db", RecordType::A) {
                    Ok(found) => found,
                    Err(error) => {
                        failed.push(format!("{error:#}"));
                        continue;
                    }
                };
                for address in all {
                    let to = SocketAddr::new(address, 80);
                    match in_namespace(&netns, move || ask_tcp(to)) {
                        Ok(_) => answered += 1,
                        Err(error) => failed.push(format!("{error:#}")),
                    }
                }
            }
            (answered, failed)
        });
        Self { stop, thread }
    }

    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

/// A node that has learned that a task leaves gives its address no more, long before it is gone.
#[test]
fn no_name_leads_to_a_task_that_has_left() {
    let lab = joined(1, 2).unwrap();
    let manager = lab.host(1);
    done(manager, &["network", "create", "-d", "overlay", "back"]);
    create(manager, &["--name", "web", "--network", "back", "--mode", "global"]);
    create(manager, &["--name", "db", "--network", "back", "--replicas", "6"]);
    let clients = manager.wait_for_running("web", 3, LONG).unwrap();
    manager.wait_for_running("db", 6, LONG).unwrap();
    let space = |client: &Task| lab.host_of(client).task_netns(&client.id);
    let count = |netns: &Path| Ok(found(netns, "tasks.db", RecordType::A)?.0.len());
    let all_know = |wanted: usize| {
        wait_until("all nodes to know", SHORT, || {
            let counts: Result<Vec<usize>> = clients.iter().map(|one| count(&space(one))).collect();
            Ok(counts?.iter().all(|count| *count == wanted))
        })
        .unwrap();
    };
    all_know(6);
    let followers: Vec<Follower> = clients.iter().map(|one| Follower::begin(space(one))).collect();
    for _ in 0..3 {
        let begun = Instant::now();
        done(manager, &["service", "scale", "-d", "db=2"]);
        all_know(2);
        println!("withdrawn on all nodes {:?} after the command began", begun.elapsed());
        done(manager, &["service", "scale", "-d", "db=6"]);
        manager.wait_for_running("db", 6, LONG).unwrap();
        all_know(6);
    }
    for follower in followers {
        let (answered, failed) = follower.end();
        assert!(answered > 100, "{answered}");
        assert_eq!(failed, Vec::<String>::new());
    }
}
