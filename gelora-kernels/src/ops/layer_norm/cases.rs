use super::{Saved, backward, backward_onto, forward, forward_saving, reference};
use crate::DType;
use crate::verify::{Case, random};

const EPS: f32 = 1e-12;

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, c) in [(1, 2), (3, 7), (1, 48), (65, 63), (104, 65), (7, 257), (70_001, 16), (64, 384), (3, 8192)] {
        let (x, residual) = (random([n, c], 1), random([n, c], 2));
        let (gamma, beta, dy) = (random([c], 3), random([c], 4), random([n, c], 5));
        let bytes = 4.0 * (n * c) as f64;
        all.push(
            Case::new("layer_norm", format!("{n}x{c}"))
                .inputs([x.clone(), gamma.clone(), beta.clone()])
                .run(|t| Ok(vec![forward(&t[0], None, &t[1], &t[2], EPS)?]))
                .reference(|v| vec![reference::forward(&v[0], None, &v[1], &v[2], EPS.into()).0])
                .bound(2e-6)
                .work(2.0 * bytes, 2.0 * bytes),
        );
        all.push(
            Case::new("layer_norm", format!("{n}x{c} residual"))
                .inputs([x.clone(), residual, gamma.clone(), beta])
                .run(|t| {
                    let (y, saved) = forward_saving(&t[0], Some(&t[1]), &t[2], &t[3], EPS)?;
                    Ok(vec![y, saved.h, saved.mean, saved.rstd])
                })
                .reference(|v| {
                    let (y, h, mean, rstd) = reference::forward(&v[0], Some(&v[1]), &v[2], &v[3], EPS.into());
                    vec![y, h, mean, rstd]
                })
                .bound(2e-6)
                .work(2.25 * bytes, 4.0 * bytes),
        );
        let (mean, rstd) = (random([n], 6), random([n], 7));
        all.push(
            Case::new("layer_norm.backward", format!("{n}x{c}"))
                .inputs([dy.clone(), gamma.clone(), x.clone(), mean.clone(), rstd.clone()])
                .run(|t| {
                    let saved = Saved { h: t[2].clone(), mean: t[3].clone(), rstd: t[4].clone() };
                    Ok(vec![backward(&t[0], &t[1], saved)?])
                })
                .reference(|v| vec![reference::backward(&v[0], &v[1], &v[2], &v[3], &v[4])])
                .bound(2e-6)
                .work(2.5 * bytes, 3.0 * bytes),
        );
        all.push(
            Case::new("layer_norm.backward", format!("{n}x{c} onto"))
                .inputs([dy, gamma, x, mean, rstd, random([n, c], 8)])
                .run(|t| {
                    let saved = Saved { h: t[2].clone(), mean: t[3].clone(), rstd: t[4].clone() };
                    Ok(vec![backward_onto(&t[5], &t[0], &t[1], saved)?])
                })
                .reference(|v| {
                    let dh = reference::backward(&v[0], &v[1], &v[2], &v[3], &v[4]);
                    vec![dh.iter().zip(&v[5]).map(|(dh, d)| dh + d).collect()]
                })
                .bound(2e-6)
                .work(2.75 * bytes, 4.0 * bytes),
        );
    }
    for (gamma, beta) in [(DType::Bf16, DType::Bf16), (DType::F16, DType::F32)] {
        let (Ok(g), Ok(b)) = (random([65], 3).to_dtype(gamma), random([65], 4).to_dtype(beta)) else { continue };
        all.push(
            Case::new("layer_norm", format!("7x65 beta {beta}"))
                .dtype(gamma)
                .inputs([random([7, 65], 1), g, b])
                .run(|t| Ok(vec![forward(&t[0], None, &t[1], &t[2], EPS)?]))
                .reference(|v| vec![reference::forward(&v[0], None, &v[1], &v[2], EPS.into()).0])
                .bound(2e-6)
                .work(8.0 * 7.0 * 65.0, 8.0 * 7.0 * 65.0),
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::assert_slopes;

    #[test]
    fn backward_matches_finite_differences() {
        let (n, c, eps) = (3, 7, 1e-5);
        let input = |seed, len: usize| random([len], seed).to_vec_f64().unwrap_or_default();
        let (x, gamma, beta, dy) = (input(1, n * c), input(2, c), input(3, c), input(4, n * c));
        let loss = |inputs: &[Vec<f64>]| -> f64 {
            let (y, ..) = reference::forward(&inputs[0], None, &gamma, &beta, eps);
            y.iter().zip(&dy).map(|(y, d)| y * d).sum()
        };
        let (_, h, mean, rstd) = reference::forward(&x, None, &gamma, &beta, eps);
        let dx = reference::backward(&dy, &gamma, &h, &mean, &rstd);
        assert_slopes(&[x], &[dx], loss);
    }
}
