//! A frozen affine map with a low-rank adapter: y = x W^T + b + s drop(x) A^T B^T.
//!
//! x (N, C_in), W (C_out, C_in) frozen, b (C_out) frozen, A (R, C_in), B (C_out, R), y (N, C_out); s is the scaling,
//! alpha / R or alpha / sqrt(R). drop is [`dropout`](super::dropout) of the adapter's input alone.
//!
//! Backward, given dY (N, C_out) and xa = drop(x) A^T from the forward pass:
//!
//! ```text
//! dxa = s dY B                       (N, R)
//! dB  = s dY^T xa                    (C_out, R)
//! dA  = dxa^T drop(x)                (R, C_in)
//! dX  = dY W + mask / (1 - p) * (dxa A)
//! ```
//!
//! W and b get no gradient. The dense product B A is never formed: the adapter costs 2 N R (C_in + C_out) operations
//! forward.
//!
//! Accumulation: f32. CPU: in ascending order of the inner dimension, the adapter's terms after the base's, in blocks
//! of at most 512 steps, for any number of threads. If the weight computes in bf16, the factors of the base products,
//! of xa and of dxa are rounded to bf16; those of the adapter's second products, of dA and of dB are not. GPU: each sum
//! in ascending order in one unit, the adapter's terms before the base's; dA and dB in parts of the rows, added in
//! order. On matrix units (bf16, without dropout) the factors of the base products, B in y and A in dX are rounded; xa,
//! dxa, dA and dB are f32. There are no atomics, so a gradient has the same bits in every run.
//!
//! Source: Hu et al., "LoRA: low-rank adaptation of large language models" (arXiv 2106.09685), section 4.1; s with
//! sqrt(R) from Kalajdzievski, "A rank stabilization scaling factor for fine-tuning with LoRA" (arXiv 2312.03732).

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::check;
use super::dropout::Dropout;
use super::linear::Weight;
use crate::device::on_device;
use crate::{Result, Tensor, profile};

/// The frozen weight and the adapter of one call.
#[derive(Clone, Copy, Debug)]
pub struct LoraLinear<'a> {
    /// W (C_out, C_in).
    pub weight: &'a Weight,
    /// b (C_out), f32.
    pub bias: Option<&'a Tensor>,
    /// A (R, C_in), f32.
    pub a: &'a Tensor,
    /// B (C_out, R), f32.
    pub b: &'a Tensor,
    /// s = alpha / R, or alpha / sqrt(R).
    pub scaling: f32,
    /// Dropout of the adapter's input; None for inference.
    pub dropout: Option<Dropout>,
}

/// Values of the forward pass that the backward pass needs.
#[derive(Debug)]
pub struct Saved {
    /// xa = drop(x) A^T (N, R).
    pub xa: Tensor,
}

/// The gradients of one call.
#[derive(Debug)]
pub struct Gradients {
    /// dX (N, C_in).
    pub dx: Tensor,
    /// dA (R, C_in).
    pub da: Tensor,
    /// dB (C_out, R).
    pub db: Tensor,
}

/// The sizes of one call.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    n: usize,
    c_in: usize,
    c_out: usize,
    r: usize,
}

impl Sizes {
    /// The profile span of a call with `base` products with W and `adapter` products with A and B.
    fn span(self, op: &'static str, weight: &Weight, base: f64, adapter: f64) -> profile::Span {
        let Sizes { n, c_in, c_out, r } = self;
        let flops = base * 2.0 * (n * c_in * c_out) as f64 + adapter * 2.0 * (n * r * (c_in + c_out)) as f64;
        let weight_bytes = base * (weight.tensor().dtype().bytes(c_in * c_out)) as f64;
        profile::span(op, flops, 4.0 * ((n + r) * (c_in + c_out)) as f64 + weight_bytes)
    }
}

