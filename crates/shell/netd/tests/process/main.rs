//! The real process, started by this very binary, with real namespaces and sockets.
//!
//! Needs root. Arguments select tests by part of their name, `--list` prints the names.

#![allow(clippy::unwrap_used)] // A test: see the lints of the workspace.

mod forwarding;
mod life;
mod names;
mod ports;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    netd::run_if_netd();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tests: Vec<Test> = [names::TESTS, life::TESTS, ports::TESTS, forwarding::TESTS].concat();
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in &tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    // Ports of a host of its own: nothing else runs there.
    support::enter_new_space();
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
    println!("test result: {passed} passed; {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
