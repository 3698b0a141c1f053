//! One unit an element. The mask is drawn where it is used; other rooms call [`factor`] inside their own kernels.

use cubecl::prelude::*;

use super::Dropout;
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise};
use crate::{Result, Tensor};

/// A [`Dropout`] as a kernel takes it: everything that does not depend on the element is computed on the host.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Mask {
    key0: u32,
    key1: u32,
    threshold: u32,
    scale: f32,
}

/// The launch argument for a mask; without dropout, one that a kernel must not use.
pub fn mask<R: Backend>(dropout: Option<Dropout>) -> MaskLaunch<R> {
    let d = dropout.unwrap_or(Dropout { p: 0.0, key: [0, 0] });
    MaskLaunch::new(d.key[0], d.key[1], d.threshold(), d.scale())
}

/// For kernels that share code with ones that drop, and do not.
#[cube]
pub fn no_mask() -> Mask {
    Mask { key0: 0u32, key1: 0u32, threshold: 0u32, scale: 1.0f32 }
}

/// What element `index` is multiplied by: 0 or 1 / (1 - p).
#[cube]
pub fn factor(mask: &Mask, index: u32) -> f32 {
    let hash = scramble(scramble(index ^ mask.key0) + mask.key1);
    select(hash >= mask.threshold, mask.scale, 0.0f32)
}

/// The rounds of [`crate::random::hash`]; u32 arithmetic wraps on a GPU.
#[cube]
fn scramble(x: u32) -> u32 {
    let x = (x ^ (x >> 16)) * 0x7feb_352du32;
    let x = (x ^ (x >> 15)) * 0x846c_a68bu32;
    x ^ (x >> 16)
}

#[cube(launch)]
fn apply_kernel(x: &Array<f32>, y: &mut Array<f32>, d: &Mask) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = x[ABSOLUTE_POS] * factor(d, ABSOLUTE_POS as u32);
    }
}

pub fn apply<R: Backend>(gpu: &Gpu<R>, x: &Tensor, d: Dropout) -> Result<Tensor> {
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
