//! Services through their life: global mode, updates, reasons, restarts, drain.

use std::collections::BTreeMap;

use integration::{IMAGE, LONG, joined, running, wait_for, wait_until};

#[test]
fn a_global_service_runs_once_on_each_node_and_follows_drain() {
    let lab = joined(1, 2).unwrap();
    let manager = lab.host(1);
    let args = ["service", "create", "-d", "--name", "all", "--mode", "global", IMAGE];
    manager.shoal(&args).unwrap().ok().unwrap();
    manager.wait_for_running("all", 3, LONG).unwrap();
    let each: BTreeMap<String, usize> =
        ["h1", "h2", "h3"].into_iter().map(|name| (name.to_owned(), 1)).collect();
    assert_eq!(manager.spread("all").unwrap(), each);

    let drain = ["node", "update", "--availability", "drain", "h2"];
    assert_eq!(manager.shoal(&drain).unwrap().ok().unwrap(), "h2\n");
    manager.wait_for_running("all", 2, LONG).unwrap();
    manager.shoal(&["node", "update", "--availability", "active", "h2"]).unwrap().ok().unwrap();
    manager.wait_for_running("all", 3, LONG).unwrap();
}

#[test]
fn an_update_replaces_every_task() {
    let lab = running(1, 1, "web", 4).unwrap();
    let manager = lab.host(1);
    let before = manager.running_tasks("web").unwrap();
    let args = ["service", "update", "--env-add", "A=B", "--wait-timeout", "2m", "web"];
    manager.shoal(&args).unwrap().ok().unwrap();
    let after = manager.wait_for_running("web", 4, LONG).unwrap();
    assert!(after.iter().all(|task| before.iter().all(|old| old.id != task.id)));
    let format = "{{json .Spec.TaskTemplate.ContainerSpec.Env}}";
    let env = manager.shoal(&["service", "inspect", "--format", format, "web"]).unwrap();
    assert_eq!(env.ok().unwrap(), "[\"A=B\"]\n");
}

#[test]
fn a_service_that_fits_nowhere_says_why_and_waiting_ends() {
    let lab = joined(1, 0).unwrap();
    let manager = lab.host(1);
    let args = [
        "service",
        "create",
        "--name",
        "big",
        "--reserve-memory",
        "9000g",
        "--wait-timeout",
        "3s",
        IMAGE,
    ];
    let answer = manager.shoal(&args).unwrap();
    assert_eq!(answer.code, 124, "{answer:?}");
    assert!(answer.err.contains("insufficient resources"), "{answer:?}");
    let tasks = manager.tasks("big").unwrap();
    assert_eq!((tasks.len(), tasks[0].state.as_str()), (1, "Pending"));
    assert!(tasks[0].error.contains("insufficient resources"), "{tasks:?}");

    let args = ["service", "create", "-d", "--name", "far", "--constraint", "node.role==worker"];
    manager.shoal(&[&args[..], &[IMAGE]].concat()).unwrap().ok().unwrap();
    wait_until("the reason on the service", LONG, || {
        let args = ["service", "ls", "--filter", "name=far", "--format", "{{.Reason}}"];
        Ok(manager.shoal(&args)?.ok()?.contains("constraint"))
    })
    .unwrap();
}

#[test]
fn a_task_that_ends_is_replaced_within_its_policy() {
    let lab = joined(1, 0).unwrap();
    let manager = lab.host(1);
    let args = [
        "service",
        "create",
        "-d",
        "--name",
        "once",
        "--restart-delay",
        "1s",
        "--restart-max-attempts",
        "2",
        "--restart-condition",
        "any",
        IMAGE,
        "no-such-mode",
    ];
    manager.shoal(&args).unwrap().ok().unwrap();
    wait_for("three attempts and no more", LONG, || {
        let tasks = manager.tasks("once")?;
        let ended = tasks.iter().filter(|task| task.state == "Failed").count();
        anyhow::ensure!(ended == 3 && tasks.len() == 3, "{tasks:#?}");
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn max_replicas_per_node_holds() {
    let lab = joined(1, 1).unwrap();
    let manager = lab.host(1);
    let args = [
        "service",
        "create",
        "-d",
        "--name",
        "few",
        "--replicas",
        "5",
        "--replicas-max-per-node",
        "2",
        IMAGE,
    ];
    manager.shoal(&args).unwrap().ok().unwrap();
    wait_until("four running tasks", LONG, || Ok(manager.running_tasks("few")?.len() == 4))
        .unwrap();
    assert!(manager.spread("few").unwrap().values().all(|count| *count == 2));
}
