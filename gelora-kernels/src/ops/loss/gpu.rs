//! The units of [`rows`] reduce the rows. A second launch, of one cube, adds the losses of the rows.

use cubecl::prelude::*;

use super::Spread;
use crate::gpu::rows::{self, Rows};
use crate::gpu::{Backend, Gpu, math};
use crate::{Result, Tensor};

const WHOLE_CUBE: Rows = Rows::WHOLE_CUBE;

#[cube(launch)]
fn cross_entropy_kernel(
    logits: &Array<f32>,
    labels: &Array<u32>,
    d_logits: &mut Array<f32>,
    losses: &mut Array<f32>,
    b: usize,
    k: usize,
    scale: f32,
    #[comptime] rows: Rows,
) {
    let (row, place) = rows::place(rows);
    let mut shared = rows::shared();
    // Units beyond the last row repeat it, because all units must reach the reductions. They write nothing.
    let from = row.min(b - 1) * k;
    // The largest logit of the row. A unit without a column starts with the last column.
    let mut peak = logits[from + place.min(k - 1)];
    for col in range_stepped(place, k, comptime!(rows.units)) {
        peak = peak.max(logits[from + col]);
    }
    peak = rows::max(peak, &mut shared, rows);
    let mut sum = 0.0f32;
    for col in range_stepped(place, k, comptime!(rows.units)) {
        sum += math::exp(logits[from + col] - peak); // the softmax denominator
    }
    sum = rows::sum(sum, &mut shared, rows);
    if row < b {
        let label = labels[row] as usize;
        // d_logits = (softmax - one-hot) / B.
        let share = scale / sum;
        for col in range_stepped(place, k, comptime!(rows.units)) {
            let mut d = math::exp(logits[from + col] - peak) * share;
            if col == label {
                d -= scale;
            }
            d_logits[from + col] = d;
        }
        if place == 0 {
            losses[row] = sum.ln() - (logits[from + label] - peak);
        }
    }
}

/// The settings of [`Spread`] beside the weights; `scale` is 1 / W.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Shares {
    keep: f32,
    off: f32,
    all: f32,
    scale: f32,
}

#[cube(launch)]
fn weighted_kernel(
    logits: &Array<f32>,
    labels: &Array<u32>,
    weights: &Array<f32>,
    d_logits: &mut Array<f32>,
    losses: &mut Array<f32>,
    b: usize,
    k: usize,
    s: &Shares,
    #[comptime] rows: Rows,
) {
    let (row, place) = rows::place(rows);
    let mut shared = rows::shared();
    // As in `cross_entropy_kernel`, units beyond the last row repeat it and write nothing.
    let from = row.min(b - 1) * k;
    let mut peak = logits[from + place.min(k - 1)];
    for col in range_stepped(place, k, comptime!(rows.units)) {
        peak = peak.max(logits[from + col]);
    }
    peak = rows::max(peak, &mut shared, rows);
    // The softmax denominator, and sum_j w_j (x_j - peak) for the part that is spread over all classes.
    let mut sum = 0.0f32;
    let mut weighted = 0.0f32;
    for col in range_stepped(place, k, comptime!(rows.units)) {
        let x = logits[from + col] - peak;
        sum += math::exp(x);
        weighted += weights[col] * x;
    }
    sum = rows::sum(sum, &mut shared, rows);
    weighted = rows::sum(weighted, &mut shared, rows);
    if row < b {
        let label = labels[row] as usize;
        let on = s.keep * weights[label];
        // d_logits = ((on + all) softmax - t) / W.
        let share = (on + s.all) * s.scale / sum;
        for col in range_stepped(place, k, comptime!(rows.units)) {
            let mut d = math::exp(logits[from + col] - peak) * share - s.off * s.scale * weights[col];
            if col == label {
                d -= on * s.scale;
            }
            d_logits[from + col] = d;
        }
        if place == 0 {
            let log_sum = sum.ln();
            losses[row] = on * (log_sum - (logits[from + label] - peak)) + (s.all * log_sum - s.off * weighted);
        }
    }
}

/// out = scale sum of all values.
#[cube(launch)]
fn sum_kernel(values: &Array<f32>, out: &mut Array<f32>, scale: f32) {
    let mut shared = rows::shared();
    let mut sum = 0.0f32;
    for i in range_stepped(UNIT_POS as usize, values.len(), comptime!(WHOLE_CUBE.units)) {
        sum += values[i];
    }
    sum = rows::sum(sum, &mut shared, WHOLE_CUBE);
    if UNIT_POS == 0 {
        out[0] = scale * sum;
    }
}

/// Binary cross entropies and their gradients; `scale` is 1 / (B K). One cube goes through all logits.
#[cube(launch)]
fn binary_cross_entropy_kernel(
    logits: &Array<f32>,
    targets: &Array<f32>,
    d: &mut Array<f32>,
    loss: &mut Array<f32>,
    scale: f32,
) {
    let mut shared = rows::shared();
    let mut sum = 0.0f32;
    for i in range_stepped(UNIT_POS as usize, d.len(), comptime!(WHOLE_CUBE.units)) {
        let x = logits[i];
        let t = targets[i];
        // 1 + e^-|x| cannot overflow: ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|).
        let e = math::exp(-x.abs());
        let whole = 1.0f32 + e;
        sum += x.max(0.0f32) + whole.ln() - t * x;
        let sigmoid = select(x < 0.0f32, e, 1.0f32) / whole;
        d[i] = (sigmoid - t) * scale;
    }
    sum = rows::sum(sum, &mut shared, WHOLE_CUBE);
    if UNIT_POS == 0 {
        loss[0] = scale * sum;
    }
}

