//! Counts distinct texts, and checks that there are enough for a measurement.

use std::collections::HashSet;

use anyhow::{Result, bail};

use crate::data::{Dataset, Example};
use crate::fingerprint;
use crate::ui;

/// Smallest number of distinct texts: a point and its two nearest neighbors.
const MIN_DISTINCT: usize = 3;

/// Returns the number of distinct texts.
pub fn count(dataset: &Dataset) -> usize {
    let hash = |e: &Example| fingerprint::of(e.parts());
    dataset.examples.iter().map(hash).collect::<HashSet<_>>().len()
}

/// Returns `48 examples, 6 distinct`, or only the first number if no text repeats.
pub fn display(examples: usize, distinct: usize) -> String {
    let count = |n: usize| ui::count(n as u64);
    let noun = if examples == 1 { "example" } else { "examples" };
    match examples == distinct {
        true => format!("{} {noun}", count(examples)),
        false => format!("{} {noun}, {} distinct", count(examples), count(distinct)),
    }
}

/// Returns an error if the dimension cannot be measured.
///
/// # Errors
/// Returns an error if fewer than three texts differ.
pub fn check(dataset: &Dataset, distinct: usize) -> Result<()> {
    if distinct < MIN_DISTINCT {
        bail!(
            "{}: {}; a measurement needs two nearest neighbors, so at least {MIN_DISTINCT} distinct texts",
            dataset.path.display(),
            display(dataset.examples.len(), distinct)
        );
    }
    Ok(())
}
