//! One unit for each element. The norm is summed in two stages, so its bits do not depend on the order in which cubes
//! run: every cube of a tensor sums its own elements, then one cube adds the sums of all cubes in a fixed order.

mod group;

pub(crate) use group::FlatGroup;

use cubecl::prelude::*;

use super::{AdamW, Clip, Moments, corrections};
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, GpuBuffer, elementwise};
use crate::{Result, Tensor};

/// Squares that a unit adds while there are fewer than [`MAX_PARTS`] cubes: few enough that f32 keeps six digits.
const UNIT_VALUES: usize = 4;
/// The most cubes that sum one buffer.
const MAX_PARTS: usize = 4096;

/// The sum over the units of a cube, as a tree. The result is in `shared[0]`.
#[cube]
fn sum_units(own: f32, shared: &mut SharedMemory<f32>) {
    let unit = UNIT_POS as usize;
    shared[unit] = own;
    sync_cube();
    let mut half = comptime!(ELEMENTWISE_UNITS as usize / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
}

/// parts[first + cube] = sum of the squares of the cube's elements.
#[cube(launch)]
fn squares_kernel(x: &Array<f32>, parts: &mut Array<f32>, first: usize, cubes: usize) {
    let mut shared = SharedMemory::<f32>::new(ELEMENTWISE_UNITS as usize);
    let mut sum = 0.0f32;
    for i in range_stepped(ABSOLUTE_POS, x.len(), cubes * ELEMENTWISE_UNITS as usize) {
        sum += x[i] * x[i];
    }
    sum_units(sum, &mut shared);
    if UNIT_POS == 0 {
        parts[first + CUBE_POS_X as usize] = shared[0];
    }
}

#[cube(launch)]
fn root_kernel(parts: &Array<f32>, norm: &mut Array<f32>) {
    let mut shared = SharedMemory::<f32>::new(ELEMENTWISE_UNITS as usize);
    let mut sum = 0.0f32;
    for i in range_stepped(UNIT_POS as usize, parts.len(), ELEMENTWISE_UNITS as usize) {
        sum += parts[i];
    }
    sum_units(sum, &mut shared);
    if UNIT_POS == 0 {
        norm[0] = shared[0].sqrt();
    }
}

#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Settings {
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    keep: f32,
    correction1: f32,
    correction2: f32,
    max_norm: f32,
}

#[cube(launch)]
fn step_kernel(
    p: &mut Array<f32>,
    m: &mut Array<f32>,
    v: &mut Array<f32>,
    gradient: &Array<f32>,
    norm: &Array<f32>,
    s: &Settings,
) {
    let i = ABSOLUTE_POS;
    // A shader may assume that there are no NaNs and no infinities, so finiteness is read from the bits.
    let finite = u32::reinterpret(norm[0]) & 0x7f80_0000u32 != 0x7f80_0000u32;
    if i < p.len() && finite {
        let length = norm[0] + 1e-6f32;
        // The clipped gradient.
        let mut g = gradient[i];
        if length > s.max_norm {
            g *= s.max_norm / length;
        }
        // Both moments, then the parameter.
        let first = s.beta1 * m[i] + (1.0f32 - s.beta1) * g;
        let second = s.beta2 * v[i] + (1.0f32 - s.beta2) * g * g;
        m[i] = first;
        v[i] = second;
        p[i] = p[i] * s.keep - s.lr * (first / s.correction1) / ((second / s.correction2).sqrt() + s.eps);
    }
}

pub(crate) fn step<R: Backend>(
    gpu: &Gpu<R>,
    s: &AdamW,
    t: u64,
    p: &mut Tensor,
    gradient: &Tensor,
    clip: Clip<'_>,
    moments: &mut Moments,
) -> Result<()> {
    const OP: &str = "adamw";
    let buffers =
        [p.gpu_mut(OP)?, moments.m.gpu_mut(OP)?, moments.v.gpu_mut(OP)?, gradient.gpu(OP)?, clip.norm.gpu(OP)?];
    step_all(gpu, s, t, clip.max_norm, buffers);
    Ok(())
}

/// One step of these buffers: parameters, both moments, gradients, and the norm.
fn step_all<R: Backend>(gpu: &Gpu<R>, s: &AdamW, t: u64, max_norm: f32, [p, m, v, gradient, norm]: [&GpuBuffer; 5]) {
    let [correction1, correction2] = corrections(s, t);
    let keep = 1.0 - s.lr * s.weight_decay;
    step_kernel::launch::<R>(
        gpu.client(),
        elementwise(gradient.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        p.arg(),
        m.arg(),
        v.arg(),
        gradient.arg(),
        norm.arg(),
        SettingsLaunch::new(s.lr, s.beta1, s.beta2, s.eps, keep, correction1, correction2, max_norm.min(f32::MAX)),
    );
}

/// The root of the sum of all squares, as a tensor of one value.
pub(crate) fn global_norm<R: Backend>(gpu: &Gpu<R>, tensors: &[&Tensor]) -> Result<Tensor> {
    let buffers: Vec<&GpuBuffer> = tensors.iter().map(|t| t.gpu("adamw.global_norm")).collect::<Result<_>>()?;
    root(gpu, &squares(gpu, &buffers)?)
}

/// Sums of the squares of all values of these buffers, in parts.
fn squares<R: Backend>(gpu: &Gpu<R>, buffers: &[&GpuBuffer]) -> Result<GpuBuffer> {
    let cubes = |buffer: &GpuBuffer| buffer.len().div_ceil(UNIT_VALUES * ELEMENTWISE_UNITS as usize).min(MAX_PARTS);
    let parts = gpu.scratch(buffers.iter().map(|buffer| cubes(buffer)).sum())?;
    let mut first = 0;
    for buffer in buffers {
        squares_kernel::launch::<R>(
            gpu.client(),
            CubeCount::Static(cubes(buffer) as u32, 1, 1),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            buffer.arg(),
            parts.arg(),
            first,
            cubes(buffer),
        );
        first += cubes(buffer);
    }
    Ok(parts)
}

/// The root of the sum of the parts, as a tensor of one value.
fn root<R: Backend>(gpu: &Gpu<R>, parts: &GpuBuffer) -> Result<Tensor> {
    let norm = gpu.output([1])?;
    root_kernel::launch::<R>(
        gpu.client(),
        CubeCount::Static(1, 1, 1),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        parts.arg(),
        norm.gpu("adamw.global_norm")?.arg(),
    );
    Ok(norm)
}
