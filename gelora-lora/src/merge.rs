//! Merging an adapter into the weight, and unmerging it: W' = W + s B A, with DoRA W' = m / n (W + s B A), where n has
//! the norms of the rows of W + s B A.
//!
//! W (C_out, C_in), A (R, C_in), B (C_out, R). The matrix product accumulates B A onto W, so the dense update needs no
//! memory of its own. Sums are in f32 and are rounded once to the element type of W.

use gelora_kernels::ops::{dora, lora_linear};
use gelora_kernels::{DType, Tensor};

use crate::{LoraLayer, Result};

/// W + s B A, with magnitudes m / n (W + s B A), on the device of W. A linear layer with the
/// result computes what W and the adapter computed.
///
/// The result has the element type of W; if W is quantized, the type that holds its values ([`DType::unquantized`]). It
/// is f32 if that type is f16 and a sum is above 65504, or if the device does not store the type.
///
/// # Errors
/// If A and B do not fit W, a sum is not finite, or a device fails.
///
/// ```
/// use gelora_kernels::Tensor;
/// use gelora_lora::{LoraLayer, merge};
///
/// let w = Tensor::from_vec(vec![1.0, 0.0, 0.0, 1.0], [2, 2])?;
/// let (a, b) = (Tensor::from_vec(vec![1.0, 2.0], [1, 2])?, Tensor::from_vec(vec![1.0, -1.0], [2, 1])?);
/// let layer = LoraLayer { a, b, scaling: 0.5, dropout: 0.0, magnitude: None, initial: None, singular: None };
/// assert_eq!(merge::merge(&w, &layer)?.to_vec()?, [1.5, 1.0, -0.5, 0.0]);
/// # Ok::<(), gelora_lora::Error>(())
/// ```
pub fn merge(weight: &Tensor, layer: &LoraLayer) -> Result<Tensor> {
    add_product(weight, layer, layer.scaling)
}

/// W' - s B A: the weight that [`merge`] was given, up to rounding to the element type of W.
///
/// # Errors
/// As [`merge`], and if the layer has magnitudes: the norms that they replaced are lost.
pub fn unmerge(weight: &Tensor, layer: &LoraLayer) -> Result<Tensor> {
    if layer.magnitude.is_some() {
        let message = "the layer has magnitudes (DoRA), and the norms of the rows of W + s B A are not kept".into();
        return Err(gelora_kernels::Error::Value { op: "unmerge", message }.into());
    }
    add_product(weight, layer, -layer.scaling)
}

