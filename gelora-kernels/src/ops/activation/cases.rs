use super::{Activation, backward, forward, gated, gated_backward, reference};
use crate::verify::{Case, random};

const ALL: [(Activation, &str); 5] = [
    (Activation::Gelu, "gelu"),
    (Activation::GeluTanh, "gelu-tanh"),
    (Activation::Silu, "silu"),
    (Activation::Relu, "relu"),
    (Activation::Tanh, "tanh"),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (f, name) in ALL {
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
                    .inputs([dy.clone(), x.clone()])
                    .run(move |t| Ok(vec![backward(f, &t[0], &t[1])?]))
                    .reference(move |v| {
                        vec![v[0].iter().zip(&v[1]).map(|(dy, &x)| dy * reference::derivative(f, x)).collect()]
                    })
                    .bound(1e-6)
                    .work(0.0, 3.0 * bytes),
            );
            let up = random([n, c], 3);
            all.push(
                Case::new("activation.gated", &shape)
                    .inputs([x.clone(), up.clone()])
                    .run(move |t| Ok(vec![gated(f, &t[0], &t[1])?]))
                    .reference(move |v| {
                        vec![v[0].iter().zip(&v[1]).map(|(&gate, up)| reference::value(f, gate) * up).collect()]
                    })
                    .bound(1e-6)
                    .work(0.0, 3.0 * bytes),
            );
            all.push(
                Case::new("activation.gated_backward", &shape)
                    .inputs([dy, x, up])
                    .run(move |t| gated_backward(f, &t[0], &t[1], &t[2]).map(|(d_gate, d_up)| vec![d_gate, d_up]))
                    .reference(move |v| {
                        let (d_gate, d_up) = reference::gated_backward(f, &v[0], &v[1], &v[2]);
                        vec![d_gate, d_up]
                    })
                    .bound(1e-6)
                    .work(0.0, 5.0 * bytes),
            );
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Result, Tensor};

    #[test]
    fn derivatives_match_finite_differences() {
        for (f, _) in ALL {
            for i in -30..30 {
                let (x, h) = (f64::from(i) * 0.1 + 0.03, 1e-5);
                let slope = (reference::value(f, x + h) - reference::value(f, x - h)) / (2.0 * h);
                approx::assert_abs_diff_eq!(slope, reference::derivative(f, x), epsilon = 1e-8);
            }
        }
    }

    #[test]
    fn large_arguments_stay_finite() -> Result<()> {
        let x = Tensor::from_vec(vec![-1e6, -200.0, -89.0, 89.0, 200.0, 1e6], [6])?;
        let mut devices = vec![Device::Cpu];
        devices.extend(crate::verify::wgpu());
        for device in devices {
            let x = x.to_device(&device)?;
            for (f, name) in ALL {
                let (y, dx) = (forward(f, &x)?.to_vec()?, backward(f, &x, &x)?.to_vec()?);
                let at_most = if f == Activation::Tanh { 1.0 } else { 1e6 };
                assert!(y[0] == -at_most * f32::from(u8::from(f == Activation::Tanh)), "{name}: {y:?}");
                assert!(y[5] == at_most && dx.iter().all(|v| v.is_finite()), "{name}: {y:?} {dx:?}");
            }
        }
        Ok(())
    }
}
