use super::{Activation, backward, forward, reference};
use crate::verify::{Case, random};

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (f, name) in [
        (Activation::Gelu, "gelu"),
        (Activation::GeluTanh, "gelu-tanh"),
        (Activation::Relu, "relu"),
        (Activation::Tanh, "tanh"),
    ] {
        for (n, c) in [(1, 1), (3, 7), (65, 63), (64, 1536)] {
            let (x, dy) = (random([n, c], 1), random([n, c], 2));
            let shape = format!("{name} {n}x{c}");
            let bytes = 4.0 * (n * c) as f64;
            all.push(
                Case::new("activation", &shape)
                    .inputs([x.clone()])
                    .run(move |t| Ok(vec![forward(f, &t[0])?]))
                    .reference(move |v| vec![v[0].iter().map(|&x| reference::value(f, x)).collect()])
                    .bound(1e-6)
                    .work(0.0, 2.0 * bytes),
            );
            all.push(
                Case::new("activation.backward", &shape)
                    .inputs([dy, x])
                    .run(move |t| Ok(vec![backward(f, &t[0], &t[1])?]))
                    .reference(move |v| {
                        vec![v[0].iter().zip(&v[1]).map(|(dy, &x)| dy * reference::derivative(f, x)).collect()]
                    })
                    .bound(1e-6)
                    .work(0.0, 3.0 * bytes),
            );
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_match_finite_differences() {
        for f in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Tanh] {
            for i in -30..30 {
                let (x, h) = (f64::from(i) * 0.1 + 0.03, 1e-5);
                let slope = (reference::value(f, x + h) - reference::value(f, x - h)) / (2.0 * h);
                approx::assert_abs_diff_eq!(slope, reference::derivative(f, x), epsilon = 1e-8);
            }
        }
    }
}
