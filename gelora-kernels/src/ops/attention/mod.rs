//! Multi-head scaled dot-product attention within each sequence of an unpadded batch, with grouped heads and causal
//! masks.
//!
//! For one sequence of T tokens and one head of size D, with Q, K, V (T, D):
//! S = scale Q K^T; P = softmax of each row of S; O = drop(P) V; lse_i = ln sum_j exp(S_ij).
//!
//! - Causal mask: row i sees the keys j <= i alone; S_ij is -inf for other keys. With a window w, row i sees the last
//!   w of these keys.
//! - Bias b (H, 2 M - 1): added to the scores by distance, S_ij = scale Q_i K_j + b_(h, j - i + M - 1).
//! - Disentangled attention: the content of the query (`by_query`, A) and of the key (`by_key`, B) add terms by
//!   distance, S_ij = scale (Q_i K_j + A_(i, h, j - i + M - 1) + B_(j, h, j - i + M - 1)).
//! - Separate keys (a key-value cache during generation): the T queries are the last T positions of their sequence's
//!   keys.
//! - Grouped heads: query head h reads the key and value head h / (H / G) of G. G = H is the usual attention, G = 1 is
//!   multi-query attention.
//!
//! Backward, given dO: dV = drop(P)^T dO; dP = dropped(dO V^T); dS_ij = P_ij (dP_ij - sum_k P_ik dP_ik);
//! dQ = scale dS K; dK = scale dS^T Q. dA and dB are scale dS_ij where S_ij reads them, and 0 elsewhere. P is
//! recomputed from lse, so no (T, T) matrix is stored.
//!
//! q, o (N, H D), k, v (N, G D), A, B (N, H (2 M - 1)), with heads side by side; lse (N, H). The dropout index of P_ij
//! in head h is ((row i of the batch) H + h) longest + j, where j counts from the first key of the sequence.
//!
//! Accumulation: f32. CPU: products as in [`linear`](super::linear); products of up to 4 queries with keys in the lanes
//! of a vector; the softmax sum of a row in 16 interleaved partial sums; dK and dV over blocks of query rows in
//! ascending order. GPU: key by key, or row by row, in ascending order. Query heads of a group are added in order.
//!
//! Sources: Vaswani et al., arXiv 1706.03762; windows: Beltagy et al., arXiv 2004.05150; biases: Raffel et al.,
//! arXiv 1910.10683; disentangled attention: He et al., arXiv 2006.03654; recomputation from lse: Dao et al.,
//! arXiv 2205.14135; grouped heads: Ainslie et al., arXiv 2305.13245.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use std::ops::Range;

use super::check;
use super::dropout::Dropout;
use crate::device::on_device;
use crate::{Offsets, Result, Tensor, profile};

/// The settings of one call.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Offsets of the queries of each sequence.
    pub sequences: &'a Offsets,
    /// Offsets of the keys and values of each sequence, if a sequence has more keys than queries. Forward only.
    pub keys: Option<&'a Offsets>,
    /// Number of query heads, H.
    pub heads: usize,
    /// Number of key and value heads, G, which divides H.
    pub kv_heads: usize,
    /// The factor of the scores, usually 1 / sqrt(D).
    pub scale: f32,
    /// Whether a row sees only itself and earlier rows.
    pub causal: bool,
    /// The most rows that a row sees, itself included. Requires `causal`.
    pub window: Option<usize>,
    /// Frozen bias added to the scores by distance, (H, 2 M - 1). Column M - 1 is for the row itself; later columns are
    /// for later keys. No sequence may be longer than M.
    pub bias: Option<&'a Tensor>,
    /// A: the term of each query's content by distance, (N, H (2 M - 1)). Not with `keys`.
    pub by_query: Option<&'a Tensor>,
    /// B: the term of each key's content by distance, in the shape of A. Not with `keys`.
    pub by_key: Option<&'a Tensor>,
    /// Dropout of the probabilities.
    pub dropout: Option<Dropout>,
}

/// Values of the forward pass that [`Attention::backward`] needs.
#[derive(Debug)]
pub struct Saved {
    /// The output, (N, H D).
    pub o: Tensor,
    /// The logarithm of each row's softmax denominator, (N, H).
    pub lse: Tensor,
}

/// The gradients of the inputs.
#[derive(Debug)]
pub struct Gradients {
    /// dq (N, H D).
    pub dq: Tensor,
    /// dk (N, G D).
    pub dk: Tensor,
    /// dv (N, G D).
    pub dv: Tensor,
    /// dA (N, H (2 M - 1)), if the call has A.
    pub d_by_query: Option<Tensor>,
    /// dB (N, H (2 M - 1)), if the call has B.
    pub d_by_key: Option<Tensor>,
}

impl<'a> Attention<'a> {
    /// Attention of `heads` heads of size `head_size`, with scale 1 / sqrt(D). Every row sees every row of its
    /// sequence.
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

