//! Networks that a node has for itself, and containers that are connected while they run.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::net::{IpAddr, SocketAddr};

use integration::{
    Host, IMAGE, LONG, SHORT, Seen, Task, ask_tcp, booted, in_namespace, joined, wait_for,
    wait_until,
};

fn done(host: &Host, args: &[&str]) -> String {
    host.shoal(args).unwrap().ok().unwrap()
}

fn refused(host: &Host, args: &[&str], part: &str) {
    let error = host.shoal(args).unwrap().failure().unwrap();
    assert!(error.contains(part), "{args:?}: {error}");
}

fn listed(host: &Host) -> Vec<String> {
    let format = "{{.Name}} {{.Driver}} {{.Scope}}";
    host.shoal(&["network", "ls", "--format", format]).unwrap().lines().unwrap()
}

/// Asks from within a task's container, until it is answered.
fn ask_from(host: &Host, task: &Task, to: IpAddr) -> anyhow::Result<Seen> {
    in_namespace(&host.task_netns(&task.id), move || ask_tcp(SocketAddr::new(to, 80)))
}

/// `web.1.<id>`, as containers are called.
fn container(task: &Task) -> String {
    format!("{}.{}", task.name, task.id)
}

#[test]
fn a_node_has_networks_of_its_own_also_outside_a_cluster() {
    let lab = booted(1).unwrap();
    let host = lab.host(1);
    let built_in = ["bridge bridge local", "host host local", "none null local"];
    assert_eq!(listed(host), built_in);
    let aux = "--aux-address=router=10.77.0.7";
    let id = done(host, &["network", "create", "--subnet", "10.77.0.0/24", aux, "lan"]);
    refused(host, &["network", "create", "lan"], "network with name lan already exists");
    refused(host, &["network", "create", "bridge"], "predefined bridge network");
    refused(host, &["network", "create", "--subnet", "10.77.0.0/16", "x"], "of network lan");
    refused(
        host,
        &["network", "create", "-d", "macvlan", "-o", "parent=eth9", "x"],
        "no such link",
    );
    refused(host, &["network", "create", "-o", "colour=red", "x"], "unknown option colour");
    refused(host, &["network", "create", "-d", "overlay", "x"], "not a swarm manager");
    refused(host, &["network", "rm", "bridge"], "pre-defined network and cannot be removed");
    let macvlan = ["network", "create", "-d", "macvlan", "-o", "parent=eth0"];
    done(host, &[&macvlan[..], &["--subnet", "10.254.0.0/24", "--label", "a=b", "wire"]].concat());
    let expected = [&built_in[..], &["lan bridge local", "wire macvlan local"]].concat();
    let mut expected: Vec<String> = expected.into_iter().map(ToOwned::to_owned).collect();
    expected.sort();
    assert_eq!(listed(host), expected);
    let shown = host.shoal(&["network", "inspect", id.trim()]).unwrap().json().unwrap();
    assert_eq!(shown[0]["IPAM"]["Config"][0]["Gateway"], "10.77.0.1");
    assert_eq!(shown[0]["IPAM"]["Config"][0]["AuxiliaryAddresses"]["router"], "10.77.0.7");

    host.kill().unwrap();
    host.start().unwrap();
    assert_eq!(listed(host), expected, "they outlive the daemon");
    host.inside("ping", &["-c1", "10.77.0.1"]).unwrap().ok().unwrap();
    let pruned = done(host, &["network", "prune", "--force", "--filter", "label=a"]);
    assert_eq!(pruned.lines().collect::<Vec<_>>(), ["Deleted Networks:", "wire"]);
    done(host, &["network", "rm", "lan"]);
    assert_eq!(listed(host), built_in);
    host.stop().unwrap();
    let links = host.inside("ip", &["-o", "link"]).unwrap().ok().unwrap();
    assert_eq!(links.lines().count(), 2, "lo and eth0 are left: {links}");
}