/// Squared errors and their gradients. One cube goes through all rows.
#[cube(launch)]
fn squared_error_kernel(
    prediction: &Array<f32>,
    targets: &Array<f32>,
    d: &mut Array<f32>,
    loss: &mut Array<f32>,
    scale: f32,
) {
    let mut shared = rows::shared();
    let mut sum = 0.0f32;
    for i in range_stepped(UNIT_POS as usize, d.len(), comptime!(WHOLE_CUBE.units)) {
        let error = prediction[i] - targets[i];
        d[i] = 2.0f32 * scale * error;
        sum += error * error;
    }
    sum = rows::sum(sum, &mut shared, WHOLE_CUBE);
    if UNIT_POS == 0 {
        loss[0] = scale * sum;
    }
}

pub(crate) fn cross_entropy<R: Backend>(gpu: &Gpu<R>, logits: &Tensor, labels: &[usize]) -> Result<(Tensor, Tensor)> {
    const OP: &str = "loss.cross_entropy";
    let (b, k) = (logits.rows(), logits.cols());
    let (loss, d_logits) = (gpu.output([1])?, gpu.output([b, k])?);
    let losses = gpu.scratch(b)?;
    let (rows, scale) = (Rows::of(k), 1.0 / b as f32);
    cross_entropy_kernel::launch::<R>(
        gpu.client(),
        rows.cube_count(b),
        rows.cube_dim(),
        logits.gpu(OP)?.arg(),
        gpu.upload_indices(labels).arg(),
        d_logits.gpu(OP)?.arg(),
        losses.arg(),
        b,
        k,
        scale,
        rows,
    );
    sum_kernel::launch::<R>(
        gpu.client(),
        WHOLE_CUBE.cube_count(1),
        WHOLE_CUBE.cube_dim(),
        losses.arg(),
        loss.gpu(OP)?.arg(),
        scale,
    );
    Ok((loss, d_logits))
}

pub(crate) fn weighted<R: Backend>(
    gpu: &Gpu<R>,
    logits: &Tensor,
    labels: &[usize],
    spread: &Spread,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "loss.weighted_cross_entropy";
    let (b, k) = (logits.rows(), logits.cols());
    let (loss, d_logits) = (gpu.output([1])?, gpu.output([b, k])?);
    let losses = gpu.scratch(b)?;
    let (rows, scale) = (Rows::of(k), (1.0 / spread.total) as f32);
    weighted_kernel::launch::<R>(
        gpu.client(),
        rows.cube_count(b),
        rows.cube_dim(),
        logits.gpu(OP)?.arg(),
        gpu.upload_indices(labels).arg(),
        gpu.upload_f32(&spread.weights).arg(),
        d_logits.gpu(OP)?.arg(),
        losses.arg(),
        b,
        k,
        SharesLaunch::new(spread.keep as f32, spread.off as f32, spread.all as f32, scale),
        rows,
    );
    sum_kernel::launch::<R>(
        gpu.client(),
        WHOLE_CUBE.cube_count(1),
        WHOLE_CUBE.cube_dim(),
        losses.arg(),
        loss.gpu(OP)?.arg(),
        scale,
    );
    Ok((loss, d_logits))
}

pub(crate) fn binary_cross_entropy<R: Backend>(
    gpu: &Gpu<R>,
    logits: &Tensor,
    targets: &[f32],
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "loss.binary_cross_entropy";
    let (loss, d) = (gpu.output([1])?, gpu.output(logits.shape())?);
    binary_cross_entropy_kernel::launch::<R>(
        gpu.client(),
        WHOLE_CUBE.cube_count(1),
        WHOLE_CUBE.cube_dim(),
        logits.gpu(OP)?.arg(),
        gpu.upload_f32(targets).arg(),
        d.gpu(OP)?.arg(),
        loss.gpu(OP)?.arg(),
        1.0 / targets.len() as f32,
    );
    Ok((loss, d))
}

pub(crate) fn squared_error<R: Backend>(
    gpu: &Gpu<R>,
    prediction: &Tensor,
    targets: &[f32],
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "loss.squared_error";
    let (loss, d) = (gpu.output([1])?, gpu.output(prediction.shape())?);
    squared_error_kernel::launch::<R>(
        gpu.client(),
        WHOLE_CUBE.cube_count(1),
        WHOLE_CUBE.cube_dim(),
        prediction.gpu(OP)?.arg(),
        gpu.upload_f32(targets).arg(),
        d.gpu(OP)?.arg(),
        loss.gpu(OP)?.arg(),
        1.0 / targets.len() as f32,
    );
    Ok((loss, d))
}
