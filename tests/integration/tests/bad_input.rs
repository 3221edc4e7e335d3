//! Bad input is refused with the field's name.

#![allow(clippy::unwrap_used)]

use integration::{IMAGE, LONG, SHORT, booted, joined, wait_for, wait_until};

#[test]
fn what_is_wrong_is_named() {
    let lab = joined(1, 1).unwrap();
    let (manager, worker) = (lab.host(1), lab.host(2));
    for (args, names) in [
        (&["service", "create", "--constraint", "node.rol==x", IMAGE][..], "--constraint"),
        (&["service", "create", "--limit-memory", "5x", IMAGE], "--limit-memory"),
        (&["service", "create", "--limit-memory", "1k", IMAGE], "--limit-memory"),
        (&["service", "create", "--limit-cpu", "0.0001", IMAGE], "--limit-cpu"),
        (&["service", "create", "--name=-x-", IMAGE], "--name"),
        (&["service", "create", "--mode", "replicated-job", IMAGE], "--mode"),
        (&["service", "create", "--mount", "a:/b", IMAGE], "--mount"),
        (&["service", "create", "--publish", "80:99999", IMAGE], "--publish"),
        (&["service", "create", "--publish", "2377:80", IMAGE], "--publish"),
        (&["service", "create", "--network", "nosuch", IMAGE], "--network"),
        (&["network", "create", "--subnet", "10.254.0.0/16", "clash"], "--subnet"),
        (&["network", "create", "-d", "overlay", "--subnet", "10.254.0.0/16", "clash"], "--subnet"),
        (&["service", "create", "--stop-signal", "SIGNOPE", IMAGE], "--stop-signal"),
        (&["service", "create", "--cap-add", "FLY", IMAGE], "--cap-"),
        (&["service", "create", "Not An Image"], "image"),
        (&["service", "update", "nosuch", "--replicas", "1"], "nosuch"),
        (&["service", "scale", "nosuch=1"], "nosuch"),
        (&["service", "ls", "--filter", "colour=red"], "colour"),
        (&["service", "ls", "--format", "{{.Nope"], "--format"),
        (&["node", "update", "--availability", "maybe", "h1"], "--availability"),
        (&["node", "inspect", "nosuch"], "nosuch"),
        (&["swarm", "init"], "already part of a swarm"),
        (&["swarm", "update", "--cert-expiry", "1m"], "--cert-expiry"),
        (&["swarm", "update", "--default-addr-pool", "10.0.0.0/28"], "--default-addr-pool"),
        (&["swarm", "update", "--default-addr-pool", "10.7.0.0/16"], "overlaps with 10.0.0.0/8"),
        (&["swarm", "update", "--dispatcher-heartbeat", "1ms"], "--dispatcher-heartbeat"),
    ] {
        let error = manager.shoal(args).unwrap().failure().unwrap();
        assert!(error.contains(names), "{args:?}: {error}");
    }
    for args in [&["node", "ls"][..], &["service", "ls"], &["service", "create", IMAGE]] {
        let error = worker.shoal(args).unwrap().failure().unwrap();
        assert!(error.contains("This node is not a swarm manager. Worker nodes can't"), "{error}");
    }
    assert!(manager.shoal(&["service", "ls", "-q"]).unwrap().ok().unwrap().is_empty());
    let args = ["swarm", "update", "--default-addr-pool", "172.30.0.0/16"];
    manager.shoal(&args).unwrap().ok().unwrap();
    let info = manager.shoal(&["info", "--format", "json"]).unwrap().json().unwrap();
    let pools = info["Swarm"]["Cluster"]["DefaultAddrPool"].clone();
    assert_eq!(pools, serde_json::json!(["10.0.0.0/8", "172.30.0.0/16"]), "{info}");
}

#[test]
fn an_image_that_nobody_has_is_rejected_with_its_name() {
    let lab = joined(1, 0).unwrap();
    let manager = lab.host(1);
    let image = "127.0.0.1:1/no/such:1";
    let args = ["service", "create", "-d", "--name", "none", "--restart-delay", "1s", image];
    manager.shoal(&args).unwrap().ok().unwrap();
    let task = wait_for("a rejected task", LONG, || {
        Ok(manager.tasks("none")?.into_iter().find(|task| task.state == "Rejected"))
    })
    .unwrap();
    assert!(task.error.contains(image) && task.error.contains("h1"), "{task:?}");
    assert_eq!(task.node, "h1");
}

#[test]
fn tokens_that_are_wrong_or_of_another_cluster_let_nobody_in() {
    let lab = booted(3).unwrap();
    let (first, other, joiner) = (lab.host(1), lab.host(2), lab.host(3));
    for host in [first, other] {
        host.shoal(&["swarm", "init", "--advertise-addr", host.address()]).unwrap().ok().unwrap();
    }
    let of = |host: &integration::Host| {
        host.shoal(&["swarm", "join-token", "-q", "worker"])
            .unwrap()
            .ok()
            .unwrap()
            .trim()
            .to_owned()
    };
    let remote = format!("{}:2377", first.address());
    let good = of(first);
    let (head, secret) = good.rsplit_once('-').unwrap();
    let changed: String = secret.chars().rev().collect();
    for token in ["SWMTKN-1-bad", &of(other), &format!("{head}-{changed}")] {
        let args = ["swarm", "join", "--token", token, &remote];
        let error = joiner.shoal(&args).unwrap().failure().unwrap();
        assert!(error.contains("--token: "), "{token}: {error}");
    }
    first.shoal(&["swarm", "join-token", "--rotate", "-q", "worker"]).unwrap().ok().unwrap();
    let args = ["swarm", "join", "--token", &good, &remote];
    let error = joiner.shoal(&args).unwrap().failure().unwrap();
    assert!(error.contains("--token: "), "{error}");
    joiner.join(first, "worker").unwrap();
}

#[test]
fn without_a_quorum_writes_are_refused_and_reads_go_on() {
    let lab = joined(3, 0).unwrap();
    let first = lab.host(1);
    lab.host(2).kill().unwrap();
    lab.host(3).kill().unwrap();
    wait_until("a write to be refused", SHORT, || {
        let args = ["service", "create", "-d", "--name", "x", IMAGE];
        let error = first.shoal(&args)?.failure()?;
        Ok(error.contains("quorum") || error.contains("leader"))
    })
    .unwrap();
    let listed = first.shoal(&["node", "ls", "-q"]).unwrap();
    assert!(listed.err.contains("no leader"), "{listed:?}");
    assert_eq!(listed.lines().unwrap().len(), 3);
}
