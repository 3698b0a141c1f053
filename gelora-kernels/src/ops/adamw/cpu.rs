use super::{AdamW, Moments};
use crate::cpu::vectorised;
use crate::{Result, Tensor};

pub fn step(s: &AdamW, t: u64, p: &mut Tensor, g: &Tensor, scale: f32, moments: &mut Moments) -> Result<()> {
    // 1 - beta^t in f64: for beta near 1 and small t it is a difference of near-equal numbers.
    let correction = |beta: f32| (1.0 - f64::from(beta).powf(t as f64)) as f32;
    let corrections = [correction(s.beta1), correction(s.beta2)];
    update(
        s,
        corrections,
        scale,
        p.as_mut_slice()?,
        g.as_slice()?,
        moments.m.as_mut_slice()?,
        moments.v.as_mut_slice()?,
    );
    Ok(())
}

vectorised! {
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

pub fn sum_of_squares(x: &[f32]) -> f64 {
    x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum()
}
