//! One unit for each pair of values.

use cubecl::prelude::*;

use super::{Angles, Positions};
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise};
use crate::{Error, Result, Tensor};

#[cube(launch)]
fn rotate_kernel(
    x: &Array<f32>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    positions: &Array<u32>,
    y: &mut Array<f32>,
    row_pairs: usize,
    half: usize,
    sign: f32,
) {
    if ABSOLUTE_POS < y.len() / 2 {
        let row = ABSOLUTE_POS / row_pairs;
        let head = ABSOLUTE_POS % row_pairs / half;
        let j = ABSOLUTE_POS % half;
        let first = 2 * (row * row_pairs + head * half) + j;
        let second = first + half;
        let angle = positions[row] as usize * half + j;
        let c = cos[angle];
        let s = sign * sin[angle];
        y[first] = x[first] * c - x[second] * s;
        y[second] = x[second] * c + x[first] * s;
    }
}

pub(crate) fn rotate<R: Backend>(
    gpu: &Gpu<R>,
    op: &'static str,
    x: &Tensor,
    angles: &Angles,
    sign: f32,
) -> Result<Tensor> {
    let Positions::Gpu(positions) = &angles.positions else {
        return Err(Error::MixedDevices { op, left: "gpu".into(), right: "cpu".into() });
    };
    let y = gpu.output(x.shape())?;
    rotate_kernel::launch::<R>(
        gpu.client(),
        elementwise(x.len() / 2),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        x.gpu(op)?.arg(),
        angles.table.cos.gpu(op)?.arg(),
        angles.table.sin.gpu(op)?.arg(),
        positions.arg(),
        y.gpu(op)?.arg(),
        x.cols() / 2,
        angles.table.cos.cols(),
        sign,
    );
    Ok(y)
}
