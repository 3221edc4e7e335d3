//! The leader dies or hangs: another leads, writes go on, containers keep running.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use integration::{Host, IMAGE, LONG, Lab, running, wait_for, wait_until};

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

#[test]
fn a_leader_that_hangs_for_thirty_seconds_loses_nothing_when_it_goes_on() {
    let lab = running(3, 0, "web", 3).unwrap();
    let old = lab.host(1).leader().unwrap();
    host_named(&lab, &old).freeze().unwrap();
    let asked = other_than(&lab, &old);
    new_leader(asked, &old);
    let args = ["service", "create", "-d", "--name", "while-it-hung", "--replicas", "2", IMAGE];
    asked.shoal(&args).unwrap().ok().unwrap();
    // The time is the point: longer than every election and grace.
    std::thread::sleep(Duration::from_secs(30));
    host_named(&lab, &old).thaw().unwrap();

    asked.wait_for_nodes(3, LONG).unwrap();
    for (service, count) in [("web", 3), ("while-it-hung", 2)] {
        asked.wait_for_running(service, count, LONG).unwrap();
    }
    wait_until("the old leader to know what was written", LONG, || {
        let args = ["service", "ls", "-q"];
        let here = host_named(&lab, &old).shoal(&args)?.lines()?.len();
        Ok(here == 2)
    })
    .unwrap();
}