impl LoraLinear<'_> {
    /// y = x W^T + b + s drop(x) A^T B^T: x (N, C_in) f32; y (N, C_out).
    ///
    /// # Errors
    /// If shapes, types or devices do not fit together, or p of the dropout is outside [0, 1).
    ///
    /// ```
    /// use gelora_kernels::ops::{linear::Weight, lora_linear::LoraLinear};
    /// use gelora_kernels::{DType, Tensor};
    ///
    /// let weight = Weight::new(Tensor::from_vec(vec![1.0, 0.0, 0.0, 1.0], [2, 2])?, DType::F32)?;
    /// let (a, b) = (Tensor::from_vec(vec![1.0, 1.0], [1, 2])?, Tensor::from_vec(vec![0.5, -0.5], [2, 1])?);
    /// let layer = LoraLinear { weight: &weight, bias: None, a: &a, b: &b, scaling: 2.0, dropout: None };
    /// let (y, saved) = layer.forward(&Tensor::from_vec(vec![3.0, 4.0], [1, 2])?)?;
    /// assert_eq!(saved.xa.to_vec()?, [7.0]); // x A^T
    /// assert_eq!(y.to_vec()?, [3.0 + 7.0, 4.0 - 7.0]); // x + 2 * 7 * B^T
    /// # Ok::<(), gelora_kernels::Error>(())
    /// ```
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Saved)> {
        const OP: &str = "lora_linear";
        let sizes = self.check(OP, x)?;
        let _span = sizes.span(OP, self.weight, 1.0, 1.0);
        let (y, xa) = on_device!(x.device(), cpu::forward(self, x, sizes), gpu => gpu::forward(gpu, self, x))?;
        Ok((y, Saved { xa }))
    }

    /// dX, dA and dB, from x (N, C_in) of the forward pass, dy (N, C_out) and the saved values.
    ///
    /// # Errors
    /// As [`LoraLinear::forward`].
    pub fn backward(&self, x: &Tensor, dy: &Tensor, saved: Saved) -> Result<Gradients> {
        const OP: &str = "lora_linear.backward";
        let sizes = self.check_backward(OP, x, dy, &saved)?;
        let _span = sizes.span(OP, self.weight, 1.0, 2.0);
        on_device!(x.device(), cpu::backward(self, x, dy, &saved.xa, sizes), gpu => {
            let dxa = gpu::d_xa(gpu, self, dy)?;
            let (da, db) = gpu::d_parameters(gpu, self, x, dy, &saved.xa, &dxa)?;
            Ok(Gradients { dx: gpu::d_input(gpu, self, dy, &dxa)?, da, db })
        })
    }

    /// (dA, dB) alone, for the lowest layer with an adapter, where no layer below needs dX.
    ///
    /// # Errors
    /// As [`LoraLinear::forward`].
    pub fn backward_parameters(&self, x: &Tensor, dy: &Tensor, saved: Saved) -> Result<(Tensor, Tensor)> {
        const OP: &str = "lora_linear.backward_parameters";
        let sizes = self.check_backward(OP, x, dy, &saved)?;
        let _span = sizes.span(OP, self.weight, 0.0, 2.0);
        on_device!(x.device(), cpu::backward_parameters(self, x, dy, &saved.xa, sizes), gpu => {
            let dxa = gpu::d_xa(gpu, self, dy)?;
            gpu::d_parameters(gpu, self, x, dy, &saved.xa, &dxa)
        })
    }

    fn check(&self, op: &'static str, x: &Tensor) -> Result<Sizes> {
        let (c_out, c_in) = (self.weight.c_out(), self.weight.c_in());
        let (n, _) = check::matrix(op, "x", x)?;
        let (r, _) = check::matrix(op, "A", self.a)?;
        check::shape(op, "x", x, &[n, c_in])?;
        check::shape(op, "A", self.a, &[r, c_in])?;
        check::shape(op, "B", self.b, &[c_out, r])?;
        for (name, t) in [("x", x), ("A", self.a), ("B", self.b)] {
            check::f32(op, name, t)?;
        }
        check::same_device(op, &[x, self.weight.tensor(), self.a, self.b])?;
        if let Some(bias) = self.bias {
            check::f32(op, "b", bias)?;
            check::shape(op, "b", bias, &[c_out])?;
            check::same_device(op, &[x, bias])?;
        }
        if let Some(d) = self.dropout {
            d.check(op, n * c_in)?;
        }
        Ok(Sizes { n, c_in, c_out, r })
    }

    fn check_backward(&self, op: &'static str, x: &Tensor, dy: &Tensor, saved: &Saved) -> Result<Sizes> {
        let sizes = self.check(op, x)?;
        check::shape(op, "dy", dy, &[sizes.n, sizes.c_out])?;
        check::f32(op, "dy", dy)?;
        check::shape(op, "xa", &saved.xa, &[sizes.n, sizes.r])?;
        check::same_device(op, &[x, dy, &saved.xa])?;
        Ok(sizes)
    }

    /// The dropout, if its rate is above 0.
    fn active_dropout(&self) -> Option<Dropout> {
        self.dropout.filter(|d| d.p > 0.0)
    }
}