#[test]
fn containers_on_a_nodes_bridge_find_each_other_and_are_connected_to_more() {
    let lab = joined(1, 1).unwrap();
    let (manager, worker) = (lab.host(1), lab.host(2));
    let place = ["--constraint", "node.hostname==h2", "--network", "bridge"];
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "2"];
    done(manager, &[&create[..], &place, &[IMAGE]].concat());
    let tasks = manager.wait_for_running("web", 2, LONG).unwrap();
    let [one, two] = &tasks[..] else { panic!("{tasks:?}") };
    let at = worker.address_of(one, &container(two)).unwrap();
    assert!(at.to_string().starts_with("172.17.0."), "{at}");
    let own = worker.address_of(one, &one.name).unwrap();
    let seen = ask_from(worker, one, at).unwrap();
    assert_eq!((seen.task.as_str(), seen.client.ip()), (two.name.as_str(), own));

    done(manager, &["network", "create", "mine"]);
    let words = ["service", "create", "--network", "mine", IMAGE];
    refused(manager, &words, "The network mine cannot be used with services");
    // A network of this node alone, which the manager knows nothing of.
    done(worker, &["network", "create", "--subnet", "10.77.0.0/24", "lan"]);
    assert!(!listed(manager).contains(&"lan bridge local".to_owned()));
    refused(manager, &["network", "connect", "lan", &container(one)], "No such container");
    done(worker, &["network", "connect", "--alias", "db", "lan", &container(one)]);
    let more = ["--ip", "10.77.0.40", "lan", &two.id[..10]];
    done(worker, &[&["network", "connect"], &more[..]].concat());
    refused(worker, &["network", "connect", "lan", &container(one)], "already exists in network");
    refused(worker, &["network", "connect", "host", &container(one)], "host network");
    refused(worker, &["network", "rm", "lan"], &container(one));
    assert_eq!(worker.address_of(two, "db").unwrap().to_string(), "10.77.0.2");
    let connected: IpAddr = [10, 77, 0, 40].into();
    assert_eq!(ask_from(worker, one, connected).unwrap().task, two.name);
    let shown = worker.shoal(&["network", "inspect", "lan"]).unwrap().json().unwrap();
    let there = &shown[0]["Containers"][&two.id];
    assert_eq!(there["IPv4Address"], "10.77.0.40/24");
    assert_eq!(there["Name"], container(two).as_str());

    // What is connected outlives the daemon; what a hand removes comes back.
    worker.kill().unwrap();
    assert_eq!(ask_from(worker, one, connected).unwrap().task, two.name);
    worker.start().unwrap();
    manager.wait_for_nodes(2, LONG).unwrap();
    assert_eq!(worker.address_of(two, "db").unwrap().to_string(), "10.77.0.2");
    worker.inside("nft", &["flush", "ruleset"]).unwrap().ok().unwrap();
    worker.inside_task(&one.id, "ip", &["link", "del", "eth1"]).unwrap().ok().unwrap();
    wait_until("the link to come back", SHORT, || {
        worker.inside_task(&one.id, "ip", &["link", "show", "eth1"])?.ok()?;
        ask_from(worker, one, connected).map(|seen| seen.task == two.name)
    })
    .unwrap();

    done(worker, &["network", "disconnect", "lan", &container(one)]);
    refused(worker, &["network", "disconnect", "lan", &container(one)], "is not connected");
    done(worker, &["network", "disconnect", "--force", "lan", &container(one)]);
    refused(
        worker,
        &["network", "disconnect", "bridge", &container(one)],
        "because its service is",
    );
    wait_until("the way to be closed", SHORT, || Ok(ask_from(worker, one, connected).is_err()))
        .unwrap();
    assert!(worker.resolve(&two.id, "a", "db").is_err(), "its names are gone");
    // What is connected goes with its container.
    done(manager, &["service", "rm", "web"]);
    wait_until("the network to be free", LONG, || {
        Ok(worker.shoal(&["network", "rm", "lan"])?.ok().is_ok())
    })
    .unwrap();
}

