use gelora_kernels::ops::rotary;
use gelora_kernels::ops::{add, attention, concat};
use gelora_kernels::{Offsets, Tensor};

use crate::disentangled::{Added, Disentangled, Projected};
use crate::linear::{Grads, Linear, Saved as LinearSaved};
use crate::mode::{DropoutSite, Mode};
use crate::norm::{Norm, Saved as NormSaved};
use crate::sublayer::{Context, Sublayer};
use crate::{Config, Result};

/// Multi-head self-attention with its projections.
pub(crate) struct Attention {
    /// Index of the block.
    pub layer: usize,
    /// The projections to queries, keys and values: three modules, or one module whose output holds all three side by
    /// side.
    pub projections: Vec<Linear>,
    pub output: Linear,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_size: usize,
    pub scale: f32,
    pub causal: bool,
    /// Number of tokens that a token attends to, itself included. None for no limit.
    pub window: Option<usize>,
    /// Norms over each head of the queries and of the keys.
    pub norms: Option<[Norm; 2]>,
    /// Index of the rotary embedding applied to queries and keys.
    pub rope: Option<usize>,
    /// Terms of the scores that depend on distances.
    pub disentangled: Option<Disentangled>,
    pub dropout: f32,
}

pub(crate) struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projections: Vec<LinearSaved>,
    norms: Option<[NormSaved; 2]>,
    distances: Option<Projected>,
    output: LinearSaved,
    core: attention::Saved,
}

impl Attention {
    /// Attention with these projections and no optional parts.
    pub fn new(c: &Config, layer: usize, projections: Vec<Linear>, output: Linear) -> Self {
        Self {
            layer,
            projections,
            output,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_size: c.head_size,
            scale: 1.0 / (c.head_size as f32).sqrt(),
            causal: c.causal,
            window: None,
            norms: None,
            rope: None,
            disentangled: None,
            dropout: c.attention_dropout,
        }
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let distance_projections = self.disentangled.iter().flat_map(Disentangled::linears);
        self.projections.iter().chain(distance_projections).chain([&self.output])
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let distance_projections = self.disentangled.iter_mut().flat_map(Disentangled::linears_mut);
        self.projections.iter_mut().chain(distance_projections).chain([&mut self.output])
    }

    pub fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        self.norms.iter_mut().flatten()
    }

    /// Number of channels of queries, keys and values.
    fn widths(&self) -> [usize; 3] {
        [self.heads, self.kv_heads, self.kv_heads].map(|heads| heads * self.head_size)
    }

    fn project(&self, x: &Tensor, mode: &Mode) -> Result<([Tensor; 3], Vec<LinearSaved>)> {
        let (mut outputs, mut saved) = (Vec::with_capacity(3), Vec::with_capacity(3));
        for linear in &self.projections {
            let (y, s) = linear.forward(x, mode)?;
            outputs.push(y);
            saved.push(s);
        }
        if let [joined] = &outputs[..] {
            outputs = concat::split_columns(joined, &self.widths())?;
        }
        Ok((three(outputs), saved))
    }

    fn project_backward(
        &self,
        d: [&Tensor; 3],
        saved: Vec<LinearSaved>,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let joined;
        let mut d = d.to_vec();
        if self.projections.len() == 1 {
            joined = concat::columns(&d)?;
            d = vec![&joined];
        }
        let mut dx: Option<Tensor> = None;
        for ((linear, d), saved) in self.projections.iter().zip(d).zip(saved) {
            if !want_dx {
                linear.backward_parameters(d, saved, grads)?;
                continue;
            }
            let part = linear.backward(d, saved, grads)?;
            match &mut dx {
                Some(dx) => add::accumulate(dx, &part)?,
                None => dx = Some(part),
            }
        }
        Ok(dx)
    }

    fn operator<'a>(
        &self,
        context: &'a Context<'_>,
        keys: Option<&'a Offsets>,
        added: &'a Added,
    ) -> attention::Attention<'a> {
        attention::Attention {
            keys,
            kv_heads: self.kv_heads,
            scale: self.scale,
            causal: self.causal,
            window: self.window,
            bias: context.bias.as_ref(),
            by_query: added.by_query.as_ref(),
            by_key: added.by_key.as_ref(),
            dropout: context.mode.dropout(DropoutSite::AttentionProbabilities, self.layer, self.dropout),
            ..attention::Attention::new(context.sequences, self.heads, self.head_size)
        }
    }
}

