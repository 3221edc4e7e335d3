//! One and several managers: elections, failures, members, catching up.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pki::Role;
use store::{Applied, MembershipError, OpenError, ProposeError, RaftStore, Tuning};
use support::{Cluster, id, join, leader, propose, remove, small_floor, value, wait};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_manager_keeps_its_state_over_restarts() {
    let cluster = Cluster::new(small_floor());
    let mut node = cluster.node(1).await;
    assert!(!node.store().is_initialized());
    assert!(matches!(
        node.store().propose(b"a=0".to_vec()).await,
        Err(ProposeError::NotLeader { leader: None })
    ));
    node.store().bootstrap().await.unwrap();
    assert!(matches!(node.store().bootstrap().await, Err(MembershipError::Initialized)));
    for round in 0..3 {
        let nodes = std::slice::from_ref(&node);
        for step in 0..20 {
            let index = propose(nodes, &format!("{round}.{step}=x")).await;
            assert!(*node.store().applied().borrow() >= index);
        }
        node.store().read_barrier().await.unwrap();
        assert_eq!(node.store().view().values.len(), (round + 1) * 20);
        node.kill().await;
        node.start(&cluster).await;
        assert!(node.store().is_initialized());
        assert_eq!(node.store().members().len(), 1);
        wait("replayed", || node.store().view().values.len() == (round + 1) * 20).await;
    }
    assert!(node.store().is_initialized());
    let large = node.store().propose(vec![b'='; 4 * 1024 * 1024]).await;
    assert!(matches!(large, Err(ProposeError::TooLarge { .. })));
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_have_what_the_leader_answered_and_name_the_leader() {
    let cluster = Cluster::new(small_floor());
    let mut nodes = cluster.managers(3).await;
    let index = propose(&nodes, "a=1").await;
    let first = leader(&nodes).await;
    for node in &nodes {
        node.store().applied().wait_for(|applied| *applied >= index).await.unwrap();
        assert_eq!(value(node, "a").as_deref(), Some("1"));
    }
    let follower = &nodes[(first + 1) % 3];
    wait("leader known", || follower.store().leadership().borrow().leader.is_some()).await;
    match follower.store().propose(b"b=1".to_vec()).await {
        Err(ProposeError::NotLeader { leader: Some(leader) }) => {
            assert_eq!(leader.raft_id, nodes[first].number);
            assert_eq!(leader.node, id(nodes[first].number));
            assert_eq!(leader.address, nodes[first].addr.to_string());
        }
        other => panic!("{other:?}"),
    }
    assert!(follower.store().read_barrier().await.is_err());
    nodes[first].store().read_barrier().await.unwrap();
    let members = nodes[first].store().members();
    assert_eq!(members.len(), 3);
    assert!(members.iter().all(|member| member.voter));
    for node in &mut nodes {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_replaced_and_catches_up_when_it_comes_back() {
    let cluster = Cluster::new(small_floor());
    let mut nodes = cluster.managers(3).await;
    for round in 0..3 {
        propose(&nodes, &format!("before{round}=x")).await;
        let lost = leader(&nodes).await;
        nodes[lost].kill().await;
        let begun = Instant::now();
        propose(&nodes, &format!("after{round}=x")).await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        nodes[lost].start(&cluster).await;
        let key = format!("after{round}");
        wait("caught up", || value(&nodes[lost], &key).is_some()).await;
    }
    for node in &mut nodes {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_managers_lost_at_once_come_back_with_everything() {
    let cluster = Cluster::new(small_floor());
    let mut nodes = cluster.managers(3).await;
    for number in 0..50 {
        propose(&nodes, &format!("{number}=x")).await;
    }
    for node in &mut nodes {
        node.kill().await;
    }
    for node in &mut nodes {
        node.start(&cluster).await;
    }
    propose(&nodes, "again=x").await;
    for node in &nodes {
        wait("all", || node.store().view().values.len() == 51).await;
    }
    for node in &mut nodes {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_stored_and_nobody_claims_to_lead() {
    let cluster = Cluster::new(small_floor());
    let mut nodes = cluster.managers(3).await;
    propose(&nodes, "a=1").await;
    let left = leader(&nodes).await;
    for (position, node) in nodes.iter_mut().enumerate() {
        if position != left {
            node.kill().await;
        }
    }
    let store = nodes[left].store().clone();
    let mut leadership = store.leadership();
    let limit = Duration::from_secs(10);
    let lost = leadership.wait_for(|now| !now.is_me && now.leader.is_none());
    tokio::time::timeout(limit, lost).await.unwrap().unwrap();
    let refused = store.propose(b"b=1".to_vec()).await;
    assert!(
        matches!(refused, Err(ProposeError::NoQuorum | ProposeError::NotLeader { leader: None })),
        "{refused:?}"
    );
    assert!(store.read_barrier().await.is_err());
    assert_eq!(value(&nodes[left], "a").as_deref(), Some("1"));
    assert_eq!(value(&nodes[left], "b"), None);
    for node in &mut nodes {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_manager_catches_up_by_snapshot() {
    let tuning = Tuning { snapshot_entries: 50, keep_entries: 5, ..small_floor() };
    let cluster = Cluster::new(tuning);
    let mut nodes = cluster.managers(1).await;
    let long = "v".repeat(20_000);
    for number in 0..200 {
        propose(&nodes, &format!("{number}={long}")).await;
    }
    wait("compacted", || {
        let metrics = nodes[0].store().metrics();
        metrics.snapshot_index >= 150 && metrics.log_entries < 100
    })
    .await;
    let new = cluster.node(2).await;
    join(&nodes, &new).await;
    nodes.push(new);
    wait("caught up", || nodes[1].store().view().values.len() == 200).await;
    assert!(nodes[1].store().metrics().snapshot_index >= 150);
    propose(&nodes, "more=x").await;
    nodes[1].kill().await;
    nodes[1].start(&cluster).await;
    propose(&nodes, "again=x").await;
    wait("again", || value(&nodes[1], "again").is_some()).await;
    assert_eq!(nodes[0].store().view().values, nodes[1].store().view().values);
    for node in &mut nodes {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_large_entries_are_compacted_too() {
    let tuning = Tuning { snapshot_bytes: 2 * 1024 * 1024, ..small_floor() };
    let cluster = Cluster::new(tuning);
    let mut nodes = cluster.managers(1).await;
    let long = "v".repeat(500_000);
    for number in 0..12 {
        propose(&nodes, &format!("{number}={long}")).await;
    }
    wait("compacted", || nodes[0].store().metrics().log_bytes < 2 * 1024 * 1024).await;
    assert!(nodes[0].store().metrics().snapshot_bytes > 2_000_000);
    nodes[0].kill().await;
    nodes[0].start(&cluster).await;
    wait("restored", || nodes[0].store().view().values.len() == 12).await;
    nodes[0].kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_removed_while_a_majority_of_the_rest_is_reachable() {
    let cluster = Cluster::new(small_floor());
    let mut nodes = cluster.managers(3).await;
    assert!(matches!(remove(&nodes, 77).await, Err(MembershipError::NotFound)));
    let first = leader(&nodes).await;
    let lost = (first + 1) % 3;
    nodes[lost].kill().await;
    let number = nodes[(first + 2) % 3].number;
    wait("noticed", || {
        let members = nodes[first].store().members();
        members.iter().any(|member| member.reachable == Some(false))
    })
    .await;
    let refused = remove(&nodes, number).await;
    assert!(matches!(refused, Err(MembershipError::LossOfQuorum { .. })), "{refused:?}");
    remove(&nodes, nodes[lost].number).await.unwrap();
    assert_eq!(nodes[leader(&nodes).await].store().members().len(), 2);
    // The leader hands over before it is removed.
    let first = leader(&nodes).await;
    remove(&nodes, nodes[first].number).await.unwrap();
    nodes[first].kill().await;
    let last = leader(&nodes).await;
    let refused = remove(&nodes, nodes[last].number).await;
    assert!(matches!(refused, Err(MembershipError::LastManager)), "{refused:?}");
    propose(&nodes, "alone=x").await;
    for node in &mut nodes {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_when_asked() {
    let cluster = Cluster::new(small_floor());
    let mut nodes = cluster.managers(3).await;
    propose(&nodes, "a=1").await;
    let before = leader(&nodes).await;
    nodes[before].store().transfer_leader().await.unwrap();
    assert!(!nodes[before].store().leadership().borrow().is_me);
    propose(&nodes, "b=1").await;
    let (from, to) = (leader(&nodes).await, before);
    let store = nodes[from].store();
    assert!(matches!(store.transfer_leader_to(77).await, Err(MembershipError::NotFound)));
    match store.transfer_leader_to(nodes[to].number).await {
        Ok(()) => assert!(!store.leadership().borrow().is_me),
        // On a busy machine the third may be quicker than the target.
        Err(MembershipError::NotLeader { leader: Some(leader) }) => {
            assert_ne!(leader.raft_id, nodes[from].number);
        }
        Err(error) => panic!("{error}"),
    }
    propose(&nodes, "c=1").await;
    for node in &mut nodes {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_is_not_known_stops_the_manager_with_the_reason() {
    let cluster = Cluster::new(small_floor());
    let mut nodes = cluster.managers(1).await;
    let store = nodes[0].store().clone();
    let mut halted = store.halted();
    assert!(store.propose(b"halt".to_vec()).await.is_err());
    let told = halted.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(told.contains("change \"halt\" is not known"), "{told}");
    match store.propose(b"a=1".to_vec()).await {
        Err(ProposeError::Halted(reason)) => assert_eq!(reason, told),
        other => panic!("{other:?}"),
    }
    let mut leadership = store.leadership();
    leadership.wait_for(|now| !now.is_me && !now.ready).await.unwrap();
    nodes[0].kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_told_in_order_and_found_in_the_view() {
    let cluster = Cluster::new(small_floor());
    let node = cluster.node(1).await;
    let dir = tempfile::tempdir().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&told);
    let tls = cluster.tls(2, Role::Manager);
    let mut options = cluster.options(2, "127.0.0.1:1".parse().unwrap(), dir.path(), tls);
    options.on_apply = Box::new(move |applied| {
        if let Applied::Entry { index, reply } = applied {
            assert_eq!(index, *reply);
            hook.lock().unwrap().push(index);
        }
    });
    let store = RaftStore::open(options).await.unwrap();
    store.bootstrap().await.unwrap();
    let proposals = (0..200).map(|number| store.propose(format!("{number}=x").into_bytes()));
    let replies = futures::future::try_join_all(proposals).await.unwrap();
    assert!(replies.windows(2).all(|pair| pair[0] < pair[1]), "order of first poll");
    assert_eq!(*told.lock().unwrap(), replies);
    store.shutdown().await;
    drop(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_manager_or_key_is_refused() {
    let cluster = Cluster::new(small_floor());
    let mut node = cluster.node(1).await;
    node.store().bootstrap().await.unwrap();
    node.kill().await;
    let open = |number: u64, key: u8| {
        let tls = cluster.tls(number, Role::Manager);
        let mut options = cluster.options(number, node.addr, node.dir.path(), tls);
        options.key = pki::DataKey::from_bytes([key; 32]);
        RaftStore::open(options)
    };
    assert!(matches!(open(2, 1).await.err(), Some(OpenError::Identity(_))));
    assert!(matches!(open(1, 9).await.err(), Some(OpenError::Log(store::WalError::Key(_)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_joins_while_many_write() {
    let tuning = Tuning { snapshot_entries: 300, keep_entries: 50, ..small_floor() };
    let cluster = Cluster::new(tuning);
    let mut nodes = cluster.managers(1).await;
    let store = nodes[0].store().clone();
    let writing = tokio::spawn(async move {
        for round in 0..40 {
            let proposals =
                (0..50).map(|number| store.propose(format!("{round}.{number}=x").into()));
            futures::future::try_join_all(proposals).await.unwrap();
        }
    });
    let new = cluster.node(2).await;
    join(&nodes, &new).await;
    nodes.push(new);
    writing.await.unwrap();
    wait("everything", || nodes[1].store().view().values.len() == 2_000).await;
    for node in &mut nodes {
        node.kill().await;
    }
}
