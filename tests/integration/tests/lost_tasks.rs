//! A node that has lost its record of its tasks: they fail with the reason, and are replaced.

#![allow(clippy::unwrap_used)]

use integration::{LONG, running, wait_for, wait_until};

#[test]
fn tasks_that_a_node_no_longer_knows_fail_and_are_replaced() {
    let lab = running(1, 1, "web", 2).unwrap();
    let (manager, worker) = (lab.host(1), lab.host(2));
    let before = manager.running_tasks("web").unwrap();
    let lost = before.iter().find(|task| task.node == "h2").unwrap();
    let kept = before.iter().find(|task| task.node == "h1").unwrap();
    worker.stop().unwrap();
    std::fs::remove_file(worker.data_dir().join("swarm/tasks.db")).unwrap();
    worker.start().unwrap();

    let error = wait_for("the lost task to fail", LONG, || {
        let tasks = manager.tasks("web")?;
        let task = tasks.into_iter().find(|task| task.id == lost.id);
        Ok(task.filter(|task| task.state == "Failed").map(|task| task.error))
    })
    .unwrap();
    assert!(error.contains("no longer has this task"), "{error}");
    let after = manager.wait_for_running("web", 2, LONG).unwrap();
    assert!(after.iter().any(|task| task.id == kept.id), "the other one went on");
    assert!(after.iter().all(|task| task.id != lost.id));
    wait_until("one container on each node", LONG, || {
        let count = |host: &integration::Host| -> anyhow::Result<u64> {
            let args = ["info", "--format", "{{.ContainersRunning}}"];
            Ok(host.shoal(&args)?.ok()?.trim().parse()?)
        };
        Ok(count(manager)? + count(worker)? == 2)
    })
    .unwrap();
}
