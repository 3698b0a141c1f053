//! One unit for each value of an elementwise kernel; several units for each sum.

use cubecl::prelude::*;

use super::{Clip, Decay, Importance, Vectors};
use crate::gpu::rows::{self, Rows};
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise};
use crate::{Result, Tensor};

#[cube(launch)]
fn scale_rows_kernel(e: &Array<f32>, a: &Array<f32>, scaled: &mut Array<f32>, cols: usize) {
    let i = ABSOLUTE_POS;
    if i < scaled.len() {
        scaled[i] = e[i / cols] * a[i];
    }
}

/// out[k] = scale times the sum over the values c of vector k of x y. The units of a row share a vector.
#[cube(launch)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn dots_kernel(
    x: &Array<f32>,
    y: &Array<f32>,
    out: &mut Array<f32>,
    len: usize,
    next_vector: usize,
    next_value: usize,
    scale: f32,
    #[comptime] rows: Rows,
) {
    let (k, unit) = rows::place(rows);
    let mut shared = rows::shared();
    let mut sum = 0.0f32;
    if k < out.len() {
        for c in range_stepped(unit, len, comptime!(rows.units)) {
            let place = k * next_vector + c * next_value;
            sum += x[place] * y[place];
        }
    }
    let total = rows::sum(sum, &mut shared, rows);
    if k < out.len() && unit == 0 {
        out[k] = total * scale;
    }
}

/// M of r vectors. The units of a row share a value of M.
#[cube(launch)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn gram_kernel(
    factor: &Array<f32>,
    gram: &mut Array<f32>,
    r: usize,
    len: usize,
    next_vector: usize,
    next_value: usize,
    #[comptime] rows: Rows,
) {
    let (i, unit) = rows::place(rows);
    let mut shared = rows::shared();
    let mut sum = 0.0f32;
    if i < gram.len() {
        let left = i / r * next_vector;
        let right = i % r * next_vector;
        for c in range_stepped(unit, len, comptime!(rows.units)) {
            sum += factor[left + c * next_value] * factor[right + c * next_value];
        }
    }
    let mut total = rows::sum(sum, &mut shared, rows);
    if i < gram.len() && unit == 0 {
        if i / r == i % r {
            total -= 1.0f32;
        }
        gram[i] = total;
    }
}

