//! Waiting for what must become true, with a deadline.
//!
//! Owns: the only sleep of the tests. Does not know: what is waited for.
//! Invariant: a wait that ends in vain says what it waited for and what it saw last.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What a cluster in good health does at once, on a loaded machine.
pub const SHORT: Duration = Duration::from_secs(30);
/// What takes a down grace, an election or the pull of an image.
pub const LONG: Duration = Duration::from_secs(120);

/// Waits until `look` gives a value; an error that it gives is what was seen last.
///
/// # Errors
/// When the deadline has passed.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        let seen = match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if begun.elapsed() > deadline {
            bail!("{what}: not within {} s; seen last: {seen}", deadline.as_secs());
        }
        std::thread::sleep(PERIOD);
    }
}

/// Waits until `look` says yes.
///
/// # Errors
/// When the deadline has passed.
pub fn wait_until(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<bool>,
) -> Result<()> {
    wait_for(what, deadline, || Ok(look()?.then_some(())))
}

const PERIOD: Duration = Duration::from_millis(100);
