//! The one error type that reaches a user.
//!
//! Owns: the closed list of codes and the error's four parts.
//! Does not know: gRPC, HTTP, exit codes; the border maps them by one table.
//! Invariant: a fault about input names the field and says what would be right.

use std::fmt::{self, Display, Formatter};

/// What kind of error it is; the border maps it to gRPC, HTTP and exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorCode {
    /// Correct the named field.
    Invalid = 1,
    /// There is no such object.
    NotFound = 2,
    /// The name is taken, or the object is in use.
    Conflict = 3,
    /// The object has changed meanwhile: read again and retry.
    OutOfDate = 4,
    /// The object is not in a state for this.
    FailedPrecondition = 5,
    PermissionDenied = 6,
    Unauthenticated = 7,
    /// Ask a manager.
    NotAManager = 8,
    /// Too few managers answer; writes wait until more do.
    NoQuorum = 9,
    /// The disk of a manager is full.
    NoSpace = 10,
    /// Try again.
    Unavailable = 11,
    /// Whether it was done is unknown: look before trying again.
    TimedOut = 12,
    Unimplemented = 13,
    /// A bug; the log of the daemon says more.
    Internal = 14,
}

/// An error for a user: what is wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: ErrorCode,
    /// Path of the field, as the user knows it (`--limit-memory`, `spec.name`); may be empty.
    pub field: String,
    pub message: String,
    /// What to do next; may be empty.
    pub hint: String,
}

impl Fault {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, field: String::new(), message: message.into(), hint: String::new() }
    }

    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), ..Self::new(ErrorCode::Invalid, message) }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}
