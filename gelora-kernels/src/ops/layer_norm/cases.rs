use super::{Saved, backward, forward, forward_saving, reference};
use crate::verify::{Case, random};

const EPS: f32 = 1e-12;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, c) in [(1, 2), (3, 7), (65, 63), (7, 257), (64, 384)] {
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
                    Ok(vec![y, saved.normalized, saved.rstd])
                })
                .reference(|v| {
                    let (y, normalized, rstd) = reference::forward(&v[0], Some(&v[1]), &v[2], &v[3], EPS.into());
                    vec![y, normalized, rstd]
                })
                .bound(2e-6)
                .work(2.25 * bytes, 4.0 * bytes),
        );
        all.push(
            Case::new("layer_norm.backward", format!("{n}x{c}"))
                .inputs([dy, gamma, x, random([n], 6)])
                .run(|t| {
                    let saved = Saved { normalized: t[2].clone(), rstd: t[3].clone() };
                    Ok(vec![backward(&t[0], &t[1], saved)?])
                })
                .reference(|v| vec![reference::backward(&v[0], &v[1], &v[2], &v[3])])
                .bound(2e-6)
                .work(2.0 * bytes, 3.0 * bytes),
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backward_matches_finite_differences() {
        let (n, c, eps) = (3, 7, 1e-5);
        let input = |seed, len: usize| random([len], seed).to_vec_f64().unwrap_or_default();
        let (x, gamma, beta, dy) = (input(1, n * c), input(2, c), input(3, c), input(4, n * c));
        let loss = |x: &[f64]| -> f64 {
            let (y, ..) = reference::forward(x, None, &gamma, &beta, eps);
            y.iter().zip(&dy).map(|(y, d)| y * d).sum()
        };
        let (_, normalized, rstd) = reference::forward(&x, None, &gamma, &beta, eps);
        let dx = reference::backward(&dy, &gamma, &normalized, &rstd);
        for i in 0..n * c {
            let (mut up, mut down) = (x.clone(), x.clone());
            up[i] += 1e-6;
            down[i] -= 1e-6;
            approx::assert_abs_diff_eq!((loss(&up) - loss(&down)) / 2e-6, dx[i], epsilon = 1e-7);
        }
    }
}
