//! Naive loops, from the formula alone. That an angle is an f32 is part of the formula.

/// The rotation by `sign` times the angles: x (N, H D), inverse frequencies (D/2), a position for each row.
pub fn rotate(x: &[f64], inverse_frequencies: &[f32], positions: &[u32], sign: f64) -> Vec<f64> {
    let half = inverse_frequencies.len();
    let cols = x.len() / positions.len();
    let mut y = vec![0.0; x.len()];
    for i in 0..positions.len() {
        for h in 0..cols / (2 * half) {
            for j in 0..half {
                let angle = sign * f64::from(positions[i] as f32 * inverse_frequencies[j]);
                let (first, second) = (i * cols + h * 2 * half + j, i * cols + h * 2 * half + half + j);
                y[first] = x[first] * angle.cos() - x[second] * angle.sin();
                y[second] = x[second] * angle.cos() + x[first] * angle.sin();
            }
        }
    }
    y
}
