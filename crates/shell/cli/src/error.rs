//! How a command fails: what is printed and which exit code it gives.
//!
//! Owns: the exit codes, and turning a daemon's status into text.
//! Does not know: commands.
//! Invariant: a message is printed once, as `shoal: MESSAGE`, with its hint on a line below.

use std::io;
use std::process::ExitCode;

use tonic::Status;
use types::{ErrorCode, Fault};

/// Exit codes, docker's where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    /// `--wait-timeout` ended before the service was as wanted, as timeout(1).
    WaitTimedOut = 124,
    /// The command line itself is wrong, as docker run.
    Usage = 125,
}

impl Exit {
    #[must_use]
    pub fn code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// Why a command did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    pub message: String,
    /// What to do next; may be empty.
    pub hint: String,
    pub exit: Exit,
    /// What the daemon called it, when it was the daemon that refused.
    pub code: Option<ErrorCode>,
}

impl CliError {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: String::new(), exit: Exit::Failed, code: None }
    }

    /// The field's name and what would be right.
    pub(crate) fn usage(field: &str, message: impl AsRef<str>) -> Self {
        Self { exit: Exit::Usage, ..Self::failed(format!("{field}: {}", message.as_ref())) }
    }

    pub(crate) fn timed_out(message: impl Into<String>) -> Self {
        Self { exit: Exit::WaitTimedOut, ..Self::failed(message) }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code == Some(ErrorCode::NotFound)
    }

    /// Prints it to standard error; an empty message has been printed already.
    pub(crate) fn print(&self) {
        if !self.message.is_empty() {
            eprintln!("shoal: {}", self.message);
        }
        if !self.hint.is_empty() {
            eprintln!("hint: {}", self.hint);
        }
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        let fault = wire::fault_of(&status);
        let message = match fault.to_string() {
            text if text.is_empty() => format!("the daemon refused: {}", status.code()),
            text => text,
        };
        Self { code: Some(fault.code), ..Self::failed(message).hint(fault.hint) }
    }
}

impl From<Fault> for CliError {
    /// An answer that this program cannot read.
    fn from(fault: Fault) -> Self {
        Self::failed(format!("the daemon's answer is not understood: {fault}"))
            .hint("use the same version of shoal on both sides")
    }
}

impl From<io::Error> for CliError {
    /// Writing to our own output failed.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // `shoal service ls | head`: nobody listens any more, and that is no failure.
            return Self { exit: Exit::Done, ..Self::failed("") };
        }
        Self::failed(format!("cannot write the output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_its_field_once() {
        let fault = Fault::invalid("--limit-memory", "too small").hint("at least 4m");
        let error = CliError::from(wire::status_of(&fault));
        assert_eq!(error.message, "--limit-memory: too small");
        assert_eq!((error.hint.as_str(), error.exit), ("at least 4m", Exit::Failed));
        assert_eq!(error.code, Some(ErrorCode::Invalid));
    }

    #[test]
    fn a_plain_status_keeps_its_message() {
        let error = CliError::from(Status::not_found("service x not found"));
        assert_eq!(error.message, "service x not found");
    }
}
