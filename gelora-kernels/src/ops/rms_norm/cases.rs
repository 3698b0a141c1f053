use super::{Saved, backward, forward, forward_saving, reference};
use crate::DType;
use crate::verify::{Case, random};

const EPS: f32 = 1e-6;

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, c) in [(1, 1), (3, 7), (1, 48), (65, 63), (104, 65), (7, 257), (70_001, 3), (64, 1024), (3, 8192)] {
        let (x, residual, gamma) = (random([n, c], 1), random([n, c], 2), random([c], 3));
        let (dy, d_h, rstd) = (random([n, c], 5), random([n, c], 6), random([n], 7));
        let bytes = 4.0 * (n * c) as f64;
        all.push(
            Case::new("rms_norm", format!("{n}x{c}"))
                .inputs([x.clone(), gamma.clone()])
                .run(|t| Ok(vec![forward(&t[0], None, &t[1], EPS)?.0]))
                .reference(|v| vec![reference::forward(&v[0], None, &v[1], EPS.into()).0])
                .bound(2e-6)
                .work(bytes, 2.0 * bytes),
        );
        all.push(
            Case::new("rms_norm", format!("{n}x{c} residual"))
                .inputs([x.clone(), residual, gamma.clone()])
                .run(|t| {
                    let (y, saved) = forward_saving(&t[0], Some(&t[1]), &t[2], EPS)?;
                    Ok(vec![y, saved.h, saved.rstd])
                })
                .reference(|v| {
                    let (y, h, rstd) = reference::forward(&v[0], Some(&v[1]), &v[2], EPS.into());
                    vec![y, h, rstd]
                })
                .bound(2e-6)
                .work(1.25 * bytes, 4.0 * bytes),
        );
        all.push(
            Case::new("rms_norm.backward", format!("{n}x{c}"))
                .inputs([dy.clone(), gamma.clone(), x.clone(), rstd.clone()])
                .run(|t| {
                    let saved = Saved { h: t[2].clone(), rstd: t[3].clone() };
                    Ok(vec![backward(&t[0], None, &t[1], saved)?])
                })
                .reference(|v| vec![reference::backward(&v[0], None, &v[1], &v[2], &v[3])])
                .bound(2e-6)
                .work(1.75 * bytes, 3.0 * bytes),
        );
        all.push(
            Case::new("rms_norm.backward", format!("{n}x{c} onto"))
                .inputs([dy, gamma, x, rstd, d_h])
                .run(|t| {
                    let saved = Saved { h: t[2].clone(), rstd: t[3].clone() };
                    Ok(vec![backward(&t[0], Some(&t[4]), &t[1], saved)?])
                })
                .reference(|v| vec![reference::backward(&v[0], Some(&v[4]), &v[1], &v[2], &v[3])])
                .bound(2e-6)
                .work(2.0 * bytes, 4.0 * bytes),
        );
    }
    for dtype in [DType::Bf16, DType::F16] {
        let Ok(gamma) = random([65], 3).to_dtype(dtype) else { continue };
        all.push(
            Case::new("rms_norm", "7x65")
                .dtype(dtype)
                .inputs([random([7, 65], 1), gamma])
                .run(|t| Ok(vec![forward(&t[0], None, &t[1], EPS)?.0]))
                .reference(|v| vec![reference::forward(&v[0], None, &v[1], EPS.into()).0])
                .bound(2e-6)
                .work(4.0 * 7.0 * 65.0, 8.0 * 7.0 * 65.0),
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
        let (x, gamma, dy, d_h) = (input(1, n * c), input(2, c), input(3, n * c), input(4, n * c));
        let loss = |inputs: &[Vec<f64>]| -> f64 {
            let (y, h, _) = reference::forward(&inputs[0], None, &gamma, eps);
            y.iter().zip(&dy).chain(h.iter().zip(&d_h)).map(|(v, d)| v * d).sum()
        };
        let (_, h, rstd) = reference::forward(&x, None, &gamma, eps);
        let dx = reference::backward(&dy, Some(&d_h), &gamma, &h, &rstd);
        assert_slopes(&[x], &[dx], loss);
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn a_launch_beyond_one_dimension_reaches_every_row() -> crate::Result<()> {
        let Ok(device) = crate::Device::open(crate::DeviceKind::Wgpu) else { return Ok(()) };
        // 32 rows a cube: 65,626 cubes.
        let x = crate::Tensor::from_vec(vec![2.0; 2_100_001], [2_100_001, 1])?.to_device(&device)?;
        let gamma = crate::Tensor::from_vec(vec![3.0], [1])?.to_device(&device)?;
        let y = crate::verify::guarded(|| forward(&x, None, &gamma, 0.0))?.0.to_vec()?;
        assert!(y.iter().all(|y| (y - 3.0).abs() < 1e-5));
        Ok(())
    }
}
