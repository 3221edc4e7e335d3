//! Paths between nodes: peers that do not answer, and what a check says of them.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use integration::{
    Host, IMAGE, LONG, Lab, SHORT, Task, in_namespace, joined, wait_for, wait_until,
};

/// The managers' port.
const API: &str = "2377";
/// A few seconds for the silence, and a connection that was tried meanwhile.
const NOTICED: Duration = Duration::from_secs(15);

fn create(host: &Host, words: &[&str]) {
    let args = [&["service", "create", "-d"], words, &[IMAGE]].concat();
    host.shoal(&args).unwrap().ok().unwrap();
}

fn of<'a>(tasks: &'a [Task], host: &Host) -> &'a Task {
    tasks.iter().find(|task| task.node == host.name()).unwrap()
}

fn addresses(lab: &Lab, task: &Task, name: &str) -> Vec<IpAddr> {
    wait_for(name, SHORT, || Ok(Some(lab.host_of(task).resolve(&task.id, "a", name)?))).unwrap()
}

/// A network with a server and a client on each node.
fn with_services(managers: usize, workers: usize) -> (Lab, Vec<Task>, Vec<Task>) {
    let lab = joined(managers, workers).unwrap();
    let manager = lab.host(1);
    let count = managers + workers;
    manager.shoal(&["network", "create", "-d", "overlay", "back"]).unwrap().ok().unwrap();
    create(manager, &["--name", "db", "--network", "back", "--mode", "global"]);
    create(manager, &["--name", "web", "--network", "back", "--mode", "global"]);
    let servers = manager.wait_for_running("db", count, LONG).unwrap();
    let clients = manager.wait_for_running("web", count, LONG).unwrap();
    (lab, servers, clients)
}

#[test]
fn a_node_that_hears_no_manager_keeps_its_connections_from_a_peer_that_does_not_answer() {
    let (lab, servers, clients) = with_services(1, 2);
    let (cut, dead) = (lab.host(2), lab.host(3));
    let client = of(&clients, cut);
    let vip = SocketAddr::new(addresses(&lab, client, "db")[0], 80);
    let gone = of(&servers, dead).name.clone();
    let reached = |count: usize| -> anyhow::Result<BTreeSet<String>> {
        (0..count).map(|_| Ok(lab.ask_from(client, vip)?.task)).collect()
    };
    wait_until("every task is reached", SHORT, || Ok(reached(20)?.len() == 3)).unwrap();
    // The managers are away for it, the other nodes are not.
    let rule = ["pref", "1", "ipproto", "tcp", "dport", API, "blackhole"];
    cut.inside("ip", &[&["rule", "add"], &rule[..]].concat()).unwrap().ok().unwrap();
    dead.cut().unwrap();
    wait_until("no connection goes to the dead peer", NOTICED, || {
        Ok(reached(30).is_ok_and(|seen| seen.len() == 2 && !seen.contains(&gone)))
    })
    .unwrap();
    assert_eq!(addresses(&lab, client, "tasks.db").len(), 2, "its address is not given out");

    dead.mend().unwrap();
    cut.inside("ip", &[&["rule", "del"], &rule[..]].concat()).unwrap().ok().unwrap();
    lab.host(1).wait_for_nodes(3, LONG).unwrap();
    wait_until("every task is reached again", LONG, || {
        Ok(reached(20).is_ok_and(|seen| seen.len() == 3))
    })
    .unwrap();
}

/// Exit code, standard output and error of a check.
fn check(host: &Host, words: &[&str]) -> (i32, String, String) {
    let answer = host.shoal(&[&["network", "check"], words].concat()).unwrap();
    (answer.code, answer.out, answer.err)
}

fn problems(host: &Host) -> String {
    let format = "{{range .Peers}}{{range .Problems}}{{.}};{{end}}{{end}}";
    let words = ["network", "inspect", "--verbose", "--format", format, "back"];
    host.shoal(&words).unwrap().ok().unwrap().trim().to_owned()
}

/// What stands on a service, as `service ls` shows it.
fn reason(host: &Host, service: &str) -> String {
    let format = "{{.Name}} {{.Reason}}";
    let all = host.shoal(&["service", "ls", "--format", format]).unwrap().ok().unwrap();
    all.lines().find(|line| line.starts_with(service)).unwrap().to_owned()
}

fn conditions(host: &Host, node: &str) -> String {
    let format = "{{.Hostname}} {{.Conditions}}";
    let all = host.shoal(&["node", "ls", "--format", format]).unwrap().ok().unwrap();
    all.lines().find(|line| line.starts_with(node)).unwrap().to_owned()
}

