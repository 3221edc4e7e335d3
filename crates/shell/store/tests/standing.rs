//! A manager that may not lead gives up leadership, and is elected by nobody.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::{Cluster, leader, propose, small_floor, wait};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_stand_leads_only_when_it_may_again() {
    let cluster = Cluster::new(small_floor());
    let mut nodes = cluster.managers(3).await;
    let first = leader(&nodes).await;
    nodes[first].store().set_stands(false);
    let mut leadership = nodes[first].store().leadership();
    let gone = leadership.wait_for(|now| !now.is_me && now.leader.is_some());
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap().unwrap();
    propose(&nodes, "handed=over").await;

    // Of the two that are left only the other one may lead.
    let second = leader(&nodes).await;
    assert_ne!(second, first);
    nodes[second].kill().await;
    let third = 3 - first - second;
    let store = nodes[third].store().clone();
    wait("the other one leads", || store.leadership().borrow().is_me).await;
    nodes[second].start(&cluster).await;

    // When neither of the others may, they come to it, though one of them asks the other first.
    nodes[first].store().set_stands(true);
    nodes[second].store().set_stands(false);
    nodes[third].store().set_stands(false);
    let store = nodes[first].store().clone();
    let mut leadership = store.leadership();
    let leads = leadership.wait_for(|now| now.is_me);
    tokio::time::timeout(Duration::from_secs(60), leads).await.unwrap().unwrap();
    for node in &mut nodes {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_in_which_nobody_is_to_lead_gets_a_leader_after_the_patience() {
    let patience = base::Millis::from_secs(2);
    let cluster = Cluster::new(store::Tuning { leaderless_patience: patience, ..small_floor() });
    let mut nodes = cluster.managers(3).await;
    let first = leader(&nodes).await;
    let others: Vec<usize> = (0..3).filter(|node| *node != first).collect();
    others.iter().for_each(|other| nodes[*other].store().set_stands(false));
    let begun = std::time::Instant::now();
    nodes[first].kill().await;
    let second = leader(&nodes).await;
    assert!(begun.elapsed() >= patience.as_duration(), "{:?}", begun.elapsed());

    // It goes on to lead, until somebody does who may.
    propose(&nodes, "needed=x").await;
    tokio::time::sleep(patience.as_duration()).await;
    assert!(nodes[second].store().leadership().borrow().is_me);
    for node in &mut nodes {
        node.kill().await;
    }
}
