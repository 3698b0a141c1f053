//! Multi-head scaled dot-product attention within each sequence of an unpadded batch, with grouped heads and causal masks.
//!
//! For one sequence of T tokens and one head of size D, with Q, K, V (T, D):
//! S = scale Q K^T; P = softmax of each row of S; O = drop(P) V; lse_i = ln sum_j exp(S_ij).
//! With a causal mask, row i sees the keys j <= i alone: S_ij is -inf for the others.
//! Query head h reads the key and value head h / (H / G) of G: G = H is the usual attention, G = 1 shares one among all.
//!
//! Backward, given dO: dV = drop(P)^T dO; dP = dropped(dO V^T); dS_ij = P_ij (dP_ij - sum_k P_ik dP_ik);
//! dQ = scale dS K; dK = scale dS^T Q. P is recomputed from lse; no (T, T) matrix is kept, forward or backward.
//!
//! q, o (N, H D), k, v (N, G D), heads side by side; lse (N, H). The dropout of P_ij of head h has the index
//! ((row i of the batch) H + h) longest + j, where j counts from the sequence's start.
//!
//! Accumulation, in f32: on the CPU products as in `linear`, a row's softmax sum in 16 interleaved partial sums, dK and dV over
//! blocks of query rows in ascending order; on a GPU all of them key by key, or row by row, in ascending order. Query heads of a
//! group are added in order.
//!
//! Sources: Vaswani et al., arXiv 1706.03762; recomputation from lse: Dao et al., arXiv 2205.14135; grouped heads: Ainslie et
//! al., arXiv 2305.13245.

pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
pub mod reference;

use super::check;
use super::dropout::Dropout;
use crate::device::on_device;
use crate::{Offsets, Result, Tensor, profile};

/// What attention needs to know beside its inputs.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Where each sequence begins.
    pub sequences: &'a Offsets,
    /// Number of query heads, H.
    pub heads: usize,
    /// Number of key and value heads, G, which divides H.
    pub kv_heads: usize,
    /// What S is multiplied by, usually 1 / sqrt(D).
    pub scale: f32,
    /// Whether a row sees only itself and the rows before it.
    pub causal: bool,
    /// Dropout of the probabilities.
    pub dropout: Option<Dropout>,
}

/// What [`Attention::backward`] needs beside q, k, v.
#[derive(Debug)]
pub struct Saved {
    /// The output, (N, H D).
    pub o: Tensor,
    /// The logarithm of each row's softmax denominator, (N, H).
    pub lse: Tensor,
}

/// Gradients of the inputs.
#[derive(Debug)]
pub struct Gradients {
    /// Of q, (N, H D).
    pub dq: Tensor,
    /// Of k, (N, G D).
    pub dk: Tensor,
    /// Of v, (N, G D).
    pub dv: Tensor,
}

impl Attention<'_> {
    /// (o, what backward needs): q and o (N, H D), k and v (N, G D).
    ///
    /// # Errors
    /// If shapes, types or devices do not fit together or the heads do not divide the channels.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Saved)> {
        const OP: &str = "attention";
        self.check(OP, &[("q", q)], &[("k", k), ("v", v)])?;
        let _span = self.span(OP, 4.0, 2.0, q);
        let (o, lse) = on_device!(q.device(), cpu::forward(self, q, k, v), gpu => gpu::forward(gpu, self, q, k, v))?;
        Ok((o.clone(), Saved { o, lse }))
    }

    /// dq, dk, dv from the gradient of o, (N, H D).
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn backward(&self, d_o: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, saved: Saved) -> Result<Gradients> {
        const OP: &str = "attention.backward";
        self.check(OP, &[("q", q), ("d_o", d_o), ("o", &saved.o)], &[("k", k), ("v", v)])?;
        check::shape(OP, "lse", &saved.lse, &[q.rows(), self.heads])?;
        check::same_device(OP, &[q, &saved.lse])?;
        let _span = self.span(OP, 10.0, 4.0, q);
        on_device!(
            q.device(),
            cpu::backward(self, d_o, q, k, v, &saved),
            gpu => gpu::backward(gpu, self, d_o, [q, k, v], &saved)
        )
    }

    /// A call with so many operations for each pair of tokens and channel, and so many tensors of the shape of q, and of k.
    fn span(&self, op: &'static str, flops: f64, tensors: f64, q: &Tensor) -> profile::Span {
        let seen = |t: f64| if self.causal { t * (t + 1.0) / 2.0 } else { t * t };
        let pairs: f64 = self.sequences.ranges().map(|r| seen(r.len() as f64)).sum();
        let of_keys = self.kv_heads as f64 / self.heads as f64;
        profile::span(op, flops * pairs * q.cols() as f64, 4.0 * tensors * (1.0 + of_keys) * q.len() as f64)
    }

    fn check(
        &self,
        op: &'static str,
        of_queries: &[(&'static str, &Tensor)],
        of_keys: &[(&'static str, &Tensor)],
    ) -> Result<()> {
        let (_, q) = of_queries[0];
        let (n, c) = check::matrix(op, "q", q)?;
        check::value(op, n == self.sequences.tokens(), || {
            format!("q has {n} rows, the sequences have {} tokens", self.sequences.tokens())
        })?;
        check::value(op, self.heads > 0 && c % self.heads == 0, || {
            format!("{} heads do not divide {c} channels", self.heads)
        })?;
        check::value(op, self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), || {
            format!("{} key heads do not divide {} query heads", self.kv_heads, self.heads)
        })?;
        if let Some(d) = self.dropout {
            d.check(op, n * self.heads * self.sequences.longest())?;
        }
        let (of_query, of_key) = ([n, c], [n, c / self.heads * self.kv_heads]);
        for ((name, t), shape) in of_queries.iter().map(|t| (t, &of_query)).chain(of_keys.iter().map(|t| (t, &of_key)))
        {
            check::shape(op, name, t, shape)?;
            check::f32(op, name, t)?;
            check::same_device(op, &[q, t])?;
        }
        Ok(())
    }
}
