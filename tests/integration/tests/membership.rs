//! Managers come and go: catching up, demoting, and the guards of the quorum.

use std::net::UdpSocket;

use integration::{IMAGE, LONG, booted, in_namespace, joined, wait_until};

#[test]
fn a_manager_with_an_empty_disk_catches_up_with_a_thousand_services() {
    let lab = booted(2).unwrap();
    let (first, second) = (lab.host(1), lab.host(2));
    first.shoal(&["swarm", "init", "--advertise-addr", first.address()]).unwrap().ok().unwrap();
    for number in 0..1_000 {
        let name = format!("s{number}");
        let args = ["service", "create", "-d", "--name", &name, "--replicas", "0", "x/y:1"];
        first.shoal(&args).unwrap().ok().unwrap();
    }
    second.join(first, "manager").unwrap();
    first.wait_for_nodes(2, LONG).unwrap();
    wait_until("all services on the new manager", LONG, || {
        let lines = second.shoal(&["service", "ls", "-q"])?.lines()?;
        anyhow::ensure!(lines.len() == 1_000, "{} services", lines.len());
        Ok(true)
    })
    .unwrap();
}

#[test]
fn managers_are_demoted_and_removed_and_the_last_one_stays() {
    let lab = joined(3, 0).unwrap();
    let first = lab.host(1);
    for name in ["h2", "h3"] {
        let text = first.shoal(&["node", "demote", name]).unwrap().ok().unwrap();
        assert_eq!(text, format!("Manager {name} demoted in the swarm.\n"));
        wait_until(&format!("{name} to be a worker"), LONG, || {
            let filter = format!("name={name}");
            let args = ["node", "ls", "--filter", &filter, "--format", "{{.ManagerStatus}}"];
            Ok(first.shoal(&args)?.ok()?.trim().is_empty())
        })
        .unwrap();
    }
    let refused = first.shoal(&["node", "demote", "h1"]).unwrap().failure().unwrap();
    assert!(refused.contains("last manager"), "{refused}");

    let refused = first.shoal(&["node", "rm", "h1"]).unwrap().failure().unwrap();
    assert!(refused.contains("manager"), "{refused}");
    let refused = first.shoal(&["node", "rm", "h2"]).unwrap().failure().unwrap();
    assert!(refused.contains("is not down"), "{refused}");
    lab.host(3).kill().unwrap();
    wait_until("h3 to be down", LONG, || {
        let args = ["node", "ls", "--filter", "name=h3", "--format", "{{.Status}}"];
        Ok(first.shoal(&args)?.ok()?.starts_with("Down"))
    })
    .unwrap();
    first.shoal(&["node", "rm", "h3"]).unwrap().ok().unwrap();
    let names = first.shoal(&["node", "ls", "--format", "{{.Hostname}}"]).unwrap();
    assert_eq!(names.lines().unwrap(), ["h1", "h2"]);

    let text = first.shoal(&["node", "promote", "h2"]).unwrap().ok().unwrap();
    assert_eq!(text, "Node h2 promoted to a manager in the swarm.\n");
    wait_until("h2 to be a manager", LONG, || {
        let args = ["node", "ls", "--filter", "name=h2", "--format", "{{.ManagerStatus}}"];
        Ok(first.shoal(&args)?.ok()?.starts_with("Reachable"))
    })
    .unwrap();
}

#[test]
fn leaving_needs_force_on_a_manager_and_not_on_a_worker() {
    let lab = joined(1, 1).unwrap();
    let (manager, worker) = (lab.host(1), lab.host(2));
    let refused = manager.shoal(&["swarm", "leave"]).unwrap().failure().unwrap();
    assert!(refused.contains("--force"), "{refused}");
    let text = worker.shoal(&["swarm", "leave"]).unwrap().ok().unwrap();
    assert_eq!(text, "Node left the swarm.\n");
    let refused = worker.shoal(&["swarm", "leave"]).unwrap().failure().unwrap();
    assert!(refused.contains("not part of a swarm"), "{refused}");
    manager.shoal(&["swarm", "leave", "--force"]).unwrap().ok().unwrap();
    let refused = manager.shoal(&["node", "ls"]).unwrap().failure().unwrap();
    assert!(refused.contains("swarm init"), "{refused}");
}

#[test]
fn a_host_whose_udp_ports_are_taken_is_not_taken_in() {
    let lab = booted(2).unwrap();
    let (first, second) = (lab.host(1), lab.host(2));
    let take = |host: &integration::Host, port: u16| {
        let taken = in_namespace(&host.netns(), move || Ok(UdpSocket::bind(("0.0.0.0", port))?));
        taken.unwrap()
    };
    let own = format!("(process {})", std::process::id());
    let init = ["swarm", "init", "--advertise-addr", first.address()];
    let chosen = [&init[..], &["--encryption-ports", "5001,5002"]].concat();
    let taken = take(first, 5_001);
    let refused = first.shoal(&chosen).unwrap().failure().unwrap();
    assert!(refused.contains("UDP port 5001") && refused.contains(&own), "{refused}");
    drop(taken);
    first.shoal(&chosen).unwrap().ok().unwrap();
    let info = first.shoal(&["info"]).unwrap().ok().unwrap();
    assert!(info.contains("\n  Encryption Ports: 5001, 5002\n"), "{info}");

    for port in [5_002, 4_789] {
        let taken = take(second, port);
        let refused = second.join(first, "worker").unwrap_err().to_string();
        assert!(refused.contains(&format!("UDP port {port}")), "{refused}");
        assert!(refused.contains(&own), "{refused}");
        drop(taken);
    }
    // Nothing is left of it, and those that the cluster does not use are nobody's.
    assert_eq!(first.shoal(&["node", "ls", "-q"]).unwrap().lines().unwrap().len(), 1);
    let other = take(second, 4_793);
    second.join(first, "worker").unwrap();
    first.wait_for_nodes(2, LONG).unwrap();
    drop(other);

    for port in ["5001", "5002"] {
        let publish = format!("{port}:80/udp");
        let args = ["service", "create", "-d", "--publish", &publish, "--name", "web", IMAGE];
        let refused = first.shoal(&args).unwrap().failure().unwrap();
        let words = format!("port {port}/udp is that of encrypted networks of the cluster");
        assert!(refused.contains(&words), "{refused}");
    }
    // A member that starts again has its own devices on these ports.
    second.kill().unwrap();
    second.start().unwrap();
    first.wait_for_nodes(2, LONG).unwrap();
}
