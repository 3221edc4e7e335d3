//! Decisions as text: a fixture in, the plan out.

use base::IdSource;
use state::{Ctx, Decider};
use testkit::{assert_text, fixture, print_plan, service_id};

use crate::Orchestrator;

fn check(text: &str, want: &str) {
    let fixture = fixture(text);
    let mut ids = IdSource::new(1);
    let mut ctx = Ctx { view: &fixture.view, now: fixture.now, ids: &mut ids };
    let plan = Orchestrator::decide(&mut ctx, service_id("web"));
    assert_text(&print_plan(&fixture.view, &plan), want);
}

#[test]
fn a_new_service_gets_its_slots_in_one_change() {
    check(
        "now 12:00:00
         node a ready
         service web replicas=5",
        "create web.1..5 running
         note scaled-up web 0 -> 5",
    );
}

#[test]
fn free_slot_numbers_are_filled_first() {
    check(
        "now 12:00:00
         node a ready
         service web replicas=4
         task web.2 @a running
         task web.5 @a running",
        "create web.1 web.3 running
         note scaled-up web 2 -> 4",
    );
}

#[test]
fn scale_down_prefers_crowded_nodes() {
    check(
        "now 12:00:00
         node a ready
         node b ready
         service web replicas=2
         task web.1 @a running
         task web.2 @a running
         task web.3 @b running",
        "remove web.2        # second copy on a
         note scaled-down web 3 -> 2",
    );
}

#[test]
fn scale_down_takes_what_does_not_run_first() {
    check(
        "now 12:00:00
         node a ready
         node b ready
         service web replicas=2
         task web.1 @a starting
         task web.2 @b running
         task web.3 @b running",
        "remove web.1
         note scaled-down web 3 -> 2",
    );
}

#[test]
fn a_removed_service_stops_its_tasks_and_deletes_what_never_ran() {
    check(
        "now 12:00:00
         node a ready
         service web replicas=3
         task web.1 @a running
         task web.2 pending
         task web.3 @a failed
         gone web",
        "remove web.1
         delete web.2 web.3",
    );
}

#[test]
fn an_ended_task_is_replaced_after_the_delay() {
    check(
        "now 12:00:00
         node a ready
         service web replicas=1 delay=5s
         task web.1 @a failed exit=1",
        "create web.1 ready
         shutdown web.1
         tally web.1 attempts=1 resume=12:00:05
         wake 12:00:05",
    );
}

#[test]
fn failures_in_a_row_wait_longer_each_time() {
    check(
        "now 12:00:00
         node a ready
         service web replicas=1 delay=5s
         tally web.1 attempts=5 resume=11:59:50
         task web.1 @a failed age=10s",
        "create web.1 ready
         shutdown web.1
         tally web.1 attempts=6 resume=12:00:40
         reason web task-failing x1 task web.1 keeps ending: the task has ended
         wake 12:00:40",
    );
}

#[test]
fn a_task_that_may_not_restart_stays_and_the_service_says_so() {
    check(
        "now 12:00:00
         node a ready
         service web replicas=1 restart=none
         task web.1 @a failed",
        "reason web task-failing x1 task web.1 has ended and is not restarted: the task has ended",
    );
    check(
        "now 12:00:00
         node a ready
         service web replicas=1 restart=on-failure
         task web.1 @a complete",
        "",
    );
}

#[test]
fn a_replacement_waits_for_its_time_and_its_predecessor() {
    let base = "now 12:00:00
         node a ready
         service web replicas=1
         tally web.1 attempts=1 resume=12:00:03
         task web.1 @a running desired=shutdown
         task web.1 @a ready desired=ready age=2s";
    check(
        base,
        "reason web task-failing x1 task web.1 keeps ending
         wake 12:00:03",
    );
    check(
        &base.replace("resume=12:00:03", "resume=11:59:00"),
        "reason web task-failing x1 task web.1 keeps ending
         wake 12:01:08",
    );
    check(
        &base.replace("resume=12:00:03", "resume=11:59:00").replace("@a running", "@a shutdown"),
        "running web.1
         reason web task-failing x1 task web.1 keeps ending",
    );
}

#[test]
fn tasks_leave_drained_and_down_nodes_at_once() {
    check(
        "now 12:00:00
         node a down
         node b ready drain
         node c ready
         service web replicas=3
         task web.1 @a running
         task web.2 @b running
         task web.3 @c running",
        "create web.1..2 ready
         shutdown web.1 web.2
         note displaced web task web.1 leaves its node
         note displaced web task web.2 leaves its node",
    );
}

#[test]
fn a_task_leaves_a_node_that_no_longer_satisfies_its_constraints() {
    check(
        "now 12:00:00
         node a ready label.zone=y
         service web replicas=1 constraint=node.labels.zone==x
         task web.1 @a running",
        "create web.1 ready
         shutdown web.1
         note displaced web task web.1 leaves its node",
    );
}

#[test]
fn global_services_have_a_task_on_every_eligible_node() {
    check(
        "now 12:00:00
         node a ready label.zone=x
         node b ready label.zone=x drain
         node c ready label.zone=x pause
         node d ready
         node e ready label.zone=x
         service web global constraint=node.labels.zone==x
         task web.b @b running
         task web.c @c running
         task web.d @d running
         task web.e @e running",
        "create web.a running
         shutdown web.b web.d",
    );
}

