//! The formulas in f64. Dimensions that the slices do not determine are arguments.

use crate::ops::dropout::{Dropout, reference::apply};

fn dropped(x: &[f64], dropout: Option<Dropout>) -> Vec<f64> {
    dropout.map_or(x.to_vec(), |d| apply(x, d.p, d.key))
}

/// (y = x W^T + b + s drop(x) A^T B^T, xa = drop(x) A^T).
#[allow(clippy::too_many_arguments)] // the formula has as many symbols
pub fn forward(
    x: &[f64],
    w: &[f64],
    bias: Option<&[f64]>,
    a: &[f64],
    b: &[f64],
    s: f64,
    dropout: Option<Dropout>,
    c_in: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (n, c_out, r) = (x.len() / c_in, w.len() / c_in, a.len() / c_in);
    let d = dropped(x, dropout);
    let (mut y, mut xa) = (vec![0.0; n * c_out], vec![0.0; n * r]);
    for i in 0..n {
        for k in 0..r {
            for c in 0..c_in {
                xa[i * r + k] += d[i * c_in + c] * a[k * c_in + c];
            }
        }
        for o in 0..c_out {
            let y = &mut y[i * c_out + o];
            *y = bias.map_or(0.0, |bias| bias[o]);
            for c in 0..c_in {
                *y += x[i * c_in + c] * w[o * c_in + c];
            }
            for k in 0..r {
                *y += s * xa[i * r + k] * b[o * r + k];
            }
        }
    }
    (y, xa)
}

/// (dX, dA, dB), the gradients of the sum of dy y.
#[allow(clippy::too_many_arguments)] // the formula has as many symbols
pub fn backward(
    x: &[f64],
    dy: &[f64],
    w: &[f64],
    a: &[f64],
    b: &[f64],
    s: f64,
    dropout: Option<Dropout>,
    c_in: usize,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (n, c_out, r) = (x.len() / c_in, w.len() / c_in, a.len() / c_in);
    let d = dropped(x, dropout);
    let mask = dropped(&vec![1.0; x.len()], dropout);
    let (mut dx, mut da, mut db) = (vec![0.0; n * c_in], vec![0.0; r * c_in], vec![0.0; c_out * r]);
    for i in 0..n {
        for k in 0..r {
            let (mut xa, mut dxa) = (0.0, 0.0);
            for c in 0..c_in {
                xa += d[i * c_in + c] * a[k * c_in + c];
            }
            for o in 0..c_out {
                dxa += s * dy[i * c_out + o] * b[o * r + k];
                db[o * r + k] += s * dy[i * c_out + o] * xa;
            }
            for c in 0..c_in {
                da[k * c_in + c] += dxa * d[i * c_in + c];
                dx[i * c_in + c] += mask[i * c_in + c] * dxa * a[k * c_in + c];
            }
        }
        for o in 0..c_out {
            for c in 0..c_in {
                dx[i * c_in + c] += dy[i * c_out + o] * w[o * c_in + c];
            }
        }
    }
    (dx, da, db)
}
