//! One loop over values for each parameter.

use super::{AdamW, Clip, Moments, corrections};
use crate::cpu::vectorized;
use crate::{Result, Tensor};

pub(crate) fn step(s: &AdamW, t: u64, p: &mut Tensor, g: &Tensor, clip: Clip<'_>, moments: &mut Moments) -> Result<()> {
    let Some(scale) = clip.scale()? else { return Ok(()) };
    update(
        s,
        corrections(s, t),
        scale,
        p.as_mut_slice()?,
        g.as_slice()?,
        moments.m.as_mut_slice()?,
        moments.v.as_mut_slice()?,
    );
    Ok(())
}

vectorized! {
    /// The step of one parameter, with gradients times `scale`.
    fn update(s: &AdamW, corrections: [f32; 2], scale: f32, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let keep = 1.0 - s.lr * s.weight_decay;
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * scale;
            *m = s.beta1 * *m + (1.0 - s.beta1) * g;
            *v = s.beta2 * *v + (1.0 - s.beta2) * g * g;
            *p = *p * keep - s.lr * (*m / corrections[0]) / ((*v / corrections[1]).sqrt() + s.eps);
        }
    }
}

pub(crate) fn global_norm(tensors: &[&Tensor]) -> Result<Tensor> {
    let mut sum = 0.0;
    for t in tensors {
        sum += t.as_slice()?.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
    }
    Tensor::from_vec(vec![sum.sqrt() as f32], [1])
}
