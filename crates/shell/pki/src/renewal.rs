//! When a node renews its certificate.
//!
//! Owns: the two decisions, as pure functions. Does not know: clocks, randomness, the network.
//! Invariant: the renewal lies between 50 and 80 % of the certificate's life, spread over nodes.

use base::{Millis, Timestamp};

use crate::limits::{CERTIFICATE_BACKDATE, RENEWAL_RETRY_CAP, RENEWAL_RETRY_FLOOR};

/// The moment to renew. `jitter` in `0.0..1.0` chooses between 50 and 80 % of the life, which is
/// counted from the moment of issue, not from the back-dated begin. Ask again after each renewal.
#[must_use]
pub fn renew_at(not_before: Timestamp, not_after: Timestamp, jitter: f64) -> Timestamp {
    let issued = (not_before + CERTIFICATE_BACKDATE).min(not_after);
    let life = not_after.since(issued).0;
    let share = 0.5 + 0.3 * jitter.clamp(0.0, 1.0);
    issued + Millis((life as f64 * share) as u64)
}

/// The pause after the `failures`-th renewal in a row that failed (counting from 1): 5 s, doubled
/// each time, at most an hour. `jitter` in `0.0..1.0` takes up to a quarter off.
#[must_use]
pub fn retry_after(failures: u32, jitter: f64) -> Millis {
    let doublings = failures.saturating_sub(1).min(32);
    let full = RENEWAL_RETRY_FLOOR.saturating_mul(1 << doublings).min(RENEWAL_RETRY_CAP);
    Millis((full.0 as f64 * (1.0 - 0.25 * jitter.clamp(0.0, 1.0))) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renews_between_half_and_four_fifths_of_life() {
        let issued = Timestamp(1_000_000_000_000);
        let begin = issued - CERTIFICATE_BACKDATE;
        let end = issued + Millis(1_000_000);
        for (jitter, share) in [(0.0, 500_000), (0.5, 650_000), (1.0, 800_000), (9.0, 800_000)] {
            assert_eq!(renew_at(begin, end, jitter), issued + Millis(share), "{jitter}");
        }
    }

    #[test]
    fn a_life_shorter_than_the_backdate_is_renewed_at_its_end() {
        let begin = Timestamp(1_000_000_000_000);
        assert_eq!(renew_at(begin, begin + Millis(5), 0.3), begin + Millis(5));
    }

    #[test]
    fn retries_back_off_from_5_seconds_to_an_hour() {
        for (failures, millis) in [
            (0, 5_000),
            (1, 5_000),
            (2, 10_000),
            (5, 80_000),
            (11, 3_600_000),
            (u32::MAX, 3_600_000),
        ] {
            assert_eq!(retry_after(failures, 0.0), Millis(millis), "{failures}");
            assert_eq!(retry_after(failures, 1.0), Millis(millis / 4 * 3), "{failures}");
        }
    }
}
