//! Runs seeds of the simulation: `cargo run -p sim -- --seed N` replays one bit for bit.
//!
//! Owns: the command line. Invariant: exits with 1 when an invariant was violated.

use std::io::Write as _;
use std::process::ExitCode;

use base::Millis;
use clap::Parser;
use sim::{Plan, run};

/// Runs the cluster's own loops under faults, in virtual time.
#[derive(Parser)]
struct Args {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, counting up
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Simulated seconds with faults
    #[arg(long, default_value_t = 60)]
    chaos: u64,
    /// Shows the log of the loops (as RUST_LOG does)
    #[arg(long)]
    log: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(log) = &args.log {
        let filter = tracing_subscriber::EnvFilter::new(log);
        tracing_subscriber::fmt().with_env_filter(filter).without_time().init();
    }
    let mut failed = 0_u64;
    for seed in args.seed..args.seed.saturating_add(args.count) {
        let plan = Plan { chaos: Millis::from_secs(args.chaos), ..Plan::new(seed) };
        let outcome = run(plan);
        let verdict = outcome.violation.as_deref().unwrap_or("ok");
        // A reader that has gone away does not end the run.
        let _ = writeln!(
            std::io::stdout(),
            "seed {seed}: {verdict} (digest {:016x}, {} entries, {} events)",
            outcome.digest,
            outcome.entries,
            outcome.faults
        );
        failed += u64::from(outcome.violation.is_some());
    }
    let _ = writeln!(std::io::stdout(), "{} seeds, {failed} failed", args.count);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