fn add_product(weight: &Tensor, layer: &LoraLayer, scaling: f32) -> Result<Tensor> {
    let (_, c_in, c_out) = layer.sizes().map_err(|message| gelora_kernels::Error::Value { op: "merge", message })?;
    if weight.shape() != [c_out, c_in] {
        let (expected, got) = (format!("({c_out}, {c_in}), as the adapter"), weight.shape().to_vec());
        return Err(gelora_kernels::Error::Shape { op: "merge", name: "W", expected, got }.into());
    }
    let mut merged = lora_linear::merge(weight, &layer.factor_a()?, &layer.b, scaling)?;
    if let Some(magnitude) = &layer.magnitude {
        let (magnitude, norms) = (magnitude.to_vec()?, row_norms(&merged)?.to_vec()?);
        for ((row, m), n) in merged.as_mut_slice()?.chunks_mut(c_in.max(1)).zip(magnitude).zip(norms) {
            // A row of zeros has no direction.
            let factor = if n > 0.0 { m / n } else { 0.0 };
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
    if let Some(sum) = merged.as_slice()?.iter().find(|sum| !sum.is_finite()) {
        let message = format!("W {scaling:+} B A has the value {sum}; W, A or B is damaged or far too large");
        return Err(gelora_kernels::Error::Value { op: "merge", message }.into());
    }
    let (device, dtype) = (weight.device(), weight.dtype().unquantized());
    let stored = merged.to_dtype(dtype)?;
    let fits = dtype != DType::F16 || stored.to_vec()?.iter().all(|value| value.is_finite());
    match if fits { &stored } else { &merged }.to_device(device) {
        Err(gelora_kernels::Error::Unsupported { .. }) => Ok(merged.to_device(device)?),
        moved => Ok(moved?),
    }
}

impl LoraLayer {
    /// The layer with a magnitude for every output (DoRA): the norms of the rows of W + s B A, so that the result does
    /// not change. W (C_out, C_in) of any type on any device.
    ///
    /// # Errors
    /// If A and B do not fit W, or a device fails.
    pub fn with_magnitude(self, weight: &Tensor) -> Result<Self> {
        let sum = lora_linear::merge(weight, &self.a, &self.b, self.scaling)?;
        Ok(Self { magnitude: Some(row_norms(&sum)?), ..self })
    }
}

/// The norms of the rows of a matrix (C_out, C_in), as (C_out) on the CPU.
pub(crate) fn row_norms(matrix: &Tensor) -> Result<Tensor> {
    let squares = dora::row_squares(matrix)?.to_vec()?;
    Ok(Tensor::from_vec(squares.into_iter().map(f32::sqrt).collect(), [matrix.rows()])?)
}

#[cfg(test)]
mod tests {
    use gelora_kernels::DType;
    use gelora_kernels::ops::linear::{self, Weight};
    use gelora_kernels::random::Stream;
    use proptest::prelude::*;

    use super::*;

    fn random(stream: &mut Stream, shape: [usize; 2]) -> Tensor {
        Tensor::from_vec((0..shape[0] * shape[1]).map(|_| stream.normal() as f32).collect::<Vec<_>>(), shape).unwrap()
    }

    fn largest_difference(x: &Tensor, y: &Tensor) -> f32 {
        x.to_vec().unwrap().iter().zip(y.to_vec().unwrap()).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
    }

    fn sizes() -> impl Strategy<Value = usize> {
        prop::sample::select(vec![1, 3, 7, 63, 64, 65, 257])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn merged_is_unmerged(c_in in sizes(), c_out in sizes(), rank in 1..9usize, alpha in 0.5..32.0f32, seed: u64) {
            // alpha differs from r: a forgotten or squared scaling shows.
            let mut stream = Stream::new(seed);
            let (a, b) = (random(&mut stream, [rank, c_in]), random(&mut stream, [c_out, rank]));
            let scaling = alpha / rank as f32;
            let layer = LoraLayer { a, b, scaling, dropout: 0.0, magnitude: None, initial: None, singular: None };
            let (weight, x) = (random(&mut stream, [c_out, c_in]), random(&mut stream, [5, c_in]));

            let merged = merge(&weight, &layer).unwrap();
            let frozen = |w: &Tensor| Weight::new(w.clone(), DType::F32).unwrap();
            let (adapted, _) = layer.bind(&layer.a, &frozen(&weight), None, None).forward(&x).unwrap();
            let tolerance = 1e-5 * (c_in * rank) as f32 * layer.scaling.max(1.0);
            let difference = largest_difference(&linear::forward(&x, &frozen(&merged), None).unwrap(), &adapted);
            prop_assert!(difference <= tolerance, "{difference} > {tolerance}");

            let back = unmerge(&merged, &layer).unwrap();
            prop_assert!(largest_difference(&back, &weight) <= 1e-5 * rank as f32 * layer.scaling.max(1.0));
        }
    }

    #[test]
    fn the_element_type_stays() -> Result<()> {
        let mut stream = Stream::new(1);
        let (a, b) = (random(&mut stream, [2, 7]), random(&mut stream, [5, 2]));
        let layer = LoraLayer { a, b, scaling: 1.5, dropout: 0.0, magnitude: None, initial: None, singular: None };
        let weight = random(&mut stream, [5, 7]);
        for dtype in [DType::Bf16, DType::F16, DType::F64, DType::F32] {
            let stored = weight.to_dtype(dtype)?;
            let merged = merge(&stored, &layer)?;
            // Rounded once, from the sum in f32.
            let expected = merge(&stored.to_dtype(DType::F32)?, &layer)?.to_dtype(dtype)?;
            assert_eq!((merged.dtype(), merged.bytes()?), (dtype, expected.bytes()?));
        }
        Ok(())
    }

    #[test]
    fn sums_that_f16_cannot_hold_are_f32_and_infinite_ones_are_an_error() -> Result<()> {
        let one = |value: f32| Tensor::from_vec(vec![value, 1.0], [1, 2]);
        let layer = |factor: f32| -> Result<LoraLayer> {
            Ok(LoraLayer {
                a: one(1.0)?,
                b: Tensor::from_vec(vec![factor], [1, 1])?,
                scaling: 1.0,
                dropout: 0.0,
                magnitude: None,
                initial: None,
                singular: None,
            })
        };
        let weight = one(65000.0)?.to_dtype(DType::F16)?;
        assert_eq!(merge(&weight, &layer(10.0)?)?.dtype(), DType::F16);
        let large = merge(&weight, &layer(1000.0)?)?;
        assert_eq!((large.dtype(), large.to_vec()?), (DType::F32, vec![65992.0, 1001.0]));
        let error = merge(&weight, &layer(f32::INFINITY)?).unwrap_err().to_string();
        assert!(error.starts_with("merge: W +1 B A has the value inf"), "{error}");
        Ok(())
    }

    #[test]
    fn magnitudes_are_the_norms_of_the_merged_rows() -> Result<()> {
        let mut stream = Stream::new(3);
        let w = random(&mut stream, [5, 7]);
        let (a, b) = (random(&mut stream, [2, 7]), random(&mut stream, [5, 2]));
        let plain = LoraLayer { a, b, scaling: 1.5, dropout: 0.0, magnitude: None, initial: None, singular: None };
        let merged = merge(&w, &plain)?;
        // New magnitudes change nothing.
        let mut layer = plain.with_magnitude(&w)?;
        let close = |got: &Tensor, want: &[f32]| {
            let got = got.to_vec().unwrap();
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-5), "{got:?} {want:?}");
        };
        close(&merge(&w, &layer)?, &merged.to_vec()?);
        layer.magnitude = Some(Tensor::from_vec(vec![1.0, 2.0, 3.0, 4.0, 0.0], [5])?);
        close(&row_norms(&merge(&w, &layer)?)?, &[1.0, 2.0, 3.0, 4.0, 0.0]);
        assert!(unmerge(&w, &layer).unwrap_err().to_string().contains("magnitudes"));
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit() -> Result<()> {
        let mut stream = Stream::new(1);
        let mut layer = LoraLayer {
            a: random(&mut stream, [2, 7]),
            b: random(&mut stream, [5, 2]),
            scaling: 1.0,
            dropout: 0.0,
            magnitude: None,
            initial: None,
            singular: None,
        };
        let error = merge(&random(&mut stream, [7, 5]), &layer).unwrap_err().to_string();
        assert_eq!(error, "merge: W must be (5, 7), as the adapter, got [7, 5]");
        layer.b = random(&mut stream, [5, 3]);
        assert!(merge(&random(&mut stream, [5, 7]), &layer).unwrap_err().to_string().contains("B [5, 3]"));
        Ok(())
    }
}
