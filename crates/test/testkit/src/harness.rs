//! Running tests of a program that has to be its own `main`.
//!
//! Owns: which tests the arguments select, and the lines that are printed of them.
//! Does not know: the tests. Invariant: a test that panics fails, and the others run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// A name and what it runs.
pub type Test = (&'static str, fn());

/// Runs the tests that `args` select by a part of their name, or lists them with `--list`.
/// `before` and `after` are called once around them.
pub fn run_tests(args: &[String], tests: &[Test], before: fn(), after: fn()) -> ExitCode {
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    before();
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
    after();
    println!("test result: {passed} passed; {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
