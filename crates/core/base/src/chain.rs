//! Prints an error with all its causes on one line.
//!
//! Owns: the only place where a chain of sources is turned into text.
//! Invariant: every link is printed once; `Display` of our errors never repeats its source.

use std::error::Error;
use std::fmt::{self, Display, Formatter};

/// Displays `error` followed by its sources, separated by `: `.
#[must_use]
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

/// Adapter made by [`chain`].
pub struct Chain<'a>(&'a (dyn Error + 'static));

impl Display for Chain<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        for _ in 0..LINKS_MAX {
            let Some(source) = next else { break };
            write!(f, ": {source}")?;
            next = source.source();
        }
        Ok(())
    }
}

/// A chain longer than this is cut: it would be a cycle or a mistake.
const LINKS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn all_causes_stand_on_one_line() {
        let outer = Outer("x".parse::<i32>().unwrap_err());
        assert_eq!(chain(&outer).to_string(), "outer: invalid digit found in string");
    }
}
