//! Cuts a trained adapter to a budget of parameters.
//!
//! The update of a module is D = s B A, with the thin QR decompositions B = Q_B R_B and A^T = Q_A R_A:
//!
//! ```text
//! s R_B R_A^T = X S Y^T          (R, R)
//! D           = (Q_B X) S (Q_A Y)^T
//! ```
//!
//! S are the singular values of D. The rank r keeps the r largest: B' = Q_B X sqrt(S / s), A' = sqrt(S / s) (Q_A Y)^T,
//! with the same scaling s. What is lost is the sum of the squares of the others, so the squares are the gains of
//! [`spectra::greedy`].

use std::collections::BTreeMap;

use gelora_kernels::Tensor;
use nalgebra::DMatrix;

use crate::ranks::spectra::{self, Spectrum};
use crate::ranks::{Limits, Step};
use crate::{Error, LoraLayer, Result};

/// How many times the rank of a budget is trained before the cut.
const TRAINED_TIMES: usize = 4;

/// The uniform rank to train for a cut to the parameters of the uniform rank `budget_rank`: four times as high, within
/// the limits and no larger than the smallest module allows.
#[must_use]
pub fn trained_rank(steps: &[Step], budget_rank: usize, limits: &Limits) -> usize {
    let most = steps.iter().filter(|step| step.cost > 0).map(|step| step.most).min().unwrap_or(usize::MAX);
    limits.fit(budget_rank.saturating_mul(TRAINED_TIMES), most)
}

/// The singular value decomposition of the update of a module.
#[derive(Clone, Debug)]
pub struct Update {
    /// Singular values of s B A, in descending order: R of them.
    pub values: Vec<f64>,
    /// Q_B X (C_out, R).
    left: DMatrix<f64>,
    /// Q_A Y (C_in, R).
    right: DMatrix<f64>,
}

impl Update {
    /// Decomposes the update of a layer.
    ///
    /// # Errors
    /// If the layer has magnitudes (DoRA) or began as singular triplets (PiSSA), its scaling is not above 0, a value is
    /// not finite, or a device fails.
    pub fn of(layer: &LoraLayer) -> Result<Self> {
        let problem = |problem: &str| Error::Ranks { problem: problem.into() };
        if layer.magnitude.is_some() {
            return Err(problem("the update of DoRA is no product of B and A"));
        }
        if layer.initial.is_some() {
            return Err(problem("the update of PiSSA is a difference of products; expected a plain LoRA layer"));
        }
        if !(layer.scaling.is_finite() && layer.scaling > 0.0) {
            return Err(problem("an adapter is cut only with a scaling above 0"));
        }
        let (rank, c_in, c_out, factor_a) = (layer.rank(), layer.a.cols(), layer.b.rows(), layer.factor_a()?);
        let matrix = |tensor: &Tensor| -> Result<DMatrix<f64>> {
            let values = tensor.to_vec()?;
            if values.iter().any(|value| !value.is_finite()) {
                return Err(problem("an adapter is not finite"));
            }
            Ok(DMatrix::from_row_iterator(tensor.rows(), tensor.cols(), values.into_iter().map(f64::from)))
        };
        let (b, a) = (matrix(&layer.b)?.qr(), matrix(&factor_a)?.transpose().qr());
        let small = f64::from(layer.scaling) * b.r() * a.r().transpose();
        let svd = small.svd(true, true);
        let (Some(x), Some(y)) = (svd.u, svd.v_t) else { return Err(problem("an update has no decomposition")) };
        let mut order: Vec<usize> = (0..svd.singular_values.len()).collect();
        order.sort_by(|i, j| svd.singular_values[*j].total_cmp(&svd.singular_values[*i]));
        debug_assert!(order.len() == rank.min(c_in).min(c_out));
        let sorted = |matrix: DMatrix<f64>| DMatrix::from_fn(matrix.nrows(), order.len(), |i, j| matrix[(i, order[j])]);
        Ok(Self {
            values: order.iter().map(|i| svd.singular_values[*i]).collect(),
            left: b.q() * sorted(x),
            right: a.q() * sorted(y.transpose()),
        })
    }