#[test]
fn each_node_makes_its_part_of_a_network_of_its_own_configuration() {
    let lab = joined(1, 2).unwrap();
    let manager = lab.host(1);
    let create = ["network", "create"];
    let macvlan = [&create[..], &["-d", "macvlan", "--scope", "swarm"]].concat();
    let with = |words: &[&'static str]| [&macvlan[..], words].concat();
    refused(manager, &with(&["wire"]), "is made of a configuration of each node");
    let twice = ["--config-from", "parts", "-o", "parent=eth0", "wire"];
    refused(manager, &with(&twice), "network driver options are not supported if");
    let closed = ["--config-only", "--internal", "parts"];
    refused(manager, &[&create[..], &closed].concat(), "can only contain network specific fields");
    done(manager, &with(&["--config-from", "parts", "wire"]));
    for (number, range) in [(2, "10.254.0.64/27"), (3, "10.254.0.96/27")] {
        let words = ["--config-only", "--subnet", "10.254.0.0/24", "--ip-range", range];
        let parent = ["-o", "parent=eth0", "parts"];
        done(lab.host(number), &[&create[..], &words, &parent].concat());
    }
    let (second, third) = (lab.host(2), lab.host(3));
    assert!(listed(second).contains(&"parts null local".to_owned()));
    done(
        manager,
        &[
            "service",
            "create",
            "-d",
            "--name",
            "web",
            "--mode",
            "global",
            "--restart-delay",
            "100ms",
            "--network",
            "wire",
            IMAGE,
        ],
    );

    // The manager has no configuration: that is said where a user looks for it.
    wait_until("the reason", LONG, || {
        let format = ["--no-trunc", "--format", "{{.Node}} {{.Error}}"];
        let all = manager.shoal(&[&["service", "ps", "web"], &format[..]].concat())?.ok()?;
        let text = "configuration network \"parts\" does not exist";
        Ok(all.lines().any(|line| line.starts_with("h1") && line.contains(text)))
    })
    .unwrap();
    let tasks = manager.wait_for_running("web", 2, LONG).unwrap();
    let on = |host: &str| tasks.iter().find(|task| task.node == host).unwrap();
    let (two, three) = (on("h2"), on("h3"));
    let address = |host: &Host, task: &Task| -> IpAddr {
        let shown = host.shoal(&["network", "inspect", "wire"]).unwrap().json().unwrap();
        assert_eq!((&shown[0]["Scope"], &shown[0]["Driver"]), (&"swarm".into(), &"macvlan".into()));
        assert_eq!(shown[0]["ConfigFrom"]["Network"], "parts");
        let there = shown[0]["Containers"][&task.id]["IPv4Address"].as_str().unwrap().to_owned();
        there.split('/').next().unwrap().parse().unwrap()
    };
    let (at_two, at_three) = (address(second, two), address(third, three));
    assert_eq!(
        (at_two.to_string(), at_three.to_string()),
        ("10.254.0.64".to_owned(), "10.254.0.96".to_owned())
    );
    let seen = ask_from(second, two, at_three).unwrap();
    assert_eq!((seen.task.as_str(), seen.client.ip()), (three.name.as_str(), at_two));
    assert_eq!(second.address_of(two, &two.name).unwrap(), at_two);
    assert_eq!(listed(second).iter().filter(|line| line.starts_with("wire ")).count(), 1);
    refused(second, &["network", "rm", "parts"], "is in use by network wire");
    refused(second, &["network", "rm", "wire"], "is the cluster's");
    refused(second, &["network", "connect", "parts", &container(two)], "is a configuration");
    refused(manager, &["network", "rm", "wire"], "is in use by service web");

    second.kill().unwrap();
    assert_eq!(ask_from(third, three, at_two).unwrap().task, two.name);
    second.start().unwrap();
    manager.wait_for_nodes(3, LONG).unwrap();
    assert_eq!(address(second, two), at_two);

    done(manager, &["service", "rm", "web"]);
    wait_until("the network to be free", LONG, || {
        Ok(manager.shoal(&["network", "rm", "wire"])?.ok().is_ok())
    })
    .unwrap();
    for host in [second, third] {
        wait_until("the node's part to be gone", LONG, || {
            Ok(host.shoal(&["network", "rm", "parts"])?.ok().is_ok())
        })
        .unwrap();
        assert!(!listed(host).iter().any(|line| line.starts_with("wire ")));
    }
}

#[test]
fn running_containers_are_connected_to_an_attachable_overlay() {
    let lab = joined(1, 2).unwrap();
    let manager = lab.host(1);
    let create = |name: &str, words: &[&str]| {
        let overlay = ["network", "create", "-d", "overlay"];
        done(manager, &[&overlay[..], words, &[name]].concat());
    };
    create("side", &["--attachable", "--subnet", "10.99.0.0/24"]);
    create("closed", &[]);
    for (name, host) in [("one", "h2"), ("two", "h3")] {
        let place = format!("node.hostname=={host}");
        let words = ["service", "create", "-d", "--name", name, "--constraint", &place, IMAGE];
        done(manager, &words);
    }
    let one = manager.wait_for_running("one", 1, LONG).unwrap().remove(0);
    let two = manager.wait_for_running("two", 1, LONG).unwrap().remove(0);
    let (second, third) = (lab.host(2), lab.host(3));

    // A worker knows the name, though none of its tasks is on the network.
    refused(second, &["network", "create", "side"], "network with name side already exists");
    refused(second, &["network", "connect", "closed", &container(&one)], "not manually attachable");
    refused(
        second,
        &["network", "connect", "nosuch", &container(&one)],
        "network nosuch not found",
    );
    refused(second, &["network", "connect", "side", &container(&two)], "No such container");
    let outside = ["network", "connect", "--ip", "10.98.0.9", "side", &one.id];
    refused(second, &outside, "is no address that a container of side may have");
    let first = ["network", "connect", "--ip", "10.99.0.77", "--alias", "db", "side"];
    done(second, &[&first[..], &[&container(&one)]].concat());
    let taken = ["network", "connect", "--ip", "10.99.0.77", "side", &two.id];
    refused(third, &taken, "Address already in use: 10.99.0.77");
    done(third, &["network", "connect", "side", &two.id]);
    refused(third, &["network", "connect", "side", &two.id], "already exists in network side");

    let at: IpAddr = [10, 99, 0, 77].into();
    let works = || {
        assert_eq!(third.address_of(&two, "db").unwrap(), at);
        let own = third.address_of(&two, &two.name).unwrap();
        let seen = wait_for("an answer", SHORT, || Ok(Some(ask_from(third, &two, at)?))).unwrap();
        assert_eq!((seen.task.as_str(), seen.client.ip()), (one.name.as_str(), own));
    };
    works();
    assert!(listed(third).contains(&"side overlay swarm".to_owned()));
    let shown = second.shoal(&["network", "inspect", "side"]).unwrap().json().unwrap();
    assert_eq!(shown[0]["Containers"][&one.id]["IPv4Address"], "10.99.0.77/24");
    refused(manager, &["network", "rm", "side"], "is in use by container");
    refused(second, &["network", "rm", "side"], "is the cluster's");

    // It outlives the daemons, also a manager that starts anew.
    for host in [second, manager] {
        host.kill().unwrap();
        works();
        host.start().unwrap();
    }
    manager.wait_for_nodes(3, LONG).unwrap();
    works();

    done(second, &["network", "disconnect", "side", &container(&one)]);
    wait_until("the name to be gone", SHORT, || Ok(third.resolve(&two.id, "a", "db").is_err()))
        .unwrap();
    assert!(ask_from(third, &two, at).is_err());
    assert!(!listed(second).contains(&"side overlay swarm".to_owned()));
    // The other one is gone with its task.
    done(manager, &["service", "rm", "two"]);
    wait_until("the network to be free", LONG, || {
        Ok(manager.shoal(&["network", "rm", "side"])?.ok().is_ok())
    })
    .unwrap();
}

#[test]
fn what_cannot_be_connected_in_time_is_not_connected() {
    let lab = joined(1, 1).unwrap();
    let (manager, worker) = (lab.host(1), lab.host(2));
    done(manager, &["network", "create", "-d", "overlay", "--attachable", "side"]);
    let place = ["--constraint", "node.hostname==h2"];
    done(manager, &[&["service", "create", "-d", "--name", "web"], &place[..], &[IMAGE]].concat());
    let task = manager.wait_for_running("web", 1, LONG).unwrap().remove(0);
    worker.cut().unwrap();
    let begun = std::time::Instant::now();
    let connect = ["network", "connect", "side", &task.id];
    refused(worker, &connect, "attaching to network failed, make sure your network options");
    assert!(begun.elapsed().as_secs() < 40, "{:?}", begun.elapsed());
    worker.mend().unwrap();
    manager.wait_for_nodes(2, LONG).unwrap();
    wait_until("the network to be free", LONG, || {
        Ok(manager.shoal(&["network", "rm", "side"])?.ok().is_ok())
    })
    .unwrap();
}
