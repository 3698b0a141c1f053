//! The dropout mask of one element, from a key and an index.

use crate::random::hash;

/// The rate and the mask of one use of dropout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The probability that an element becomes 0, in [0, 1).
    pub p: f32,
    /// The key of the mask: [`crate::random::key`] of a seed and a path, such as step and site.
    pub key: [u32; 2],
}

impl Dropout {
    /// floor(p 2^32): elements with a hash below it are dropped.
    #[inline(always)]
    pub(crate) fn threshold(self) -> u32 {
        (f64::from(self.p) * 4_294_967_296.0) as u32
    }

    /// 1 / (1 - p), the factor of a kept element.
    #[inline(always)]
    pub(crate) fn scale(self) -> f32 {
        1.0 / (1.0 - self.p)
    }
}

/// The factor of element `index`: 0 or 1 / (1 - p). All but the hash is the same for all elements, so a loop computes
/// it once.
#[inline(always)]
pub(crate) fn factor(d: Dropout, index: u32) -> f32 {
    if hash(d.key, index) >= d.threshold() { d.scale() } else { 0.0 }
}
