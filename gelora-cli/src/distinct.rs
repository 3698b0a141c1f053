//! Identical texts: how many different ones there are, and whether a measurement can be made of them.

use std::collections::HashSet;

use anyhow::{Result, bail};

use crate::data::{Dataset, Example};
use crate::fingerprint;
use crate::ui;

/// Two nearest neighbours and the point itself.
const LEAST: usize = 3;

/// How many examples have texts of their own.
pub fn count(dataset: &Dataset) -> usize {
    let hash = |e: &Example| fingerprint::of(e.parts());
    dataset.examples.iter().map(hash).collect::<HashSet<_>>().len()
}

/// `48 examples, 6 distinct`; without the second number where no text repeats.
pub fn shown(examples: usize, distinct: usize) -> String {
    let count = |n: usize| ui::count(n as u64);
    let noun = if examples == 1 { "example" } else { "examples" };
    match examples == distinct {
        true => format!("{} {noun}", count(examples)),
        false => format!("{} {noun}, {} distinct", count(examples), count(distinct)),
    }
}

/// Checks that a dimension can be measured.
///
/// # Errors
/// If fewer than three texts differ.
pub fn check(dataset: &Dataset, distinct: usize) -> Result<()> {
    if distinct < LEAST {
        bail!(
            "{}: {}; a measurement needs two nearest neighbours, so at least {LEAST} distinct texts",
            dataset.path.display(),
            shown(dataset.examples.len(), distinct)
        );
    }
    Ok(())
}
