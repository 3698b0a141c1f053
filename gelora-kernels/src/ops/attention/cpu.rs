//! One task for each query head (forward) or each key head (backward) of each sequence, over blocks of query rows.

mod rows;

use std::ops::Range;

use rayon::prelude::*;

use self::rows::{drop_slice, probabilities_from_lse, products_of_rows, scores_gradient, softmax, weighted_sums};
use super::{Attention, Gradients, Saved};
use crate::cpu::{Init, Packed, Scratch, View, ViewMut, gemm_packed, gemm_serial, panel_width, team};
use crate::{Result, Tensor};

/// Query rows of a block. The scores of a block, BLOCK x T values, are in memory at once.
const BLOCK: usize = 64;

/// The most query rows for which keys and values are read in place, without packing. During generation there is one
/// row.
const FEW: usize = 4;

/// Rows of scores are padded to a multiple of LANES, so that loops over them are whole vectors.
const LANES: usize = 16;

/// One query head of one sequence, and the sizes that address it.
struct Head<'a> {
    call: &'a Attention<'a>,
    rows: Range<usize>,
    keys: Range<usize>,
    h: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
    scale: f32,
    /// b of this head.
    bias: Option<&'a [f32]>,
    /// A and B, the rows of this sequence.
    by_query: Option<&'a [f32]>,
    by_key: Option<&'a [f32]>,
    longest: usize,
}