/// 2 / d M P, whose value c of vector k is the sum over l of M_kl P_lc.
#[cube(launch)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn gradient_kernel(
    factor: &Array<f32>,
    gram: &Array<f32>,
    distance: &Array<f32>,
    gradient: &mut Array<f32>,
    r: usize,
    next_vector: usize,
    next_value: usize,
    #[comptime] in_rows: bool,
) {
    let i = ABSOLUTE_POS;
    if i < gradient.len() {
        let mut k = i % r;
        let mut c = i / r;
        if comptime!(in_rows) {
            k = i / next_vector;
            c = i % next_vector;
        }
        let mut sum = 0.0f32;
        for l in 0..r {
            sum += gram[k * r + l] * factor[l * next_vector + c * next_value];
        }
        let mut value = 0.0f32;
        if distance[0] > 0.0f32 {
            value = 2.0f32 / distance[0] * sum;
        }
        gradient[i] = value;
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn update_kernel(
    parameter: &Array<f32>,
    gradient: &Array<f32>,
    norm: &Array<f32>,
    s: &mut Array<f32>,
    u: &mut Array<f32>,
    beta1: f32,
    beta2: f32,
    max_norm: f32,
) {
    let i = ABSOLUTE_POS;
    // A shader may assume that there are no NaNs and no infinities, so finiteness is read from the bits.
    let finite = u32::reinterpret(norm[0]) & 0x7f80_0000u32 != 0x7f80_0000u32;
    if i < s.len() && finite {
        let length = norm[0] + 1e-6f32;
        let mut g = gradient[i];
        if length > max_norm {
            g *= max_norm / length;
        }
        let product = (parameter[i] * g).abs();
        let sensitivity = beta1 * s[i] + (1.0f32 - beta1) * product;
        s[i] = sensitivity;
        u[i] = beta2 * u[i] + (1.0f32 - beta2) * (product - sensitivity).abs();
    }
}

pub(crate) fn forward<R: Backend>(gpu: &Gpu<R>, e: &Tensor, a: &Tensor) -> Result<Tensor> {
    const OP: &str = "adalora";
    let scaled = gpu.output(a.shape())?;
    scale_rows_kernel::launch::<R>(
        gpu.client(),
        elementwise(scaled.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        e.gpu(OP)?.arg(),
        a.gpu(OP)?.arg(),
        scaled.gpu(OP)?.arg(),
        a.cols(),
    );
    Ok(scaled)
}

pub(crate) fn backward<R: Backend>(gpu: &Gpu<R>, da: &Tensor, e: &Tensor, a: &Tensor) -> Result<(Tensor, Tensor)> {
    Ok((forward(gpu, e, da)?, dots(gpu, da, a, Vectors::Rows, 1.0)?.reshape(e.shape())?))
}

/// The sums over the vectors of the products of two factors, times `scale`: (R).
fn dots<R: Backend>(gpu: &Gpu<R>, x: &Tensor, y: &Tensor, vectors: Vectors, scale: f32) -> Result<Tensor> {
    const OP: &str = "adalora";
    let ((r, len), (next_vector, next_value)) = (vectors.of(x), vectors.strides(x));
    let (out, rows) = (gpu.output([r])?, Rows::of(len));
    dots_kernel::launch::<R>(
        gpu.client(),
        rows.cube_count(r),
        rows.cube_dim(),
        x.gpu(OP)?.arg(),
        y.gpu(OP)?.arg(),
        out.gpu(OP)?.arg(),
        len,
        next_vector,
        next_value,
        scale,
        rows,
    );
    Ok(out)
}

pub(crate) fn gram<R: Backend>(gpu: &Gpu<R>, factor: &Tensor, vectors: Vectors) -> Result<Tensor> {
    const OP: &str = "adalora.orthogonality";
    let ((r, len), (next_vector, next_value)) = (vectors.of(factor), vectors.strides(factor));
    let (gram, rows) = (gpu.output([r, r])?, Rows::of(len));
    gram_kernel::launch::<R>(
        gpu.client(),
        rows.cube_count(r * r),
        rows.cube_dim(),
        factor.gpu(OP)?.arg(),
        gram.gpu(OP)?.arg(),
        r,
        len,
        next_vector,
        next_value,
        rows,
    );
    Ok(gram)
}

pub(crate) fn gradient<R: Backend>(
    gpu: &Gpu<R>,
    factor: &Tensor,
    vectors: Vectors,
    gram: &Tensor,
    distance: &Tensor,
) -> Result<Tensor> {
    const OP: &str = "adalora.orthogonality";
    let ((r, _), (next_vector, next_value)) = (vectors.of(factor), vectors.strides(factor));
    let gradient = gpu.output(factor.shape())?;
    gradient_kernel::launch::<R>(
        gpu.client(),
        elementwise(factor.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        factor.gpu(OP)?.arg(),
        gram.gpu(OP)?.arg(),
        distance.gpu(OP)?.arg(),
        gradient.gpu(OP)?.arg(),
        r,
        next_vector,
        next_value,
        vectors == Vectors::Rows,
    );
    Ok(gradient)
}

pub(crate) fn update<R: Backend>(
    gpu: &Gpu<R>,
    decay: Decay,
    parameter: &Tensor,
    gradient: &Tensor,
    clip: Clip<'_>,
    importance: &mut Importance,
) -> Result<()> {
    const OP: &str = "adalora.update";
    update_kernel::launch::<R>(
        gpu.client(),
        elementwise(parameter.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        parameter.gpu(OP)?.arg(),
        gradient.gpu(OP)?.arg(),
        clip.norm.gpu(OP)?.arg(),
        importance.sensitivity.gpu_mut(OP)?.arg(),
        importance.uncertainty.gpu_mut(OP)?.arg(),
        decay.sensitivity,
        decay.uncertainty,
        clip.max_norm.min(f32::MAX),
    );
    Ok(())
}

pub(crate) fn scores<R: Backend>(gpu: &Gpu<R>, importance: &Importance, vectors: Vectors) -> Result<Tensor> {
    let Importance { sensitivity, uncertainty } = importance;
    let (_, len) = vectors.of(sensitivity);
    dots(gpu, sensitivity, uncertainty, vectors, 1.0 / len as f32)
}
