//! Multi-head scaled dot-product attention within each sequence of an unpadded batch.
//!
//! For one sequence of T tokens and one head of size D, with Q, K, V (T, D):
//! S = scale Q K^T; P = softmax of each row of S; O = drop(P) V; lse_i = ln sum_j exp(S_ij).
//!
//! Backward, given dO: dV = drop(P)^T dO; dP = dropped(dO V^T); dS_ij = P_ij (dP_ij - sum_k P_ik dP_ik);
//! dQ = scale dS K; dK = scale dS^T Q. P is recomputed from lse; no (T, T) matrix is kept, forward or backward.
//!
//! q, k, v, o (N, H D), heads side by side; lse (N, H). The dropout of P_ij of head h has the index
//! ((row i of the batch) H + h) longest + j, where j counts from the sequence's start.
//!
//! Accumulation: products in f32 in the GEMM crate's order, a row's softmax sum in 16 interleaved partial sums, dK and dV
//! over blocks of query rows in ascending order.
//!
//! Sources: Vaswani et al., arXiv 1706.03762; recomputation from lse: Dao et al., arXiv 2205.14135.

pub(crate) mod cases;
mod cpu;
pub mod reference;

use super::check;
use super::dropout::Dropout;
use crate::{Offsets, Result, Tensor, profile};

/// What attention needs to know beside its inputs.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Where each sequence begins.
    pub sequences: &'a Offsets,
    /// Number of heads, H.
    pub heads: usize,
    /// What S is multiplied by, usually 1 / sqrt(D).
    pub scale: f32,
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

/// Gradients of the inputs, each (N, H D).
#[derive(Debug)]
pub struct Gradients {
    /// Of q.
    pub dq: Tensor,
    /// Of k.
    pub dk: Tensor,
    /// Of v.
    pub dv: Tensor,
}

impl Attention<'_> {
    /// (o, what backward needs): q, k, v and o (N, H D).
    ///
    /// # Errors
    /// If shapes, types or devices do not fit together or the heads do not divide the channels.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Saved)> {
        const OP: &str = "attention";
        self.check(OP, &[("q", q), ("k", k), ("v", v)])?;
        let _span = self.span(OP, 4.0, 4.0, q);
        let (o, lse) = cpu::forward(self, q, k, v)?;
        Ok((o.clone(), Saved { o, lse }))
    }

    /// dq, dk, dv from the gradient of o, (N, H D).
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn backward(&self, d_o: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, saved: Saved) -> Result<Gradients> {
        const OP: &str = "attention.backward";
        self.check(OP, &[("q", q), ("k", k), ("v", v), ("d_o", d_o), ("o", &saved.o)])?;
        check::shape(OP, "lse", &saved.lse, &[q.rows(), self.heads])?;
        let _span = self.span(OP, 10.0, 8.0, q);
        cpu::backward(self, d_o, q, k, v, &saved)
    }

    /// A call with so many operations for each pair of tokens and channel, and so many tensors of the shape of q.
    fn span(&self, op: &'static str, flops: f64, tensors: f64, q: &Tensor) -> profile::Span {
        let pairs: f64 = self.sequences.ranges().map(|r| (r.len() * r.len()) as f64).sum();
        profile::span(op, flops * pairs * q.cols() as f64, 4.0 * tensors * q.len() as f64)
    }

    fn check(&self, op: &'static str, tensors: &[(&'static str, &Tensor)]) -> Result<()> {
        let (_, q) = tensors[0];
        let (n, c) = check::matrix(op, "q", q)?;
        check::value(op, n == self.sequences.tokens(), || {
            format!("q has {n} rows, the sequences have {} tokens", self.sequences.tokens())
        })?;
        check::value(op, self.heads > 0 && c % self.heads == 0, || {
            format!("{} heads do not divide {c} channels", self.heads)
        })?;
        if let Some(d) = self.dropout {
            d.check(op, n * self.heads * self.sequences.longest())?;
        }
        for (name, t) in tensors {
            check::shape(op, name, t, q.shape())?;
            check::f32(op, name, t)?;
            check::same_device(op, &[q, t])?;
        }
        check::cpu_only(op, q)
    }
}
