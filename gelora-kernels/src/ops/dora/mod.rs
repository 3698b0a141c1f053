//! DoRA: the magnitude of every output beside its direction, y = m / n (x W^T + s x A^T B^T) + b.
//!
//! W (C_out, C_in) frozen, b (C_out) frozen, A (R, C_in), B (C_out, R), m (C_out), z = x W^T + s x A^T B^T (N, C_out)
//! of [`lora_linear`](super::lora_linear) without its bias, n (C_out) the norms of the rows of W + s B A:
//!
//! ```text
//! n_i^2 = |W_i|^2 + sum over k of B_ik (2 s P_ki + s^2 sum over l of G_kl B_il)    P = A W^T, G = A A^T
//! y     = m / n z + b
//! ```
//!
//! The dense update B A is never formed. n counts as a constant in the backward pass. Given dY (N, C_out):
//!
//! ```text
//! dz   = m / n dY                                       (N, C_out)
//! dm_i = 1 / n_i sum over the rows of dY_i z_i          (C_out)
//! ```
//!
//! A row of norm 0 counts as one of norm 1e-30.
//!
//! Accumulation: P and G as in [`linear`], in f32 or, where the weight computes in bf16, of factors
//! rounded to bf16. The squares of the rows of W in f64. The sum over k and l: f64 on the CPU, f32 on a GPU, in
//! ascending order. dm: f64 in ascending order on the CPU; on a GPU f32, in parts of 256 rows, added in order.
//!
//! Source: Liu et al., "DoRA: weight-decomposed low-rank adaptation" (arXiv 2402.09353), equations 5 and 11, and
//! section 4.3; PEFT 0.21.2, `DoraLinearLayer`.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::check;
use super::linear::{self, Weight};
use crate::device::on_device;
use crate::{DType, Result, Tensor, profile};

/// The least norm of a row.
const LEAST_NORM: f32 = 1e-30;

/// |W_i|^2 of every row of W (C_out, C_in) of any type, as (C_out) f32 on the device of W.
///
/// # Errors
/// If W is not a matrix, or a device fails.
pub fn row_squares(weight: &Tensor) -> Result<Tensor> {
    let (c_out, c_in) = check::matrix("dora.row_squares", "W", weight)?;
    let values = weight.to_vec()?;
    let square = |row: &[f32]| row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() as f32;
    let squares = values.chunks(c_in.max(1)).map(square).collect();
    Tensor::from_vec(squares, [c_out])?.to_device(weight.device())
}

/// n (C_out), the norms of the rows of W + s B A: `squares` (C_out) of [`row_squares`], A (R, C_in), B (C_out, R).
///
/// # Errors
/// If shapes, types or devices do not fit together.
///
/// ```
/// use gelora_kernels::ops::{dora, linear::Weight};
/// use gelora_kernels::{DType, Tensor};
///
/// let w = Tensor::from_vec(vec![1.0, 0.0, 0.0, 1.0], [2, 2])?;
/// let (a, b) = (Tensor::from_vec(vec![1.0, 2.0], [1, 2])?, Tensor::from_vec(vec![1.0, -1.0], [2, 1])?);
/// let squares = dora::row_squares(&w)?;
/// let n = dora::norms(&Weight::new(w, DType::F32)?, &squares, &a, &b, 2.0)?.to_vec()?;
/// assert_eq!(n, [5.0, f32::sqrt(13.0)]); // of the rows (3, 4) and (-2, -3)
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn norms(weight: &Weight, squares: &Tensor, a: &Tensor, b: &Tensor, scaling: f32) -> Result<Tensor> {
    const OP: &str = "dora.norms";
    let (c_out, c_in) = (weight.c_out(), weight.c_in());
    let (r, _) = check::matrix(OP, "A", a)?;
    check::shape(OP, "A", a, &[r, c_in])?;
    check::shape(OP, "B", b, &[c_out, r])?;
    check::shape(OP, "squares", squares, &[c_out])?;
    for (name, t) in [("squares", squares), ("A", a), ("B", b)] {
        check::f32(OP, name, t)?;
    }
    check::same_device(OP, &[weight.tensor(), squares, a, b])?;
    let products = linear::forward(a, weight, None)?;
    let gram = linear::forward(a, &Weight::new(a.clone(), DType::F32)?, None)?;
    let _span = profile::span(OP, (2 * c_out * r * (r + 2)) as f64, 4.0 * (c_out * (2 * r + 2) + r * r) as f64);
    on_device!(a.device(), cpu::norms(squares, &products, &gram, b, scaling), gpu => {
        gpu::norms(gpu, squares, &products, &gram, b, scaling)
    })
}

