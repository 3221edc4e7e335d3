//! Definitions of the commands about this node and this program.
//!
//! Owns: names, options, help. Does not know: what a command does.
//! Invariant: none of them changes anything.

use clap::Subcommand;
use clap_complete::Shell;

#[derive(clap::Args, Debug)]
pub(crate) struct Info {
    /// Print with a Go template, or `json`
    #[arg(short, long, value_name = "TEMPLATE")]
    pub(crate) format: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Version {
    /// Print with a Go template, or `json`
    #[arg(short, long, value_name = "TEMPLATE")]
    pub(crate) format: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Completion {
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: Shell,
}

#[derive(Subcommand, Debug)]
pub(crate) enum System {
    /// Connect standard input and output to the daemon's socket (for -H ssh://)
    DialStdio,
}
