//! One measured figure.
//!
//! Owns: its form. Does not know: how it is shown.
//! Invariant: smaller is better, except where the unit is a rate: `1/s`, `Gb/s`.

/// A figure of ours, and the peer's when there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub ours: f64,
    pub peer: Option<(f64, &'static str)>,
    pub rounds: usize,
}

/// Of at least one value.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

pub(crate) const MEBI: f64 = 1_048_576.0;
