use std::ops::Range;

use rayon::prelude::*;

use super::{Attention, Gradients, Saved};
use crate::cpu::{Onto, View, gemm_serial, math, vectorised};
use crate::ops::dropout::{Dropout, factor};
use crate::{Result, Tensor};

/// Query rows that are worked on at once: the scores in memory are this many times T.
const BLOCK: usize = 64;

/// One head of one sequence, with everything to address it.
struct Head {
    rows: Range<usize>,
    h: usize,
    heads: usize,
    d: usize,
    scale: f32,
    dropout: Option<Dropout>,
    longest: usize,
}

impl Head {
    fn new(call: &Attention<'_>, channels: usize, rows: Range<usize>, h: usize) -> Self {
        let (heads, longest) = (call.heads, call.sequences.longest());
        Self { rows, h, heads, d: channels / heads, scale: call.scale, dropout: call.dropout, longest }
    }

    /// Rows `rows` (within the sequence) of this head in a tensor of (N, H D).
    fn view<'t>(&self, t: &'t [f32], rows: Range<usize>) -> View<'t> {
        let c = self.heads * self.d;
        let from = (self.rows.start + rows.start) * c + self.h * self.d;
        View::strided(&t[from..], rows.len(), self.d, c)
    }

    fn all(&self) -> Range<usize> {
        0..self.rows.len()
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let t = self.rows.len();
        (0..t).step_by(BLOCK).map(move |i| i..t.min(i + BLOCK))
    }

    /// Multiplies the probabilities of query row `i` by the dropout mask.
    fn drop_row(&self, i: usize, p: &mut [f32]) {
        if let Some(dropout) = self.dropout {
            let first = ((self.rows.start + i) * self.heads + self.h) * self.longest;
            drop_slice(dropout, first as u32, p);
        }
    }

    /// (o tile (T, D), lse (T)).
    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (t, d) = (self.rows.len(), self.d);
        let (mut o, mut lse) = (vec![0.0; t * d], vec![0.0; t]);
        let mut s = vec![0.0; BLOCK.min(t) * t];
        let (k, v) = (self.view(k, self.all()), self.view(v, self.all()));
        for rows in self.blocks() {
            let s = &mut s[..rows.len() * t];
            gemm_serial(s, t, Onto::Nothing, self.scale, self.view(q, rows.clone()), k.t());
            softmax_rows(s, t, &mut lse[rows.clone()]);
            for (i, p) in rows.clone().zip(s.chunks_exact_mut(t)) {
                self.drop_row(i, p);
            }
            gemm_serial(&mut o[rows.start * d..rows.end * d], d, Onto::Nothing, 1.0, View::new(s, rows.len(), t), v);
        }
        (o, lse)
    }

    /// Tiles (T, D) of dq, dk, dv.
    fn backward(&self, d_o: &[f32], q: &[f32], k: &[f32], v: &[f32], o: &[f32], lse: &[f32]) -> [Vec<f32>; 3] {
        let (t, d) = (self.rows.len(), self.d);
        let (mut dq, mut dk, mut dv) = (vec![0.0; t * d], vec![0.0; t * d], vec![0.0; t * d]);
        let (mut p, mut dp, mut dropped) = (vec![0.0; BLOCK.min(t) * t], vec![0.0; BLOCK.min(t) * t], Vec::new());
        let (k, v) = (self.view(k, self.all()), self.view(v, self.all()));
        for rows in self.blocks() {
            let (p, dp) = (&mut p[..rows.len() * t], &mut dp[..rows.len() * t]);
            let (q, d_o_rows) = (self.view(q, rows.clone()), self.view(d_o, rows.clone()));
            gemm_serial(p, t, Onto::Nothing, self.scale, q, k.t());
            gemm_serial(dp, t, Onto::Nothing, 1.0, d_o_rows, v.t());
            let row_at = |i: usize| (self.rows.start + i) * self.heads + self.h;
            for (i, p) in rows.clone().zip(p.chunks_exact_mut(t)) {
                probabilities_from_lse(p, lse[row_at(i)]);
            }
            let kept: &[f32] = if self.dropout.is_some() {
                dropped.clear();
                dropped.extend_from_slice(p);
                for ((i, dropped), dp) in rows.clone().zip(dropped.chunks_exact_mut(t)).zip(dp.chunks_exact_mut(t)) {
                    self.drop_row(i, dropped);
                    self.drop_row(i, dp);
                }
                &dropped
            } else {
                p
            };
            gemm_serial(&mut dv, d, Onto::Destination, 1.0, View::new(kept, rows.len(), t).t(), d_o_rows);
            for ((i, p), dp) in rows.clone().zip(p.chunks_exact(t)).zip(dp.chunks_exact_mut(t)) {
                // sum_k P_ik dP_ik = dO_i . O_i
                let at = row_at(i) * d;
                scores_gradient(p, dp, &d_o[at..at + d], &o[at..at + d], self.scale);
            }
            let ds = View::new(dp, rows.len(), t);
            gemm_serial(&mut dq[rows.start * d..rows.end * d], d, Onto::Nothing, 1.0, ds, k);
            gemm_serial(&mut dk, d, Onto::Destination, 1.0, ds.t(), q);
        }
        [dq, dk, dv]
    }
}

