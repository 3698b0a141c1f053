//! A group of units of one cube holds each row in registers, so memory is read once.

use cubecl::prelude::*;

use super::{Norm, Normalized};
use crate::gpu::rows::{self, Rows};
use crate::gpu::{Backend, Gpu, by_dtype};
use crate::{Error, Result, Tensor};

/// The most values of a row in one unit.
const MAX_VALUES: usize = 64;

/// The comptime settings of both kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Setup {
    rows: Rows,
    /// Number of values of a row in each unit.
    values: usize,
    /// Whether the mean is subtracted.
    centered: bool,
    /// Forward: whether there is a residual. Backward: whether there is a gradient of h to add.
    added: bool,
    has_beta: bool,
    /// Whether the sum of x and the residual is written.
    writes_sum: bool,
}

impl Setup {
    fn new<R: Backend>(op: &'static str, c: usize, centered: bool, added: bool) -> Result<Self> {
        let rows = Rows::of(c);
        let values = c.div_ceil(rows.units);
        if values > MAX_VALUES {
            return Err(Error::Unsupported { op, device: R::KIND, what: "rows of more than 16384 values" });
        }
        Ok(Self { rows, values, centered, added, has_beta: false, writes_sum: false })
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn forward_kernel<G: Float, B: Float>(
    x: &Array<f32>,
    residual: &Array<f32>,
    gamma: &Array<G>,
    beta: &Array<B>,
    y: &mut Array<f32>,
    h: &mut Array<f32>,
    means: &mut Array<f32>,
    rstds: &mut Array<f32>,
    n: usize,
    c: usize,
    scale: f32,
    eps: f32,
    #[comptime] setup: Setup,
) {
    let (row, place) = rows::place(setup.rows);
    let mut shared = rows::shared();
    let mut own = Array::<f32>::new(setup.values);
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..setup.values {
        let col = place + comptime!(i * setup.rows.units);
        let mut value = 0.0f32;
        if row < n && col < c {
            value = x[row * c + col];
            if comptime!(setup.added) {
                value += residual[row * c + col];
            }
            if comptime!(setup.writes_sum) {
                h[row * c + col] = value;
            }
        }
        own[i] = value;
        sum += value;
    }
    let mut mean = 0.0f32;
    if comptime!(setup.centered) {
        mean = rows::sum(sum, &mut shared, setup.rows) * scale;
    }
    let mut squares = 0.0f32;
    #[unroll]
    for i in 0..setup.values {
        let col = place + comptime!(i * setup.rows.units);
        if col < c {
            own[i] = own[i] - mean;
            squares += own[i] * own[i];
        }
    }
    let variance = rows::sum(squares, &mut shared, setup.rows) * scale;
    let rstd = 1.0f32 / (variance + eps).sqrt();
    if row < n {
        #[unroll]
        for i in 0..setup.values {
            let col = place + comptime!(i * setup.rows.units);
            if col < c {
                let mut value = own[i] * rstd * f32::cast_from(gamma[col]);
                if comptime!(setup.has_beta) {
                    value += f32::cast_from(beta[col]);
                }
                y[row * c + col] = value;
            }
        }
        if place == 0 {
            rstds[row] = rstd;
            if comptime!(setup.centered) {
                means[row] = mean;
            }
        }
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn backward_kernel<G: Float>(
    dy: &Array<f32>,
    above: &Array<f32>,
    gamma: &Array<G>,
    h: &Array<f32>,
    means: &Array<f32>,
    rstds: &Array<f32>,
    dh: &mut Array<f32>,
    n: usize,
    c: usize,
    scale: f32,
    #[comptime] setup: Setup,
) {
    let (row, place) = rows::place(setup.rows);
    let mut shared = rows::shared();
    let mut gradient = Array::<f32>::new(setup.values);
    let mut normalized = Array::<f32>::new(setup.values);
    let mut mean = 0.0f32;
    let mut rstd = 0.0f32;
    if row < n {
        rstd = rstds[row];
        if comptime!(setup.centered) {
            mean = means[row];
        }
    }
    let mut sum = 0.0f32;
    let mut products = 0.0f32;
    #[unroll]
    for i in 0..setup.values {
        let col = place + comptime!(i * setup.rows.units);
        let mut g = 0.0f32;
        let mut z = 0.0f32;
        if row < n && col < c {
            g = dy[row * c + col] * f32::cast_from(gamma[col]);
            z = (h[row * c + col] - mean) * rstd;
        }
        gradient[i] = g;
        normalized[i] = z;
        sum += g;
        products += g * z;
    }
    let mut mean_gradient = 0.0f32;
    if comptime!(setup.centered) {
        mean_gradient = rows::sum(sum, &mut shared, setup.rows) * scale;
    }
    let projection = rows::sum(products, &mut shared, setup.rows) * scale;
    if row < n {
        #[unroll]
        for i in 0..setup.values {
            let col = place + comptime!(i * setup.rows.units);
            if col < c {
                let mut value = rstd * (gradient[i] - mean_gradient - normalized[i] * projection);
                if comptime!(setup.added) {
                    value += above[row * c + col];
                }
                dh[row * c + col] = value;
            }
        }
    }
}

pub(crate) fn forward<R: Backend>(
    gpu: &Gpu<R>,
    op: &'static str,
    norm: Norm<'_>,
    x: &Tensor,
    residual: Option<&Tensor>,
    keep_sum: bool,
) -> Result<Normalized> {
    let (n, c) = (x.rows(), x.cols());
    let writes_sum = keep_sum && residual.is_some();
    let setup = Setup {
        has_beta: norm.beta.is_some(),
        writes_sum,
        ..Setup::new::<R>(op, c, norm.centered, residual.is_some())?
    };
    let y = gpu.output([n, c])?;
    let h = if writes_sum { gpu.output([n, c])? } else { x.clone() };
    let rstd = gpu.output([n])?;
    let mean = if norm.centered { gpu.output([n])? } else { rstd.clone() };
    let beta = norm.beta.unwrap_or(norm.gamma);
    by_dtype!(norm.gamma.dtype(), G => by_dtype!(beta.dtype(), B => forward_kernel::launch::<G, B, R>(
        gpu.client(),
        setup.rows.cube_count(n),
        setup.rows.cube_dim(),
        x.gpu(op)?.arg(),
        residual.unwrap_or(x).gpu(op)?.arg(),
        norm.gamma.gpu(op)?.arg(),
        beta.gpu(op)?.arg(),
        y.gpu(op)?.arg(),
        h.gpu(op)?.arg(),
        mean.gpu(op)?.arg(),
        rstd.gpu(op)?.arg(),
        n,
        c,
        1.0 / c as f32,
        norm.eps,
        setup,
    )));
    Ok(Normalized { y, h, mean, rstd })
}

#[allow(clippy::too_many_arguments)] // both norms' backward passes in one
pub(crate) fn backward<R: Backend>(
    gpu: &Gpu<R>,
    op: &'static str,
    dy: &Tensor,
    d_h: Option<&Tensor>,
    gamma: &Tensor,
    h: &Tensor,
    mean: Option<&Tensor>,
    rstd: &Tensor,
) -> Result<Tensor> {
    let (n, c) = (dy.rows(), dy.cols());
    let setup = Setup::new::<R>(op, c, mean.is_some(), d_h.is_some())?;
    let dh = gpu.output([n, c])?;
    by_dtype!(gamma.dtype(), G => backward_kernel::launch::<G, R>(
        gpu.client(),
        setup.rows.cube_count(n),
        setup.rows.cube_dim(),
        dy.gpu(op)?.arg(),
        d_h.unwrap_or(dy).gpu(op)?.arg(),
        gamma.gpu(op)?.arg(),
        h.gpu(op)?.arg(),
        mean.unwrap_or(rstd).gpu(op)?.arg(),
        rstd.gpu(op)?.arg(),
        dh.gpu(op)?.arg(),
        n,
        c,
        1.0 / c as f32,
        setup,
    ));
    Ok(dh)
}
