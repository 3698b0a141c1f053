//! The formulas in f64. Dimensions that the slices do not determine are arguments.

/// The norms of the rows of W + s B A, from the dense matrix.
pub fn norms(w: &[f64], a: &[f64], b: &[f64], s: f64, c_in: usize) -> Vec<f64> {
    let (c_out, r) = (w.len() / c_in, a.len() / c_in);
    let mut norms = vec![0.0; c_out];
    for i in 0..c_out {
        for c in 0..c_in {
            let mut value = w[i * c_in + c];
            for k in 0..r {
                value += s * b[i * r + k] * a[k * c_in + c];
            }
            norms[i] += value * value;
        }
        norms[i] = norms[i].sqrt();
    }
    norms
}

/// m / n z + b.
pub fn forward(z: &[f64], m: &[f64], n: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let c_out = m.len();
    let value = |(i, z): (usize, &f64)| {
        let o = i % c_out;
        m[o] / n[o] * z + bias.map_or(0.0, |bias| bias[o])
    };
    z.iter().enumerate().map(value).collect()
}

/// (dz, dm), the gradients of the sum of dy y with n constant.
pub fn backward(dy: &[f64], z: &[f64], m: &[f64], n: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let c_out = m.len();
    let (mut dz, mut dm) = (vec![0.0; z.len()], vec![0.0; c_out]);
    for i in 0..z.len() {
        let o = i % c_out;
        dz[i] = m[o] / n[o] * dy[i];
        dm[o] += dy[i] * z[i] / n[o];
    }
    (dz, dm)
}
