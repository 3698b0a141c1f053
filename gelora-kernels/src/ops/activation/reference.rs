//! The formulas in f64.

use super::Activation;

/// f(x).
pub fn value(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh => 0.5 * x * (1.0 + inner(x).tanh()),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
    }
}

/// f'(x).
pub fn derivative(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Gelu => {
            let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
            0.5 * (1.0 + erf(x / 2f64.sqrt())) + x * density
        }
        Activation::GeluTanh => {
            let t = inner(x).tanh();
            let slope = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope
        }
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            s * (1.0 + x * (1.0 - s))
        }
        Activation::Relu => f64::from(x > 0.0),
        Activation::Tanh => 1.0 - x.tanh().powi(2),
    }
}

/// (d_gate, d_up) of y = f(gate) up.
pub fn gated_backward(f: Activation, dy: &[f64], gate: &[f64], up: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut d_gate, mut d_up) = (Vec::new(), Vec::new());
    for i in 0..dy.len() {
        d_gate.push(dy[i] * up[i] * derivative(f, gate[i]));
        d_up.push(dy[i] * value(f, gate[i]));
    }
    (d_gate, d_up)
}

/// The argument of tanh in the approximation of GELU.
fn inner(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))
}

/// The error function as 2/sqrt(pi) e^(-x^2) sum of 2^n x^(2n+1) / (2n+1)!!, a series whose terms all have one sign.
///
/// Source: Abramowitz and Stegun, equation 7.1.6.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}
