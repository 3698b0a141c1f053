use super::{cross_entropy, reference, squared_error};
use crate::random::Stream;
use crate::verify::{Case, random};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (b, k) in [(1, 1), (1, 2), (7, 3), (65, 63), (257, 48), (104, 65), (70_001, 2), (32, 3000), (3, 200_000)] {
        let mut stream = Stream::new(4);
        let labels: Vec<usize> = (0..b).map(|_| stream.below(k)).collect();
        let want = labels.clone();
        all.push(
            Case::new("loss.cross_entropy", format!("{b}x{k}"))
                .inputs([random([b, k], 1)])
                .run(move |t| cross_entropy(&t[0], &labels).map(|(loss, d)| vec![loss, d]))
                .reference(move |v| {
                    let (loss, d) = reference::cross_entropy(&v[0], &want);
                    vec![vec![loss], d]
                })
                .bound(1e-6)
                .work(0.0, 8.0 * (b * k) as f64),
        );
        let targets: Vec<f32> = (0..b).map(|_| stream.normal() as f32).collect();
        let want: Vec<f64> = targets.iter().map(|t| f64::from(*t)).collect();
        all.push(
            Case::new("loss.squared_error", format!("{b}, {k}"))
                .inputs([random([b, 1], k as u64)])
                .run(move |t| squared_error(&t[0], &targets).map(|(loss, d)| vec![loss, d]))
                .reference(move |v| {
                    let (loss, d) = reference::squared_error(&v[0], &want);
                    vec![vec![loss], d]
                })
                .bound(1e-6)
                .work(0.0, 12.0 * b as f64),
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Result, Tensor};

    #[test]
    fn gradients_match_finite_differences() {
        let logits = random([5 * 3], 1).to_vec_f64().unwrap_or_default();
        let (labels, targets) = ([0, 2, 1, 1, 0], [0.5; 15]);
        let (_, d) = reference::cross_entropy(&logits, &labels);
        let (_, e) = reference::squared_error(&logits, &targets);
        for i in 0..logits.len() {
            let (mut up, mut down) = (logits.clone(), logits.clone());
            up[i] += 1e-6;
            down[i] -= 1e-6;
            let slope = |f: &dyn Fn(&[f64]) -> f64| (f(&up) - f(&down)) / 2e-6;
            approx::assert_abs_diff_eq!(slope(&|x| reference::cross_entropy(x, &labels).0), d[i], epsilon = 1e-8);
            approx::assert_abs_diff_eq!(slope(&|x| reference::squared_error(x, &targets).0), e[i], epsilon = 1e-8);
        }
    }

    #[test]
    fn extreme_logits_stay_finite() -> Result<()> {
        let logits = Tensor::from_vec(vec![1e4, -1e4, 0.0, -1e4, 1e4, 0.0], [2, 3])?;
        let mut devices = vec![Device::Cpu];
        devices.extend(crate::verify::wgpu());
        for device in devices {
            let logits = logits.to_device(&device)?;
            let (loss, d) = cross_entropy(&logits, &[0, 0])?;
            assert_eq!(loss.item()?, 1e4);
            assert_eq!(d.to_vec()?, [0.0, 0.0, 0.0, -0.5, 0.5, 0.0]);
            assert!(cross_entropy(&logits, &[0, 3]).is_err());
        }
        Ok(())
    }
}
