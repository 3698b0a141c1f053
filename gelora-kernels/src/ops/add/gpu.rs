//! One unit for each element.

use cubecl::prelude::*;

use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise};
use crate::{Result, Tensor};

#[cube(launch)]
fn add_kernel(x: &Array<f32>, z: &Array<f32>, y: &mut Array<f32>) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = x[ABSOLUTE_POS] + z[ABSOLUTE_POS];
    }
}

#[cube(launch)]
fn accumulate_kernel(acc: &mut Array<f32>, x: &Array<f32>) {
    if ABSOLUTE_POS < acc.len() {
        acc[ABSOLUTE_POS] += x[ABSOLUTE_POS];
    }
}

pub(crate) fn forward<R: Backend>(gpu: &Gpu<R>, x: &Tensor, z: &Tensor) -> Result<Tensor> {
    const OP: &str = "add";
    let y = gpu.output(x.shape())?;
    add_kernel::launch::<R>(
        gpu.client(),
        elementwise(x.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        x.gpu(OP)?.arg(),
        z.gpu(OP)?.arg(),
        y.gpu(OP)?.arg(),
    );
    Ok(y)
}

pub(crate) fn accumulate<R: Backend>(gpu: &Gpu<R>, acc: &mut Tensor, x: &Tensor) -> Result<()> {
    const OP: &str = "add.accumulate";
    let len = x.len();
    accumulate_kernel::launch::<R>(
        gpu.client(),
        elementwise(len),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        acc.gpu_mut(OP)?.arg(),
        x.gpu(OP)?.arg(),
    );
    Ok(())
}
