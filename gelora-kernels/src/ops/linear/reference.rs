//! The formulas in f64. Dimensions that the slices do not determine are arguments.

/// y = x W^T + b.
pub fn forward(x: &[f64], w: &[f64], b: Option<&[f64]>, c_in: usize) -> Vec<f64> {
    let (n, c_out) = (x.len() / c_in, w.len() / c_in);
    let mut y = vec![0.0; n * c_out];
    for i in 0..n {
        for o in 0..c_out {
            y[i * c_out + o] = b.map_or(0.0, |b| b[o]);
            for c in 0..c_in {
                y[i * c_out + o] += x[i * c_in + c] * w[o * c_in + c];
            }
        }
    }
    y
}

/// dx = dy W.
pub fn backward_input(dy: &[f64], w: &[f64], c_out: usize) -> Vec<f64> {
    let (n, c_in) = (dy.len() / c_out, w.len() / c_out);
    let mut dx = vec![0.0; n * c_in];
    for i in 0..n {
        for o in 0..c_out {
            for c in 0..c_in {
                dx[i * c_in + c] += dy[i * c_out + o] * w[o * c_in + c];
            }
        }
    }
    dx
}

/// (dW = dy^T x, db = sum over rows of dy).
pub fn backward_weight(dy: &[f64], x: &[f64], c_in: usize) -> (Vec<f64>, Vec<f64>) {
    let n = x.len() / c_in;
    let c_out = dy.len() / n;
    let (mut dw, mut db) = (vec![0.0; c_out * c_in], vec![0.0; c_out]);
    for i in 0..n {
        for o in 0..c_out {
            db[o] += dy[i * c_out + o];
            for c in 0..c_in {
                dw[o * c_in + c] += dy[i * c_out + o] * x[i * c_in + c];
            }
        }
    }
    (dw, db)
}
