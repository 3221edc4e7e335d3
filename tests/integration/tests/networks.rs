//! Networks: names, virtual addresses and published ports, between real containers on real hosts.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use integration::{
    Host, IMAGE, LONG, Lab, SHORT, Task, ask_tcp, ask_udp, in_namespace, joined, wait_for,
    wait_until,
};

/// Three nodes, and a client outside.
fn cluster() -> Lab {
    let mut lab = joined(3, 0).unwrap();
    lab.add_client().unwrap();
    lab
}

fn create(host: &Host, words: &[&str]) {
    let args = [&["service", "create", "-d"], words, &[IMAGE]].concat();
    host.shoal(&args).unwrap().ok().unwrap();
}

#[test]
fn services_find_and_reach_each_other_by_name_across_nodes() {
    let lab = cluster();
    let manager = lab.host(1);
    manager.shoal(&["network", "create", "-d", "overlay", "back"]).unwrap().ok().unwrap();
    create(manager, &["--name", "db", "--network", "back", "--replicas", "3"]);
    create(manager, &["--name", "web", "--network", "back", "--replicas", "3"]);
    let servers = manager.wait_for_running("db", 3, LONG).unwrap();
    let clients = manager.wait_for_running("web", 3, LONG).unwrap();
    let names: BTreeSet<String> = servers.iter().map(|task| task.name.clone()).collect();
    for client in &clients {
        let host = lab.host_of(client);
        let vip = lab.host_of(client).address_of(client, "db").unwrap();
        assert_eq!(
            lab.host_of(client).address_of(client, "DB.back").unwrap(),
            vip,
            "without regard to case"
        );
        let each = wait_for("all tasks by name", SHORT, || {
            let found = host.resolve(&client.id, "a", "tasks.db")?;
            Ok((found.len() == 3).then_some(found))
        })
        .unwrap();
        assert!(!each.contains(&vip));
        assert_eq!(
            lab.host_of(client).address_of(client, "db.1").unwrap().is_ipv4(),
            each[0].is_ipv4()
        );
        // The virtual address leads to every task in the end, and each sees the client itself.
        let own = lab.host_of(client).address_of(client, &client.name).unwrap();
        let mut seen = BTreeSet::new();
        wait_until("every task behind the virtual address", SHORT, || {
            let answer = lab.ask_from(client, SocketAddr::new(vip, 80))?;
            assert_eq!(answer.client.ip(), own, "the source address is kept");
            seen.insert(answer.task);
            Ok(seen == names)
        })
        .unwrap();
        for address in each {
            lab.ask_from(client, SocketAddr::new(address, 80)).unwrap();
        }
    }
}

#[test]
fn a_published_port_answers_on_every_node_and_the_task_sees_the_client() {
    let lab = cluster();
    let manager = lab.host(1);
    create(
        manager,
        &[
            "--name",
            "web",
            "-p",
            "8080:80",
            "-p",
            "8080:80/udp",
            "--constraint",
            "node.hostname==h2",
        ],
    );
    manager.wait_for_running("web", 1, LONG).unwrap();
    let client = lab.client();
    for host in lab.hosts() {
        for (target, own) in
            [(host.port_v4(8080), client.port_v4(0)), (host.port_v6(8080), client.port_v6(0))]
        {
            let seen = wait_for("an answer", SHORT, || Ok(Some(client.ask(target)?))).unwrap();
            assert_eq!((seen.node.as_str(), seen.client.ip()), ("h2", own.ip()), "by {target}");
            let udp = in_namespace(&client.netns(), move || ask_udp(target)).unwrap();
            assert_eq!(udp.client.ip(), own.ip(), "UDP by {target}");
        }
        // From the node itself, by loopback and by its own address.
        for target in ["127.0.0.1:8080".parse().unwrap(), host.port_v4(8080)] {
            let seen = host.ask(target).unwrap();
            assert_eq!(seen.node, "h2", "{target} on {}", host.name());
        }
    }
}

/// What a rolling update is for: nobody notices it, also through a node without a task.
#[test]
fn no_connection_fails_while_tasks_are_replaced_one_by_one() {
    const CONNECTIONS: u64 = 100_000;
    let lab = cluster();
    let manager = lab.host(1);
    let place = ["--constraint", "node.hostname!=h3"];
    let words = ["--name", "web", "-p", "8080:80", "--replicas", "10"];
    create(manager, &[&words[..], &place].concat());
    manager.wait_for_running("web", 10, LONG).unwrap();
    let target = lab.host(3).port_v4(8080);
    wait_until("an answer", SHORT, || lab.client().ask(target).map(|_| true)).unwrap();
    let begun = Instant::now();
    let asking = Asking::begin(&lab, target);
    // One update is not long enough for so many.
    let mut updates = 0;
    while asking.answered() < CONNECTIONS && updates < 20 {
        updates += 1;
        let env = format!("UPDATE={updates}");
        let args = ["service", "update", "--env-add", &env, "--wait-timeout", "5m", "web"];
        manager.shoal(&args).unwrap().ok().unwrap();
    }
    let (answered, failed) = asking.finish();
    println!("{answered} answers in {:?}, during {updates} updates", begun.elapsed());
    assert!(answered >= CONNECTIONS, "{answered}");
    assert_eq!(failed, Vec::<String>::new());
}

