//! The AdamW step, and the global norm for gradient clipping.
//!
//! With g the gradient times a factor (clipping) and t counting from 1:
//! m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
//! p = p (1 - lr weight_decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps).
//!
//! Norm: the root of the sum of squares of all gradients. Gradients with a norm above the limit are scaled down to the
//! limit before the step. Accumulation of the norm: on the CPU f64, in order; on a GPU f32, in up to 4096 parts of a
//! buffer, added in order. All tensors of one parameter have the same shape, in f32.
//!
//! Source: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, with the decay scaled by lr as PyTorch does.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
mod group;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

pub use group::Group;

use super::check;
use crate::device::on_device;
use crate::{Result, Tensor, profile};

/// The settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay rate of the first moment.
    pub beta1: f32,
    /// Decay rate of the second moment.
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

/// Factors on the settings of a step, for parameters that step together with other rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// Factor on the learning rate.
    pub lr: f32,
    /// Factor on the weight decay, beside that on the learning rate, which scales the decay too.
    pub weight_decay: f32,
}

impl Default for Factors {
    fn default() -> Self {
        Self { lr: 1.0, weight_decay: 1.0 }
    }
}

impl AdamW {
    /// These settings times the factors.
    #[must_use]
    pub fn scaled(&self, by: Factors) -> Self {
        Self { lr: self.lr * by.lr, weight_decay: self.weight_decay * by.weight_decay, ..*self }
    }
}

/// A parameter, its gradient and its moments; all of one shape, f32.
#[derive(Debug)]
pub struct Member<'a> {
    /// The parameter.
    pub parameter: &'a mut Tensor,
    /// The gradient of this step.
    pub gradient: &'a Tensor,
    /// The running moments.
    pub moments: &'a mut Moments,
    /// Factors on the settings of the step. Members with the same factors should stand side by side: on a GPU, each
    /// run of them is a launch.
    pub factors: Factors,
}

/// Gradient clipping: gradients are multiplied by min(1, max_norm / (norm + 1e-6)), as in PyTorch's clip_grad_norm_.
#[derive(Clone, Copy, Debug)]
pub struct Clip<'a> {
    /// The norm of all gradients, one value on their device: the result of [`global_norm`]. If it is not finite, a step
    /// changes nothing.
    pub norm: &'a Tensor,
    /// The largest norm, above 0; infinity turns clipping off.
    pub max_norm: f32,
}

impl Clip<'_> {
    /// The factor on every gradient; None if the norm is not finite. The host reads the norm.
    pub(crate) fn scale(&self) -> Result<Option<f32>> {
        let norm = self.norm.item()?;
        // As in PyTorch's clip_grad_norm_: max_norm / (norm + 1e-6), never above 1.
        let length = norm + 1e-6;
        let scale = if length > self.max_norm { self.max_norm / length } else { 1.0 };
        Ok(norm.is_finite().then_some(scale))
    }
}

/// One step in place. `t` counts steps from 1. The device reads the norm, so the host does not wait for it.
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
    check_step(OP, t, clip.max_norm, [parameter, gradient, &moments.m, &moments.v])?;
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

/// Checks the arguments of a step of one parameter.
fn check_step(op: &'static str, t: u64, max_norm: f32, [parameter, gradient, m, v]: [&Tensor; 4]) -> Result<()> {
    check::value(op, t > 0, || "t counts from 1, got 0".into())?;
    check::value(op, max_norm > 0.0, || format!("max_norm must be above 0, got {max_norm}"))?;
    for (name, other) in [("gradient", gradient), ("m", m), ("v", v)] {
        check::shape(op, name, other, parameter.shape())?;
        check::f32(op, name, other)?;
        check::same_device(op, &[parameter, other])?;
    }
    check::f32(op, "parameter", parameter)
}

/// 1 - beta^t of both moments, in f64: for beta near 1 and small t it is a difference of nearly equal numbers.
fn corrections(settings: &AdamW, t: u64) -> [f32; 2] {
    [settings.beta1, settings.beta2].map(|beta| (1.0 - f64::from(beta).powf(t as f64)) as f32)
}

/// The Euclidean norm of all values of all tensors, as one value on their device.
///
/// # Errors
/// If there is no tensor, a tensor is not f32, or the tensors are on different devices.
pub fn global_norm<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    const OP: &str = "adamw.global_norm";
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
    use crate::{Device, verify::random};

    /// Factors of each member: the first two share theirs.
    const FACTORS: [Factors; 3] = [
        Factors { lr: 1.0, weight_decay: 1.0 },
        Factors { lr: 1.0, weight_decay: 1.0 },
        Factors { lr: 16.0, weight_decay: 0.0 },
    ];

    fn group_step(group: &mut Group, t: u64, p: &mut [Tensor], g: &[Tensor], moments: &mut [Moments]) -> Result<f32> {
        let parts = p.iter_mut().zip(g).zip(moments).zip(FACTORS);
        let mut members: Vec<_> = parts
            .map(|(((parameter, gradient), moments), factors)| Member { parameter, gradient, moments, factors })
            .collect();
        group.step(&AdamW::default(), t, 1.0, &mut members)?.item()
    }

    /// A group computes what its members compute one by one, even if tensors are cloned or replaced between its steps.
    #[test]
    fn a_group_steps_as_its_members_do() -> Result<()> {
        for device in [Some(Device::Cpu), crate::verify::wgpu()].into_iter().flatten() {
            let on_device = |seed| random([40, 3], seed).to_device(&device);
            let start = [on_device(1)?, on_device(2)?, on_device(3)?];
            let g = [on_device(4)?, on_device(5)?, on_device(6)?];
            let zeros = || start.iter().map(Moments::zeros).collect::<Result<Vec<_>>>();
            let (mut alone, mut alone_moments) = (start.to_vec(), zeros()?);
            let (mut p, mut moments, mut group) = (start.to_vec(), zeros()?, Group::default());
            let mut kept = Vec::new();
            for t in 1..=4 {
                let norm = global_norm(&g)?;
                for (((p, g), moments), factors) in alone.iter_mut().zip(&g).zip(&mut alone_moments).zip(FACTORS) {
                    let settings = AdamW::default().scaled(factors);
                    step(&settings, t, p, g, Clip { norm: &norm, max_norm: 1.0 }, moments)?;
                }
                let group_norm = group_step(&mut group, t, &mut p, &g, &mut moments)?;
                assert!((group_norm - norm.item()?).abs() < 1e-5 * group_norm, "{group_norm}");
                if t == 2 {
                    kept.push((p[1].clone(), p[1].to_vec()?));
                }
                if t == 3 {
                    p[0] = Tensor::from_vec(p[0].to_vec()?, [40, 3])?.to_device(&device)?;
                }
            }
            for (alone, p) in alone.iter().zip(&p) {
                let (alone, p) = (alone.to_vec()?, p.to_vec()?);
                assert!(alone.iter().zip(&p).all(|(a, b)| (a - b).abs() < 1e-5), "{:?}", device.kind());
            }
            for (clone, values) in kept {
                assert_eq!(clone.to_vec()?, values, "a clone has changed");
            }
            assert_eq!(start[1].to_vec()?, random([40, 3], 2).to_vec()?);
        }
        Ok(())
    }

    #[test]
    fn a_norm_that_is_not_finite_changes_nothing() -> Result<()> {
        for device in [Some(Device::Cpu), crate::verify::wgpu()].into_iter().flatten() {
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
