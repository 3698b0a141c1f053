//! Multi-head scaled dot-product attention within each sequence of an unpadded batch, with grouped heads and causal masks.
//!
//! For one sequence of T tokens and one head of size D, with Q, K, V (T, D):
//! S = scale Q K^T; P = softmax of each row of S; O = drop(P) V; lse_i = ln sum_j exp(S_ij).
//! With a causal mask, row i sees the keys j <= i alone: S_ij is -inf for the others. With a window of w, it sees the last w of
//! those. A bias b (H, 2 M - 1) is added to the scores by distance: S_ij = scale Q_i K_j + b_(h, j - i + M - 1).
//! Disentangled attention adds what content and distance have to do with each other, of the query's content (`by_query`, A) and of
//! the key's (`by_key`, B): S_ij = scale (Q_i K_j + A_(i, h, j - i + M - 1) + B_(j, h, j - i + M - 1)).
//! Keys of their own (a cache while generating): the T queries are the last T positions of their sequence's keys.
//! Query head h reads the key and value head h / (H / G) of G: G = H is the usual attention, G = 1 shares one among all.
//!
//! Backward, given dO: dV = drop(P)^T dO; dP = dropped(dO V^T); dS_ij = P_ij (dP_ij - sum_k P_ik dP_ik);
//! dQ = scale dS K; dK = scale dS^T Q; dA and dB are scale dS_ij where S_ij reads them, and 0 elsewhere. P is recomputed from
//! lse; no (T, T) matrix is kept, forward or backward.
//!
//! q, o (N, H D), k, v (N, G D), A, B (N, H (2 M - 1)), heads side by side; lse (N, H). The dropout of P_ij of head h has the index
//! ((row i of the batch) H + h) longest + j, where j counts from the sequence's start.
//!
//! Accumulation, in f32: on the CPU products as in `linear`, those of up to 4 queries with keys in 64 interleaved partial sums; a
//! row's softmax sum in 16; dK and dV over blocks of query rows in ascending order. On a GPU all of them key by key, or row by
//! row, in ascending order. Query heads of a group are added in order.
//!
//! Sources: Vaswani et al., arXiv 1706.03762; windows: Beltagy et al., arXiv 2004.05150; biases: Raffel et al., arXiv 1910.10683;
//! disentangled attention: He et al., arXiv 2006.03654; recomputation from lse: Dao et al., arXiv 2205.14135; grouped heads:
//! Ainslie et al., arXiv 2305.13245.

pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
pub mod reference;

use std::ops::Range;

use super::check;
use super::dropout::Dropout;
use crate::device::on_device;
use crate::{Offsets, Result, Tensor, profile};

/// What attention needs to know beside its inputs.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Where the queries of each sequence begin.
    pub sequences: &'a Offsets,
    /// Where its keys and values begin, if there are more of them than queries; forward alone.
    pub keys: Option<&'a Offsets>,
    /// Number of query heads, H.
    pub heads: usize,
    /// Number of key and value heads, G, which divides H.
    pub kv_heads: usize,
    /// What S is multiplied by, usually 1 / sqrt(D).
    pub scale: f32,
    /// Whether a row sees only itself and the rows before it.
    pub causal: bool,
    /// How many rows a row sees at most, itself included; with `causal` alone.
    pub window: Option<usize>,
    /// What is added to the scores by distance, (H, 2 M - 1): column M - 1 is for a row itself, the columns after it for keys
    /// that follow. No sequence is longer than M. It is frozen.
    pub bias: Option<&'a Tensor>,
    /// A, what the content of each query adds to its products with keys by distance, (N, H (2 M - 1)); without `keys` alone.
    pub by_query: Option<&'a Tensor>,
    /// B, the same of the content of each key.
    pub by_key: Option<&'a Tensor>,
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
    /// Of A, (N, H (2 M - 1)), if the call has it.
    pub d_by_query: Option<Tensor>,
    /// Of B, if the call has it.
    pub d_by_key: Option<Tensor>,
}

impl<'a> Attention<'a> {
    /// Plain attention of H heads of size D: scale 1 / sqrt(D), every row sees every row of its sequence.
    pub fn new(sequences: &'a Offsets, heads: usize, head_size: usize) -> Self {
        let scale = 1.0 / (head_size as f32).sqrt();
        Self {
            sequences,
            keys: None,
            heads,
            kv_heads: heads,
            scale,
            causal: false,
            window: None,
            bias: None,
            by_query: None,
            by_key: None,
            dropout: None,
        }
    }

