//! A file system that is full: on a single manager, and on one of three.
//!
//! Needs the right to mount; the file systems are small and in memory.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use store::{ProposeError, Space, Tuning};
use support::{Cluster, Node, leader, propose, small_floor, value, wait};
use tempfile::TempDir;

/// A small file system over a directory, unmounted when dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn over(dir: &Path, mebibytes: u64) -> Self {
        run("mount", &["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "none", text(dir)]);
        Self(dir.to_owned())
    }

    /// Leaves at most `mebibytes` free. The store may take space meanwhile, for its next segment:
    /// what is free is looked at before each piece.
    fn fill(&self, mebibytes: u64) {
        let mut ballast = std::fs::File::create(self.0.join("ballast")).unwrap();
        loop {
            let stat = rustix::fs::statvfs(&self.0).unwrap();
            let surplus = (stat.f_bavail * stat.f_frsize).saturating_sub(mebibytes << 20);
            let piece = vec![1; surplus.min(1 << 20) as usize];
            match ballast.write_all(&piece) {
                Ok(()) if surplus > 0 => {}
                Ok(()) => break,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::StorageFull),
            }
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").args(["-l", text(&self.0)]).status());
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program}");
}

fn tuning() -> Tuning {
    Tuning { free_bytes_floor: 20 << 20, ..small_floor() }
}

async fn manager(cluster: &Cluster, number: u64) -> (Small, Node) {
    let dir: TempDir = tempfile::tempdir().unwrap();
    let small = Small::over(dir.path(), 120);
    (small, cluster.node_in(number, dir).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_manager_refuses_writes_reads_on_and_recovers_by_itself() {
    let cluster = Cluster::new(tuning());
    let (small, mut node) = manager(&cluster, 1).await;
    node.store().bootstrap().await.unwrap();
    let nodes = std::slice::from_ref(&node);
    propose(nodes, "before=x").await;
    small.fill(10);
    let mut space = node.store().space();
    space.wait_for(|space| *space != Space::Enough).await.unwrap();
    match node.store().propose(b"full=x".to_vec()).await {
        Err(ProposeError::NoSpace { path, missing_bytes }) => {
            assert!(path.starts_with(node.dir.path()), "{}", path.display());
            assert!((1 << 20..64 << 20).contains(&missing_bytes), "{missing_bytes}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(value(&node, "before").as_deref(), Some("x"));
    node.store().read_barrier().await.unwrap();
    assert!(node.store().halted().borrow().is_none());
    small.empty();
    space.wait_for(|space| *space == Space::Enough).await.unwrap();
    propose(nodes, "after=x").await;
    node.kill().await;
    node.start(&cluster).await;
    wait("restarted", || value(&node, "after").is_some()).await;
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_gives_up_before_space_ends_and_catches_up_with_room_again() {
    let cluster = Cluster::new(tuning());
    let (small, first) = manager(&cluster, 1).await;
    first.store().bootstrap().await.unwrap();
    let mut nodes = vec![first];
    for number in 2..=3 {
        let node = cluster.node(number).await;
        support::join(&nodes, &node).await;
        nodes.push(node);
    }
    assert_eq!(leader(&nodes).await, 0);
    propose(&nodes, "before=x").await;
    small.fill(1);
    let mut leadership = nodes[0].store().leadership();
    let gone = leadership.wait_for(|now| !now.is_me && now.leader.is_some());
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap().unwrap();
    // More than the full disk has room for: the follower falls behind, and is not lost.
    let long = "v".repeat(1 << 20);
    for number in 0..48 {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let text = format!("{number}={long}").into_bytes();
            match nodes[leader(&nodes[1..]).await + 1].store().propose(text).await {
                Ok(_) => break,
                Err(ProposeError::NotLeader { .. } | ProposeError::NoQuorum) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(std::time::Instant::now() < deadline);
        }
    }
    assert!(nodes[0].store().halted().borrow().is_none());
    assert!(!nodes[0].store().leadership().borrow().is_me);
    assert_eq!(value(&nodes[0], "before").as_deref(), Some("x"));
    small.empty();
    wait("caught up", || value(&nodes[0], "47").is_some()).await;
    let members = nodes[leader(&nodes).await].store().members();
    assert_eq!(members.len(), 3);
    for node in &mut nodes {
        node.kill().await;
    }
}
