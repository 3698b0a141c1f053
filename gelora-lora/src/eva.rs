//! EVA: adapters whose A begins as the directions in which a module's inputs vary the most, with ranks by the variance
//! that these explain.
//!
//! With the inputs x (N, C_in) of a module, their covariance S = sum over the rows of (x - mean) (x - mean)^T and its
//! eigenvalues l_1 >= l_2 >= ... with the eigenvectors v_k:
//!
//! ```text
//! ratio_k = l_k / trace S                  the variance that direction k explains
//! A       = [v_1, ..., v_r]                (r, C_in); B begins as 0
//! ```
//!
//! The directions of all modules are sorted by their ratio; as many are taken as there were ranks, of a module at most
//! rho times its rank. A module may get none. alpha / r stays.
//!
//! Source: Paischer et al., "Parameter efficient fine-tuning via explained variance adaptation" (arXiv 2410.07170),
//! sections 3.1 to 3.3; PEFT 0.21.2, `peft/tuners/lora/eva.py`.

use gelora_kernels::Tensor;
use nalgebra::DMatrix;

use crate::svd::leading_of_tall;
use crate::{Error, Result};

/// The directions in which the inputs of a module vary the most.
#[derive(Clone, Debug)]
pub struct Explained {
    /// v_k as rows (k, C_in), in the order of the ratios. They have no sign of their own.
    pub directions: Tensor,
    /// ratio_k, in descending order.
    pub ratios: Vec<f64>,
}

impl Explained {
    /// The `count` leading directions of a covariance (C, C), row-major; fewer if its rank is lower. With a `basis`
    /// (C, C_in) of orthonormal rows, the covariance is that of the inputs along them; `whole` is the trace of the
    /// covariance of the inputs themselves.
    ///
    /// # Errors
    /// If sizes do not fit, a value is not finite, or the inputs do not vary.
    pub fn of_covariance(covariance: &[f64], count: usize, whole: f64, basis: Option<&Tensor>) -> Result<Self> {
        let c = covariance.len().isqrt();
        let problem = |problem: String| Error::Ranks { problem };
        if c * c != covariance.len() || basis.is_some_and(|basis| basis.rows() != c) {
            let basis = basis.map(|basis| basis.shape().to_vec());
            return Err(problem(format!("a covariance of {} values does not fit a basis {basis:?}", covariance.len())));
        }
        if !whole.is_finite() || covariance.iter().any(|value| !value.is_finite()) {
            return Err(problem("the inputs of a module are not finite".into()));
        }
        let found = leading_of_tall(&DMatrix::from_row_slice(c, c, covariance), count.min(c));
        // The decomposition ends where values are rounding.
        let kept = found.values.iter().take_while(|value| **value > 1e-12 * whole).count();
        if kept == 0 {
            return Err(problem("the inputs of a module do not vary; expected rows that differ".into()));
        }
        let mut directions: Vec<f32> = found.right[..kept].iter().flatten().map(|value| *value as f32).collect();
        let mut c_in = c;
        if let Some(basis) = basis {
            let values = basis.to_vec()?;
            c_in = basis.cols();
            let along = |vector: &Vec<f64>| {
                let mut sum = vec![0.0_f64; c_in];
                for (weight, row) in vector.iter().zip(values.chunks(c_in)) {
                    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * f64::from(*value));
                }
                sum.into_iter().map(|value| value as f32)
            };
            directions = found.right[..kept].iter().flat_map(along).collect();
        }
        Ok(Self {
            directions: Tensor::from_vec(directions, [kept, c_in])?,
            ratios: found.values[..kept].iter().map(|value| value / whole).collect(),
        })
    }
}

