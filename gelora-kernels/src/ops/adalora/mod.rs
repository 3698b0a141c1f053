//! AdaLoRA: an update in the form of a singular value decomposition, the penalty that keeps its factors orthogonal, and
//! the importance by which singular values are given up.
//!
//! A (R, C_in), e (R, 1), B (C_out, R): the update s B diag(e) A is a LoRA product with A' = diag(e) A.
//!
//! ```text
//! A'_kc  = e_k A_kc                                                  (R, C_in)     forward
//! dA_kc  = e_k dA'_kc,   de_k = sum over c of dA'_kc A_kc            (R, C_in), (R, 1)   backward
//! M      = A A^T - I or B^T B - I                                    (R, R)
//! d      = |M|_F,   dP = 2 / d M A or 2 / d B M                      the penalty of A or B, and its gradient
//! s      = beta1 s + (1 - beta1) |p g|                               sensitivity of every parameter
//! u      = beta2 u + (1 - beta2) ||p g| - s|                         uncertainty
//! score_k = mean of s u over row k of A, column k of B, or e_k       (R)
//! ```
//!
//! g is the gradient after clipping, p the parameter after the step. A penalty of 0 has the gradient 0.
//!
//! Accumulation: sums over a vector in f64 on the CPU, in eight interleaved parts; in f32 on a GPU, in up to 256
//! interleaved parts that are added as a tree. M A and B M in f32, in ascending order.
//!
//! Source: Zhang et al., "AdaLoRA: adaptive budget allocation for parameter-efficient fine-tuning" (arXiv 2303.10512),
//! equations 3, 4 and 8 to 11; PEFT 0.21.2, `SVDLinear`, `AdaLoraModel.forward` and `RankAllocator`.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::adamw::{self, Clip};
use super::check;
use crate::device::on_device;
use crate::{Result, Tensor, profile};

/// Where a factor has its R vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vectors {
    /// In its rows, as A (R, C_in) and e (R, 1).
    Rows,
    /// In its columns, as B (C_out, R).
    Columns,
}

impl Vectors {
    /// (number of vectors, their length).
    fn of(self, factor: &Tensor) -> (usize, usize) {
        match self {
            Self::Rows => (factor.rows(), factor.cols()),
            Self::Columns => (factor.cols(), factor.rows()),
        }
    }

    /// Distances in memory from a vector to the next, and from a value of a vector to the next.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    fn strides(self, factor: &Tensor) -> (usize, usize) {
        match self {
            Self::Rows => (factor.cols(), 1),
            Self::Columns => (1, factor.cols()),
        }
    }
}

/// The running importance of the values of a parameter.
#[derive(Clone, Debug)]
pub struct Importance {
    /// s, of the shape of the parameter.
    pub sensitivity: Tensor,
    /// u, of the shape of the parameter.
    pub uncertainty: Tensor,
}

impl Importance {
    /// That of a parameter before its first step.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn zeros(parameter: &Tensor) -> Result<Self> {
        let zeros = || Tensor::zeros(parameter.shape(), parameter.device());
        Ok(Self { sensitivity: zeros()?, uncertainty: zeros()? })
    }
}

/// Decay rates of the importance, each strictly between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decay {
    /// beta1, that of the sensitivity.
    pub sensitivity: f32,
    /// beta2, that of the uncertainty.
    pub uncertainty: f32,
}

/// A' = diag(e) A: e (R, 1), A and A' (R, C_in).
///
/// # Errors
/// If shapes, types or devices do not fit together.
///
/// ```
/// use gelora_kernels::Tensor;
/// use gelora_kernels::ops::adalora;
///
/// let e = Tensor::from_vec(vec![2.0, 0.0], [2, 1])?;
/// let a = Tensor::from_vec(vec![1.0, 2.0, 3.0, 4.0], [2, 2])?;
/// assert_eq!(adalora::forward(&e, &a)?.to_vec()?, [2.0, 4.0, 0.0, 0.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn forward(e: &Tensor, a: &Tensor) -> Result<Tensor> {
    const OP: &str = "adalora";
    check_factors(OP, e, [("A", a)])?;
    let _span = profile::span(OP, a.len() as f64, 8.0 * a.len() as f64);
    on_device!(a.device(), cpu::forward(e, a), gpu => gpu::forward(gpu, e, a))
}