    /// (o, values for backward): q and o (N, H D), k and v (N, G D).
    ///
    /// # Errors
    /// If shapes, types or devices do not fit together, the heads do not divide the channels, a window is not causal, a
    /// term by distance is narrower than the longest sequence, or a sequence has fewer keys than queries.
    ///
    /// ```
    /// use gelora_kernels::{Offsets, Tensor, ops::attention::Attention};
    ///
    /// // Two sequences of 2 and 1 tokens, one head of size 1. All keys are equal, so a row of o is a mean of values.
    /// let sequences = Offsets::from_lengths(&[2, 1])?;
    /// let (q, k) = (Tensor::from_vec(vec![1.0, 2.0, 3.0], [3, 1])?, Tensor::from_vec(vec![1.0; 3], [3, 1])?);
    /// let v = Tensor::from_vec(vec![10.0, 20.0, 30.0], [3, 1])?;
    /// let causal = Attention { causal: true, ..Attention::new(&sequences, 1, 1) };
    /// let (o, _) = causal.forward(&q, &k, &v)?;
    /// assert!(o.to_vec()?.iter().zip([10.0, 15.0, 30.0]).all(|(o, want)| (o - want).abs() < 1e-4));
    /// # Ok::<(), gelora_kernels::Error>(())
    /// ```
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Saved)> {
        const OP: &str = "attention";
        self.check(OP, &[("q", q)], &[("k", k), ("v", v)])?;
        let _span = self.span(OP, 4.0, 2.0, q);
        let (o, lse) = on_device!(q.device(), cpu::forward(self, q, k, v), gpu => gpu::forward(gpu, self, q, k, v))?;
        Ok((o.clone(), Saved { o, lse }))
    }

    /// The gradients of all inputs, from the gradient `d_o` (N, H D) of o.
    ///
    /// # Errors
    /// As [`Attention::forward`], and if the call has separate keys.
    pub fn backward(&self, d_o: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, saved: Saved) -> Result<Gradients> {
        const OP: &str = "attention.backward";
        check::value(OP, self.keys.is_none(), || "attention with separate keys has no backward pass".into())?;
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

    /// The profile span of a call with `flops` operations for each pair of tokens and channel, and `tensors` tensors in
    /// the shape of q and as many in the shape of k.
    fn span(&self, op: &'static str, flops: f64, tensors: f64, q: &Tensor) -> profile::Span {
        let pairs: usize = self
            .parts()
            .map(|(rows, keys)| (0..rows.len()).map(|i| self.seen(i, &rows, &keys).len()).sum::<usize>())
            .sum();
        let key_share = self.kv_heads as f64 / self.heads as f64 * (self.all_keys().tokens() as f64 / q.rows() as f64);
        // Terms by distance are read, and their gradients written, only where a row sees a key.
        let added = [self.by_query, self.by_key].iter().flatten().count() * pairs * self.heads;
        let bytes = 4.0 * tensors * (1.0 + key_share) * q.len() as f64 + 2.0 * tensors * added as f64;
        profile::span(op, flops * (pairs * q.cols()) as f64, bytes)
    }

    /// The offsets of keys and values.
    fn all_keys(&self) -> &Offsets {
        self.keys.unwrap_or(self.sequences)
    }

    /// The rows of queries and of keys of every sequence.
    fn parts(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
        self.sequences.ranges().zip(self.all_keys().ranges())
    }

    /// The keys that query `i` of a sequence sees, counted from the first key of the sequence.
    fn seen(&self, i: usize, rows: &Range<usize>, keys: &Range<usize>) -> Range<usize> {
        let position = keys.len() - rows.len() + i;
        let end = if self.causal { position + 1 } else { keys.len() };
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    fn check(
        &self,
        op: &'static str,
        query_like: &[(&'static str, &Tensor)],
        key_like: &[(&'static str, &Tensor)],
    ) -> Result<()> {
        let (_, q) = query_like[0];
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
            check::value(op, self.keys.is_none(), || format!("{name} cannot be combined with separate keys"))?;
            let (_, width) = check::matrix(op, name, t)?;
            check::shape(op, name, t, &[n, width])?;
            check::f32(op, name, t)?;
            check::same_device(op, &[q, t])?;
            let head_width = width / self.heads;
            let reaches = head_width % 2 == 1 && head_width.div_ceil(2) >= keys.longest();
            check::value(op, width % self.heads == 0 && reaches, || {
                format!("{name} of {width} columns does not reach over sequences of {}", keys.longest())
            })?;
        }
        if let (Some(a), Some(b)) = (self.by_query, self.by_key) {
            check::shape(op, "by_key", b, a.shape())?;
        }
        let (query_shape, key_shape) = ([n, c], [keys.tokens(), c / self.heads * self.kv_heads]);
        let query_like = query_like.iter().map(|t| (t, &query_shape));
        for ((name, t), shape) in query_like.chain(key_like.iter().map(|t| (t, &key_shape))) {
            check::shape(op, name, t, shape)?;
            check::f32(op, name, t)?;
            check::same_device(op, &[q, t])?;
        }
        Ok(())
    }
}
