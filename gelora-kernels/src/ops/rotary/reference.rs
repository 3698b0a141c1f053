//! The formula in f64. The rounding of an angle to f32 is part of the formula.

/// Rotates by `sign` times the angles: x (N, H D), inverse frequencies (D/2), one position for each row.
pub fn rotate(x: &[f64], inverse_frequencies: &[f32], positions: &[u32], sign: f64) -> Vec<f64> {
    let half = inverse_frequencies.len();
    let cols = x.len() / positions.len();
    let mut y = vec![0.0; x.len()];
    for (i, position) in positions.iter().enumerate() {
        for h in 0..cols / (2 * half) {
            for (j, frequency) in inverse_frequencies.iter().enumerate() {
                let angle = sign * f64::from(*position as f32 * frequency);
                let (first, second) = (i * cols + h * 2 * half + j, i * cols + h * 2 * half + half + j);
                y[first] = x[first] * angle.cos() - x[second] * angle.sin();
                y[second] = x[second] * angle.cos() + x[first] * angle.sin();
            }
        }
    }
    y
}