/// Converts a list of queries, keys and values to an array.
fn three(mut all: Vec<Tensor>) -> [Tensor; 3] {
    let (v, k, q) = (all.pop(), all.pop(), all.pop());
    match (q, k, v) {
        (Some(q), Some(k), Some(v)) => [q, k, v],
        _ => unreachable!("three projections, or one split in three"),
    }
}

impl Sublayer for Attention {
    type Saved = Saved;

    fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<(Tensor, Saved)> {
        let ([mut q, mut k, mut v], projections) = self.project(x, context.mode)?;
        // Norms of each head.
        let mut norms = None;
        if let Some([norm_q, norm_k]) = &self.norms {
            let (normed_q, saved_q) = norm_q.forward_heads(q, self.head_size)?;
            let (normed_k, saved_k) = norm_k.forward_heads(k, self.head_size)?;
            (q, k, norms) = (normed_q, normed_k, Some([saved_q, saved_k]));
        }
        // Rotary embedding.
        if let Some(rope) = self.rope {
            let angles = &context.angles[rope];
            (q, k) = (rotary::forward(&q, angles)?, rotary::forward(&k, angles)?);
        }
        // During generation, attention runs over the keys and values of all tokens so far.
        let mut keys = None;
        if let Some(cache) = context.cache {
            let mut cache = cache.borrow_mut();
            (k, v) = cache.extend(self.layer, k, v)?;
            keys = Some(Offsets::from_lengths(&[k.rows()])?);
        }
        // Disentangled attention: terms of the scores from the distances.
        let (mut distances, mut added) = (None, Added::default());
        if let Some((disentangled, batch_distances)) = self.disentangled.as_ref().zip(context.distances.as_ref()) {
            let projected = disentangled.project(&self.projections, batch_distances, context.mode, self.layer)?;
            (added, distances) = (projected.added(&q, &k, self.heads)?, Some(projected));
        }
        let (o, core) = self.operator(context, keys.as_ref(), &added).forward(&q, &k, &v)?;
        drop(added);
        let (y, output) = self.output.forward(&o, context.mode)?;
        Ok((y, Saved { q, k, v, projections, norms, distances, output, core }))
    }

    fn backward(
        &self,
        dy: &Tensor,
        context: &Context<'_>,
        saved: Saved,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        // Backward through the output projection, attention, rotary embedding, head norms and projections.
        let d_o = self.output.backward(dy, saved.output, grads)?;
        let (q, k) = (&saved.q, &saved.k);
        let added = saved.distances.as_ref().map(|projected| projected.added(q, k, self.heads)).transpose()?;
        let added = added.unwrap_or_default();
        let mut g = self.operator(context, None, &added).backward(&d_o, q, k, &saved.v, saved.core)?;
        drop((added, d_o));
        if let Some((disentangled, projected)) = self.disentangled.as_ref().zip(saved.distances) {
            disentangled.backward(&self.projections, projected, [q, k], self.heads, &mut g, grads)?;
        }
        let attention::Gradients { mut dq, mut dk, dv, .. } = g;
        if let Some(rope) = self.rope {
            let angles = &context.angles[rope];
            (dq, dk) = (rotary::backward(&dq, angles)?, rotary::backward(&dk, angles)?);
        }
        if let (Some([norm_q, norm_k]), Some([saved_q, saved_k])) = (&self.norms, saved.norms) {
            dq = norm_q.backward_heads(dq, self.head_size, saved_q)?;
            dk = norm_k.backward_heads(dk, self.head_size, saved_k)?;
        }
        self.project_backward([&dq, &dk, &dv], saved.projections, grads, want_dx)
    }
}
