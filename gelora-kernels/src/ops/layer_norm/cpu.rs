use rayon::prelude::*;

use super::Saved;
use crate::cpu::{math, rows_per_task, vectorised};
use crate::{Result, Tensor};

pub fn forward(
    x: &Tensor,
    residual: Option<&Tensor>,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f32,
    save: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (n, c) = (x.rows(), x.cols());
    let mut y = Tensor::output([n, c])?;
    // Without saving, the normalised rows are not kept and a token tensor stands in for them.
    let mut normalized = Tensor::output(if save { [n, c] } else { [1, 1] })?;
    let mut rstd = Tensor::output([n])?;
    {
        let x = x.as_slice()?;
        let residual = residual.map(Tensor::as_slice).transpose()?;
        let (gamma, beta) = (gamma.to_f32()?, beta.to_f32()?);
        let rows = rows_per_task(n, c);
        let kept: Vec<&mut [f32]> = if save {
            normalized.as_mut_slice()?.chunks_mut(rows * c).collect()
        } else {
            (0..n.div_ceil(rows)).map(|_| <&mut [f32]>::default()).collect()
        };
        y.as_mut_slice()?
            .par_chunks_mut(rows * c)
            .zip(rstd.as_mut_slice()?.par_chunks_mut(rows))
            .zip(kept)
            .enumerate()
            .for_each(|(i, ((y, rstd), kept))| {
                let at = i * rows * c..i * rows * c + y.len();
                normalize(&x[at.clone()], residual.map(|r| &r[at]), &gamma, &beta, eps, y, kept, rstd);
            });
    }
    Ok((y, normalized, rstd))
}

vectorised! {
    /// Normalises whole rows; keeps the normalised values if `kept` is not empty.
    fn normalize(
        x: &[f32],
        residual: Option<&[f32]>,
        gamma: &[f32],
        beta: &[f32],
        eps: f32,
        y: &mut [f32],
        kept: &mut [f32],
        rstds: &mut [f32],
    ) {
        let c = gamma.len();
        let scale = 1.0 / c as f32;
        for (i, (y, rstd)) in y.chunks_exact_mut(c).zip(rstds).enumerate() {
            let x = &x[i * c..(i + 1) * c];
            match residual {
                Some(r) => {
                    for ((y, x), r) in y.iter_mut().zip(x).zip(&r[i * c..(i + 1) * c]) {
                        *y = x + r;
                    }
                }
                None => y.copy_from_slice(x),
            }
            let mean = math::sum(y) * scale;
            for h in y.iter_mut() {
                *h -= mean;
            }
            let r = 1.0 / (math::dot(y, y) * scale + eps).sqrt();
            *rstd = r;
            for h in y.iter_mut() {
                *h *= r;
            }
            if !kept.is_empty() {
                kept[i * c..(i + 1) * c].copy_from_slice(y);
            }
            for ((y, gamma), beta) in y.iter_mut().zip(gamma).zip(beta) {
                *y = *y * gamma + beta;
            }
        }
    }
}

pub fn backward(dy: &Tensor, gamma: &Tensor, saved: &Saved) -> Result<Tensor> {
    let (n, c) = (dy.rows(), dy.cols());
    let mut dh = Tensor::output([n, c])?;
    let (dy, gamma) = (dy.as_slice()?, gamma.to_f32()?);
    let (normalized, rstd) = (saved.normalized.as_slice()?, saved.rstd.as_slice()?);
    crate::cpu::for_row_blocks(dh.as_mut_slice()?, c, |row, dh| {
        let at = row * c..row * c + dh.len();
        backward_rows(&dy[at.clone()], &gamma, &normalized[at], &rstd[row..], dh);
    });
    Ok(dh)
}

vectorised! {
    fn backward_rows(dy: &[f32], gamma: &[f32], normalized: &[f32], rstd: &[f32], dh: &mut [f32]) {
        let c = gamma.len();
        let scale = 1.0 / c as f32;
        for (i, dh) in dh.chunks_exact_mut(c).enumerate() {
            let normalized = &normalized[i * c..(i + 1) * c];
            for ((dh, dy), gamma) in dh.iter_mut().zip(&dy[i * c..(i + 1) * c]).zip(gamma) {
                *dh = dy * gamma;
            }
            let mean = math::sum(dh) * scale;
            let projection = math::dot(dh, normalized) * scale;
            for (dh, normalized) in dh.iter_mut().zip(normalized) {
                *dh = rstd[i] * (*dh - mean - normalized * projection);
            }
        }
    }
}
