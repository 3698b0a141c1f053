//! One unit for each value, one launch for each block.

use cubecl::prelude::*;

use super::Block;
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise};
use crate::{Result, Tensor};

#[cube(launch)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn copy_kernel(
    x: &Array<f32>,
    y: &mut Array<f32>,
    len: usize,
    width: usize,
    from: usize,
    from_distance: usize,
    to: usize,
    to_distance: usize,
) {
    if ABSOLUTE_POS < len {
        let row = ABSOLUTE_POS / width;
        let column = ABSOLUTE_POS % width;
        y[to + row * to_distance + column] = x[from + row * from_distance + column];
    }
}

pub(crate) fn assemble<R: Backend>(
    gpu: &Gpu<R>,
    op: &'static str,
    shape: [usize; 2],
    blocks: &[(&Tensor, Block)],
) -> Result<Tensor> {
    let y = gpu.output(shape)?;
    for (x, block) in blocks {
        copy_kernel::launch::<R>(
            gpu.client(),
            elementwise(block.rows * block.width),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            x.gpu(op)?.arg(),
            y.gpu(op)?.arg(),
            block.rows * block.width,
            block.width,
            block.from.0,
            block.from.1,
            block.to.0,
            block.to.1,
        );
    }
    Ok(y)
}
