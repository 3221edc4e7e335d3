//! All daemons are killed at once: the same state and the same containers come back.

use integration::{LONG, running};

#[test]
fn everything_is_there_after_all_daemons_were_killed() {
    let lab = running(3, 2, "web", 5).unwrap();
    let first = lab.host(1);
    let format = ["service", "inspect", "--format", "{{json .Spec}} {{.CreatedAt}}", "web"];
    let spec = first.shoal(&format).unwrap().ok().unwrap();
    let mut before = first.running_tasks("web").unwrap();
    for host in lab.hosts() {
        host.kill().unwrap();
    }
    for host in lab.hosts() {
        host.spawn().unwrap();
    }
    first.wait_for_nodes(5, LONG).unwrap();
    let mut after = first.wait_for_running("web", 5, LONG).unwrap();
    before.sort();
    after.sort();
    assert_eq!(after, before);
    assert_eq!(first.shoal(&format).unwrap().ok().unwrap(), spec);
}
