//! A disk that is full: the cluster goes on, a single manager refuses writes with the reason.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use integration::{Host, IMAGE, LONG, Lab, wait_until};

/// A small file system below a host's data directory, gone with the test.
struct SmallDisk<'a>(&'a Host);

impl<'a> SmallDisk<'a> {
    fn below(host: &'a Host, megabytes: u32) -> Self {
        fs::create_dir_all(host.data_dir()).unwrap();
        let size = format!("size={megabytes}m");
        let path = host.data_dir();
        mount(&["-t", "tmpfs", "-o", &size, "tmpfs"], &path);
        Self(host)
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        let path = self.0.data_dir().join("filler");
        // The write fails when the disk is full, which is what it is for.
        drop(fs::write(path, vec![1; 512 << 20]));
    }

    fn make_room(&self) {
        fs::remove_file(self.0.data_dir().join("filler")).unwrap();
    }
}

fn mount(options: &[&str], path: &Path) {
    let status = Command::new("mount").args(options).arg(path).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_single_manager_on_a_full_disk_refuses_writes_and_goes_on_reading() {
    let lab = Lab::new(1).unwrap();
    let host = lab.host(1);
    let disk = SmallDisk::below(host, 256);
    host.start().unwrap();
    host.shoal(&["swarm", "init", "--advertise-addr", host.address()]).unwrap().ok().unwrap();
    let create = |name: &str| {
        host.shoal(&["service", "create", "-d", "--name", name, "--replicas", "0", IMAGE])
    };
    create("before").unwrap().ok().unwrap();
    disk.fill();
    let mut number = 0;
    wait_until("a write to be refused", LONG, || {
        number += 1;
        let error = create(&format!("s{number}"))?.failure()?;
        let path = host.data_dir();
        anyhow::ensure!(error.contains(&*path.to_string_lossy()), "no path in {error}");
        Ok(error.contains("bytes"))
    })
    .unwrap();
    let listed = host.shoal(&["service", "ls", "-q"]).unwrap().lines().unwrap();
    assert!(!listed.is_empty());
    disk.make_room();
    wait_until("writes to go on", LONG, || create("after")?.ok().map(|_| true)).unwrap();
}

#[test]
fn one_of_three_managers_on_a_full_disk_does_not_stop_the_cluster() {
    let lab = Lab::new(3).unwrap();
    let (first, full) = (lab.host(1), lab.host(2));
    let disk = SmallDisk::below(full, 256);
    for host in lab.hosts() {
        host.start().unwrap();
    }
    first.shoal(&["swarm", "init", "--advertise-addr", first.address()]).unwrap().ok().unwrap();
    for host in [full, lab.host(3)] {
        host.join(first, "manager").unwrap();
    }
    first.wait_for_nodes(3, LONG).unwrap();
    disk.fill();
    for number in 0..50 {
        let name = format!("s{number}");
        let args = ["service", "create", "-d", "--name", &name, "--replicas", "0", IMAGE];
        wait_until("the cluster to take writes", LONG, || first.shoal(&args)?.ok().map(|_| true))
            .unwrap();
    }
    disk.make_room();
    wait_until("the full one to catch up", LONG, || {
        if full.ended()?.is_some() {
            drop(full.stop());
            full.spawn()?;
        }
        Ok(full.shoal(&["service", "ls", "-q"])?.lines()?.len() == 50)
    })
    .unwrap();
    first.wait_for_nodes(3, LONG).unwrap();
}
