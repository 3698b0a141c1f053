//! Tasks of rows.

use rayon::prelude::*;

use super::Spread;
use crate::cpu::{math, rows_per_task, vectorized};
use crate::{Result, Tensor};

pub(crate) fn cross_entropy(logits: &Tensor, labels: &[usize]) -> Result<(Tensor, Tensor)> {
    let (b, k) = (logits.rows(), logits.cols());
    let mut d_logits = Tensor::output([b, k])?;
    let (logits, d) = (logits.as_slice()?, d_logits.as_mut_slice()?);
    let mut losses = vec![0.0_f64; b];
    let rows = rows_per_task(b, k);
    let tasks = logits.par_chunks(rows * k).zip(d.par_chunks_mut(rows * k)).zip(labels.par_chunks(rows));
    tasks.zip(losses.par_chunks_mut(rows)).for_each(|(((x, d), labels), losses)| {
        let rows = x.chunks_exact(k).zip(d.chunks_exact_mut(k)).zip(labels).zip(losses);
        for (((x, d), &label), loss) in rows {
            // loss = ln sum_j e^(x_j - peak) - (x_label - peak).
            let (peak, sum) = exponentials(x, d);
            *loss = sum.ln() - f64::from(x[label] - peak);
            // d_logits = (softmax - one-hot) / B.
            scale(d, (1.0 / (sum * b as f64)) as f32);
            d[label] -= 1.0 / b as f32;
        }
    });
    Ok((scalar(losses.iter().sum::<f64>() / b as f64)?, d_logits))
}

pub(crate) fn weighted(logits: &Tensor, labels: &[usize], spread: &Spread) -> Result<(Tensor, Tensor)> {
    let (b, k) = (logits.rows(), logits.cols());
    let &Spread { ref weights, keep, off, all, total } = spread;
    let mut d_logits = Tensor::output([b, k])?;
    let (logits, d) = (logits.as_slice()?, d_logits.as_mut_slice()?);
    let mut losses = vec![0.0_f64; b];
    let rows = rows_per_task(b, k);
    let tasks = logits.par_chunks(rows * k).zip(d.par_chunks_mut(rows * k)).zip(labels.par_chunks(rows));
    tasks.zip(losses.par_chunks_mut(rows)).for_each(|(((x, d), labels), losses)| {
        let rows = x.chunks_exact(k).zip(d.chunks_exact_mut(k)).zip(labels).zip(losses);
        for (((x, d), &label), loss) in rows {
            let (peak, sum) = exponentials(x, d);
            let (on, log_sum) = (keep * f64::from(weights[label]), sum.ln());
            // loss = on (log_sum - (x_label - peak)) + sum_j off w_j (log_sum - (x_j - peak)).
            *loss = on * (log_sum - f64::from(x[label] - peak));
            // d_logits = ((on + all) softmax - t) / W.
            scale(d, ((on + all) / (sum * total)) as f32);
            d[label] -= (on / total) as f32;
            if off > 0.0 {
                let weighted = x.iter().zip(weights).map(|(x, w)| f64::from(*w) * f64::from(x - peak));
                *loss += all * log_sum - off * weighted.sum::<f64>();
                subtract(d, weights, (off / total) as f32);
            }
        }
    });
    Ok((scalar(losses.iter().sum::<f64>() / total)?, d_logits))
}

/// Number of values that are summed in f32.
const BLOCK: usize = 1024;

vectorized! {
    /// Writes d = e^(x - peak), with peak the largest x. Returns peak and the sum of d.
    fn exponentials(x: &[f32], d: &mut [f32]) -> (f32, f64) {
        let peak = math::max(x);
        let mut sum = 0.0;
        for (x, d) in x.chunks(BLOCK).zip(d.chunks_mut(BLOCK)) {
            for (d, x) in d.iter_mut().zip(x) {
                *d = math::exp(*x - peak);
            }
            sum += f64::from(math::sum(d));
        }
        (peak, sum)
    }
}

vectorized! {
    fn scale(d: &mut [f32], factor: f32) {
        for d in d {
            *d *= factor;
        }
    }
}

vectorized! {
    /// d -= factor w.
    fn subtract(d: &mut [f32], w: &[f32], factor: f32) {
        for (d, w) in d.iter_mut().zip(w) {
            *d -= factor * w;
        }
    }
}

pub(crate) fn binary_cross_entropy(logits: &Tensor, targets: &[f32]) -> Result<(Tensor, Tensor)> {
    let n = targets.len() as f64;
    let mut d_logits = Tensor::output(logits.shape())?;
    let (logits, d) = (logits.as_slice()?, d_logits.as_mut_slice()?);
    let tasks = logits.par_chunks(BLOCK).zip(d.par_chunks_mut(BLOCK)).zip(targets.par_chunks(BLOCK));
    let of_block = |((x, d), targets): ((&[f32], &mut [f32]), &[f32])| {
        let mut sum = 0.0;
        for ((x, d), t) in x.iter().zip(d).zip(targets) {
            let (x, t) = (f64::from(*x), f64::from(*t));
            // 1 + e^-|x| cannot overflow: ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|).
            let e = (-x.abs()).exp();
            sum += x.max(0.0) + e.ln_1p() - t * x;
            let sigmoid = if x < 0.0 { e } else { 1.0 } / (1.0 + e);
            *d = ((sigmoid - t) / n) as f32;
        }
        sum
    };
    // Blocks are added in order, so that the sum does not depend on the threads.
    let losses: Vec<f64> = tasks.map(of_block).collect();
    Ok((scalar(losses.iter().sum::<f64>() / n)?, d_logits))
}

pub(crate) fn squared_error(prediction: &Tensor, targets: &[f32]) -> Result<(Tensor, Tensor)> {
    let b = targets.len();
    let mut d = Tensor::output([b, 1])?;
    let mut total = 0.0_f64;
    for ((d, p), t) in d.as_mut_slice()?.iter_mut().zip(prediction.as_slice()?).zip(targets) {
        let error = f64::from(*p) - f64::from(*t);
        total += error * error;
        *d = (2.0 * error / b as f64) as f32;
    }
    Ok((scalar(total / b as f64)?, d))
}

fn scalar(value: f64) -> Result<Tensor> {
    let mut t = Tensor::output([1])?;
    t.as_mut_slice()?[0] = value as f32;
    Ok(t)
}
