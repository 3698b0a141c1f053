//! Loops over rows.

use crate::cpu::for_row_blocks;
use crate::{Offsets, Result, Tensor};

pub(crate) fn mean(x: &Tensor, sequences: &Offsets) -> Result<Tensor> {
    let c = x.cols();
    let mut y = Tensor::output([sequences.sequences(), c])?;
    let x = x.as_slice()?;
    for_row_blocks(y.as_mut_slice()?, c, |first, means| {
        for (b, mean) in means.chunks_exact_mut(c).enumerate() {
            let rows = sequences.range(first + b);
            let scale = 1.0 / rows.len() as f32;
            mean.fill(0.0);
            for row in x[rows.start * c..rows.end * c].chunks_exact(c) {
                mean.iter_mut().zip(row).for_each(|(m, v)| *m += v);
            }
            mean.iter_mut().for_each(|m| *m *= scale);
        }
    });
    Ok(y)
}

pub(crate) fn mean_backward(dy: &Tensor, sequences: &Offsets) -> Result<Tensor> {
    let c = dy.cols();
    let mut dx = Tensor::output([sequences.tokens(), c])?;
    let out = dx.as_mut_slice()?;
    for (rows, dy) in sequences.ranges().zip(dy.as_slice()?.chunks_exact(c)) {
        let scale = 1.0 / rows.len() as f32;
        for row in out[rows.start * c..rows.end * c].chunks_exact_mut(c) {
            row.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = dy * scale);
        }
    }
    Ok(dx)
}

pub(crate) fn rows(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let c = x.cols();
    let mut y = Tensor::output([rows.len(), c])?;
    let x = x.as_slice()?;
    for (y, &i) in y.as_mut_slice()?.chunks_exact_mut(c).zip(rows) {
        y.copy_from_slice(&x[i * c..(i + 1) * c]);
    }
    Ok(y)
}

pub(crate) fn rows_backward(dy: &Tensor, rows: &[usize], n: usize) -> Result<Tensor> {
    let c = dy.cols();
    let mut dx = Tensor::output([n, c])?;
    let out = dx.as_mut_slice()?;
    out.fill(0.0);
    for (dy, &i) in dy.as_slice()?.chunks_exact(c).zip(rows) {
        out[i * c..(i + 1) * c].copy_from_slice(dy);
    }
    Ok(dx)
}
