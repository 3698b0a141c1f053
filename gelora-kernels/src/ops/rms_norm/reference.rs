//! The formulas in f64.

/// (y, h, rstd) of h = x + residual.
pub fn forward(x: &[f64], residual: Option<&[f64]>, gamma: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let c = gamma.len();
    let (mut y, mut sums, mut rstds) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..x.len() / c {
        let h: Vec<f64> = (i * c..(i + 1) * c).map(|index| x[index] + residual.map_or(0.0, |r| r[index])).collect();
        let rstd = 1.0 / (h.iter().map(|h| h * h).sum::<f64>() / c as f64 + eps).sqrt();
        for j in 0..c {
            y.push(h[j] * rstd * gamma[j]);
        }
        sums.extend(h);
        rstds.push(rstd);
    }
    (y, sums, rstds)
}

/// dh from the gradients of y and h.
pub fn backward(dy: &[f64], d_h: Option<&[f64]>, gamma: &[f64], h: &[f64], rstd: &[f64]) -> Vec<f64> {
    let c = gamma.len();
    let mut dh = Vec::new();
    for (i, rstd) in rstd.iter().enumerate() {
        let index = |j: usize| i * c + j;
        let projection = (0..c).map(|j| dy[index(j)] * gamma[j] * h[index(j)] * rstd).sum::<f64>() / c as f64;
        for j in 0..c {
            let above = d_h.map_or(0.0, |d| d[index(j)]);
            dh.push(rstd * (dy[index(j)] * gamma[j] - h[index(j)] * rstd * projection) + above);
        }
    }
    dh
}