/// Clients that ask without a pause.
struct Asking {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<anyhow::Result<Vec<String>>>>,
}

impl Asking {
    const CLIENTS: usize = 4;
    /// So many tell what is wrong.
    const FAILURES_MAX: usize = 20;

    fn begin(lab: &Lab, target: SocketAddr) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = |_| {
            let (stop, answered, path) =
                (Arc::clone(&stop), Arc::clone(&answered), lab.client().netns());
            std::thread::spawn(move || {
                in_namespace(&path, move || {
                    let mut failed = Vec::new();
                    while !stop.load(Relaxed) && failed.len() < Self::FAILURES_MAX {
                        match ask_tcp(target) {
                            Ok(_) => drop(answered.fetch_add(1, Relaxed)),
                            Err(error) => failed.push(format!("{error:#}")),
                        }
                    }
                    Ok(failed)
                })
            })
        };
        let threads = (0..Self::CLIENTS).map(thread).collect();
        Self { stop, answered, threads }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Relaxed);
        let failed = self.threads.into_iter().flat_map(|one| one.join().unwrap().unwrap());
        let failed = failed.collect();
        (self.answered.load(Relaxed), failed)
    }
}

#[test]
fn a_node_that_is_cut_off_gets_no_new_connections_and_comes_back() {
    let lab = cluster();
    let manager = lab.host(1);
    create(manager, &["--name", "web", "-p", "8080:80", "--mode", "global"]);
    manager.wait_for_running("web", 3, LONG).unwrap();
    let target = manager.port_v4(8080);
    let nodes = || -> anyhow::Result<BTreeSet<String>> {
        let mut nodes = BTreeSet::new();
        for _ in 0..30 {
            nodes.insert(lab.client().ask(target)?.node);
        }
        Ok(nodes)
    };
    wait_until("all nodes answer", SHORT, || Ok(nodes()?.len() == 3)).unwrap();
    // Not the leader: its loss is another test.
    let leader = manager.leader().unwrap();
    let lost = lab.hosts()[1..].iter().find(|host| host.name() != leader).unwrap();
    lost.cut().unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let left = nodes().unwrap();
    assert!(!left.contains(lost.name()), "{left:?}");
    lost.mend().unwrap();
    wait_until("all nodes answer again", LONG, || Ok(nodes()?.len() == 3)).unwrap();
}

#[test]
fn names_and_traffic_go_on_without_the_daemon_and_what_is_deleted_comes_back() {
    let lab = cluster();
    let manager = lab.host(1);
    manager.shoal(&["network", "create", "-d", "overlay", "back"]).unwrap().ok().unwrap();
    create(manager, &["--name", "db", "--network", "back", "-p", "8080:80", "--mode", "global"]);
    let tasks = manager.wait_for_running("db", 3, LONG).unwrap();
    let task = tasks.iter().find(|task| task.node == "h3").unwrap();
    let vip = lab.host_of(task).address_of(task, "db").unwrap();
    lab.ask_from(task, SocketAddr::new(vip, 80)).unwrap();

    let third = lab.host(3);
    third.kill().unwrap();
    assert_eq!(third.resolve(&task.id, "a", "db").unwrap(), [vip], "names without the daemon");
    lab.ask_from(task, SocketAddr::new(vip, 80)).unwrap();
    lab.client().ask(third.port_v4(8080)).unwrap();
    third.start().unwrap();
    manager.wait_for_nodes(3, LONG).unwrap();

    third.inside("nft", &["flush", "ruleset"]).unwrap();
    wait_until("the rules to come back", SHORT, || {
        lab.client().ask(third.port_v4(8080)).map(|_| true)
    })
    .unwrap();
    lab.ask_from(task, SocketAddr::new(vip, 80)).unwrap();
    assert_eq!(third.resolve(&task.id, "a", "db").unwrap(), [vip]);
}