    /// exp of the entropy of the squared singular values, the effective rank; 0 if all are 0.
    ///
    /// Source: Roy and Vetterli, "The effective rank" (2007), there of the singular values themselves.
    pub fn effective_rank(&self) -> f64 {
        let squares: Vec<f64> = self.values.iter().map(|value| value * value).collect();
        let whole: f64 = squares.iter().sum();
        if whole <= 0.0 {
            return 0.0;
        }
        let shares = squares.iter().map(|square| square / whole).filter(|share| *share > 0.0);
        shares.map(|share| -share * share.ln()).sum::<f64>().exp()
    }

    /// |D|_F^2 / s_1^2, the stable rank; 0 if all singular values are 0.
    pub fn stable_rank(&self) -> f64 {
        let (whole, first) = (self.values.iter().map(|value| value * value).sum::<f64>(), self.values.first());
        first.filter(|first| **first > 0.0).map_or(0.0, |first| whole / (first * first))
    }

    /// The smallest number of singular values whose squares are `share` of the sum of all squares.
    pub fn energy_rank(&self, share: f64) -> usize {
        let squares: Vec<f64> = self.values.iter().map(|value| value * value).collect();
        let wanted = share * squares.iter().sum::<f64>();
        // The sum before each value; rounding must not ask for one value more.
        let before = squares.iter().scan(0.0, |sum, square| {
            *sum += square;
            Some(*sum - square)
        });
        before.take_while(|before| *before < wanted * (1.0 - 1e-12)).count()
    }

    /// The layer with the `rank` largest singular values, scaled as `layer` is.
    ///
    /// # Errors
    /// If the rank is 0 or above the number of singular values.
    pub fn cut(&self, layer: &LoraLayer, rank: usize) -> Result<LoraLayer> {
        if !(1..=self.values.len()).contains(&rank) {
            let problem = format!("an update of rank {} is cut to a rank of 1 or more, got {rank}", self.values.len());
            return Err(Error::Ranks { problem });
        }
        let roots: Vec<f64> = self.values[..rank].iter().map(|v| (v / f64::from(layer.scaling)).sqrt()).collect();
        let (c_in, c_out) = (self.right.nrows(), self.left.nrows());
        let a =
            (0..rank).flat_map(|k| (0..c_in).map(move |i| (k, i))).map(|(k, i)| (roots[k] * self.right[(i, k)]) as f32);
        let b =
            (0..c_out).flat_map(|i| (0..rank).map(move |k| (i, k))).map(|(i, k)| (roots[k] * self.left[(i, k)]) as f32);
        Ok(LoraLayer {
            a: Tensor::from_vec(a.collect(), [rank, c_in])?,
            b: Tensor::from_vec(b.collect(), [c_out, rank])?,
            singular: None,
            ..layer.clone()
        })
    }

    /// What each rank keeps of the squared norm of the update.
    pub fn spectrum(&self) -> Spectrum {
        let (c_in, c_out) = (self.right.nrows(), self.left.nrows());
        Spectrum {
            gains: self.values.iter().map(|value| value * value).collect(),
            cost: c_in + c_out,
            most: self.values.len(),
        }
    }
}

