//! Replicas on several nodes: create, scale up and down, remove without a trace.

use std::collections::BTreeSet;

use integration::{IMAGE, LONG, Leftovers, cgroups, joined, wait_until};

#[test]
fn replicas_spread_scale_and_leave_nothing_behind() {
    let lab = joined(3, 2).unwrap();
    let first = lab.host(1);
    let before: Vec<Leftovers> = lab.hosts().iter().map(|h| Leftovers::of(h).unwrap()).collect();

    let args = ["service", "create", "--name", "web", "--replicas", "6", "--wait-timeout", "2m"];
    let out = first.shoal(&[&args[..], &[IMAGE]].concat()).unwrap().ok().unwrap();
    assert!(out.contains("converged"), "{out}");
    let tasks = first.wait_for_running("web", 6, LONG).unwrap();
    let nodes: BTreeSet<&str> = tasks.iter().map(|task| task.node.as_str()).collect();
    assert_eq!(nodes, BTreeSet::from(["h1", "h2", "h3", "h4", "h5"]));

    first.shoal(&["service", "scale", "-d", "web=20"]).unwrap().ok().unwrap();
    first.wait_for_running("web", 20, LONG).unwrap();
    let spread = first.spread("web").unwrap();
    assert!(spread.values().all(|count| *count == 4), "{spread:?}");

    first.shoal(&["service", "scale", "-d", "web=2"]).unwrap().ok().unwrap();
    first.wait_for_running("web", 2, LONG).unwrap();
    let list = first.shoal(&["service", "ls", "--format", "{{.Name}} {{.Replicas}}"]).unwrap();
    assert_eq!(list.ok().unwrap(), "web 2/2\n");

    let used: Vec<_> = lab.hosts().iter().flat_map(cgroups).collect();
    first.shoal(&["service", "rm", "web"]).unwrap().ok().unwrap();
    for (host, before) in lab.hosts().iter().zip(&before) {
        wait_until(&format!("nothing left on {}", host.name()), LONG, || {
            let now = Leftovers::of(host)?;
            // A bridge for tasks may stay; links of tasks may not.
            let links = now.links.difference(&before.links).count();
            anyhow::ensure!(now.processes == before.processes, "{now:?} but {before:?} before");
            anyhow::ensure!(now.mounts.is_subset(&before.mounts) && links <= 1, "{now:?}");
            Ok(true)
        })
        .unwrap();
    }
    wait_until("no cgroup left", LONG, || {
        let left: Vec<_> = used.iter().filter(|path| path.exists() && is_of_task(path)).collect();
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(true)
    })
    .unwrap();
    assert!(first.shoal(&["service", "inspect", "web"]).unwrap().failure().is_ok());
}

/// Of a container, whose folder is named by its task's 25 characters; not of a daemon.
fn is_of_task(path: &std::path::Path) -> bool {
    path.components().any(|part| {
        let text = part.as_os_str().to_string_lossy();
        text.len() == 25 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    })
}
