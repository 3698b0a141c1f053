//! Dropout masks inside kernels. A kernel draws the mask where it uses it, so no mask is stored.

use cubecl::prelude::*;

use super::Backend;
use crate::dropout::Dropout;

/// A [`Dropout`] as kernels use it. The host computes everything that does not depend on the element.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Mask {
    key0: u32,
    key1: u32,
    threshold: u32,
    scale: f32,
}

/// The launch argument for a mask. Without dropout, it is a mask that the kernel must not use.
pub(crate) fn mask<R: Backend>(dropout: Option<Dropout>) -> MaskLaunch<R> {
    let d = dropout.unwrap_or(Dropout { p: 0.0, key: [0, 0] });
    MaskLaunch::new(d.key[0], d.key[1], d.threshold(), d.scale())
}

/// A mask for kernels without dropout that share code with kernels that have it.
#[cube]
pub(crate) fn no_mask() -> Mask {
    Mask { key0: 0u32, key1: 0u32, threshold: 0u32, scale: 1.0f32 }
}

/// The factor of element `index`: 0 or 1 / (1 - p).
#[cube]
pub(crate) fn factor(mask: &Mask, index: u32) -> f32 {
    let hash = scramble(scramble(index ^ mask.key0) + mask.key1);
    select(hash >= mask.threshold, mask.scale, 0.0f32)
}

/// One round of [`crate::random::hash`]. u32 arithmetic wraps on a GPU.
#[cube]
fn scramble(x: u32) -> u32 {
    let x = (x ^ (x >> 16)) * 0x7feb_352du32;
    let x = (x ^ (x >> 15)) * 0x846c_a68bu32;
    x ^ (x >> 16)
}
