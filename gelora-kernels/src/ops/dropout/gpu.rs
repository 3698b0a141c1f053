//! Dropout as a kernel of its own: one unit for each element.

use cubecl::prelude::*;

use super::Dropout;
use crate::gpu::mask::{Mask, factor, mask};
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise};
use crate::{Result, Tensor};

#[cube(launch)]
fn apply_kernel(x: &Array<f32>, y: &mut Array<f32>, d: &Mask) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = x[ABSOLUTE_POS] * factor(d, ABSOLUTE_POS as u32);
    }
}

pub(crate) fn apply<R: Backend>(gpu: &Gpu<R>, x: &Tensor, d: Dropout) -> Result<Tensor> {
    let y = gpu.output(x.shape())?;
    apply_kernel::launch::<R>(
        gpu.client(),
        elementwise(x.len()),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        x.gpu("dropout")?.arg(),
        y.gpu("dropout")?.arg(),
        mask(Some(d)),
    );
    Ok(y)
}
