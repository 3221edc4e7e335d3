//! Managers come and go: catching up, demoting, and the guards of the quorum.

use integration::{LONG, booted, joined, wait_until};

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
