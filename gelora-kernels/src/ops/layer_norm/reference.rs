//! The formulas in f64.

/// (y, h, mean, rstd) of h = x + residual.
pub fn forward(
    x: &[f64],
    residual: Option<&[f64]>,
    gamma: &[f64],
    beta: &[f64],
    eps: f64,
) -> (Vec<f64>, Vec<f64>, Vec<f64>, Vec<f64>) {
    let c = gamma.len();
    let (mut y, mut sums, mut means, mut rstds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for i in 0..x.len() / c {
        let h: Vec<f64> = (i * c..(i + 1) * c).map(|index| x[index] + residual.map_or(0.0, |r| r[index])).collect();
        let mean = h.iter().sum::<f64>() / c as f64;
        let variance = h.iter().map(|h| (h - mean).powi(2)).sum::<f64>() / c as f64;
        let rstd = 1.0 / (variance + eps).sqrt();
        for j in 0..c {
            y.push((h[j] - mean) * rstd * gamma[j] + beta[j]);
        }
        sums.extend(h);
        means.push(mean);
        rstds.push(rstd);
    }
    (y, sums, means, rstds)
}

/// dh from dy.
pub fn backward(dy: &[f64], gamma: &[f64], h: &[f64], mean: &[f64], rstd: &[f64]) -> Vec<f64> {
    let c = gamma.len();
    let mut dh = Vec::new();
    for i in 0..rstd.len() {
        let row = i * c..(i + 1) * c;
        let normalized: Vec<f64> = h[row.clone()].iter().map(|h| (h - mean[i]) * rstd[i]).collect();
        let g: Vec<f64> = dy[row].iter().zip(gamma).map(|(d, g)| d * g).collect();
        let mean_g = g.iter().sum::<f64>() / c as f64;
        let projection = g.iter().zip(&normalized).map(|(g, n)| g * n).sum::<f64>() / c as f64;
        for j in 0..c {
            dh.push(rstd[i] * (g[j] - mean_g - normalized[j] * projection));
        }
    }
    dh
}