/// y = m / n z + b: z (N, C_out), m, n and b (C_out); y (N, C_out).
///
/// # Errors
/// If shapes, types or devices do not fit together.
pub fn forward(z: &Tensor, magnitude: &Tensor, norms: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "dora";
    let (n, c_out) = check::matrix(OP, "z", z)?;
    check_vectors(OP, z, c_out, [Some(("m", magnitude)), Some(("n", norms)), bias.map(|bias| ("b", bias))])?;
    let _span = profile::span(OP, 2.0 * (n * c_out) as f64, 8.0 * (n * c_out) as f64);
    on_device!(z.device(), cpu::forward(z, magnitude, norms, bias), gpu => {
        gpu::forward(gpu, z, magnitude, norms, bias)
    })
}

/// (dz, dm): dy and z (N, C_out), m and n (C_out); dz (N, C_out), dm (C_out).
///
/// # Errors
/// If shapes, types or devices do not fit together.
pub fn backward(dy: &Tensor, z: &Tensor, magnitude: &Tensor, norms: &Tensor) -> Result<(Tensor, Tensor)> {
    const OP: &str = "dora.backward";
    let (n, c_out) = check::matrix(OP, "z", z)?;
    check::shape(OP, "dy", dy, &[n, c_out])?;
    check::f32(OP, "dy", dy)?;
    check::same_device(OP, &[z, dy])?;
    check_vectors(OP, z, c_out, [Some(("m", magnitude)), Some(("n", norms)), None])?;
    let _span = profile::span(OP, 3.0 * (n * c_out) as f64, 12.0 * (n * c_out) as f64);
    on_device!(z.device(), cpu::backward(dy, z, magnitude, norms), gpu => {
        gpu::backward(gpu, dy, z, magnitude, norms)
    })
}

/// Checks z and vectors of one value for each of its columns.
fn check_vectors(
    op: &'static str,
    z: &Tensor,
    c_out: usize,
    vectors: [Option<(&'static str, &Tensor)>; 3],
) -> Result<()> {
    check::f32(op, "z", z)?;
    for (name, vector) in vectors.into_iter().flatten() {
        check::shape(op, name, vector, &[c_out])?;
        check::f32(op, name, vector)?;
        check::same_device(op, &[z, vector])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::verify::random;

    #[test]
    fn misfits_are_named() -> Result<()> {
        let (z, m, n) = (random([3, 5], 1), random([5], 2), random([4], 3));
        assert_eq!(forward(&z, &m, &n, None).unwrap_err().to_string(), "dora: n must be [5], got [4]");
        let error = backward(&random([3, 4], 4), &z, &m, &m).unwrap_err().to_string();
        assert_eq!(error, "dora.backward: dy must be [3, 5], got [3, 4]");
        let weight = Weight::new(random([5, 4], 5), DType::F32)?;
        let error = norms(&weight, &m, &random([2, 4], 6), &random([5, 3], 7), 1.0).unwrap_err().to_string();
        assert_eq!(error, "dora.norms: B must be [5, 2], got [5, 3]");
        Ok(())
    }

    #[test]
    fn a_row_of_zeros_gives_finite_values() -> Result<()> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, &Device::Cpu);
        let weight = Weight::new(zeros(&[2, 3])?, DType::F32)?;
        let squares = row_squares(weight.tensor())?;
        let n = norms(&weight, &squares, &random([1, 3], 1), &zeros(&[2, 1])?, 1.0)?;
        let y = forward(&zeros(&[4, 2])?, &zeros(&[2])?, &n, None)?;
        assert_eq!(y.to_vec()?, [0.0; 8]);
        Ok(())
    }

    /// Differences of the reference in f64 along every parameter, the norms held constant, against its gradients.
    #[test]
    fn gradients_are_those_of_the_forward_pass() {
        let values = |shape: &[usize], seed| random(shape, seed).to_vec_f64().expect("on the CPU");
        let (z, m, n, dy) = (values(&[3, 4], 1), values(&[4], 2), vec![0.5, 1.5, 2.0, 3.0], values(&[3, 4], 3));
        let loss = |z: &[f64], m: &[f64]| -> f64 {
            reference::forward(z, m, &n, None).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        let (dz, dm) = reference::backward(&dy, &z, &m, &n);
        let shifted = |v: &[f64], i: usize, h: f64| {
            let mut v = v.to_vec();
            v[i] += h;
            v
        };
        for (i, got) in dz.iter().enumerate() {
            let want = (loss(&shifted(&z, i, 1e-5), &m) - loss(&shifted(&z, i, -1e-5), &m)) / 2e-5;
            assert!((got - want).abs() < 1e-8, "dz {i}: {got} {want}");
        }
        for (i, got) in dm.iter().enumerate() {
            let want = (loss(&z, &shifted(&m, i, 1e-5)) - loss(&z, &shifted(&m, i, -1e-5))) / 2e-5;
            assert!((got - want).abs() < 1e-8, "dm {i}: {got} {want}");
        }
    }
}