impl<'a> Head<'a> {
    fn new(call: &'a Attention<'a>, channels: usize, sequence: usize, h: usize) -> Result<Self> {
        let &Attention { heads, kv_heads, scale, .. } = call;
        let (rows, keys) = (call.sequences.range(sequence), call.all_keys().range(sequence));
        let bias = match call.bias {
            Some(bias) => Some(&bias.as_slice()?[h * bias.cols()..][..bias.cols()]),
            None => None,
        };
        let sequence_rows = |t: Option<&'a Tensor>| match t {
            Some(t) => Ok::<_, crate::Error>(Some(&t.as_slice()?[rows.start * t.cols()..rows.end * t.cols()])),
            None => Ok(None),
        };
        let (by_query, by_key) = (sequence_rows(call.by_query)?, sequence_rows(call.by_key)?);
        let longest = call.all_keys().longest();
        Ok(Self { call, rows, keys, h, heads, kv_heads, d: channels / heads, scale, bias, by_query, by_key, longest })
    }

    /// The rows `rows` of the sequence, for this head, in a tensor (N, H D).
    fn view<'t>(&self, t: &'t [f32], rows: Range<usize>) -> View<'t> {
        self.head_of(t, &self.rows, rows, self.h, self.heads)
    }

    /// The rows `rows` of the sequence's keys or values, for this head, in a tensor (N, G D).
    fn kv_view<'t>(&self, t: &'t [f32], rows: Range<usize>) -> View<'t> {
        self.head_of(t, &self.keys, rows, self.h / (self.heads / self.kv_heads), self.kv_heads)
    }

    /// The rows `rows` of the rows `sequence`, columns of head `h` of `heads`.
    fn head_of<'t>(
        &self,
        t: &'t [f32],
        sequence: &Range<usize>,
        rows: Range<usize>,
        h: usize,
        heads: usize,
    ) -> View<'t> {
        let c = heads * self.d;
        let from = (sequence.start + rows.start) * c + h * self.d;
        View::strided(&t[from..], rows.len(), self.d, c)
    }

    /// Number of columns of A or B that belong to one head.
    fn width(&self, by_distance: &[f32]) -> usize {
        by_distance.len() / (self.rows.len() * self.heads)
    }

    /// Adds the terms by distance to the scores of query row `i` and the given keys, and sets the scores of keys that
    /// the row does not see to -inf.
    fn finish_scores(&self, i: usize, keys: &Range<usize>, s: &mut [f32]) {
        if let Some(all) = self.by_query {
            let width = self.width(all);
            let by_key = &all[(i * self.heads + self.h) * width + width / 2 - i..][keys.clone()];
            s.iter_mut().zip(by_key).for_each(|(s, a)| *s += self.scale * a);
        }
        if let Some(all) = self.by_key {
            let width = self.width(all);
            // The next key is one row and one distance further.
            let next = self.heads * width + 1;
            let by_key = all[self.h * width + width / 2 - i + keys.start * next..].iter().step_by(next);
            s[..keys.len()].iter_mut().zip(by_key).for_each(|(s, b)| *s += self.scale * b);
        }
        if let Some(bias) = self.bias {
            let position = self.keys.len() - self.rows.len() + i;
            let by_key = &bias[bias.len() / 2 - position..][keys.clone()];
            s.iter_mut().zip(by_key).for_each(|(s, b)| *s += b);
        }
        let seen = self.call.seen(i, &self.rows, &self.keys);
        s[..seen.start.saturating_sub(keys.start)].fill(f32::NEG_INFINITY);
        s[seen.end - keys.start..].fill(f32::NEG_INFINITY);
    }

    /// The keys that at least one of these query rows sees, extended to whole panels of a packed factor.
    fn seen(&self, rows: &Range<usize>) -> Range<usize> {
        let seen_by = |i: usize| self.call.seen(i, &self.rows, &self.keys);
        let (start, end, width) = (seen_by(rows.start).start, seen_by(rows.end - 1).end, panel_width());
        start / width * width..end.next_multiple_of(width).min(self.keys.len())
    }

    /// All keys.
    fn all(&self) -> Range<usize> {
        0..self.keys.len()
    }

    /// Blocks of query rows.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let t = self.rows.len();
        (0..t).step_by(BLOCK).map(move |i| i..t.min(i + BLOCK))
    }

    /// The index of (query row `i`, this head) in a tensor (N, H).
    fn row_index(&self, i: usize) -> usize {
        (self.rows.start + i) * self.heads + self.h
    }

    /// Multiplies the probabilities of query row `i` and some keys by the dropout mask.
    fn drop_row(&self, i: usize, keys: &Range<usize>, p: &mut [f32]) {
        if let Some(dropout) = self.call.dropout {
            drop_slice(dropout, (self.row_index(i) * self.longest + keys.start) as u32, &mut p[..keys.len()]);
        }
    }

    /// Writes o (T, D) and lse (T, 1).
    fn forward(&self, q: &[f32], k: &[f32], v: &[f32], o: &mut ViewMut<'_>, lse: &mut ViewMut<'_>) {
        let mut s = Scratch::new(BLOCK.min(self.rows.len()) * self.keys.len().next_multiple_of(LANES));
        let keys = (self.rows.len() > FEW).then(|| Packed::f32(self.kv_view(k, self.all()).t()));
        let values = (self.rows.len() > FEW).then(|| self.factor(v));
        for rows in self.blocks() {
            let seen = self.seen(&rows);
            let (n, t, stride) = (rows.len(), seen.len(), seen.len().next_multiple_of(LANES));
            let (mut scores, q) = (ViewMut::strided(&mut s, n, t, stride), self.view(q, rows.clone()));
            // S = scale Q K^T of the block.
            match &keys {
                Some(keys) => gemm_packed(scores, Init::Zero, self.scale, q, keys, [0..self.d, seen.clone()]),
                None => products_of_rows(&mut scores, self.scale, q, self.kv_view(k, seen.clone())),
            }
            // P = drop(softmax(S)), row by row.
            for (i, s) in rows.clone().zip(s.chunks_exact_mut(stride)) {
                self.finish_scores(i, &seen, s);
                lse.row_mut(i)[0] = softmax(s);
                self.drop_row(i, &seen, s);
            }
            // O = P V.
            let probabilities = View::strided(&s, n, t, stride);
            match &values {
                Some(values) => values.product(o.rows_mut(rows), probabilities, seen),
                None => weighted_sums(&mut o.rows_mut(rows), probabilities, self.kv_view(v, seen)),
            }
        }
    }

    /// Writes the gradients of the query head. Writes dk and dv (T, D), or adds to them if `add` is set: the key head
    /// then has gradients of another query head of its group.
    fn backward(
        &self,
        d_o: &[f32],
        [q, k, v]: [&[f32]; 3],
        [o, lse]: [&[f32]; 2],
        QueryGradients { dq, d_by_query, d_by_key }: &mut QueryGradients<'_>,
        [dk, dv]: [&mut ViewMut<'_>; 2],
        add: bool,
    ) {
        let zero = |t: &mut ViewMut<'_>| (0..self.rows.len()).for_each(|j| t.row_mut(j).fill(0.0));
        if let Some(all) = d_by_key {
            zero(all);
        }
        if !add {
            zero(dk);
            zero(dv);
        }
        let (t, d) = (self.rows.len(), self.d);
        let size = BLOCK.min(t) * t.next_multiple_of(LANES);
        let (mut p, mut dp) = (Scratch::new(size), Scratch::new(size));
        let mut dropped = self.call.dropout.map(|_| Scratch::new(size));
        let (keys, by_key) = (Packed::f32(self.kv_view(k, self.all()).t()), self.factor(k));
        let values = Packed::f32(self.kv_view(v, self.all()).t());
        for rows in self.blocks() {
            let seen = self.seen(&rows);
            let (n, t, stride) = (rows.len(), seen.len(), seen.len().next_multiple_of(LANES));
            let (q, d_o_rows) = (self.view(q, rows.clone()), self.view(d_o, rows.clone()));
            let (p, dp) = (&mut p[..n * stride], &mut dp[..n * stride]);
            let score_columns = || [0..d, seen.clone()];
            // S = scale Q K^T and dP = dO V^T of the block.
            gemm_packed(ViewMut::strided(p, n, t, stride), Init::Zero, self.scale, q, &keys, score_columns());
            gemm_packed(ViewMut::strided(dp, n, t, stride), Init::Zero, 1.0, d_o_rows, &values, score_columns());
            // P = exp(S - lse).
            for (i, p) in rows.clone().zip(p.chunks_exact_mut(stride)) {
                self.finish_scores(i, &seen, p);
                probabilities_from_lse(p, lse[self.row_index(i)]);
            }
            // drop(P), and dP through the same mask.
            let kept: &[f32] = match &mut dropped {
                Some(dropped) => {
                    let dropped = &mut dropped[..n * stride];
                    dropped.copy_from_slice(p);
                    let both = dropped.chunks_exact_mut(stride).zip(dp.chunks_exact_mut(stride));
                    for (i, (dropped, dp)) in rows.clone().zip(both) {
                        self.drop_row(i, &seen, dropped);
                        self.drop_row(i, &seen, dp);
                    }
                    dropped
                }
                None => p,
            };
            let kept = View::strided(kept, n, t, stride).t();
            // dV += drop(P)^T dO.
            gemm_serial(dv.rows_mut(seen.clone()), Init::Accumulate, 1.0, kept, d_o_rows);
            for ((i, p), dp) in rows.clone().zip(p.chunks_exact(stride)).zip(dp.chunks_exact_mut(stride)) {
                // scale dS, with sum_k P_ik dP_ik = dO_i . O_i.
                let first = self.row_index(i) * d;
                scores_gradient(&p[..t], &mut dp[..t], &d_o[first..first + d], &o[first..first + d], self.scale);
                // dA and dB are scale dS where the scores read A and B.
                if let Some(all) = d_by_query {
                    let row = all.row_mut(i);
                    let first = row.len() / 2 - i + seen.start;
                    row.fill(0.0);
                    row[first..first + t].copy_from_slice(&dp[..t]);
                }
                if let Some(all) = d_by_key {
                    for (j, ds) in seen.clone().zip(&dp[..t]) {
                        let row = all.row_mut(j);
                        row[row.len() / 2 + j - i] = *ds;
                    }
                }
            }
            // dQ = scale dS K and dK += scale dS^T Q.
            let ds = View::strided(dp, n, t, stride);
            by_key.product(dq.rows_mut(rows), ds, seen.clone());
            gemm_serial(dk.rows_mut(seen), Init::Accumulate, 1.0, ds.t(), q);
        }
    }

    /// The keys or values (T, D) as the right factor of products with blocks of rows.
    fn factor<'t>(&self, t: &'t [f32]) -> Factor<'t> {
        let whole = self.kv_view(t, self.all());
        match self.d > panel_width() && self.rows.len() > BLOCK {
            true => Factor::Packed(Packed::f32(whole)),
            false => Factor::InPlace(whole),
        }
    }
}

