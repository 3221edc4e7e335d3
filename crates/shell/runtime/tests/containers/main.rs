//! Real containers, made by this very binary: it is the tests, the shim and the probe inside.
//!
//! Needs root. Runs on cgroup v1, hybrid and v2; arguments select tests by part of their name,
//! `--list` prints the names.

#![allow(unsafe_code, clippy::unwrap_used)] // A test: see the lints of the workspace.

mod images;
mod life;
mod logs;
mod probe;
mod registry;
mod security;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    shim::run_if_shim();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == probe::SUBCOMMAND) {
        return probe::run(&args[1..]);
    }
    let tests: Vec<Test> =
        [life::TESTS, logs::TESTS, security::TESTS, images::TESTS, registry::TESTS].concat();
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in &tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let selected = tests
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| name.contains(*w)));
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in selected {
        let begin = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(test));
        let words = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {words} ({} ms)", begin.elapsed().as_millis());
        match result {
            Ok(()) => passed += 1,
            Err(_) => failed.push(*name),
        }
    }
    support::remove_template();
    println!("test result: {passed} passed; {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
