//! One binary: daemon, command line, container shim and netd.
//!
//! Owns: which of them this process is, and the wiring of the daemon.
//! Does not know: business rules. Invariant: shim and netd branch off before any thread exists.

mod address;
mod clock;
mod config;
mod daemon;
mod describe;
mod gate;
mod instance;
mod join;
mod local;
mod manager_part;
mod metrics;
mod network_keys;
mod networks;
mod node;
mod settings;
mod socket;
mod udp_ports;

use std::process::ExitCode;

use cli::{Build, Invocation};
use tikv_jemallocator::Jemalloc;

/// Tables of a million tasks free thousands of small nodes with each change; glibc sorts them all
/// at the next large request, which made scheduling three times slower.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const BUILD: Build = Build {
    version: env!("CARGO_PKG_VERSION"),
    commit: match option_env!("SHOAL_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    },
};

fn main() -> ExitCode {
    shim::run_if_shim();
    netd::run_if_netd();
    match cli::parse(BUILD) {
        Ok(Invocation::Daemon(args)) => match daemon::main(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("shoal daemon: {error:#}");
                ExitCode::FAILURE
            }
        },
        Ok(Invocation::Client(client)) => client.run(BUILD),
        Err(code) => code,
    }
}
