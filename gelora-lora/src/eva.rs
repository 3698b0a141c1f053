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
//! rho times its rank ([`most`]), or that of another module with the same inputs. A module may get none. alpha / r
//! stays.
//!
//! Source: Paischer et al., "Parameter efficient fine-tuning via explained variance adaptation" (arXiv 2410.07170),
//! sections 3.1 to 3.3; PEFT 0.21.2, `peft/tuners/lora/eva.py`.

use gelora_kernels::Tensor;
use nalgebra::DMatrix;

use crate::svd::leading_of_tall;
use crate::{Error, Result};

/// PEFT's rho: directions of a module, as a multiple of its rank.
pub const RHO: f64 = 2.0;

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

impl Explained {
    /// The first `count` directions, or all if there are fewer.
    ///
    /// # Errors
    /// If `count` is 0.
    pub fn first(&self, count: usize) -> Result<Self> {
        let (count, c_in) = (count.min(self.ratios.len()), self.directions.cols());
        let rows = self.directions.to_vec()?[..count * c_in].to_vec();
        Ok(Self { directions: Tensor::from_vec(rows, [count, c_in])?, ratios: self.ratios[..count].to_vec() })
    }
}

/// Ranks by explained variance: as many directions as `total`, those with the highest of the `ratios` of every module.
/// Of equal ratios, that of the first module comes first.
///
/// ```
/// use gelora_lora::eva::redistributed;
///
/// let ranks = redistributed(4, &[&[0.5, 0.2, 0.1, 0.05], &[0.15, 0.01, 0.001]]);
/// assert_eq!(ranks, [3, 1]);
/// ```
#[must_use]
pub fn redistributed(total: usize, ratios: &[&[f64]]) -> Vec<usize> {
    let mut all: Vec<(f64, usize)> = Vec::new();
    for (module, ratios) in ratios.iter().enumerate() {
        all.extend(ratios.iter().map(|ratio| (*ratio, module)));
    }
    // The sort is stable.
    all.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let mut counts = vec![0; ratios.len()];
    all.iter().take(total).for_each(|(_, module)| counts[*module] += 1);
    counts
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
    fn directions_of_all_modules_compete() -> Result<()> {
        let ratios: [&[f64]; 2] = [&[0.9, 0.8, 0.7, 0.6], &[0.1, 0.05, 0.01]];
        assert_eq!(redistributed(4, &ratios), [4, 0]);
        assert_eq!(redistributed(6, &ratios), [4, 2]);
        assert_eq!(redistributed(9, &ratios), [4, 3]);
        assert_eq!(redistributed(2, &[&[0.5, 0.5], &[0.5]]), [2, 0]);
        assert_eq!((most(3, 1.5), most(2, 2.0)), (4, 4));
        let explained = Explained::of_covariance(&covariance(), 3, 14.0, None)?.first(2)?;
        assert_eq!((explained.ratios.len(), explained.directions.shape()), (2, &[2, 3][..]));
        Ok(())
    }
}
