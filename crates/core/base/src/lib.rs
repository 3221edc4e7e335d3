//! What every crate may use: identities, time, limits and error chains.
//!
//! Owns: the 128-bit identity and its text form, store time, durations in whole milliseconds.
//! Does not know: the domain, clocks, randomness. An identity or a time is always an argument.
//! Invariant: the text form of an identity is 25 characters of base 36, as docker's are.

pub mod chain;
pub mod id;
pub mod time;

pub use chain::chain;
pub use id::{Id, IdSource, ParseIdError};
pub use time::{Millis, Timestamp};
