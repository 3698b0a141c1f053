//! Dropout with a mask that can be recomputed for any element: y_i = x_i m_i / (1 - p), with m_i = 1 if
//! hash(key, i) >= floor(p 2^32), else 0.
//!
//! i is the flat index of the element as u32. The mask depends on the key and the index alone, so it is the same on
//! every device and in every split of the work. Backward recomputes it instead of storing it, and is the same function:
//! dx = apply(dy) with the same [`Dropout`].
//!
//! Nothing is summed. The expected value of y is x.
//!
//! inverted form that needs no rescaling at inference.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
pub(crate) mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::check;
use crate::device::on_device;
pub use crate::dropout::Dropout;
use crate::{Result, Tensor, profile};

impl Dropout {
    /// Checks that p is in [0, 1), and that `len` elements have different indices.
    pub(crate) fn check(self, op: &'static str, len: usize) -> Result<()> {
        check::value(op, (0.0..1.0).contains(&self.p), || format!("dropout p must be in [0, 1), got {}", self.p))?;
        check::value(op, u32::try_from(len).is_ok(), || {
            format!("dropout indexes elements by u32, at most {} of them, got {len}", u32::MAX)
        })
    }
}

/// y_i = x_i m_i / (1 - p): x f32 of any shape; y in the shape of x. Its backward is dx = apply(dy) with the same `d`.
///
/// # Errors
/// If p is outside [0, 1), x is not f32, or it has more than u32::MAX elements.
///
/// ```
/// use gelora_kernels::ops::dropout::{Dropout, apply};
/// use gelora_kernels::{Tensor, random};
///
/// let x = Tensor::from_vec(vec![3.0; 1000], [10, 100])?;
/// let y = apply(&x, Dropout { p: 0.25, key: random::key(42, &[0]) })?.to_vec()?;
/// assert!(y.iter().all(|&v| v == 0.0 || v == 4.0));
/// assert!((200..300).contains(&y.iter().filter(|&&v| v == 0.0).count()));
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn apply(x: &Tensor, d: Dropout) -> Result<Tensor> {
    const OP: &str = "dropout";
    check::f32(OP, "x", x)?;
    d.check(OP, x.len())?;
    if d.p == 0.0 {
        return Ok(x.clone());
    }
    let _span = profile::span(OP, x.len() as f64, 8.0 * x.len() as f64);
    on_device!(x.device(), cpu::apply(x, d), gpu => gpu::apply(gpu, x, d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::random;

    #[test]
    fn p_zero_is_the_identity_and_p_outside_is_an_error() -> Result<()> {
        let x = random([3, 7], 1);
        assert_eq!(apply(&x, Dropout { p: 0.0, key: [1, 2] })?.to_vec()?, x.to_vec()?);
        for p in [-0.1, 1.0, f32::NAN] {
            assert!(apply(&x, Dropout { p, key: [1, 2] }).is_err(), "{p}");
        }
        Ok(())
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn a_launch_beyond_one_dimension_draws_the_same_mask() -> Result<()> {
        let Ok(device) = crate::Device::open(crate::DeviceKind::Wgpu) else { return Ok(()) };
        let (x, d) = (Tensor::from_vec(vec![3.0; 16_800_001], [16_800_001])?, Dropout { p: 0.5, key: [3, 4] });
        assert!(apply(&x.to_device(&device)?, d)?.to_vec()? == apply(&x, d)?.to_vec()?);
        Ok(())
    }

    #[test]
    fn the_largest_p_still_keeps_some() {
        let d = Dropout { p: 1.0 - f32::EPSILON / 2.0, key: [1, 2] };
        assert!(d.check("dropout", 1).is_ok() && d.threshold() < u32::MAX && d.scale().is_finite());
    }
}
