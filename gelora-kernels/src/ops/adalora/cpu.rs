//! Loops over rows. The factors are thin, so one thread takes less time than it takes to wake others.

use super::{Clip, Decay, Importance, Vectors};
use crate::cpu::vectorized;
use crate::{Result, Tensor};

vectorized! {
    /// The sum of x y, in eight interleaved parts.
    fn dot(x: &[f32], y: &[f32]) -> f64 {
        let mut parts = [0.0f64; 8];
        let (x_blocks, x_rest) = x.as_chunks::<8>();
        let (y_blocks, y_rest) = y.as_chunks::<8>();
        for (x, y) in x_blocks.iter().zip(y_blocks) {
            for ((part, x), y) in parts.iter_mut().zip(x).zip(y) {
                *part += f64::from(*x) * f64::from(*y);
            }
        }
        for ((part, x), y) in parts.iter_mut().zip(x_rest).zip(y_rest) {
            *part += f64::from(*x) * f64::from(*y);
        }
        parts.iter().sum()
    }
}

vectorized! {
    /// to += factor x.
    fn add_scaled(to: &mut [f32], factor: f32, x: &[f32]) {
        to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
    }
}

vectorized! {
    /// to += factor x, in f64.
    fn add_wide(to: &mut [f64], factor: f64, x: &[f32]) {
        to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * f64::from(*x));
    }
}

vectorized! {
    /// The update of the importance, with gradients times `scale`.
    fn step(decay: Decay, scale: f32, p: &[f32], g: &[f32], s: &mut [f32], u: &mut [f32]) {
        for (((p, g), s), u) in p.iter().zip(g).zip(s).zip(u) {
            let product = (p * (g * scale)).abs();
            *s = decay.sensitivity * *s + (1.0 - decay.sensitivity) * product;
            *u = decay.uncertainty * *u + (1.0 - decay.uncertainty) * (product - *s).abs();
        }
    }
}

pub(crate) fn forward(e: &Tensor, a: &Tensor) -> Result<Tensor> {
    let (cols, mut scaled) = (a.cols().max(1), Tensor::output(a.shape())?);
    let rows = scaled.as_mut_slice()?.chunks_mut(cols).zip(a.as_slice()?.chunks(cols));
    for ((scaled, a), e) in rows.zip(e.as_slice()?) {
        scaled.iter_mut().zip(a).for_each(|(scaled, a)| *scaled = e * a);
    }
    Ok(scaled)
}

pub(crate) fn backward(da: &Tensor, e: &Tensor, a: &Tensor) -> Result<(Tensor, Tensor)> {
    let (cols, mut de) = (a.cols().max(1), Tensor::output(e.shape())?);
    let rows = da.as_slice()?.chunks(cols).zip(a.as_slice()?.chunks(cols));
    de.as_mut_slice()?.iter_mut().zip(rows).for_each(|(de, (da, a))| *de = dot(da, a) as f32);
    Ok((forward(e, da)?, de))
}

/// M (R, R).
pub(crate) fn gram(factor: &Tensor, vectors: Vectors) -> Result<Tensor> {
    let ((r, _), cols) = (vectors.of(factor), factor.cols().max(1));
    let values = factor.as_slice()?;
    let mut sums = vec![0.0f64; r * r];
    match vectors {
        Vectors::Rows => {
            for k in 0..r {
                for l in k..r {
                    let sum = dot(&values[k * cols..][..cols], &values[l * cols..][..cols]);
                    (sums[k * r + l], sums[l * r + k]) = (sum, sum);
                }
            }
        }
        Vectors::Columns => {
            for row in values.chunks(cols) {
                sums.chunks_mut(r).zip(row).for_each(|(sums, value)| add_wide(sums, f64::from(*value), row));
            }
        }
    }
    (0..r).for_each(|k| sums[k * r + k] -= 1.0);
    Tensor::from_vec(sums.into_iter().map(|sum| sum as f32).collect(), [r, r])
}

/// 2 / d M P or 2 / d P M.
pub(crate) fn gradient(factor: &Tensor, vectors: Vectors, gram: &Tensor, distance: &Tensor) -> Result<Tensor> {
    let ((r, _), cols, distance) = (vectors.of(factor), factor.cols().max(1), distance.item()?);
    let scale = if distance > 0.0 { 2.0 / distance } else { 0.0 };
    let (values, gram) = (factor.as_slice()?, gram.as_slice()?);
    let mut gradient = Tensor::output(factor.shape())?;
    for (row, out) in gradient.as_mut_slice()?.chunks_mut(cols).enumerate() {
        out.fill(0.0);
        match vectors {
            Vectors::Rows => {
                let gram = &gram[row * r..][..r];
                values.chunks(cols).zip(gram).for_each(|(vector, m)| add_scaled(out, *m, vector));
            }
            // M is symmetric: its row is its column.
            Vectors::Columns => {
                let row = &values[row * cols..][..cols];
                gram.chunks(r).zip(row).for_each(|(gram, value)| add_scaled(out, *value, gram));
            }
        }
        out.iter_mut().for_each(|value| *value *= scale);
    }
    Ok(gradient)
}

pub(crate) fn update(
    decay: Decay,
    parameter: &Tensor,
    gradient: &Tensor,
    clip: Clip<'_>,
    importance: &mut Importance,
) -> Result<()> {
    let Some(scale) = clip.scale()? else { return Ok(()) };
    let Importance { sensitivity, uncertainty } = importance;
    let (s, u) = (sensitivity.as_mut_slice()?, uncertainty.as_mut_slice()?);
    step(decay, scale, parameter.as_slice()?, gradient.as_slice()?, s, u);
    Ok(())
}

pub(crate) fn scores(importance: &Importance, vectors: Vectors) -> Result<Tensor> {
    let (s, u) = (importance.sensitivity.as_slice()?, importance.uncertainty.as_slice()?);
    let ((r, len), cols) = (vectors.of(&importance.sensitivity), importance.sensitivity.cols().max(1));
    let mut sums = vec![0.0f64; r];
    for (row, (s, u)) in s.chunks(cols).zip(u.chunks(cols)).enumerate() {
        match vectors {
            Vectors::Rows => sums[row] = dot(s, u),
            Vectors::Columns => {
                for ((sum, s), u) in sums.iter_mut().zip(s).zip(u) {
                    *sum += f64::from(*s) * f64::from(*u);
                }
            }
        }
    }
    Tensor::from_vec(sums.into_iter().map(|sum| (sum / len as f64) as f32).collect(), [r])
}
