//! The formula in f64.

/// x + z.
pub fn forward(x: &[f64], z: &[f64]) -> Vec<f64> {
    x.iter().zip(z).map(|(x, z)| x + z).collect()
}