#[test]
fn a_global_task_on_a_down_node_waits_for_it() {
    check(
        "now 12:00:00
         node a down
         service web global
         task web.a @a running",
        "",
    );
}

#[test]
fn an_update_replaces_one_slot_at_a_time() {
    let base = "now 12:00:00
         node a ready
         service web replicas=3
         change web image=nginx:2
         task web.1 @a running rev=old
         task web.2 @a running rev=old
         task web.3 @a running rev=old";
    check(
        base,
        "create web.1 ready
         shutdown web.1
         update web updating update in progress
         note updating web 3 slots left",
    );
    let mid = base.replace("task web.1 @a running rev=old", "task web.1 @a starting");
    check(&mid, "update web updating update in progress");
}

#[test]
fn a_changed_placement_moves_only_what_must_move() {
    check(
        "now 12:00:00
         node a ready label.zone=x
         node b ready
         service web replicas=2
         change web constraint=node.labels.zone==x
         task web.1 @a running rev=old
         task web.2 @b running rev=old",
        "create web.2 ready
         shutdown web.2
         update web updating update in progress
         note updating web 1 slots left",
    );
}

#[test]
fn an_update_pauses_when_its_task_fails() {
    check(
        "now 12:00:00
         node a ready
         service web replicas=2 restart=none
         change web image=broken
         task web.1 @a rejected
         task web.2 @a running rev=old",
        "update web paused update paused due to failure or early termination of task web.1
         reason web task-failing x1 task web.1 has ended and is not restarted: the task has ended",
    );
}

#[test]
fn history_is_kept_up_to_the_limit() {
    check(
        "now 12:00:00
         limit 1
         node a ready
         service web replicas=1
         task web.1 @a failed desired=shutdown
         task web.1 @a failed desired=shutdown
         task web.1 @a failed desired=shutdown
         task web.1 @a running",
        "delete web.1 web.1",
    );
}

#[test]
fn a_task_being_removed_is_deleted_once_it_has_stopped() {
    check(
        "now 12:00:00
         node a ready
         service web replicas=1
         task web.1 @a running
         task web.2 @a shutdown desired=remove
         task web.3 @a running desired=remove
         task web.4 pending desired=remove
         task web.5 @lost running desired=remove",
        "delete web.2 web.4 web.5",
    );
}

#[test]
fn a_surplus_task_of_a_slot_is_stopped() {
    check(
        "now 12:00:00
         node a ready
         node b ready
         service web replicas=1
         task web.1 @a running
         task web.1 @b running",
        "shutdown web.1",
    );
}

#[test]
fn a_task_given_up_on_a_down_node_is_replaced_elsewhere_or_once_the_node_is_back() {
    check(
        "now 12:00:00
         node a down
         node b ready
         service web replicas=1
         task web.1 @a orphaned",
        "create web.1 ready
         shutdown web.1",
    );
    let global = |state: &str| {
        format!(
            "now 12:00:00
             node a {state}
             node b ready
             service web global
             task web.a orphaned
             task web.b running"
        )
    };
    check(&global("down"), "");
    check(
        &global("ready"),
        "create web.a ready
         shutdown web.a",
    );
}

/// A slot whose first task has failed and whose second one waits; before it, one known reason.
fn failing(reason: &str) -> String {
    format!(
        "now 12:00:00
         node a ready
         service web replicas=1 delay=60s
         {reason}
         tally web.1 attempts=1 resume=12:00:30
         task web.1 @a failed desired=shutdown age=30s
         task web.1 @a accepted desired=ready age=20s"
    )
}

const FAILS: &str = "task web.1 keeps ending: the task has ended";

#[test]
fn a_reason_of_another_code_is_written_at_once() {
    let written = format!("reason web task-failing x1 {FAILS}\nwake 12:00:30");
    for known in ["", "reason web orchestrator update-paused since=12:00:00 count=1 paused"] {
        check(&failing(known), &written);
    }
}

#[test]
fn a_reason_of_the_same_code_is_rewritten_every_five_seconds_at_most() {
    let known = |since: &str, count: u64, text: &str| {
        format!("reason web orchestrator task-failing since={since} count={count} {text}")
    };
    for (known, want) in [
        (known("11:00:00", 1, FAILS), "wake 12:00:30".to_owned()),
        (known("11:59:56", 1, "another text"), "wake 12:00:01".to_owned()),
        (known("11:59:56", 2, FAILS), "wake 12:00:01".to_owned()),
        (known("11:59:55", 2, FAILS), format!("reason web task-failing x1 {FAILS}\nwake 12:00:30")),
    ] {
        check(&failing(&known), &want);
    }
}

#[test]
fn a_reason_goes_when_the_task_has_run_for_a_while() {
    let text = |age: &str| {
        format!(
            "now 12:00:00
             node a ready
             service web replicas=1
             reason web orchestrator task-failing since=11:00:00 count=1 {FAILS}
             tally web.1 attempts=3
             task web.1 @a failed desired=shutdown age=90s
             task web.1 @a running age={age}"
        )
    };
    check(&text("9s"), "wake 12:00:01");
    check(&text("10s"), "reason web cleared");
}

#[test]
fn a_reason_counts_the_slots_that_fail_and_names_the_first() {
    check(
        "now 12:00:00
         node a ready
         service web replicas=3 restart=none
         task web.1 @a running
         task web.2 @a failed
         task web.3 @a rejected",
        "reason web task-failing x2 task web.2 has ended and is not restarted: the task has ended",
    );
}