/// Ranks by explained variance: `ranks` are those that the modules would have, whose sum is kept; `ratios` are those of
/// the directions of every module. Of equal ratios, that of the first module comes first.
///
/// # Errors
/// If there are not as many ranks as modules, or rho is below 1.
///
/// ```
/// use gelora_lora::eva::redistributed;
///
/// let ranks = redistributed(&[2, 2], &[&[0.5, 0.2, 0.1, 0.05], &[0.15, 0.01, 0.001]], 2.0)?;
/// assert_eq!(ranks, [3, 1]);
/// # Ok::<(), gelora_lora::Error>(())
/// ```
pub fn redistributed(ranks: &[usize], ratios: &[&[f64]], rho: f64) -> Result<Vec<usize>> {
    if ranks.len() != ratios.len() || !(rho.is_finite() && rho >= 1.0) {
        let problem =
            format!("{} modules with the ratios of {}, rho {rho}; expected rho >= 1", ranks.len(), ratios.len());
        return Err(Error::Ranks { problem });
    }
    let mut all: Vec<(f64, usize)> = Vec::new();
    for (module, (rank, ratios)) in ranks.iter().zip(ratios).enumerate() {
        all.extend(ratios.iter().take(most(*rank, rho)).map(|ratio| (*ratio, module)));
    }
    // The sort is stable.
    all.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let mut counts = vec![0; ranks.len()];
    all.iter().take(ranks.iter().sum()).for_each(|(_, module)| counts[*module] += 1);
    Ok(counts)
}

/// The most directions of a module that would have this rank: rho times as many, rounded to even at halves.
#[must_use]
pub fn most(rank: usize, rho: f64) -> usize {
    (rank as f64 * rho).round_ties_even() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Q diag(values) Q^T for the rotation of two axes.
    fn covariance() -> Vec<f64> {
        let (c, s) = (0.6, 0.8);
        let (large, small) = (9.0, 1.0);
        vec![
            large * c * c + small * s * s,
            (large - small) * c * s,
            0.0,
            (large - small) * c * s,
            large * s * s + small * c * c,
            0.0,
            0.0,
            0.0,
            4.0,
        ]
    }

    #[test]
    fn directions_are_eigenvectors_with_their_share_of_the_trace() -> Result<()> {
        let explained = Explained::of_covariance(&covariance(), 2, 14.0, None)?;
        approx::assert_relative_eq!(explained.ratios[0], 9.0 / 14.0, epsilon = 1e-9);
        approx::assert_relative_eq!(explained.ratios[1], 4.0 / 14.0, epsilon = 1e-9);
        let directions = explained.directions.to_vec()?;
        for (got, want) in directions.iter().zip([0.6, 0.8, 0.0, 0.0, 0.0, 1.0]) {
            assert!((got.abs() - want).abs() < 1e-6, "{directions:?}");
        }
        Ok(())
    }

    #[test]
    fn directions_along_a_basis_are_those_of_the_inputs() -> Result<()> {
        // Inputs of four channels, whose third is constant.
        let basis = vec![1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        let explained = Explained::of_covariance(&covariance(), 1, 14.0, Some(&Tensor::from_vec(basis, [3, 4])?))?;
        let directions = explained.directions.to_vec()?;
        for (got, want) in directions.iter().zip([0.6, 0.8, 0.0, 0.0]) {
            assert!((got.abs() - want).abs() < 1e-6, "{directions:?}");
        }
        Ok(())
    }

    #[test]
    fn inputs_of_few_dimensions_have_few_directions() -> Result<()> {
        let flat = Explained::of_covariance(&[4.0, 2.0, 2.0, 1.0], 2, 5.0, None)?;
        assert_eq!((flat.ratios.len(), flat.directions.shape()), (1, &[1, 2][..]));
        let none = Explained::of_covariance(&[0.0; 4], 2, 0.0, None).unwrap_err().to_string();
        assert!(none.contains("do not vary"), "{none}");
        assert!(Explained::of_covariance(&[f64::NAN; 4], 2, 1.0, None).is_err());
        assert!(Explained::of_covariance(&[0.0; 5], 2, 1.0, None).is_err());
        Ok(())
    }

    #[test]
    fn a_module_has_at_most_rho_times_its_rank() -> Result<()> {
        let ratios: [&[f64]; 2] = [&[0.9, 0.8, 0.7, 0.6], &[0.1, 0.05, 0.01]];
        assert_eq!(redistributed(&[2, 2], &ratios, 1.0)?, [2, 2]);
        assert_eq!(redistributed(&[2, 2], &ratios, 1.5)?, [3, 1]);
        assert_eq!(redistributed(&[2, 2], &ratios, 2.0)?, [4, 0]);
        assert_eq!(redistributed(&[1, 1], &[&[0.5, 0.5], &[0.5]], 2.0)?, [2, 0]);
        assert!(redistributed(&[1], &ratios, 2.0).is_err() && redistributed(&[1, 1], &ratios, 0.5).is_err());
        assert_eq!(most(3, 1.5), 4);
        Ok(())
    }
}
