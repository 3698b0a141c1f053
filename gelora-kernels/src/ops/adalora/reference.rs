//! The formulas in f64. Dimensions that the slices do not determine are arguments.

use super::{Decay, Vectors};

/// diag(e) A.
pub fn forward(e: &[f64], a: &[f64]) -> Vec<f64> {
    let c = a.len() / e.len();
    a.iter().enumerate().map(|(i, a)| e[i / c] * a).collect()
}

/// (dA, de), the gradients of the sum of dA' A'.
pub fn backward(da: &[f64], e: &[f64], a: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let c = a.len() / e.len();
    let mut de = vec![0.0; e.len()];
    da.iter().zip(a).enumerate().for_each(|(i, (da, a))| de[i / c] += da * a);
    (forward(e, da), de)
}

/// Value `c` of vector `k` of a factor with `r` vectors.
fn at(factor: &[f64], r: usize, vectors: Vectors, k: usize, c: usize) -> f64 {
    match vectors {
        Vectors::Rows => factor[k * (factor.len() / r) + c],
        Vectors::Columns => factor[c * r + k],
    }
}

/// The penalty of a factor with `r` vectors, and its gradient.
pub fn orthogonality(factor: &[f64], r: usize, vectors: Vectors) -> (f64, Vec<f64>) {
    let len = factor.len() / r;
    let value = |k, c| at(factor, r, vectors, k, c);
    let gram = |k: usize, l: usize| -> f64 {
        let dot: f64 = (0..len).map(|c| value(k, c) * value(l, c)).sum();
        dot - f64::from(u8::from(k == l))
    };
    let gram: Vec<Vec<f64>> = (0..r).map(|k| (0..r).map(|l| gram(k, l)).collect()).collect();
    let distance = gram.iter().flatten().map(|v| v * v).sum::<f64>().sqrt();
    let of = |k: usize, c: usize| -> f64 {
        let sum: f64 = (0..r).map(|l| gram[k][l] * value(l, c)).sum();
        if distance > 0.0 { 2.0 / distance * sum } else { 0.0 }
    };
    let gradient = (0..factor.len()).map(|i| match vectors {
        Vectors::Rows => of(i / len, i % len),
        Vectors::Columns => of(i % r, i / r),
    });
    (distance, gradient.collect())
}

/// (sensitivity, uncertainty) after a step with the clipped gradient g.
pub fn update(decay: Decay, p: &[f64], g: &[f64], s: &[f64], u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    // The rates are f32 numbers; their decimal readings would differ in the eighth digit.
    let (beta1, beta2) = (f64::from(decay.sensitivity), f64::from(decay.uncertainty));
    let product: Vec<f64> = p.iter().zip(g).map(|(p, g)| (p * g).abs()).collect();
    let s: Vec<f64> = s.iter().zip(&product).map(|(s, i)| beta1 * s + (1.0 - beta1) * i).collect();
    let u = u.iter().zip(&product).zip(&s).map(|((u, i), s)| beta2 * u + (1.0 - beta2) * (i - s).abs()).collect();
    (s, u)
}

/// The mean of s u over each of `r` vectors.
pub fn scores(s: &[f64], u: &[f64], r: usize, vectors: Vectors) -> Vec<f64> {
    let len = s.len() / r;
    let of = |k| (0..len).map(|c| at(s, r, vectors, k, c) * at(u, r, vectors, k, c)).sum::<f64>() / len as f64;
    (0..r).map(of).collect()
}
