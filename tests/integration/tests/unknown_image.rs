//! An image that cannot be had: the task's error and the service's reason name node and image.

#![allow(clippy::unwrap_used)]

use integration::{LONG, joined, wait_for, wait_until};

#[test]
fn the_task_and_the_service_name_node_and_image() {
    let lab = joined(1, 0).unwrap();
    let manager = lab.host(1);
    let image = "127.0.0.1:1/no/such:1";
    let args = ["service", "create", "-d", "--name", "none", "--restart-delay", "1s", image];
    manager.shoal(&args).unwrap().ok().unwrap();
    let names_both = |text: &str| text.contains("node h1") && text.contains(image);
    let task = wait_for("a rejected task", LONG, || {
        Ok(manager.tasks("none")?.into_iter().find(|task| task.state == "Rejected"))
    })
    .unwrap();
    assert!(names_both(&task.error), "{task:?}");
    wait_until("the reason on the service", LONG, || {
        let service = manager.shoal(&["service", "inspect", "none"])?.json()?;
        let reasons = service[0]["Reasons"].to_string();
        anyhow::ensure!(names_both(&reasons), "{reasons}");
        Ok(true)
    })
    .unwrap();
}
