//! From the formulas alone.

use super::AdamW;

/// (p, m, v) after the step.
pub fn step(s: &AdamW, t: i32, p: &[f64], g: &[f64], m: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    // The settings are f32 numbers; their decimal readings would differ in the eighth digit.
    let (lr, beta1, beta2) = (f64::from(s.lr), f64::from(s.beta1), f64::from(s.beta2));
    let (eps, decay) = (f64::from(s.eps), f64::from(s.weight_decay));
    let m: Vec<f64> = m.iter().zip(g).map(|(m, g)| beta1 * m + (1.0 - beta1) * g).collect();
    let v: Vec<f64> = v.iter().zip(g).map(|(v, g)| beta2 * v + (1.0 - beta2) * g * g).collect();
    let p = (0..p.len())
        .map(|i| {
            let m_hat = m[i] / (1.0 - beta1.powi(t));
            let v_hat = v[i] / (1.0 - beta2.powi(t));
            p[i] * (1.0 - lr * decay) - lr * m_hat / (v_hat.sqrt() + eps)
        })
        .collect();
    (p, m, v)
}
