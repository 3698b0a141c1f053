//! The formula in f64.

/// c x.
pub fn forward(c: f64, x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| c * x).collect()
}