/// (dA, de) from dA' (R, C_in): dA (R, C_in), de (R, 1).
///
/// # Errors
/// If shapes, types or devices do not fit together.
pub fn backward(da: &Tensor, e: &Tensor, a: &Tensor) -> Result<(Tensor, Tensor)> {
    const OP: &str = "adalora.backward";
    check_factors(OP, e, [("A", a), ("dA'", da)])?;
    check::shape(OP, "dA'", da, a.shape())?;
    let _span = profile::span(OP, 3.0 * a.len() as f64, 12.0 * a.len() as f64);
    on_device!(a.device(), cpu::backward(da, e, a), gpu => gpu::backward(gpu, da, e, a))
}

/// (d, dP) of a factor P: d (1), dP of its shape.
///
/// # Errors
/// If P is not a matrix of f32, or the device fails.
pub fn orthogonality(factor: &Tensor, vectors: Vectors) -> Result<(Tensor, Tensor)> {
    const OP: &str = "adalora.orthogonality";
    check::matrix(OP, "P", factor)?;
    check::f32(OP, "P", factor)?;
    let (r, len) = vectors.of(factor);
    let _span = profile::span(OP, 4.0 * (r * r * len) as f64, 4.0 * (3 * r * len + 2 * r * r) as f64);
    let gram = on_device!(factor.device(), cpu::gram(factor, vectors), gpu => gpu::gram(gpu, factor, vectors))?;
    let distance = adamw::global_norm(std::slice::from_ref(&gram))?;
    let gradient = on_device!(
        factor.device(),
        cpu::gradient(factor, vectors, &gram, &distance),
        gpu => gpu::gradient(gpu, factor, vectors, &gram, &distance)
    )?;
    Ok((distance, gradient))
}

/// Updates the importance of a parameter after a step. A norm that is not finite leaves it unchanged.
///
/// # Errors
/// If shapes, types or devices do not fit together.
pub fn update(
    decay: Decay,
    parameter: &Tensor,
    gradient: &Tensor,
    clip: Clip<'_>,
    importance: &mut Importance,
) -> Result<()> {
    const OP: &str = "adalora.update";
    let others = [gradient, &importance.sensitivity, &importance.uncertainty];
    for (name, t) in ["gradient", "sensitivity", "uncertainty"].into_iter().zip(others) {
        check::shape(OP, name, t, parameter.shape())?;
        check::f32(OP, name, t)?;
    }
    check::f32(OP, "parameter", parameter)?;
    check::shape(OP, "norm", clip.norm, &[1])?;
    check::f32(OP, "norm", clip.norm)?;
    check::same_device(OP, &[parameter, gradient, others[1], others[2], clip.norm])?;
    check::value(OP, clip.max_norm > 0.0, || format!("max_norm must be above 0, got {}", clip.max_norm))?;
    let len = parameter.len() as f64;
    let _span = profile::span(OP, 9.0 * len, 24.0 * len);
    on_device!(
        parameter.device(),
        cpu::update(decay, parameter, gradient, clip, importance),
        gpu => gpu::update(gpu, decay, parameter, gradient, clip, importance)
    )
}

/// The mean of s u over each vector of a factor (R).
///
/// # Errors
/// If sensitivity and uncertainty are not matrices of one shape, or the device fails.
pub fn scores(importance: &Importance, vectors: Vectors) -> Result<Tensor> {
    const OP: &str = "adalora.scores";
    let Importance { sensitivity, uncertainty } = importance;
    check::matrix(OP, "sensitivity", sensitivity)?;
    check::shape(OP, "uncertainty", uncertainty, sensitivity.shape())?;
    for (name, t) in [("sensitivity", sensitivity), ("uncertainty", uncertainty)] {
        check::f32(OP, name, t)?;
    }
    check::same_device(OP, &[sensitivity, uncertainty])?;
    let len = sensitivity.len() as f64;
    let _span = profile::span(OP, 2.0 * len, 8.0 * len);
    on_device!(sensitivity.device(), cpu::scores(importance, vectors), gpu => gpu::scores(gpu, importance, vectors))
}

