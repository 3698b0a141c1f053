//! Many parameters that step together.

use super::{AdamW, Clip, Moments, check_step, cpu, global_norm};
use crate::device::on_device;
use crate::ops::check;
use crate::{Result, Tensor, profile};

/// A parameter, its gradient and its moments; all of one shape, f32.
#[derive(Debug)]
pub struct Member<'a> {
    /// What is trained.
    pub parameter: &'a mut Tensor,
    /// The gradient of this step.
    pub gradient: &'a Tensor,
    /// The running moments.
    pub moments: &'a mut Moments,
}

/// Parameters that step together. On the CPU each steps for itself. On a GPU the first step moves parameters and moments into
/// one buffer each, of which their tensors are parts from then on: a step is a few launches however many parameters there are.
/// A tensor that shares its memory with a clone is moved to new memory first; the clone keeps its values.
///
/// ```
/// use gelora_kernels::Tensor;
/// use gelora_kernels::ops::adamw::{AdamW, Group, Member, Moments};
///
/// let (mut p, g) = (Tensor::from_vec(vec![1.0], [1])?, Tensor::from_vec(vec![3.0], [1])?);
/// let mut moments = Moments::zeros(&p)?;
/// let member = Member { parameter: &mut p, gradient: &g, moments: &mut moments };
/// let settings = AdamW { lr: 0.1, weight_decay: 0.0, ..AdamW::default() };
/// let norm = Group::default().step(&settings, 1, f32::INFINITY, &mut [member])?;
/// assert_eq!(norm.item()?, 3.0);
/// assert!((p.item()? - 0.9).abs() < 1e-6); // a first step is as long as the learning rate
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Group {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(super) flats: Vec<super::gpu::Flat>,
}

impl Group {
    /// One step of all members in place; `t` counts steps from 1. Gradients whose norm together is above `max_norm` (infinite
    /// for no clipping) are scaled down to it. Returns that norm before clipping, one value on their device; if it is not
    /// finite, nothing changes.
    ///
    /// # Errors
    /// If there is no member, shapes, types or devices differ, t is 0, or max_norm is not above 0.
    pub fn step(&mut self, settings: &AdamW, t: u64, max_norm: f32, members: &mut [Member<'_>]) -> Result<Tensor> {
        const OP: &str = "adamw";
        let Some(first) = members.first() else {
            return Err(crate::Error::Value { op: OP, message: "needs at least one parameter".into() });
        };
        let device = first.gradient.device().clone();
        for member in &*members {
            check_step(OP, t, max_norm, member)?;
            check::same_device(OP, &[members[0].gradient, member.gradient])?;
        }
        on_device!(&device, step_on_cpu(settings, t, max_norm, members), gpu => {
            let len = members.iter().map(|member| member.gradient.len()).sum::<usize>() as f64;
            let _span = profile::span(OP, 16.0 * len, 40.0 * len);
            self.step_on_gpu(gpu, settings, t, max_norm, members)
        })
    }
}

fn step_on_cpu(settings: &AdamW, t: u64, max_norm: f32, members: &mut [Member<'_>]) -> Result<Tensor> {
    let norm = global_norm(members.iter().map(|member| member.gradient))?;
    for Member { parameter, gradient, moments } in members {
        let len = gradient.len() as f64;
        let _span = profile::span("adamw", 14.0 * len, 28.0 * len);
        cpu::step(settings, t, parameter, gradient, Clip { norm: &norm, max_norm }, moments)?;
    }
    Ok(norm)
}
