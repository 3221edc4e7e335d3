//! A worker is cut off: its tasks run elsewhere, and the surplus goes when it is back.

use integration::{LONG, running, wait_until};

#[test]
fn tasks_of_a_host_that_is_cut_off_run_elsewhere() {
    let lab = running(1, 2, "web", 6).unwrap();
    let (manager, cut) = (lab.host(1), lab.host(3));
    assert_eq!(manager.spread("web").unwrap().get("h3"), Some(&2));
    cut.cut().unwrap();
    wait_until("six tasks on the other two", LONG, || {
        let spread = manager.spread("web")?;
        Ok(!spread.contains_key("h3") && spread.values().sum::<usize>() == 6)
    })
    .unwrap();

    cut.mend().unwrap();
    manager.wait_for_nodes(3, LONG).unwrap();
    manager.wait_for_running("web", 6, LONG).unwrap();
    wait_until("no container left on the host that was cut off", LONG, || {
        let listed = cut.shoal(&["info", "--format", "{{.ContainersRunning}}"])?.ok()?;
        Ok(listed.trim() == "0")
    })
    .unwrap();
}
