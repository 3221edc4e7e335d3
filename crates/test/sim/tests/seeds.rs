//! The seeds that every test run plays.
//!
//! A failing seed becomes a named test below, with what it showed.

use sim::{Plan, run};

/// Each quarter in a test of its own, so that both cores work.
fn play(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let outcome = run(Plan::new(seed));
        assert_eq!(outcome.violation, None, "cargo run -p sim -- --seed {seed}");
        assert!(outcome.entries >= 6, "seed {seed} did not even found its cluster");
    }
}

#[test]
fn seeds_1_to_50() {
    play(1..51);
}

#[test]
fn seeds_51_to_100() {
    play(51..101);
}

#[test]
fn seeds_101_to_150() {
    play(101..151);
}

#[test]
fn seeds_151_to_200() {
    play(151..201);
}

#[test]
fn a_seed_is_replayed_bit_for_bit() {
    let first = run(Plan::new(7));
    assert_eq!(first, run(Plan::new(7)));
    assert_ne!(first.digest, run(Plan::new(8)).digest);
}

/// A preparation that was cut short left the task's network behind when the task was deleted.
#[test]
fn a_deleted_task_leaves_nothing_though_its_preparation_failed() {
    play(22..23);
    play(40..41);
}
