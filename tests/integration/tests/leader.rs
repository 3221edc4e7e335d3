//! The leader dies: another leads, writes go on, containers keep running.

#![allow(clippy::unwrap_used)]

use integration::{Host, LONG, Lab, running, wait_for};

fn host_named<'a>(lab: &'a Lab, name: &str) -> &'a Host {
    lab.hosts().iter().find(|host| host.name() == name).expect("every node is a host")
}

/// A manager that is not `name`.
fn other_than<'a>(lab: &'a Lab, name: &str) -> &'a Host {
    lab.hosts().iter().take(3).find(|host| host.name() != name).expect("there are three managers")
}

fn new_leader(asked: &Host, old: &str) -> String {
    wait_for("another leader", LONG, || {
        let leader = asked.leader()?;
        Ok((leader != old).then_some(leader))
    })
    .unwrap()
}

#[test]
fn a_killed_leader_is_replaced_and_adopts_its_containers_when_it_is_back() {
    let lab = running(3, 0, "web", 6).unwrap();
    let before = lab.host(1).running_tasks("web").unwrap();
    let old = lab.host(1).leader().unwrap();
    host_named(&lab, &old).kill().unwrap();

    let asked = other_than(&lab, &old);
    let leader = new_leader(asked, &old);
    assert_ne!(leader, old);
    asked.shoal(&["service", "update", "-d", "--label-add", "x=y", "web"]).unwrap().ok().unwrap();

    host_named(&lab, &old).start().unwrap();
    asked.wait_for_nodes(3, LONG).unwrap();
    let after = asked.wait_for_running("web", 6, LONG).unwrap();
    let ids = |tasks: &[integration::Task]| {
        let mut ids: Vec<String> = tasks.iter().map(|task| task.id.clone()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&after), ids(&before), "no container was replaced");
}
