//! The AdamW step, and the global norm that gradients are clipped by.
//!
//! With g the gradient times a factor (clipping) and t counting from 1:
//! m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
//! p = p (1 - lr weight_decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps).
//!
//! Norm: sqrt of the sum of squares of all gradients; the CPU sums in f64 in order, a GPU in f32, in up to 256 parts a tensor
//! whose sums are added in order. Gradients above a given norm are scaled down to it first. All of one parameter have one
//! shape, f32.
//!
//! Source: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, with the decay scaled by lr as PyTorch does.

pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
pub mod reference;

use super::check;
use crate::device::on_device;
use crate::{Result, Tensor, profile};

/// Settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// The running moments of one parameter.
#[derive(Clone, Debug)]
pub struct Moments {
    /// First moment.
    pub m: Tensor,
    /// Second moment.
    pub v: Tensor,
}

impl Moments {
    /// Zero moments for a parameter.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn zeros(parameter: &Tensor) -> Result<Self> {
        let zeros = || Tensor::zeros(parameter.shape(), parameter.device());
        Ok(Self { m: zeros()?, v: zeros()? })
    }
}

/// How a gradient is clipped: multiplied by min(1, max_norm / (norm + 1e-6)), as PyTorch's clip_grad_norm_ does.
#[derive(Clone, Copy, Debug)]
pub struct Clip<'a> {
    /// The norm of all gradients together, one value on their device: what [`global_norm`] returns. If it is not finite, a
    /// step changes nothing.
    pub norm: &'a Tensor,
    /// The norm that they may have, above 0; infinite for no clipping.
    pub max_norm: f32,
}

/// One step in place; `t` counts steps from 1. The norm is read on the device, so that the host need not wait for it.
///
/// # Errors
/// If shapes, types or devices differ, t is 0, or max_norm is not above 0.
pub fn step(
    settings: &AdamW,
    t: u64,
    parameter: &mut Tensor,
    gradient: &Tensor,
    clip: Clip<'_>,
    moments: &mut Moments,
) -> Result<()> {
    const OP: &str = "adamw";
    check::value(OP, t > 0, || "t counts from 1, got 0".into())?;
    check::value(OP, clip.max_norm > 0.0, || format!("max_norm must be above 0, got {}", clip.max_norm))?;
    for (name, other) in [("gradient", gradient), ("m", &moments.m), ("v", &moments.v)] {
        check::shape(OP, name, other, parameter.shape())?;
        check::f32(OP, name, other)?;
        check::same_device(OP, &[parameter, other])?;
    }
    check::f32(OP, "parameter", parameter)?;
    check::shape(OP, "norm", clip.norm, &[1])?;
    check::f32(OP, "norm", clip.norm)?;
    check::same_device(OP, &[gradient, clip.norm])?;
    let len = gradient.len() as f64;
    let _span = profile::span(OP, 14.0 * len, 28.0 * len);
    on_device!(
        gradient.device(),
        cpu::step(settings, t, parameter, gradient, clip, moments),
        gpu => gpu::step(gpu, settings, t, parameter, gradient, clip, moments)
    )
}

/// 1 - beta^t of both moments, in f64: for beta near 1 and small t it is a difference of near-equal numbers.
fn corrections(settings: &AdamW, t: u64) -> [f32; 2] {
    [settings.beta1, settings.beta2].map(|beta| (1.0 - f64::from(beta).powf(t as f64)) as f32)
}

/// The Euclidean norm of all values of all tensors, as one value on their device.
///
/// # Errors
/// If there is no tensor, one is not f32, or they are on different devices.
pub fn global_norm<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    const OP: &str = "global_norm";
    let tensors: Vec<&Tensor> = tensors.into_iter().collect();
    check::value(OP, !tensors.is_empty(), || "needs at least one tensor".into())?;
    check::same_device(OP, &tensors)?;
    tensors.iter().try_for_each(|t| check::f32(OP, "tensor", t))?;
    let len = tensors.iter().map(|t| t.len()).sum::<usize>() as f64;
    let _span = profile::span(OP, 2.0 * len, 4.0 * len);
    on_device!(tensors[0].device(), cpu::global_norm(&tensors), gpu => gpu::global_norm(gpu, &tensors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, DeviceKind, verify::random};

    #[test]
    fn a_norm_that_is_not_finite_changes_nothing() -> Result<()> {
        for device in [Ok(Device::Cpu), Device::open(DeviceKind::Wgpu)].into_iter().flatten() {
            for bad in [f32::NAN, f32::INFINITY] {
                let p = random([5], 1).to_device(&device)?;
                let g = Tensor::from_vec(vec![1.0, bad, 1.0, 1.0, 1.0], [5])?.to_device(&device)?;
                let norm = global_norm([&g])?;
                assert!(!norm.item()?.is_finite());
                let (mut stepped, mut moments) = (p.clone(), Moments::zeros(&p)?);
                step(&AdamW::default(), 1, &mut stepped, &g, Clip { norm: &norm, max_norm: 1.0 }, &mut moments)?;
                assert_eq!(stepped.to_vec()?, p.to_vec()?);
                assert_eq!(moments.m.to_vec()?, [0.0; 5]);
            }
        }
        Ok(())
    }
}