    /// (o, what backward needs): q and o (N, H D), k and v (N, G D).
    ///
    /// # Errors
    /// If shapes, types or devices do not fit together, the heads do not divide the channels, a window is not causal, what is
    /// added by distance is narrower than the longest sequence, or a sequence has fewer keys than queries.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Saved)> {
        const OP: &str = "attention";
        self.check(OP, &[("q", q)], &[("k", k), ("v", v)])?;
        let _span = self.span(OP, 4.0, 2.0, q);
        let (o, lse) = on_device!(q.device(), cpu::forward(self, q, k, v), gpu => gpu::forward(gpu, self, q, k, v))?;
        Ok((o.clone(), Saved { o, lse }))
    }

    /// dq, dk, dv, and dA and dB, from the gradient of o, (N, H D).
    ///
    /// # Errors
    /// As [`Attention::forward`]; if there are keys of their own.
    pub fn backward(&self, d_o: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, saved: Saved) -> Result<Gradients> {
        const OP: &str = "attention.backward";
        check::value(OP, self.keys.is_none(), || "keys of their own have no backward".into())?;
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
        let pairs: usize = self
            .parts()
            .map(|(rows, keys)| (0..rows.len()).map(|i| self.seen(i, &rows, &keys).len()).sum::<usize>())
            .sum();
        let of_keys = self.kv_heads as f64 / self.heads as f64 * (self.all_keys().tokens() as f64 / q.rows() as f64);
        // What is added by distance is read, and its gradient written, where a row sees a key.
        let added = [self.by_query, self.by_key].iter().flatten().count() * pairs * self.heads;
        let bytes = 4.0 * tensors * (1.0 + of_keys) * q.len() as f64 + 2.0 * tensors * added as f64;
        profile::span(op, flops * (pairs * q.cols()) as f64, bytes)
    }

    fn all_keys(&self) -> &Offsets {
        self.keys.unwrap_or(self.sequences)
    }

    /// The rows of queries and of keys of every sequence.
    fn parts(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
        self.sequences.ranges().zip(self.all_keys().ranges())
    }

    /// The keys that the `i`-th query of a sequence sees, counted from its first.
    fn seen(&self, i: usize, rows: &Range<usize>, keys: &Range<usize>) -> Range<usize> {
        let position = keys.len() - rows.len() + i;
        let end = if self.causal { position + 1 } else { keys.len() };
        self.window.map_or(0, |window| end.saturating_sub(window))..end
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
        let keys = self.all_keys();
        check::value(
            op,
            keys.sequences() == self.sequences.sequences() && self.parts().all(|(q, k)| q.len() <= k.len()),
            || "every sequence needs at least as many keys as queries".into(),
        )?;
        check::value(op, self.window.is_none_or(|window| self.causal && window > 0), || {
            "a window must be causal and of at least 1".into()
        })?;
        if let Some(d) = self.dropout {
            d.check(op, n * self.heads * keys.longest())?;
        }
        if let Some(bias) = self.bias {
            let (_, width) = check::matrix(op, "bias", bias)?;
            check::shape(op, "bias", bias, &[self.heads, width])?;
            check::f32(op, "bias", bias)?;
            check::same_device(op, &[q, bias])?;
            check::value(op, width % 2 == 1 && width.div_ceil(2) >= keys.longest(), || {
                format!("a bias of {width} columns does not reach over sequences of {}", keys.longest())
            })?;
        }
        for (name, t) in [("by_query", self.by_query), ("by_key", self.by_key)] {
            let Some(t) = t else { continue };
            check::value(op, self.keys.is_none(), || format!("{name} does not go with keys of their own"))?;
            let (_, width) = check::matrix(op, name, t)?;
            check::shape(op, name, t, &[n, width])?;
            check::f32(op, name, t)?;
            check::same_device(op, &[q, t])?;
            let of_head = width / self.heads;
            let reaches = of_head % 2 == 1 && of_head.div_ceil(2) >= keys.longest();
            check::value(op, width % self.heads == 0 && reaches, || {
                format!("{name} of {width} columns does not reach over sequences of {}", keys.longest())
            })?;
        }
        if let (Some(a), Some(b)) = (self.by_query, self.by_key) {
            check::shape(op, "by_key", b, a.shape())?;
        }
        let (of_query, of_key) = ([n, c], [keys.tokens(), c / self.heads * self.kv_heads]);
        for ((name, t), shape) in of_queries.iter().map(|t| (t, &of_query)).chain(of_keys.iter().map(|t| (t, &of_key)))
        {
            check::shape(op, name, t, shape)?;
            check::f32(op, name, t)?;
            check::same_device(op, &[q, t])?;
        }
        Ok(())
    }
}
