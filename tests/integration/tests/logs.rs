//! Logs of a service from all nodes at once, asked of any manager.

use std::collections::BTreeSet;

use integration::{LONG, running, wait_until};

#[test]
fn lines_of_all_tasks_are_shown_with_who_wrote_them() {
    let lab = running(2, 1, "web", 3).unwrap();
    for host in [lab.host(1), lab.host(2)] {
        wait_until("a line of each task", LONG, || {
            let lines = host.shoal(&["service", "logs", "web"])?.lines()?;
            let names: BTreeSet<&str> = lines
                .iter()
                .filter_map(|line| line.split_once('@'))
                .map(|(name, _)| name)
                .collect();
            anyhow::ensure!(names.len() == 3, "{lines:#?}");
            Ok(true)
        })
        .unwrap();
    }
    let one = lab.host(1).shoal(&["service", "logs", "--tail", "1", "--raw", "web"]).unwrap();
    assert_eq!(one.lines().unwrap().len(), 3);
    let stamped = lab.host(1).shoal(&["service", "logs", "-t", "web"]).unwrap().lines().unwrap();
    assert!(stamped.iter().all(|line| line.starts_with("20") && line.contains("Z web.")));
}
