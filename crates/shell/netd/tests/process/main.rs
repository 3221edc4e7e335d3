//! The real process, started by this very binary, with real namespaces and sockets.
//!
//! Needs root. Arguments select tests by part of their name, `--list` prints the names.

#![allow(clippy::unwrap_used)] // A test: see the lints of the workspace.

mod forwarding;
mod life;
mod names;
mod ports;
mod support;
mod tunnels;

use std::process::ExitCode;

use testkit::{Test, run_tests};

fn main() -> ExitCode {
    netd::run_if_netd();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tests: Vec<Test> =
        [names::TESTS, life::TESTS, ports::TESTS, forwarding::TESTS, tunnels::TESTS].concat();
    // Ports of a host of its own: nothing else runs there.
    run_tests(&args, &tests, support::enter_new_space, || ())
}
