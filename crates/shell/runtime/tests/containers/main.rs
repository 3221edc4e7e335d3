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

use std::process::ExitCode;

use testkit::{Test, run_tests};

fn main() -> ExitCode {
    shim::run_if_shim();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == probe::SUBCOMMAND) {
        return probe::run(&args[1..]);
    }
    let tests: Vec<Test> =
        [life::TESTS, logs::TESTS, security::TESTS, images::TESTS, registry::TESTS].concat();
    run_tests(&args, &tests, || (), support::remove_template)
}