/// The right factor of products with blocks of rows: packed if more than one block uses it.
enum Factor<'t> {
    Packed(Packed),
    InPlace(View<'t>),
}

impl Factor<'_> {
    /// `dst = a b[rows]`.
    fn product(&self, dst: ViewMut<'_>, a: View<'_>, rows: Range<usize>) {
        match self {
            Factor::Packed(b) => gemm_packed(dst, Init::Zero, 1.0, a, b, [rows, 0..b.cols()]),
            Factor::InPlace(b) => gemm_serial(dst, Init::Zero, 1.0, a, b.some_rows(rows)),
        }
    }
}

/// The gradients of one query head in one sequence.
struct QueryGradients<'t> {
    /// (T, D).
    dq: ViewMut<'t>,
    /// (T, 2 M - 1), as `d_by_key`.
    d_by_query: Option<ViewMut<'t>>,
    d_by_key: Option<ViewMut<'t>>,
}

pub(crate) fn forward(call: &Attention<'_>, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, c) = (q.rows(), q.cols());
    let (mut o, mut lse) = (Tensor::output([n, c])?, Tensor::output([n, call.heads])?);
    let (q, k, v) = (q.as_slice()?, k.as_slice()?, v.as_slice()?);
    let heads = by_head(call, o.as_mut_slice()?, c, call.heads);
    let all_lse = by_head(call, lse.as_mut_slice()?, call.heads, call.heads);
    if n <= FEW && call.sequences.sequences() == 1 {
        // The products of a token take microseconds.
        let parts = heads.into_iter().zip(all_lse).enumerate();
        let parts = parts.map(|(i, views)| Ok((head_of_part(call, c, i)?, views))).collect::<Result<Vec<_>>>()?;
        let work = n * k.len() / call.kv_heads;
        team::for_each(parts, work, |(head, (mut o, mut lse))| head.forward(q, k, v, &mut o, &mut lse));
        return Ok((o, lse));
    }
    let parts = heads.into_par_iter().zip(all_lse);
    parts.enumerate().try_for_each(|(i, (mut o, mut lse))| {
        head_of_part(call, c, i)?.forward(q, k, v, &mut o, &mut lse);
        Ok::<_, crate::Error>(())
    })?;
    Ok((o, lse))
}

