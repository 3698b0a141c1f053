//! Many parameters with one step.

use super::{AdamW, Clip, Member, check_step, cpu, global_norm};
use crate::device::on_device;
use crate::ops::check;
use crate::{Result, Tensor, profile};

/// Parameters that are updated in one step. On the CPU, each is updated on its own. On a GPU, the first step moves the
/// parameters and moments into one buffer each, and their tensors become parts of these buffers. A step is then a few
/// launches for any number of parameters. A tensor that shares its memory with a clone is moved to new memory first;
/// the clone keeps its values.
///
/// ```
/// use gelora_kernels::Tensor;
/// use gelora_kernels::ops::adamw::{AdamW, Factors, Group, Member, Moments};
///
/// let (mut p, g) = (Tensor::from_vec(vec![1.0], [1])?, Tensor::from_vec(vec![3.0], [1])?);
/// let mut moments = Moments::zeros(&p)?;
/// let member = Member { parameter: &mut p, gradient: &g, moments: &mut moments, factors: Factors::default() };
/// let settings = AdamW { lr: 0.1, weight_decay: 0.0, ..AdamW::default() };
/// let norm = Group::default().step(&settings, 1, f32::INFINITY, &mut [member])?;
/// assert_eq!(norm.item()?, 3.0);
/// assert!((p.item()? - 0.9).abs() < 1e-6); // a first step is as long as the learning rate
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Group {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    flat: super::gpu::FlatGroup,
}

impl Group {
    /// One step of all members in place. `t` counts steps from 1. Gradients whose common norm is above `max_norm`
    /// (infinity turns clipping off) are scaled down to it. Returns the norm before clipping, one value on the device;
    /// if it is not finite, nothing changes.
    ///
    /// # Errors
    /// If there is no member, if shapes, types or devices differ, if t is 0, or if max_norm is not above 0.
    pub fn step(&mut self, settings: &AdamW, t: u64, max_norm: f32, members: &mut [Member<'_>]) -> Result<Tensor> {
        const OP: &str = "adamw";
        let Some(first) = members.first() else {
            return Err(crate::Error::Value { op: OP, message: "needs at least one parameter".into() });
        };
        let device = first.gradient.device().clone();
        for member in &*members {
            let Member { parameter, gradient, moments, factors: _ } = member;
            check_step(OP, t, max_norm, [parameter, gradient, &moments.m, &moments.v])?;
            check::same_device(OP, &[members[0].gradient, member.gradient])?;
        }
        on_device!(&device, step_on_cpu(settings, t, max_norm, members), gpu => {
            let len = members.iter().map(|member| member.gradient.len()).sum::<usize>() as f64;
            let _span = profile::span(OP, 16.0 * len, 40.0 * len);
            self.flat.step(gpu, settings, t, max_norm, members)
        })
    }
}

fn step_on_cpu(settings: &AdamW, t: u64, max_norm: f32, members: &mut [Member<'_>]) -> Result<Tensor> {
    let norm = global_norm(members.iter().map(|member| member.gradient))?;
    for Member { parameter, gradient, moments, factors } in members {
        let len = gradient.len() as f64;
        let _span = profile::span("adamw", 14.0 * len, 28.0 * len);
        cpu::step(&settings.scaled(*factors), t, parameter, gradient, Clip { norm: &norm, max_norm }, moments)?;
    }
    Ok(norm)
}
