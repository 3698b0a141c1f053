//! Ranks of single modules from what each further rank of a module gains.
//!
//! A [`Spectrum`] lists gains: squared singular values of a learned update, replicated directions of a gradient, shares
//! of the variance of inputs. A budget of P parameters is spent rank by rank; a module with C_in inputs and C_out
//! outputs pays C_in + C_out for each. Every module has at least the least rank of the [`Limits`].
//!
//! - [`greedy`]: the rank with the largest gain per parameter comes next.
//! - [`proportional`]: ranks in proportion to a number for each module; the module with the smallest r / n comes next.
//!
//! Both spend as much of the budget as fits: where no gain is left, the module with the lowest rank comes next.

use super::{Limits, require};
use crate::{Error, Result};

/// What a module gains from its ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Spectrum {
    /// Gain of the first rank, of the second, ...; values that are not above 0 count as 0.
    pub gains: Vec<f64>,
    /// Parameters per rank: C_in + C_out.
    pub cost: usize,
    /// The largest useful rank: the smaller of C_in and C_out.
    pub most: usize,
}

impl Spectrum {
    /// Gain of the rank after `rank`.
    fn gain(&self, rank: usize) -> f64 {
        self.gains.get(rank).copied().filter(|gain| *gain > 0.0).unwrap_or(0.0)
    }
}

/// Ranks that gain the most for a budget of parameters.
///
/// # Errors
/// If the budget does not hold the least rank of every module, or a limit is out of range.
///
/// ```
/// use gelora_lora::ranks::Limits;
/// use gelora_lora::ranks::spectra::{Spectrum, greedy};
///
/// let module = |gains: &[f64]| Spectrum { gains: gains.to_vec(), cost: 10, most: 8 };
/// let ranks = greedy(&[module(&[9.0, 4.0, 1.0]), module(&[2.0, 0.5])], 40, &Limits::default())?;
/// assert_eq!(ranks, [3, 1]);
/// # Ok::<(), gelora_lora::Error>(())
/// ```
pub fn greedy(modules: &[Spectrum], parameters: usize, limits: &Limits) -> Result<Vec<usize>> {
    spend(modules, parameters, limits, |module, rank| -(module.gain(rank) / module.cost as f64))
}

/// Ranks in proportion to `numbers`, one for each module, for a budget of parameters. A number below 1e-3 of the
/// largest one counts as that.
///
/// # Errors
/// As [`greedy`], and if there is not one number, finite and at least 0, for each module.
pub fn proportional(modules: &[Spectrum], numbers: &[f64], parameters: usize, limits: &Limits) -> Result<Vec<usize>> {
    require(numbers.len() == modules.len(), || {
        format!("{} modules need as many numbers, got {}", modules.len(), numbers.len())
    })?;
    let bad = numbers.iter().find(|number| !(number.is_finite() && **number >= 0.0));
    require(bad.is_none(), || format!("numbers must be finite and at least 0, got {bad:?}"))?;
    let least = 1e-3 * numbers.iter().copied().fold(0.0, f64::max);
    let floors: Vec<f64> = numbers.iter().map(|number| number.max(least).max(f64::MIN_POSITIVE)).collect();
    let spectra: Vec<Spectrum> = modules
        .iter()
        .zip(&floors)
        .map(|(module, number)| Spectrum { gains: vec![*number], ..module.clone() })
        .collect();
    spend(&spectra, parameters, limits, |module, rank| rank as f64 / module.gains[0])
}

/// Gives the next rank to the module with the smallest `turn`, as long as one can pay; of several to the one with the
/// lowest rank, then to the first.
fn spend(
    modules: &[Spectrum],
    parameters: usize,
    limits: &Limits,
    turn: impl Fn(&Spectrum, usize) -> f64,
) -> Result<Vec<usize>> {
    require(!modules.is_empty(), || "expected at least one module, got none".into())?;
    limits.check()?;
    let mut ranks: Vec<usize> = modules.iter().map(|module| limits.fit(1, module.most)).collect();
    let least: usize = modules.iter().zip(&ranks).map(|(module, rank)| module.cost * rank).sum();
    let Some(mut left) = parameters.checked_sub(least) else {
        return Err(Error::Ranks {
            problem: format!("the least ranks take {least} parameters, but the budget is {parameters}"),
        });
    };
    loop {
        let next = |m: usize| {
            let (module, rank) = (&modules[m], ranks[m]);
            let more = limits.fit(rank + 1, module.most);
            (more > rank && module.cost * (more - rank) <= left).then_some((m, more))
        };
        let best = (0..modules.len()).filter_map(next).min_by(|(a, _), (b, _)| {
            let turns = turn(&modules[*a], ranks[*a]).total_cmp(&turn(&modules[*b], ranks[*b]));
            turns.then(ranks[*a].cmp(&ranks[*b]))
        });
        let Some((m, more)) = best else { return Ok(ranks) };
        left -= modules[m].cost * (more - ranks[m]);
        ranks[m] = more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(gains: &[f64], cost: usize) -> Spectrum {
        Spectrum { gains: gains.to_vec(), cost, most: 6 }
    }

    #[test]
    fn the_largest_gain_per_parameter_comes_first() {
        let modules = [module(&[8.0, 4.0, 2.0], 10), module(&[8.0, 7.9, 7.8], 100), module(&[-1.0, f64::NAN], 10)];
        let of = |parameters| greedy(&modules, parameters, &Limits::default()).unwrap();
        assert_eq!(of(120), [1, 1, 1]);
        assert_eq!(of(139), [2, 1, 1]); // 4 / 10 before 7.9 / 100, and 9 parameters are left
        assert_eq!(of(140), [3, 1, 1]);
        assert_eq!(of(250), [3, 2, 2]); // what is left goes to the lowest rank that can pay
        let error = greedy(&modules, 119, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains("take 120 parameters, but the budget is 119"), "{error}");
        assert_eq!(greedy(&modules, 10_000, &Limits::default()).unwrap(), [6, 6, 6]);
        let limits = Limits { min: 2, max: 4, multiple: 2 };
        assert_eq!(greedy(&modules, 280, &limits).unwrap(), [4, 2, 4]);
    }

    #[test]
    fn ranks_follow_numbers() {
        let modules = [module(&[], 10), module(&[], 10), module(&[], 10)];
        let of = |numbers: &[f64], parameters| proportional(&modules, numbers, parameters, &Limits::default());
        assert_eq!(of(&[1.0, 2.0, 3.0], 120).unwrap(), [2, 4, 6]);
        assert_eq!(of(&[0.0, 0.0, 0.0], 60).unwrap(), [2, 2, 2]);
        assert_eq!(of(&[0.0, 5.0, 5.0], 90).unwrap(), [1, 4, 4]);
        assert!(of(&[1.0], 90).unwrap_err().to_string().contains("3 modules need as many numbers, got 1"));
        assert!(of(&[1.0, -1.0, 1.0], 90).unwrap_err().to_string().contains("at least 0"));
    }
}
