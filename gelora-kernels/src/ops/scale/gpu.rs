//! One unit for each element.

use cubecl::prelude::*;

use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise};
use crate::{Result, Tensor};

#[cube(launch)]
fn forward_kernel(x: &Array<f32>, y: &mut Array<f32>, c: f32) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = c * x[ABSOLUTE_POS];
    }
}

#[cube(launch)]
fn in_place_kernel(x: &mut Array<f32>, c: f32) {
    if ABSOLUTE_POS < x.len() {
        x[ABSOLUTE_POS] = c * x[ABSOLUTE_POS];
    }
}

pub(crate) fn forward<R: Backend>(gpu: &Gpu<R>, c: f32, x: &Tensor) -> Result<Tensor> {
    const OP: &str = "scale";
    let y = gpu.output(x.shape())?;
    forward_kernel::launch::<R>(
        gpu.client(),
        elementwise(x.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        x.gpu(OP)?.arg(),
        y.gpu(OP)?.arg(),
        c,
    );
    Ok(y)
}

pub(crate) fn in_place<R: Backend>(gpu: &Gpu<R>, c: f32, x: &mut Tensor) -> Result<()> {
    let len = x.len();
    in_place_kernel::launch::<R>(
        gpu.client(),
        elementwise(len),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        x.gpu_mut("scale.in_place")?.arg(),
        c,
    );
    Ok(())
}
