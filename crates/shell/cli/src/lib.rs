//! The command line: every command, its options, its output and its progress.
//!
//! Owns: the clap definitions (the reference is generated from them), what is printed, exit codes.
//! Does not know: how anything is decided; it asks the daemon's socket and shows the answer.
//! Invariant: a flag that is accepted has an effect; every other one is refused by its name.

mod args;
mod client;
mod commands;
mod credentials;
mod error;
mod networking;
mod output;
mod progress;
pub mod reference;
mod spec;
mod values;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

pub use args::daemon::{DaemonArgs, Encryption, LogFormat};
pub use error::{CliError, Exit};

/// What a command line asks for.
pub enum Invocation {
    /// `shoal daemon`: the binary wires and runs it.
    Daemon(Box<DaemonArgs>),
    /// Everything else: a client of a daemon.
    Client(Client),
}

/// A command for a daemon's socket; [`Client::run`] performs it.
pub struct Client {
    options: args::Global,
    command: args::Command,
}

/// What this build is, for `shoal version`.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    pub version: &'static str,
    pub commit: &'static str,
}

/// Reads the process's arguments.
///
/// # Errors
/// The exit code when they ask for help (0) or are wrong (125); the text has been printed.
pub fn parse(build: Build) -> Result<Invocation, ExitCode> {
    let mut command = command(build);
    let args = command
        .try_get_matches_from_mut(std::env::args_os())
        .and_then(|matches| args::Args::from_arg_matches(&matches));
    match args {
        Ok(args::Args { command: args::Command::Daemon(daemon), .. }) => {
            Ok(Invocation::Daemon(daemon))
        }
        Ok(args) => Ok(Invocation::Client(Client { options: args.options, command: args.command })),
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            // Nothing can be said to a terminal that is gone.
            drop(error.print());
            Err(exit.code())
        }
    }
}

/// The definitions of all commands.
#[must_use]
pub fn command(build: Build) -> clap::Command {
    args::Args::command().version(build.version)
}

impl Client {
    /// Performs the command and says what the process should end with.
    #[must_use]
    pub fn run(self, build: Build) -> ExitCode {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let result = match runtime {
            Ok(runtime) => runtime.block_on(commands::run(build, self.options, self.command)),
            Err(source) => Err(CliError::failed(format!("cannot start: {source}"))),
        };
        match result {
            Ok(()) => Exit::Done.code(),
            Err(error) => {
                error.print();
                error.exit.code()
            }
        }
    }
}
