use super::{CrossEntropy, binary_cross_entropy, cross_entropy, reference, squared_error, weighted_cross_entropy};
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
        for (weighted, smoothing) in [(true, 0.0), (false, 0.1), (true, 0.3)] {
            // With one class the loss and its gradient are 0: what is left is rounding.
            all.extend((k > 1).then(|| weighted_case(b, k, weighted, smoothing)));
        }
        all.push(binary_case(b, k));
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

fn binary_case(b: usize, k: usize) -> Case {
    let mut stream = Stream::new(8);
    // Most targets are 0 or 1; some lie between.
    let targets: Vec<f32> = (0..b * k).map(|_| [0.0, 0.0, 1.0, stream.uniform() as f32][stream.below(4)]).collect();
    let want: Vec<f64> = targets.iter().map(|t| f64::from(*t)).collect();
    Case::new("loss.binary_cross_entropy", format!("{b}x{k}"))
        .inputs([random([b, k], 1)])
        .run(move |t| binary_cross_entropy(&t[0], &targets).map(|(loss, d)| vec![loss, d]))
        .reference(move |v| {
            let (loss, d) = reference::binary_cross_entropy(&v[0], &want);
            vec![vec![loss], d]
        })
        .bound(1e-6)
        .work(0.0, 12.0 * (b * k) as f64)
}

fn weighted_case(b: usize, k: usize, weighted: bool, smoothing: f32) -> Case {
    let mut stream = Stream::new(6);
    let labels: Vec<usize> = (0..b).map(|_| stream.below(k)).collect();
    let weights: Vec<f32> =
        if weighted { (0..k).map(|_| 0.1 + 3.0 * stream.uniform() as f32).collect() } else { Vec::new() };
    let all: Vec<f64> = if weighted { weights.iter().map(|w| f64::from(*w)).collect() } else { vec![1.0; k] };
    let (settings, want) = (CrossEntropy { weights, smoothing }, labels.clone());
    Case::new("loss.weighted_cross_entropy", format!("{b}x{k}, weights {weighted}, smoothing {smoothing}"))
        .inputs([random([b, k], 1)])
        .run(move |t| weighted_cross_entropy(&t[0], &labels, &settings).map(|(loss, d)| vec![loss, d]))
        .reference(move |v| {
            let (loss, d) = reference::weighted_cross_entropy(&v[0], &want, &all, f64::from(smoothing));
            vec![vec![loss], d]
        })
        .bound(1e-6)
        .work(0.0, 8.0 * (b * k) as f64)
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
        let weights = [0.5, 2.0, 1.25];
        let weighted = |x: &[f64]| reference::weighted_cross_entropy(x, &labels, &weights, 0.2);
        let (_, w) = weighted(&logits);
        let binary = |x: &[f64]| reference::binary_cross_entropy(x, &[1.0, 0.0, 0.25].repeat(5));
        let (_, s) = binary(&logits);
        for i in 0..logits.len() {
            let (mut up, mut down) = (logits.clone(), logits.clone());
            up[i] += 1e-6;
            down[i] -= 1e-6;
            let slope = |f: &dyn Fn(&[f64]) -> f64| (f(&up) - f(&down)) / 2e-6;
            approx::assert_abs_diff_eq!(slope(&|x| reference::cross_entropy(x, &labels).0), d[i], epsilon = 1e-8);
            approx::assert_abs_diff_eq!(slope(&|x| weighted(x).0), w[i], epsilon = 1e-8);
            approx::assert_abs_diff_eq!(slope(&|x| binary(x).0), s[i], epsilon = 1e-8);
            approx::assert_abs_diff_eq!(slope(&|x| reference::squared_error(x, &targets).0), e[i], epsilon = 1e-8);
        }
    }

    /// torch's documentation: nn.CrossEntropyLoss, worked out for logits (0, ln 3) and the labels 1, 0, 0.
    #[test]
    fn weights_and_smoothing_by_hand() -> Result<()> {
        let logits = Tensor::from_vec([0.0, 3f32.ln()].repeat(3), [3, 2])?;
        let labels = [1, 0, 0];
        // Losses of the classes 0 and 1: ln 4 and ln 4/3.
        let (l0, l1) = (4f64.ln(), (4.0f64 / 3.0).ln());
        let check = |weights: &[f32], smoothing: f32, expected: f64| -> Result<()> {
            let settings = CrossEntropy { weights: weights.to_vec(), smoothing };
            let (loss, _) = weighted_cross_entropy(&logits, &labels, &settings)?;
            approx::assert_relative_eq!(f64::from(loss.item()?), expected, max_relative = 1e-6);
            Ok(())
        };
        check(&[], 0.0, (l1 + 2.0 * l0) / 3.0)?;
        check(&[0.5, 4.0], 0.0, (4.0 * l1 + 2.0 * 0.5 * l0) / 5.0)?;
        check(&[], 0.2, 0.8 * (l1 + 2.0 * l0) / 3.0 + 0.1 * (l0 + l1))?;
        // The part of all classes is divided by the weights of the labels too: 3 (w0 l0 + w1 l1) / 5.
        check(&[0.5, 4.0], 0.2, 0.8 * (4.0 * l1 + l0) / 5.0 + 0.1 * 3.0 * (0.5 * l0 + 4.0 * l1) / 5.0)?;
        let fails = |weights: &[f32], smoothing: f32| {
            let settings = CrossEntropy { weights: weights.to_vec(), smoothing };
            weighted_cross_entropy(&logits, &labels, &settings).map(|_| ()).expect_err("bad settings").to_string()
        };
        assert!(fails(&[1.0], 0.0).contains("2 classes need as many weights, got 1"));
        assert!(fails(&[1.0, 0.0], 0.0).contains("above 0"));
        assert!(fails(&[], 1.0).contains("smoothing"));
        Ok(())
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
            let settings = CrossEntropy { weights: vec![1.0, 2.0, 3.0], smoothing: 0.1 };
            let (loss, d) = weighted_cross_entropy(&logits, &[0, 0], &settings)?;
            assert!(loss.item()?.is_finite() && d.to_vec()?.iter().all(|d| d.is_finite()));
            // Six decisions: the losses are 1e4 for each of the two that are wrong, and ln 2 for each logit of 0.
            let (loss, d) = binary_cross_entropy(&logits, &[0.0, 0.0, 1.0, 1.0, 1.0, 0.0])?;
            approx::assert_relative_eq!(loss.item()?, (2e4 + 2.0 * 2f32.ln()) / 6.0, max_relative = 1e-6);
            let sixths = [1.0, 0.0, -0.5, -1.0, 0.0, 0.5].map(|d: f32| d / 6.0);
            d.to_vec()?.iter().zip(sixths).for_each(|(d, want)| approx::assert_abs_diff_eq!(*d, want, epsilon = 1e-7));
            assert!(binary_cross_entropy(&logits, &[0.5; 5]).is_err());
            assert!(binary_cross_entropy(&logits, &[0.5, 0.5, 0.5, 0.5, 0.5, 1.5]).is_err());
        }
        Ok(())
    }
}
