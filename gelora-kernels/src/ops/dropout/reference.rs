//! The formula in f64. The hash is part of the formula.

use crate::random::hash;

/// y_i = x_i / (1 - p) if hash(key, i) >= floor(p 2^32), else 0.
pub fn apply(x: &[f64], p: f32, key: [u32; 2]) -> Vec<f64> {
    let p = f64::from(p);
    let threshold = (p * 2f64.powi(32)).floor();
    let mut y = Vec::new();
    for (i, x) in x.iter().enumerate() {
        let kept = f64::from(hash(key, i as u32)) >= threshold;
        y.push(if kept { x / (1.0 - p) } else { 0.0 });
    }
    y
}
