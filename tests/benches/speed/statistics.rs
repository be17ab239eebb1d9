//! What is told of several values.

use serde::Serialize;

/// The middle of some values, and how far they are apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
    /// What half of the values lie between, in parts of the median.
    pub(crate) quartiles: f64,
}

impl Spread {
    /// Of no values, nothing is known.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let at = |part: usize| values.get((values.len() - 1) * part / 4).copied();
        let (lowest, median, highest) = (*values.first()?, *values.get(values.len() / 2)?, *values.last()?);
        let between = at(3)? - at(1)?;
        let quartiles = if median == 0.0 { 0.0 } else { between / median };
        Some(Self { median, lowest, highest, quartiles })
    }
}
