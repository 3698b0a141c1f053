use super::{Table, backward, forward, inverse_frequencies, reference};
use crate::random::Stream;
use crate::verify::{Case, random};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, h, d, limit) in [
        (1, 1, 2, 1),
        (7, 3, 6, 100),
        (48, 1, 2, 100_001),
        (65, 1, 14, 63),
        (104, 2, 48, 8192),
        (70_001, 1, 2, 257),
        (128, 6, 64, 512),
    ] {
        let mut stream = Stream::new(7);
        let mut positions: Vec<u32> = (0..n).map(|_| stream.below(limit) as u32).collect();
        positions[n - 1] = limit as u32 - 1;
        let frequencies = inverse_frequencies(10_000.0, d);
        let (want_positions, want_frequencies) = (positions.clone(), frequencies.clone());
        // Once forward, once back, and the table.
        let bytes = 2.0 * (8 * n * h * d + 4 * n * d) as f64 + (4 * limit * d) as f64;
        all.push(
            Case::new("rotary", format!("{n}x{h}x{d} below {limit}"))
                .inputs([random([n, h * d], 1)])
                .run(move |t| {
                    let angles = Table::new(&frequencies, limit, t[0].device())?.at(&positions)?;
                    let y = forward(&t[0], &angles)?;
                    let dx = backward(&t[0], &angles)?;
                    Ok(vec![y, dx])
                })
                .reference(move |v| {
                    let rotate = |sign| reference::rotate(&v[0], &want_frequencies, &want_positions, sign);
                    vec![rotate(1.0), rotate(-1.0)]
                })
                .bound(1e-6)
                .work(6.0 * (n * h * d) as f64, bytes),
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Result, Tensor};

    /// inv_freq and cos and sin at position 1000 of `LlamaRotaryEmbedding`, D = 8 and theta = 10000.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let frequencies = inverse_frequencies(10_000.0, 8);
        for (got, want) in frequencies.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((got - want as f32).abs() <= f32::EPSILON * want as f32, "{frequencies:?}");
        }
    }

    #[test]
    fn backward_undoes_forward() -> Result<()> {
        let x = random([7, 24], 1);
        let angles = Table::new(&inverse_frequencies(1e4, 8), 100, &Device::Cpu)?.at(&[0, 1, 2, 99, 50, 3, 3])?;
        let back = backward(&forward(&x, &angles)?, &angles)?.to_vec()?;
        assert!(back.iter().zip(x.to_vec()?).all(|(a, b)| (a - b).abs() < 1e-5));
        Ok(())
    }

    #[test]
    fn arguments_that_do_not_fit_are_errors() -> Result<()> {
        let table = Table::new(&[1.0, 0.5], 4, &Device::Cpu)?;
        assert!(table.at(&[0, 4]).unwrap_err().to_string().contains("below 4"));
        assert!(table.at(&[]).is_err());
        let angles = table.at(&[0, 3])?;
        assert!(forward(&random([2, 6], 1), &angles).is_err()); // no whole heads
        assert!(forward(&random([3, 4], 1), &angles).is_err());
        assert!(Table::new(&[], 4, &Device::Cpu).is_err() && Table::new(&[f32::NAN], 4, &Device::Cpu).is_err());
        assert!(Table::new(&[1.0], 0, &Device::Cpu).is_err());
        assert_eq!(
            forward(&Tensor::from_vec(vec![1.0; 4], [2, 2])?, &Table::new(&[1.0], 1, &Device::Cpu)?.at(&[0, 0])?)?
                .to_vec()?,
            [1.0; 4]
        );
        Ok(())
    }
}