/// W' = W + s B A, summed in f32 on the CPU: W (C_out, C_in) of any type on any device, A (R, C_in), B (C_out, R);
/// W' (C_out, C_in) f32 on the CPU. A plain linear layer with W' computes what the adapter computed without dropout.
///
/// B A is added inside the matrix product, so the dense update is never formed on its own.
///
/// # Errors
/// If shapes do not fit together, or a device fails.
///
/// ```
/// use gelora_kernels::{Tensor, ops::lora_linear};
///
/// let w = Tensor::from_vec(vec![1.0, 0.0, 0.0, 1.0], [2, 2])?;
/// let (a, b) = (Tensor::from_vec(vec![1.0, 2.0], [1, 2])?, Tensor::from_vec(vec![1.0, -1.0], [2, 1])?);
/// assert_eq!(lora_linear::merge(&w, &a, &b, 0.5)?.to_vec()?, [1.5, 1.0, -0.5, 0.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn merge(weight: &Tensor, a: &Tensor, b: &Tensor, scaling: f32) -> Result<Tensor> {
    const OP: &str = "merge";
    let (c_out, c_in) = check::matrix(OP, "W", weight)?;
    let (r, _) = check::matrix(OP, "A", a)?;
    check::shape(OP, "A", a, &[r, c_in])?;
    check::shape(OP, "B", b, &[c_out, r])?;
    cpu::merge(weight, a, b, scaling, Sizes { n: 0, c_in, c_out, r })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::verify::random;

    #[test]
    fn misfits_are_named() -> Result<()> {
        let (w, a, b, x) = (random([5, 4], 1), random([2, 3], 2), random([5, 2], 3), random([6, 4], 4));
        let w = Weight::new(w, DType::F32)?;
        let layer = LoraLinear { weight: &w, bias: None, a: &a, b: &b, scaling: 1.0, dropout: None };
        let message = layer.forward(&x).unwrap_err().to_string();
        assert_eq!(message, "lora_linear: A must be [2, 4], got [2, 3]");
        Ok(())
    }

    /// Directional derivatives in f64 through the reference against the gradients of the f32 path.
    #[test]
    fn gradients_are_those_of_the_forward_pass() -> Result<()> {
        let (n, c_in, c_out, r) = (5, 6, 4, 3);
        let (x, w, a, b) =
            (random([n, c_in], 1), random([c_out, c_in], 2), random([r, c_in], 3), random([c_out, r], 4));
        let dy = random([n, c_out], 5);
        let dropout = Some(Dropout { p: 0.3, key: [7, 8] });
        let weight = Weight::new(w.clone(), DType::F32)?;
        let layer = LoraLinear { weight: &weight, bias: None, a: &a, b: &b, scaling: 1.5, dropout };
        let (_, saved) = layer.forward(&x)?;
        let g = layer.backward(&x, &dy, saved)?;
        let dyv = dy.to_vec_f64()?;
        let loss = |x: &[f64], a: &[f64], b: &[f64]| -> f64 {
            let w = w.to_vec_f64().unwrap();
            let y = reference::forward(x, &w, None, a, b, 1.5, dropout, c_in).0;
            y.iter().zip(&dyv).map(|(y, d)| y * d).sum()
        };
        let values = [x.to_vec_f64()?, a.to_vec_f64()?, b.to_vec_f64()?];
        for (which, gradient) in [&g.dx, &g.da, &g.db].into_iter().enumerate() {
            for (i, got) in gradient.to_vec_f64()?.into_iter().enumerate() {
                let shifted = |h: f64| {
                    let mut v = values.clone();
                    v[which][i] += h;
                    loss(&v[0], &v[1], &v[2])
                };
                let want = (shifted(1e-4) - shifted(-1e-4)) / 2e-4;
                assert!((got - want).abs() < 1e-4 * (1.0 + want.abs()), "{which} {i}: {got} {want}");
            }
        }
        Ok(())
    }
}