/// Checks e (R, 1), and matrices of R rows.
fn check_factors<const N: usize>(op: &'static str, e: &Tensor, factors: [(&'static str, &Tensor); N]) -> Result<()> {
    let (r, _) = check::matrix(op, factors[0].0, factors[0].1)?;
    check::shape(op, "e", e, &[r, 1])?;
    check::f32(op, "e", e)?;
    for (name, t) in factors {
        check::f32(op, name, t)?;
        check::same_device(op, &[e, t])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::random;

    #[test]
    fn misfits_are_named() -> Result<()> {
        let (e, a) = (random([3, 1], 1), random([3, 5], 2));
        let error = forward(&random([2, 1], 1), &a).unwrap_err().to_string();
        assert_eq!(error, "adalora: e must be [3, 1], got [2, 1]");
        let error = backward(&random([3, 4], 3), &e, &a).unwrap_err().to_string();
        assert_eq!(error, "adalora.backward: dA' must be [3, 5], got [3, 4]");
        let error = orthogonality(&random([3], 1), Vectors::Rows).unwrap_err().to_string();
        assert_eq!(error, "adalora.orthogonality: P must be a matrix, got [3]");
        let (mut importance, norm) = (Importance::zeros(&e)?, random([1], 4));
        let decay = Decay { sensitivity: 0.85, uncertainty: 0.85 };
        let clip = Clip { norm: &norm, max_norm: 1.0 };
        let error = update(decay, &a, &a, clip, &mut importance).unwrap_err().to_string();
        assert_eq!(error, "adalora.update: sensitivity must be [3, 5], got [3, 1]");
        Ok(())
    }

    #[test]
    fn an_orthonormal_factor_has_no_penalty_and_no_gradient() -> Result<()> {
        let identity = Tensor::from_vec(vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [2, 3])?;
        let (distance, gradient) = orthogonality(&identity, Vectors::Rows)?;
        assert_eq!((distance.item()?, gradient.to_vec()?), (0.0, vec![0.0; 6]));
        Ok(())
    }

    #[test]
    fn a_norm_that_is_not_finite_changes_nothing() -> Result<()> {
        let p = random([2, 3], 1);
        let mut importance = Importance { sensitivity: random([2, 3], 2), uncertainty: random([2, 3], 3) };
        let before = importance.clone();
        let norm = Tensor::from_vec(vec![f32::NAN], [1])?;
        let decay = Decay { sensitivity: 0.5, uncertainty: 0.5 };
        update(decay, &p, &p, Clip { norm: &norm, max_norm: 1.0 }, &mut importance)?;
        assert_eq!(importance.sensitivity.to_vec()?, before.sensitivity.to_vec()?);
        assert_eq!(importance.uncertainty.to_vec()?, before.uncertainty.to_vec()?);
        Ok(())
    }

    /// Differences of the reference in f64 along every parameter against its gradients.
    #[test]
    fn gradients_are_those_of_the_reference() {
        let values = |shape: &[usize], seed| random(shape, seed).to_vec_f64().expect("on the CPU");
        let (e, a, da) = (values(&[3, 1], 1), values(&[3, 4], 2), values(&[3, 4], 3));
        let shifted = |v: &[f64], i: usize, h: f64| {
            let mut v = v.to_vec();
            v[i] += h;
            v
        };
        let loss = |e: &[f64], a: &[f64]| -> f64 {
            reference::forward(e, a).iter().zip(&da).map(|(value, da)| value * da).sum()
        };
        let (got_a, got_e) = reference::backward(&da, &e, &a);
        for (i, got) in got_a.iter().enumerate() {
            let want = (loss(&e, &shifted(&a, i, 1e-5)) - loss(&e, &shifted(&a, i, -1e-5))) / 2e-5;
            assert!((got - want).abs() < 1e-8, "dA {i}: {got} {want}");
        }
        for (i, got) in got_e.iter().enumerate() {
            let want = (loss(&shifted(&e, i, 1e-5), &a) - loss(&shifted(&e, i, -1e-5), &a)) / 2e-5;
            assert!((got - want).abs() < 1e-8, "de {i}: {got} {want}");
        }
        for (vectors, r) in [(Vectors::Rows, 3), (Vectors::Columns, 4)] {
            let penalty = |p: &[f64]| reference::orthogonality(p, r, vectors).0;
            let (_, gradient) = reference::orthogonality(&a, r, vectors);
            for (i, got) in gradient.iter().enumerate() {
                let want = (penalty(&shifted(&a, i, 1e-5)) - penalty(&shifted(&a, i, -1e-5))) / 2e-5;
                assert!((got - want).abs() < 1e-8, "{vectors:?} {i}: {got} {want}");
            }
        }
    }
}
