use super::{AdamW, Clip, Moments, global_norm, reference, step};
use crate::Tensor;
use crate::verify::{Case, random};

pub fn cases() -> Vec<Case> {
    let settings = AdamW { lr: 0.05, weight_decay: 0.1, ..AdamW::default() };
    let mut all = Vec::new();
    for len in [1, 3, 63, 257, 3072, 100_000] {
        let squared = random([len], 4).to_vec().unwrap_or_default().iter().map(|v| v * v).collect();
        let Ok(v) = Tensor::from_vec(squared, [len]) else { continue };
        let Ok(norm) = Tensor::from_vec(vec![3.0], [1]) else { continue };
        let inputs = [random([len], 1), random([len], 2), random([len], 3), v, norm];
        // Clipped to half of the norm, and not clipped.
        for (t, max_norm, scale) in [(1, 1.5, 1.5 / (3.0 + 1e-6)), (1000, f32::INFINITY, 1.0), (2, 3.5, 1.0)] {
            all.push(
                Case::new("adamw", format!("{len}, t {t}, norm 3 to {max_norm}"))
                    .inputs(inputs.clone())
                    .run(move |x| {
                        let (mut p, mut moments) = (x[0].clone(), Moments { m: x[2].clone(), v: x[3].clone() });
                        step(&settings, t, &mut p, &x[1], Clip { norm: &x[4], max_norm }, &mut moments)?;
                        Ok(vec![p, moments.m, moments.v])
                    })
                    .reference(move |x| {
                        let g: Vec<f64> = x[1].iter().map(|g| scale * g).collect();
                        let (p, m, v) = reference::step(&settings, t as i32, &x[0], &g, &x[2], &x[3]);
                        vec![p, m, v]
                    })
                    .bound(2e-6)
                    .work(14.0 * len as f64, 28.0 * len as f64),
            );
        }
        all.push(
            Case::new("global_norm", format!("{len} + {len}"))
                .inputs([inputs[0].clone(), inputs[1].clone()])
                .run(|t| Ok(vec![global_norm(t)?]))
                .reference(|v| vec![vec![v.iter().flatten().map(|x| x * x).sum::<f64>().sqrt()]])
                .bound(1e-6)
                .work(4.0 * len as f64, 8.0 * len as f64),
        );
    }
    all
}