pub fn forward(call: &Attention<'_>, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, c) = (q.rows(), q.cols());
    let (mut o, mut lse) = (Tensor::output([n, c])?, Tensor::output([n, call.heads])?);
    let (q, k, v) = (q.as_slice()?, k.as_slice()?, v.as_slice()?);
    let o_parts = by_sequence(call, o.as_mut_slice()?, c);
    let lse_parts = by_sequence(call, lse.as_mut_slice()?, call.heads);
    o_parts.into_par_iter().zip(lse_parts).enumerate().for_each(|(b, (o, lse))| {
        let tiles = each_head(call, c, b, |head| head.forward(q, k, v));
        for (h, (tile, l)) in tiles.iter().enumerate() {
            scatter(o, c, h, tile, c / call.heads);
            scatter(lse, call.heads, h, l, 1);
        }
    });
    Ok((o, lse))
}

pub fn backward(
    call: &Attention<'_>,
    d_o: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    saved: &Saved,
) -> Result<Gradients> {
    let (n, c) = (q.rows(), q.cols());
    let (mut dq, mut dk, mut dv) = (Tensor::output([n, c])?, Tensor::output([n, c])?, Tensor::output([n, c])?);
    let (d_o, q, k, v) = (d_o.as_slice()?, q.as_slice()?, k.as_slice()?, v.as_slice()?);
    let (o, lse) = (saved.o.as_slice()?, saved.lse.as_slice()?);
    let dq_parts = by_sequence(call, dq.as_mut_slice()?, c);
    let dk_parts = by_sequence(call, dk.as_mut_slice()?, c);
    let dv_parts = by_sequence(call, dv.as_mut_slice()?, c);
    dq_parts.into_par_iter().zip(dk_parts).zip(dv_parts).enumerate().for_each(|(b, ((dq, dk), dv))| {
        let tiles = each_head(call, c, b, |head| head.backward(d_o, q, k, v, o, lse));
        for (h, tile) in tiles.iter().enumerate() {
            for (part, tile) in [&mut *dq, &mut *dk, &mut *dv].into_iter().zip(tile) {
                scatter(part, c, h, tile, c / call.heads);
            }
        }
    });
    Ok(Gradients { dq, dk, dv })
}

fn each_head<T: Send>(call: &Attention<'_>, channels: usize, b: usize, f: impl Fn(Head) -> T + Sync) -> Vec<T> {
    let run = |h| f(Head::new(call, channels, call.sequences.range(b), h));
    if call.sequences.sequences() >= rayon::current_num_threads() {
        (0..call.heads).map(run).collect()
    } else {
        (0..call.heads).into_par_iter().map(run).collect()
    }
}

/// The rows of each sequence as a slice of its own.
fn by_sequence<'t>(call: &Attention<'_>, mut data: &'t mut [f32], cols: usize) -> Vec<&'t mut [f32]> {
    let mut parts = Vec::with_capacity(call.sequences.sequences());
    for rows in call.sequences.ranges() {
        let (part, rest) = data.split_at_mut(rows.len() * cols);
        parts.push(part);
        data = rest;
    }
    parts
}

/// Copies a head's tile (T, width) into its columns of (T, cols).
fn scatter(out: &mut [f32], cols: usize, h: usize, tile: &[f32], width: usize) {
    for (row, tile) in out.chunks_exact_mut(cols).zip(tile.chunks_exact(width)) {
        row[h * width..(h + 1) * width].copy_from_slice(tile);
    }
}

vectorised! {
    fn drop_slice(dropout: Dropout, first: u32, p: &mut [f32]) {
        for (j, p) in p.iter_mut().enumerate() {
            *p *= factor(dropout, first + j as u32);
        }
    }
}

vectorised! {
    fn softmax_rows(s: &mut [f32], t: usize, lse: &mut [f32]) {
        for (row, lse) in s.chunks_exact_mut(t).zip(lse) {
            let peak = math::max(row);
            for s in row.iter_mut() {
                *s = math::exp(*s - peak);
            }
            let sum = math::sum(row);
            for s in row.iter_mut() {
                *s /= sum;
            }
            *lse = peak + sum.ln();
        }
    }
}

vectorised! {
    fn probabilities_from_lse(s: &mut [f32], lse: f32) {
        for s in s {
            *s = math::exp(*s - lse);
        }
    }
}

vectorised! {
    /// Turns dP into dS, both times the scale.
    fn scores_gradient(p: &[f32], dp: &mut [f32], d_o: &[f32], o: &[f32], scale: f32) {
        let mean = math::dot(d_o, o);
        for (dp, p) in dp.iter_mut().zip(p) {
            *dp = p * (*dp - mean) * scale;
        }
    }
}
