//! Placements as text.

use base::IdSource;
use state::{Ctx, Decider};
use testkit::{assert_text, fixture, print_plan};

use crate::Scheduler;

fn check(text: &str, want: &str) {
    let fixture = fixture(&format!("now 12:00:00\n{text}"));
    let mut ids = IdSource::new(1);
    let mut ctx = Ctx { view: &fixture.view, now: fixture.now, ids: &mut ids };
    let plan = Scheduler::decide(&mut ctx, ());
    assert_text(&print_plan(&fixture.view, &plan), want);
}

#[test]
fn tasks_spread_evenly_and_fill_the_least_loaded_node_first() {
    check(
        "node a ready
         node b ready
         node c ready
         service db replicas=1
         task db.1 @a running
         service web replicas=4
         task web.1 pending
         task web.2 pending
         task web.3 pending
         task web.4 pending",
        "assign web.1@b web.2@c web.3@a web.4@b",
    );
}

#[test]
fn own_tasks_count_before_all_tasks() {
    check(
        "node a ready
         node b ready
         service db replicas=3
         task db.1 @b running
         task db.2 @b running
         service web replicas=2
         task web.1 @a running
         task web.2 pending",
        "assign web.2@b",
    );
}

#[test]
fn each_filter_explains_itself() {
    check(
        "node a down
         node b ready drain
         node c ready cpu=1
         node d ready label.zone=x cpu=0.1
         node e ready label.zone=x arch=aarch64
         node f ready label.zone=x
         service web replicas=2 constraint=node.labels.zone==x reserve.cpu=0.5 platform=amd64 max=1
         task web.1 @f running
         task web.2 pending",
        "reason web no-suitable-node x1 no suitable node (2 nodes not available for new tasks; \
         insufficient resources on 1 node; scheduling constraints not satisfied on 1 node; \
         unsupported platform on 1 node; max replicas per node limit exceed on 1 node)
         note unplaced web 1 tasks: no suitable node (2 nodes not available for new tasks; \
         insufficient resources on 1 node; scheduling constraints not satisfied on 1 node; \
         unsupported platform on 1 node; max replicas per node limit exceed on 1 node)",
    );
}

#[test]
fn a_plan_counts_its_own_placements() {
    check(
        "node a ready cpu=1
         node b ready cpu=0.5
         service web replicas=4 reserve.cpu=0.5
         task web.1 pending
         task web.2 pending
         task web.3 pending
         task web.4 pending",
        "assign web.1@a web.2@b web.3@a
         reason web no-suitable-node x1 no suitable node (insufficient resources on 2 nodes)
         note unplaced web 1 tasks: no suitable node (insufficient resources on 2 nodes)",
    );
}

#[test]
fn preferences_even_out_the_branches() {
    check(
        "node a ready label.zone=x
         node b ready label.zone=x
         node c ready label.zone=x
         node d ready label.zone=y
         service web replicas=4 spread=node.labels.zone
         task web.1 pending
         task web.2 pending
         task web.3 pending
         task web.4 pending",
        "assign web.1@a web.2@d web.3@b web.4@d",
    );
}

#[test]
fn a_node_where_the_template_failed_is_tried_last() {
    check(
        "node a ready
         node b ready
         service web replicas=2
         tally web.1 attempts=1
         task web.1 @a rejected desired=shutdown
         task web.1 pending
         task web.2 @b running",
        "assign web.1@b",
    );
}

#[test]
fn nodes_that_have_the_image_are_preferred() {
    check(
        "node a ready
         node b ready image=docker.io/library/mine:1
         service web replicas=1 image=mine:1
         task web.1 pending",
        "assign web.1@b",
    );
}

#[test]
fn global_tasks_are_confirmed_on_their_node() {
    check(
        "node a ready
         node b ready cpu=0.1
         service web global reserve.cpu=0.5
         task web.a pending
         task web.b pending",
        "assign web.a@a
         reason web no-suitable-node x1 no suitable node (insufficient resources on 1 node)
         note unplaced web 1 tasks: no suitable node (insufficient resources on 1 node)",
    );
}

#[test]
fn an_empty_queue_is_no_work() {
    check("node a ready\nservice web replicas=1\ntask web.1 @a running", "");
}

#[test]
fn no_nodes_at_all_is_said_so() {
    check(
        "service web replicas=1\ntask web.1 pending",
        "reason web no-suitable-node x1 no suitable node (the cluster has no nodes)
         note unplaced web 1 tasks: no suitable node (the cluster has no nodes)",
    );
}

#[test]
fn replicas_that_cannot_be_placed_do_not_ask_again_at_once() {
    let fixture = testkit::fixture(
        "node a ready cpu=0.1
         service web replicas=4 reserve.cpu=0.5
         task web.1 pending
         task web.2 pending
         task web.3 pending
         task web.4 pending",
    );
    let mut ids = base::IdSource::new(1);
    let mut ctx = Ctx { view: &fixture.view, now: fixture.now, ids: &mut ids };
    let plan = crate::decide_queue(&mut ctx, 2);
    assert!(!plan.more, "the other replicas lack the same");
    assert!(plan.notes.iter().any(|note| note.text.starts_with("web 4 tasks:")), "{plan:?}");
}

#[test]
fn a_reason_is_written_once_rewritten_rarely_and_taken_back() {
    let text = |known: &str, node: &str| {
        format!(
            "node a {node}
             service web replicas=1
             {known}
             task web.1 pending"
        )
    };
    let message = "no suitable node (1 node not available for new tasks)";
    let note = format!("note unplaced web 1 tasks: {message}");
    let known = |since: &str, count: u64, message: &str| {
        format!("reason web scheduler no-suitable-node since={since} count={count} {message}")
    };
    let written = format!("reason web no-suitable-node x1 {message}\n{note}");
    for (known, node, want) in [
        (String::new(), "down", written.clone()),
        (known("11:00:00", 1, message), "down", note.clone()),
        (known("11:59:56", 2, message), "down", format!("wake 12:00:01\n{note}")),
        (known("11:59:56", 1, "another"), "down", format!("wake 12:00:01\n{note}")),
        (known("11:59:55", 2, message), "down", written),
        (known("11:59:59", 1, message), "ready", "assign web.1@a\nreason web cleared".into()),
    ] {
        check(&text(&known, node), &want);
    }
}

#[test]
fn the_reason_of_a_service_without_waiting_tasks_goes() {
    check(
        "node a ready
         service web replicas=1
         reason web scheduler no-suitable-node since=11:59:59 count=1 gone by
         reason web orchestrator task-failing since=11:59:59 count=1 stays
         task web.1 @a running",
        "reason web cleared",
    );
}

#[test]
fn a_global_task_may_take_all_of_its_node() {
    check(
        "node a ready cpu=2
         node b ready cpu=2
         service db replicas=1 reserve.cpu=0.5
         task db.1 @b running
         service web global reserve.cpu=2
         task web.a pending
         task web.b pending",
        "assign web.a@a
         reason web no-suitable-node x1 no suitable node (insufficient resources on 1 node)
         note unplaced web 1 tasks: no suitable node (insufficient resources on 1 node)",
    );
}
