//! What tests are made of: text fixtures into snapshots, plans into text, fakes of the ports.
//!
//! Owns: the small language of fixtures, the printer of plans, and with the feature `ports`, which
//! the core does not need, the fakes and what every implementation of a port must do.
//! Does not know: any decider. Never a normal dependency of anything that ships.
//! Invariant: the same text gives the same snapshot, identities included.

#[cfg(feature = "ports")]
pub mod conformance;
#[cfg(feature = "ports")]
pub mod fake;
mod fixture;
mod harness;
mod print;

pub use fixture::{Fixture, apply, fixture, node_id, service_id};
pub use harness::{Test, run_tests};
pub use print::print_plan;

/// Compares two texts line by line, blanks at the ends of lines and comments (`#`) aside.
///
/// # Panics
/// When they differ, with both printed in full.
pub fn assert_text(got: &str, want: &str) {
    let clean = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim())
            .filter(|line| !line.is_empty())
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    };
    assert!(clean(got) == clean(want), "\n--- got\n{got}\n--- want\n{want}\n");
}