#[test]
fn a_check_says_in_words_what_is_wrong_between_the_nodes() {
    let (lab, ..) = with_services(1, 2);
    let manager = lab.host(1);
    let (code, table, error) = check(manager, &[]);
    assert_eq!(code, 0, "{table}\n{error}");
    // Two networks, three nodes, two peers each, and the head.
    assert_eq!(table.lines().count(), 13, "{table}");
    assert!(table.lines().skip(1).all(|line| line.ends_with("ok")), "{table}");
    assert_eq!(check(manager, &["-q"]), (0, String::new(), String::new()));
    let (code, _, error) = check(manager, &["nonesuch"]);
    assert_eq!(code, 1);
    assert!(error.contains("nonesuch"), "{error}");

    let (narrow, deaf) = (lab.host(3), lab.host(2));
    narrow.narrow(1_400).unwrap();
    let (code, json, error) = check(manager, &["--format", "json", "back"]);
    assert_eq!(code, 1, "{json}");
    assert!(error.contains("4 things are not as they should be"), "{error}");
    let bad: Vec<&str> = json.lines().filter(|line| line.contains("wrong MTU")).collect();
    assert_eq!(bad.len(), 4, "{json}");
    // A bridge lets pass four bytes more than its port's, for a VLAN's tag.
    assert!(bad.iter().all(|line| line.contains("packets over 1354 bytes do not pass")), "{json}");
    narrow.narrow(1_500).unwrap();

    let rule = ["pref", "1", "ipproto", "udp", "dport", "4789", "blackhole"];
    deaf.inside("ip", &[&["rule", "add"], &rule[..]].concat()).unwrap().ok().unwrap();
    let (code, words, _) = check(manager, &["-q", "back"]);
    assert_eq!(code, 1);
    assert_eq!(words.lines().count(), 4, "{words}");
    let expected = "back: h2 -> h1: no answer: UDP port 4789 is blocked between";
    assert!(words.contains(expected), "{words}");
    wait_until("the node says so by itself", LONG, || {
        Ok(conditions(manager, "h2").contains("no answer over the data path"))
    })
    .unwrap();
    wait_until("and so does the network", LONG, || Ok(!problems(manager).is_empty())).unwrap();
    let expected = "not reached from everywhere: h1 - h2 (back): no answer over the data path";
    wait_until("and its services", SHORT, || {
        let said = reason(manager, "db");
        anyhow::ensure!(said.contains(expected), "{said} / {}", problems(manager));
        Ok(true)
    })
    .unwrap();
    deaf.inside("ip", &[&["rule", "del"], &rule[..]].concat()).unwrap().ok().unwrap();
    wait_until("nothing is said any more", LONG, || {
        Ok(!conditions(manager, "h2").contains("over the data path")
            && problems(manager).is_empty()
            && !reason(manager, "db").contains("not reached"))
    })
    .unwrap();
    assert_eq!(check(manager, &["-q"]).0, 0);

    narrow.kill().unwrap();
    wait_until("a node without a daemon is said to be away", LONG, || {
        let (code, words, _) = check(manager, &["-q", "back"]);
        Ok(code == 1
            && (words.contains("h3: it is down")
                || words.contains("h3: its session")
                || words.contains("h3: it has no session")))
    })
    .unwrap();
}

#[test]
fn a_port_that_a_program_of_a_host_holds_is_named_on_node_and_service() {
    let mut lab = joined(1, 2).unwrap();
    lab.add_client().unwrap();
    let (manager, taken) = (lab.host(1), lab.host(2));
    let held = in_namespace(&taken.netns(), || Ok(TcpListener::bind("0.0.0.0:8080")?)).unwrap();
    create(manager, &["--name", "web", "-p", "8080:80", "--replicas", "3"]);
    create(manager, &["--name", "quiet", "--replicas", "1"]);
    manager.wait_for_running("web", 3, LONG).unwrap();
    let expected = "8080/tcp on h2";
    wait_until("the port on its service", LONG, || Ok(reason(manager, "web").contains(expected)))
        .unwrap();
    assert!(conditions(manager, "h2").contains("port 8080/tcp is held by a program"));
    assert!(!reason(manager, "quiet").contains("8080"));
    let inspected = manager.shoal(&["service", "inspect", "web"]).unwrap().json().unwrap();
    assert_eq!(inspected[0]["Reasons"][0]["Code"], "port-taken");
    wait_until("the others answer", SHORT, || {
        lab.client().ask(manager.port_v4(8080)).map(|_| true)
    })
    .unwrap();
    // The program goes away: it is published within seconds, and nothing is said any more.
    drop(held);
    wait_until("the node answers", LONG, || {
        Ok(lab.client().ask(taken.port_v4(8080)).is_ok()
            && !reason(manager, "web").contains("8080"))
    })
    .unwrap();
}