/// A stop is held back for a node that hangs, not for ever, and the node is named on the service.
#[test]
fn who_does_not_let_go_of_a_task_in_time_is_named_on_its_service() {
    let lab = cluster();
    let manager = lab.host(1);
    create(manager, &["--name", "web", "-p", "8080:80", "--replicas", "3"]);
    manager.wait_for_running("web", 3, LONG).unwrap();
    let leader = manager.leader().unwrap();
    let hangs = lab.hosts()[1..].iter().find(|host| host.name() != leader).unwrap();
    let reasons = || -> anyhow::Result<String> {
        Ok(manager.shoal(&["service", "inspect", "web"])?.json()?[0]["Reasons"].to_string())
    };
    hangs.freeze().unwrap();
    manager.shoal(&["service", "scale", "-d", "web=1"]).unwrap().ok().unwrap();
    wait_until("the node's name on the service", SHORT, || {
        let text = reasons()?;
        Ok(text.contains("still-sent-to") && text.contains(hangs.name()))
    })
    .unwrap();
    hangs.thaw().unwrap();
    manager.wait_for_nodes(3, LONG).unwrap();
    manager.shoal(&["service", "scale", "-d", "web=2"]).unwrap().ok().unwrap();
    manager.wait_for_running("web", 2, LONG).unwrap();
    manager.shoal(&["service", "scale", "-d", "web=1"]).unwrap().ok().unwrap();
    wait_until("the reason to go", LONG, || Ok(!reasons()?.contains("still-sent-to"))).unwrap();
}

/// A port that its node chooses is shown on the task, and leads there.
#[test]
fn chosen_host_ports_are_shown_on_their_tasks() {
    let lab = cluster();
    let manager = lab.host(1);
    let udp = ["-p", "mode=host,target=80,protocol=udp,published=8053"];
    create(
        manager,
        &[&["--name", "web", "--mode", "global", "-p", "mode=host,target=80"], &udp[..]].concat(),
    );
    let tasks = manager.wait_for_running("web", 3, LONG).unwrap();
    let shown = |task: &Task| -> anyhow::Result<Option<u16>> {
        let format = "{{.ID}} {{.Ports}}";
        let args = ["service", "ps", "--no-trunc", "--format", format, "web"];
        let lines = manager.shoal(&args)?.lines()?;
        let line = lines.iter().find_map(|line| line.strip_prefix(&task.id));
        let ports = line.unwrap_or_default().trim();
        let tcp = ports.split(',').find_map(|port| port.strip_suffix("->80/tcp"));
        assert!(ports.is_empty() || ports.contains("*:8053->80/udp"), "{ports}");
        Ok(tcp.and_then(|port| port.strip_prefix("*:")?.parse().ok()))
    };
    let chosen: Vec<u16> = tasks
        .iter()
        .map(|task| {
            let port = wait_for("its port", SHORT, || shown(task)).unwrap();
            let seen = lab.client().ask(lab.host_of(task).port_v4(port)).unwrap();
            assert_eq!((seen.task.as_str(), seen.node.as_str()), (&*task.name, &*task.node));
            port
        })
        .collect();
    // They are the same after the daemon's death, and gone with the task.
    let third = lab.host(3);
    let (at, task) = tasks.iter().enumerate().find(|(_, task)| task.node == "h3").unwrap();
    third.kill().unwrap();
    third.start().unwrap();
    manager.wait_for_nodes(3, LONG).unwrap();
    assert_eq!(shown(task).unwrap(), Some(chosen[at]));
    lab.client().ask(third.port_v4(chosen[at])).unwrap();
    manager
        .shoal(&["service", "update", "--force", "--wait-timeout", "1m", "web"])
        .unwrap()
        .ok()
        .unwrap();
    assert_eq!(shown(task).unwrap(), None);
    manager.wait_for_running("web", 3, LONG).unwrap();
}

/// A task that has what it needs already is not replaced for a port more.
#[test]
fn a_further_port_replaces_no_task_and_a_network_those_of_its_service_only() {
    let lab = cluster();
    let manager = lab.host(1);
    let client = lab.client();
    manager.shoal(&["network", "create", "-d", "overlay", "back"]).unwrap().ok().unwrap();
    create(manager, &["--name", "web", "-p", "8080:80", "--replicas", "2"]);
    create(manager, &["--name", "other", "--replicas", "2"]);
    let ids = |service: &str| -> BTreeSet<String> {
        let tasks = manager.wait_for_running(service, 2, LONG).unwrap();
        tasks.into_iter().map(|task| task.id).collect()
    };
    let (first, others) = (ids("web"), ids("other"));
    let update = |words: &[&str], service: &str| {
        let args = [&["service", "update", "-q"], words, &[service]].concat();
        manager.shoal(&args).unwrap().ok().unwrap();
    };
    let answers =
        |port: u16| Ok(lab.hosts().iter().all(|host| client.ask(host.port_v4(port)).is_ok()));
    update(&["--publish-add", "8081:80"], "web");
    wait_until("the further port on every node", SHORT, || answers(8081)).unwrap();
    assert_eq!(ids("web"), first, "they are reached by the mesh already");
    // A network is an interface more.
    update(&["--network-add", "back"], "web");
    let second = ids("web");
    assert!(first.is_disjoint(&second), "{first:?} {second:?}");
    assert_eq!(ids("other"), others, "a service that nobody changed");
}
