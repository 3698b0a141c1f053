//! Loops over one row, or a few rows, of scores.

use crate::cpu::{Codes, View, ViewMut, by_vector, math, vectorized};
use crate::dropout::{Dropout, factor};

by_vector! {
    /// `scores = scale q k^T` for few rows of q. A product is summed in the lanes of a vector.
    pub(super) fn products_of_rows(scores: &mut ViewMut<'_>, scale: f32, q: View<'_>, k: View<'_>) = dots
}

/// # Safety
/// As [`Codes`]. The views have shapes that fit, as the operator checks.
#[inline(always)]
unsafe fn dots<V: Codes>(scores: &mut ViewMut<'_>, scale: f32, q: View<'_>, k: View<'_>) {
    for i in 0..q.rows() {
        let (q, scores) = (q.row(i), scores.row_mut(i));
        for (j, s) in scores.iter_mut().enumerate() {
            // SAFETY: rows of q and k have as many values.
            *s = unsafe { dot::<V>(q, k.row(j)) } * scale;
        }
    }
}

/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn dot<V: Codes>(x: &[f32], y: &[f32]) -> f32 {
    let (n, mut at) = (x.len(), 0);
    let (x, y) = (x.as_ptr(), y[..n].as_ptr());
    // SAFETY: both have n values.
    unsafe {
        let mut sum = V::splat(0.0);
        while at + V::LANES <= n {
            sum = V::load(x.add(at)).mul_add(V::load(y.add(at)), sum);
            at += V::LANES;
        }
        if at < n {
            sum = V::load_first(x.add(at), n - at).mul_add(V::load_first(y.add(at), n - at), sum);
        }
        sum.sum()
    }
}

/// Vectors of one row of o that [`sums`] keeps in registers.
const KEPT: usize = 4;

by_vector! {
    /// `o = p v` for few rows of p: rows of v, weighted by probabilities and added in order.
    pub(super) fn weighted_sums(o: &mut ViewMut<'_>, p: View<'_>, v: View<'_>) = sums
}

/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn sums<V: Codes>(o: &mut ViewMut<'_>, p: View<'_>, v: View<'_>) {
    for i in 0..p.rows() {
        let (p, o) = (p.row(i), o.row_mut(i));
        let (width, mut at) = (o.len(), 0);
        // SAFETY: a row of v has as many values as a row of o.
        unsafe {
            while at + KEPT * V::LANES <= width {
                let mut sums = [V::splat(0.0); KEPT];
                for (j, p) in p.iter().enumerate() {
                    let (p, v) = (V::splat(*p), v.row(j)[at..].as_ptr());
                    for (l, sum) in sums.iter_mut().enumerate() {
                        *sum = V::load(v.add(l * V::LANES)).mul_add(p, *sum);
                    }
                }
                for (l, sum) in sums.into_iter().enumerate() {
                    sum.store(o[at..].as_mut_ptr().add(l * V::LANES));
                }
                at += KEPT * V::LANES;
            }
            while at < width {
                let (n, mut sum) = (V::LANES.min(width - at), V::splat(0.0));
                for (j, p) in p.iter().enumerate() {
                    sum = V::load_first(v.row(j)[at..].as_ptr(), n).mul_add(V::splat(*p), sum);
                }
                sum.store_first(o[at..].as_mut_ptr(), n);
                at += n;
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
