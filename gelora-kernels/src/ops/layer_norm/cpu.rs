//! Tasks of whole rows.

use rayon::prelude::*;

use super::{Norm, Normalized};
use crate::cpu::{for_row_blocks, math, rows_per_task, vectorized};
use crate::{Result, Tensor};

pub(crate) fn forward(norm: Norm<'_>, x: &Tensor, residual: Option<&Tensor>, keep_sum: bool) -> Result<Normalized> {
    let (n, c) = (x.rows(), x.cols());
    let writes_sum = keep_sum && residual.is_some();
    let mut y = Tensor::output([n, c])?;
    // If the sum is not kept, a tensor of one value stands in for it.
    let mut sums = Tensor::output(if writes_sum { [n, c] } else { [1, 1] })?;
    let (mut mean, mut rstd) = (Tensor::output([n])?, Tensor::output([n])?);
    {
        let x = x.as_slice()?;
        let residual = residual.map(Tensor::as_slice).transpose()?;
        let gamma = norm.gamma.to_f32()?;
        let beta = norm.beta.map(Tensor::to_f32).transpose()?;
        let rows = rows_per_task(n, c);
        let sums: Vec<&mut [f32]> = if writes_sum {
            sums.as_mut_slice()?.chunks_mut(rows * c).collect()
        } else {
            (0..n.div_ceil(rows)).map(|_| <&mut [f32]>::default()).collect()
        };
        y.as_mut_slice()?
            .par_chunks_mut(rows * c)
            .zip(mean.as_mut_slice()?.par_chunks_mut(rows))
            .zip(rstd.as_mut_slice()?.par_chunks_mut(rows))
            .zip(sums)
            .enumerate()
            .for_each(|(i, (((y, mean), rstd), sums))| {
                let block = i * rows * c..i * rows * c + y.len();
                let (x, residual) = (&x[block.clone()], residual.map(|r| &r[block]));
                normalize(x, residual, &gamma, beta.as_deref(), norm.eps, norm.centered, y, sums, mean, rstd);
            });
    }
    Ok(Normalized { y, h: if writes_sum { sums } else { x.clone() }, mean, rstd })
}

vectorized! {
    /// Normalizes whole rows. Writes the sums of x and the residual to `sums` unless it is empty.
    fn normalize(
        x: &[f32],
        residual: Option<&[f32]>,
        gamma: &[f32],
        beta: Option<&[f32]>,
        eps: f32,
        centered: bool,
        y: &mut [f32],
        sums: &mut [f32],
        means: &mut [f32],
        rstds: &mut [f32],
    ) {
        let c = gamma.len();
        let scale = 1.0 / c as f32;
        for (i, ((y, row_mean), rstd)) in y.chunks_exact_mut(c).zip(means).zip(rstds).enumerate() {
            let x = &x[i * c..(i + 1) * c];
            // h = x + residual.
            match residual {
                Some(r) => {
                    for ((y, x), r) in y.iter_mut().zip(x).zip(&r[i * c..(i + 1) * c]) {
                        *y = x + r;
                    }
                }
                None => y.copy_from_slice(x),
            }
            if !sums.is_empty() {
                sums[i * c..(i + 1) * c].copy_from_slice(y);
            }
            // h - mean.
            let mean = if centered { math::sum(y) * scale } else { 0.0 };
            if centered {
                for h in y.iter_mut() {
                    *h -= mean;
                }
            }
            // rstd, from the mean of the squared differences.
            let r = 1.0 / (math::dot(y, y) * scale + eps).sqrt();
            (*row_mean, *rstd) = (mean, r);
            // y = normalized gamma + beta.
            match beta {
                Some(beta) => {
                    for ((y, gamma), beta) in y.iter_mut().zip(gamma).zip(beta) {
                        *y = *y * r * gamma + beta;
                    }
                }
                None => {
                    for (y, gamma) in y.iter_mut().zip(gamma) {
                        *y = *y * r * gamma;
                    }
                }
            }
        }
    }
}

/// dh. Without `mean`, the norm is not centered.
pub(crate) fn backward(
    dy: &Tensor,
    d_h: Option<&Tensor>,
    gamma: &Tensor,
    h: &Tensor,
    mean: Option<&Tensor>,
    rstd: &Tensor,
) -> Result<Tensor> {
    let (n, c) = (dy.rows(), dy.cols());
    let mut dh = Tensor::output([n, c])?;
    let (dy, gamma, h, rstd) = (dy.as_slice()?, gamma.to_f32()?, h.as_slice()?, rstd.as_slice()?);
    let (d_h, mean) = (d_h.map(Tensor::as_slice).transpose()?, mean.map(Tensor::as_slice).transpose()?);
    for_row_blocks(dh.as_mut_slice()?, c, |row, dh| {
        let block = row * c..row * c + dh.len();
        let mut normalized = vec![0.0; c];
        let mean = mean.map(|m| &m[row..]);
        backward_rows(&dy[block.clone()], &gamma, &h[block.clone()], mean, &rstd[row..], &mut normalized, dh);
        if let Some(d_h) = d_h {
            dh.iter_mut().zip(&d_h[block]).for_each(|(dh, d)| *dh += d);
        }
    });
    Ok(dh)
}

vectorized! {
    /// dh of whole rows; `normalized` is memory for one row.
    fn backward_rows(
        dy: &[f32],
        gamma: &[f32],
        h: &[f32],
        means: Option<&[f32]>,
        rstds: &[f32],
        normalized: &mut [f32],
        dh: &mut [f32],
    ) {
        let c = gamma.len();
        let scale = 1.0 / c as f32;
        for (i, dh) in dh.chunks_exact_mut(c).enumerate() {
            let (mean, rstd) = (means.map_or(0.0, |m| m[i]), rstds[i]);
            for (normalized, h) in normalized.iter_mut().zip(&h[i * c..(i + 1) * c]) {
                *normalized = (h - mean) * rstd;
            }
            // g = dy gamma.
            for ((dh, dy), gamma) in dh.iter_mut().zip(&dy[i * c..(i + 1) * c]).zip(gamma) {
                *dh = dy * gamma;
            }
            // dh = rstd (g - mean(g) - normalized mean(g normalized)).
            let mean = if means.is_some() { math::sum(dh) * scale } else { 0.0 };
            let projection = math::dot(dh, normalized) * scale;
            for (dh, normalized) in dh.iter_mut().zip(normalized.iter()) {
                *dh = rstd * (*dh - mean - normalized * projection);
            }
        }
    }
}