pub(crate) fn backward(
    call: &Attention<'_>,
    d_o: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    saved: &Saved,
) -> Result<Gradients> {
    let (c, kv_c, group) = (q.cols(), k.cols(), call.heads / call.kv_heads);
    let (mut dq, mut dk, mut dv) = (Tensor::output(q.shape())?, Tensor::output(k.shape())?, Tensor::output(v.shape())?);
    let (d_o, qkv) = (d_o.as_slice()?, [q.as_slice()?, k.as_slice()?, v.as_slice()?]);
    let saved = [saved.o.as_slice()?, saved.lse.as_slice()?];
    let like = |t: Option<&Tensor>| t.map(|t| Tensor::output(t.shape())).transpose();
    let (mut d_by_query, mut d_by_key) = (like(call.by_query)?, like(call.by_key)?);
    let mut by_query = by_head_or_none(call, &mut d_by_query)?;
    let mut by_key = by_head_or_none(call, &mut d_by_key)?;
    let mut query_gradients: Vec<_> = by_head(call, dq.as_mut_slice()?, c, call.heads)
        .into_iter()
        .map(|dq| QueryGradients { dq, d_by_query: by_query.next(), d_by_key: by_key.next() })
        .collect();
    // A task is one key head with all query heads of its group.
    let parts = query_gradients
        .par_chunks_mut(group)
        .zip(by_head(call, dk.as_mut_slice()?, kv_c, call.kv_heads))
        .zip(by_head(call, dv.as_mut_slice()?, kv_c, call.kv_heads));
    parts.enumerate().try_for_each(|(i, ((group_gradients, mut dk), mut dv))| {
        for (member, gradients) in group_gradients.iter_mut().enumerate() {
            let head = head_of_part(call, c, i * group + member)?;
            head.backward(d_o, qkv, saved, gradients, [&mut dk, &mut dv], member > 0);
        }
        Ok::<_, crate::Error>(())
    })?;
    drop((query_gradients, by_query, by_key));
    Ok(Gradients { dq, dk, dv, d_by_query, d_by_key })
}

/// [`by_head`] for the query heads of an optional tensor.
fn by_head_or_none<'t>(call: &Attention<'_>, t: &'t mut Option<Tensor>) -> Result<std::vec::IntoIter<ViewMut<'t>>> {
    Ok(match t {
        Some(t) => {
            let width = t.cols();
            by_head(call, t.as_mut_slice()?, width, call.heads)
        }
        None => Vec::new(),
    }
    .into_iter())
}

/// The columns of every head in the rows of every sequence: all heads of the first sequence, then those of the next.
fn by_head<'t>(call: &Attention<'_>, mut data: &'t mut [f32], cols: usize, heads: usize) -> Vec<ViewMut<'t>> {
    let mut parts = Vec::with_capacity(call.sequences.sequences() * heads);
    for rows in call.sequences.ranges() {
        let (part, rest) = data.split_at_mut(rows.len() * cols);
        parts.extend(ViewMut::new(part, rows.len(), cols).columns(cols / heads));
        data = rest;
    }
    parts
}

/// The query head of part `part` of [`by_head`].
fn head_of_part<'a>(call: &'a Attention<'a>, channels: usize, part: usize) -> Result<Head<'a>> {
    Head::new(call, channels, part / call.heads, part % call.heads)
}
