//! The units of [`rows`] reduce the rows. A second launch, of one cube, adds the losses of the rows.

use cubecl::prelude::*;

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
