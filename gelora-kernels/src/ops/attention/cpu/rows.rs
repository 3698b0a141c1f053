//! Loops over one row, or a few rows, of scores.

use crate::cpu::{View, ViewMut, math, vectorized};
use crate::dropout::{Dropout, factor};

vectorized! {
    /// `scores = scale q k^T` for few rows of q.
    pub(super) fn products_of_rows(scores: &mut ViewMut<'_>, scale: f32, q: View<'_>, k: View<'_>) {
        for i in 0..q.rows() {
            let (q, scores) = (q.row(i), scores.row_mut(i));
            for (j, s) in scores.iter_mut().enumerate() {
                *s = math::wide_dot(q, k.row(j)) * scale;
            }
        }
    }
}

vectorized! {
    /// Multiplies probabilities by the dropout mask, whose index of the first one is `first`.
    pub(super) fn drop_slice(dropout: Dropout, first: u32, p: &mut [f32]) {
        for (j, p) in p.iter_mut().enumerate() {
            *p *= factor(dropout, first + j as u32);
        }
    }
}

vectorized! {
    /// Replaces the scores of a row by probabilities. Returns the logarithm of the sum of their exponentials.
    pub(super) fn softmax(s: &mut [f32]) -> f32 {
        // The largest score is subtracted, so that no exponential overflows.
        let peak = math::max(s);
        for s in s.iter_mut() {
            *s = math::exp(*s - peak);
        }
        let sum = math::sum(s);
        let share = 1.0 / sum;
        for s in s.iter_mut() {
            *s *= share;
        }
        peak + sum.ln()
    }
}

vectorized! {
    /// Replaces the scores of a row by probabilities, exp(S - lse).
    pub(super) fn probabilities_from_lse(s: &mut [f32], lse: f32) {
        for s in s {
            *s = math::exp(*s - lse);
        }
    }
}

vectorized! {
    /// Replaces dP of a row by scale dS, with dS_j = P_j (dP_j - dO . O).
    pub(super) fn scores_gradient(p: &[f32], dp: &mut [f32], d_o: &[f32], o: &[f32], scale: f32) {
        let mean = math::dot(d_o, o);
        for (dp, p) in dp.iter_mut().zip(p) {
            *dp = p * (*dp - mean) * scale;
        }
    }
}
