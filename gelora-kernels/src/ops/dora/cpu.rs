//! Loops over rows in parallel; the gradient of the magnitudes over columns in parallel.

use rayon::prelude::*;

use super::LEAST_NORM;
use crate::cpu::for_row_blocks;
use crate::{Result, Tensor};

/// Columns of one task of the gradient of the magnitudes.
const COLUMNS: usize = 64;

pub(crate) fn norms(squares: &Tensor, products: &Tensor, gram: &Tensor, b: &Tensor, s: f32) -> Result<Tensor> {
    let (c_out, r) = (b.rows(), b.cols());
    let mut norms = Tensor::output([c_out])?;
    let (squares, products) = (squares.as_slice()?, products.as_slice()?);
    let (gram, b, s) = (gram.as_slice()?, b.as_slice()?, f64::from(s));
    for_row_blocks(norms.as_mut_slice()?, 1, |first, norms| {
        for (i, norm) in norms.iter_mut().enumerate() {
            let row = first + i;
            let b = &b[row * r..(row + 1) * r];
            let mut square = f64::from(squares[row]);
            for (k, b_k) in b.iter().enumerate() {
                // 2 s P_ki + s^2 G_k B_i
                let inner: f64 =
                    gram[k * r..(k + 1) * r].iter().zip(b).map(|(g, b)| f64::from(*g) * f64::from(*b)).sum();
                square += f64::from(*b_k) * s * (2.0 * f64::from(products[k * c_out + row]) + s * inner);
            }
            *norm = (square.max(0.0).sqrt() as f32).max(LEAST_NORM);
        }
    });
    Ok(norms)
}

/// m / n.
fn factors(magnitude: &Tensor, norms: &Tensor) -> Result<Vec<f32>> {
    Ok(magnitude.as_slice()?.iter().zip(norms.as_slice()?).map(|(m, n)| m / n).collect())
}

pub(crate) fn forward(z: &Tensor, magnitude: &Tensor, norms: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (c_out, factors) = (z.cols(), factors(magnitude, norms)?);
    let bias = bias.map(Tensor::as_slice).transpose()?;
    let mut y = Tensor::output(z.shape())?;
    let z = z.as_slice()?;
    for_row_blocks(y.as_mut_slice()?, c_out, |first, y| {
        for (y, z) in y.chunks_mut(c_out).zip(z[first * c_out..].chunks(c_out)) {
            match bias {
                None => y.iter_mut().zip(z).zip(&factors).for_each(|((y, z), f)| *y = f * z),
                Some(bias) => {
                    y.iter_mut().zip(z).zip(&factors).zip(bias).for_each(|(((y, z), f), b)| *y = f * z + b);
                }
            }
        }
    });
    Ok(y)
}

pub(crate) fn backward(dy: &Tensor, z: &Tensor, magnitude: &Tensor, norms: &Tensor) -> Result<(Tensor, Tensor)> {
    let c_out = z.cols();
    let dz = forward(dy, magnitude, norms, None)?;
    let mut dm = Tensor::output([c_out])?;
    let (dy, z, norms) = (dy.as_slice()?, z.as_slice()?, norms.as_slice()?);
    dm.as_mut_slice()?.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, dm)| {
        let first = chunk * COLUMNS;
        let columns = first..first + dm.len();
        let mut sums = [0.0f64; COLUMNS];
        for (dy, z) in dy.chunks(c_out).zip(z.chunks(c_out)) {
            for ((sum, dy), z) in sums.iter_mut().zip(&dy[columns.clone()]).zip(&z[columns.clone()]) {
                *sum += f64::from(*dy) * f64::from(*z);
            }
        }
        for ((dm, sum), n) in dm.iter_mut().zip(&sums).zip(&norms[columns]) {
            *dm = (sum / f64::from(*n)) as f32;
        }
    });
    Ok((dz, dm))
}
