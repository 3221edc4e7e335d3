//! Stands in for the crate `base2histogram`, below openraft.
//!
//! openraft counts the sizes of its batches in histograms that nobody can read unless its feature
//! `runtime-stats` is on, which it is not here. The real crate fills lookup tables of 27 MB for the
//! first histogram of a process: more than half of the memory of an idle manager.
//!
//! Owns: as much of the interface as openraft uses without that feature. Whoever turns the feature
//! on, or takes a later openraft, gets an error from the compiler and removes this crate from
//! `[patch.crates-io]`, or adds what is missing.
//! Does not know: anything. Invariant: nothing is recorded, so every answer is "no samples".

use std::fmt;
use std::marker::PhantomData;

/// Takes values and forgets them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    slots: PhantomData<T>,
}

impl<T> Histogram<T> {
    #[must_use]
    pub fn new() -> Self {
        Self { slots: PhantomData }
    }

    pub fn record(&mut self, _value: u64) {}

    pub fn record_n(&mut self, _value: u64, _count: u64) {}

    /// Of no samples.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats::default()
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Percentiles by name; all zero, as those of no samples are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not recorded")
    }
}

/// A chart without bars.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AsciiChart;

impl AsciiChart {
    #[must_use]
    pub fn new() -> Self {
        Self
    }

    #[must_use]
    pub fn add<T>(self, _name: &str, _histogram: Histogram<T>) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_recorded() {
        let mut histogram = Histogram::<()>::new();
        histogram.record(7);
        histogram.record_n(7, 100);
        assert_eq!(histogram.percentile_stats().samples, 0);
        assert_eq!(size_of_val(&histogram), 0);
    }
}