/// Cuts the layers of an adapter to the ranks that keep the most of their squared norms for a budget of parameters.
///
/// # Errors
/// As [`Update::of`] and [`spectra::greedy`].
pub fn to_budget(
    layers: &BTreeMap<String, LoraLayer>,
    parameters: usize,
    limits: &Limits,
) -> Result<BTreeMap<String, LoraLayer>> {
    let updates: Vec<Update> = layers.values().map(Update::of).collect::<Result<_>>()?;
    let spectra: Vec<Spectrum> = updates.iter().map(Update::spectrum).collect();
    let ranks = spectra::greedy(&spectra, parameters, limits)?;
    let cut = updates.iter().zip(layers).zip(ranks);
    cut.map(|((update, (name, layer)), rank)| Ok((name.clone(), update.cut(layer, rank)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModuleConfig;

    fn layer(rank: usize, c_in: usize, c_out: usize, seed: u64) -> LoraLayer {
        let config = ModuleConfig { rank, alpha: 2.0 * rank as f64, scaling: 2.0, dropout: 0.0 };
        let mut layer = LoraLayer::new("m", c_in, c_out, &config, seed).unwrap();
        let mut stream = gelora_kernels::random::Stream::new(seed);
        let b = (0..c_out * rank).map(|_| stream.normal() as f32).collect();
        layer.b = Tensor::from_vec(b, [c_out, rank]).unwrap();
        layer
    }

    fn product(layer: &LoraLayer) -> DMatrix<f64> {
        let matrix = |t: &Tensor| {
            let values = t.to_vec().unwrap();
            DMatrix::from_row_iterator(t.rows(), t.cols(), values.into_iter().map(f64::from))
        };
        f64::from(layer.scaling) * matrix(&layer.b) * matrix(&layer.a)
    }

    #[test]
    fn the_update_is_decomposed_and_cut_as_a_dense_matrix_is() {
        for (rank, c_in, c_out) in [(5, 12, 9), (4, 7, 20), (1, 6, 6)] {
            let layer = layer(rank, c_in, c_out, 1);
            let update = Update::of(&layer).unwrap();
            let dense = product(&layer).svd(false, false).singular_values;
            let mut dense: Vec<f64> = dense.iter().copied().collect();
            dense.sort_by(|a, b| b.total_cmp(a));
            update.values.iter().zip(&dense).for_each(|(a, b)| approx::assert_relative_eq!(a, b, max_relative = 1e-6));
            for kept in 1..=rank {
                let cut = update.cut(&layer, kept).unwrap();
                assert_eq!((cut.rank(), cut.scaling), (kept, 2.0));
                let lost = (product(&layer) - product(&cut)).norm_squared();
                let expected: f64 = update.values[kept..].iter().map(|value| value * value).sum();
                approx::assert_relative_eq!(lost, expected, epsilon = 1e-6, max_relative = 1e-4);
            }
            assert!(update.cut(&layer, 0).is_err() && update.cut(&layer, rank + 1).is_err());
        }
    }

    #[test]
    fn the_trained_rank_is_four_times_that_of_the_budget() {
        let step = |cost: usize, most: usize| Step { delta: 0.0, upper: 0.0, cost, most };
        let steps = [step(100, 48), step(100, 20), step(0, 1)];
        let of = |rank: usize, limits: Limits| trained_rank(&steps, rank, &limits);
        assert_eq!((of(3, Limits::default()), of(5, Limits::default()), of(6, Limits::default())), (12, 20, 20));
        assert_eq!(of(3, Limits { max: 8, ..Limits::default() }), 8);
        assert_eq!(of(1, Limits { min: 6, ..Limits::default() }), 6);
        assert_eq!(of(usize::MAX, Limits::default()), 20);
    }

    #[test]
    fn ranks_of_a_spectrum_by_hand() {
        let update = |values: &[f64]| Update {
            values: values.to_vec(),
            left: DMatrix::zeros(4, values.len()),
            right: DMatrix::zeros(4, values.len()),
        };
        let flat = update(&[2.0, 2.0, 2.0]);
        approx::assert_relative_eq!(flat.effective_rank(), 3.0, epsilon = 1e-12);
        assert_eq!((flat.stable_rank(), flat.energy_rank(0.9), flat.energy_rank(0.5)), (3.0, 3, 2));
        let steep = update(&[3.0, 1.0]);
        assert_eq!((steep.stable_rank(), steep.energy_rank(0.9), steep.energy_rank(0.91)), (10.0 / 9.0, 1, 2));
        let none = update(&[0.0, 0.0]);
        assert_eq!((none.effective_rank(), none.stable_rank(), none.energy_rank(0.9)), (0.0, 0.0, 0));
    }

    #[test]
    fn a_budget_keeps_the_largest_values_of_all_layers() {
        let (mut small, large) = (layer(4, 8, 8, 1), layer(4, 8, 8, 2));
        small.b = Tensor::from_vec(small.b.to_vec().unwrap().iter().map(|b| b / 100.0).collect(), [8, 4]).unwrap();
        let layers = BTreeMap::from([("a".to_owned(), small), ("b".to_owned(), large)]);
        let cut = to_budget(&layers, 16 * 5, &Limits::default()).unwrap();
        assert_eq!((cut["a"].rank(), cut["b"].rank(), cut.len()), (1, 4, 2));
        let error = to_budget(&layers, 31, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains("least ranks take 32 parameters, but the budget is 31"), "{error}");
        let dora = LoraLayer { magnitude: Some(Tensor::from_vec(vec![1.0; 8], [8]).unwrap()), ..layer(2, 8, 8, 3) };
        assert!(Update::of(&dora).unwrap_err().to_string().contains("DoRA"));
        let flat = LoraLayer { scaling: 0.0, ..layer(2, 8, 8, 3) };
        assert!(Update::of(&flat).unwrap_err().to_string().contains("above 0"));
    }
}
