//! The formulas in f64. `starts` has the first row of every sequence, then the number of all rows.

/// Mean of each sequence's rows.
pub fn mean(x: &[f64], starts: &[usize], c: usize) -> Vec<f64> {
    let mut y = Vec::new();
    for s in starts.windows(2) {
        for j in 0..c {
            y.push((s[0]..s[1]).map(|i| x[i * c + j]).sum::<f64>() / (s[1] - s[0]) as f64);
        }
    }
    y
}

/// Backward of [`mean`].
pub fn mean_backward(dy: &[f64], starts: &[usize], c: usize) -> Vec<f64> {
    let mut dx = Vec::new();
    for (b, s) in starts.windows(2).enumerate() {
        for _ in s[0]..s[1] {
            dx.extend((0..c).map(|j| dy[b * c + j] / (s[1] - s[0]) as f64));
        }
    }
    dx
}
