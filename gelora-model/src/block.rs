use gelora_kernels::ops::activation::{self, Activation};
use gelora_kernels::ops::dropout::Dropout;
use gelora_kernels::ops::{add, attention, layer_norm};
use gelora_kernels::{Device, Offsets, Tensor};

use crate::Result;
use crate::linear::{Grads, Linear, Saved as LinearSaved};
use crate::norm::LayerNorm;
use crate::pass::{self, Pass, Site};

/// Self-attention with its four projections.
pub(crate) struct Attention {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    pub heads: usize,
    pub dropout: f32,
}

/// Two linear maps with a nonlinearity between them.
pub(crate) struct Mlp {
    pub up: Linear,
    pub down: Linear,
    pub activation: Activation,
}

/// One transformer block: h = norm(x + attention(x)), y = norm(h + mlp(h)), dropout on each half.
pub(crate) struct Block {
    pub index: usize,
    pub attention: Attention,
    pub attention_norm: LayerNorm,
    pub mlp: Mlp,
    pub mlp_norm: LayerNorm,
    pub dropout: f32,
}

/// What [`Block::backward`] needs.
pub(crate) struct Saved {
    attention: HalfSaved<AttentionSaved>,
    mlp: HalfSaved<MlpSaved>,
}

/// What the backward pass of one half needs.
pub(crate) struct HalfSaved<T> {
    inner: T,
    dropout: Option<Dropout>,
    norm: layer_norm::Saved,
}

pub(crate) struct AttentionSaved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query: LinearSaved,
    key: LinearSaved,
    value: LinearSaved,
    output: LinearSaved,
    dropout: Option<Dropout>,
    core: attention::Saved,
}

pub(crate) struct MlpSaved {
    up: LinearSaved,
    down: LinearSaved,
    inner: Tensor,
}

impl Attention {
    pub fn linears(&self) -> [&Linear; 4] {
        [&self.query, &self.key, &self.value, &self.output]
    }

    fn call<'a>(&self, sequences: &'a Offsets, channels: usize, dropout: Option<Dropout>) -> attention::Attention<'a> {
        attention::Attention { dropout, ..attention::Attention::new(sequences, self.heads, channels / self.heads) }
    }

    fn forward(&self, x: &Tensor, sequences: &Offsets, layer: usize, pass: &Pass) -> Result<(Tensor, AttentionSaved)> {
        let (q, query) = self.query.forward(x, pass)?;
        let (k, key) = self.key.forward(x, pass)?;
        let (v, value) = self.value.forward(x, pass)?;
        let dropout = pass.dropout(Site::AttentionProbabilities, layer, self.dropout);
        let (o, core) = self.call(sequences, q.cols(), dropout).forward(&q, &k, &v)?;
        let (y, output) = self.output.forward(&o, pass)?;
        Ok((y, AttentionSaved { q, k, v, query, key, value, output, dropout, core }))
    }

    /// dx, or None where nothing below wants it.
    fn backward(
        &self,
        dy: &Tensor,
        sequences: &Offsets,
        saved: AttentionSaved,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let d_o = self.output.backward(dy, saved.output, grads)?;
        let call = self.call(sequences, d_o.cols(), saved.dropout);
        let g = call.backward(&d_o, &saved.q, &saved.k, &saved.v, saved.core)?;
        if !want_dx {
            self.query.backward_parameters(&g.dq, saved.query, grads)?;
            self.key.backward_parameters(&g.dk, saved.key, grads)?;
            self.value.backward_parameters(&g.dv, saved.value, grads)?;
            return Ok(None);
        }
        let mut dx = self.query.backward(&g.dq, saved.query, grads)?;
        add::accumulate(&mut dx, &self.key.backward(&g.dk, saved.key, grads)?)?;
        add::accumulate(&mut dx, &self.value.backward(&g.dv, saved.value, grads)?)?;
        Ok(Some(dx))
    }
}

impl Mlp {
    pub fn linears(&self) -> [&Linear; 2] {
        [&self.up, &self.down]
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, MlpSaved)> {
        let (inner, up) = self.up.forward(x, pass)?;
        let (y, down) = self.down.forward(&activation::forward(self.activation, &inner)?, pass)?;
        Ok((y, MlpSaved { up, down, inner }))
    }

    fn backward(&self, dy: &Tensor, saved: MlpSaved, grads: &mut Grads) -> Result<Tensor> {
        let d_activated = self.down.backward(dy, saved.down, grads)?;
        let d_inner = activation::backward(self.activation, &d_activated, &saved.inner)?;
        self.up.backward(&d_inner, saved.up, grads)
    }
}

impl Block {
    pub fn forward(&self, x: &Tensor, sequences: &Offsets, pass: &Pass) -> Result<(Tensor, Saved)> {
        let (h, attention) = self.attention_half(x, sequences, pass)?;
        let (y, mlp) = self.mlp_half(&h, pass)?;
        Ok((y, Saved { attention, mlp }))
    }

    /// h = norm(x + attention(x)).
    pub fn attention_half(
        &self,
        x: &Tensor,
        sequences: &Offsets,
        pass: &Pass,
    ) -> Result<(Tensor, HalfSaved<AttentionSaved>)> {
        let (a, inner) = self.attention.forward(x, sequences, self.index, pass)?;
        let dropout = pass.dropout(Site::AttentionOutput, self.index, self.dropout);
        let (h, norm) = self.attention_norm.forward(&pass::apply(dropout, a)?, Some(x))?;
        Ok((h, HalfSaved { inner, dropout, norm }))
    }

    /// y = norm(h + mlp(h)).
    pub fn mlp_half(&self, h: &Tensor, pass: &Pass) -> Result<(Tensor, HalfSaved<MlpSaved>)> {
        let (m, inner) = self.mlp.forward(h, pass)?;
        let dropout = pass.dropout(Site::MlpOutput, self.index, self.dropout);
        let (y, norm) = self.mlp_norm.forward(&pass::apply(dropout, m)?, Some(h))?;
        Ok((y, HalfSaved { inner, dropout, norm }))
    }

    /// dx, or None where nothing below wants it.
    pub fn backward(
        &self,
        dy: &Tensor,
        sequences: &Offsets,
        saved: Saved,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let Saved { attention, mlp } = saved;
        let residual = self.mlp_norm.backward(dy, mlp.norm)?;
        let dm = pass::apply(mlp.dropout, residual.clone())?;
        let mut dh = self.mlp.backward(&dm, mlp.inner, grads)?;
        add::accumulate(&mut dh, &residual)?;
        let residual = self.attention_norm.backward(&dh, attention.norm)?;
        let da = pass::apply(attention.dropout, residual.clone())?;
        let Some(mut dx) = self.attention.backward(&da, sequences, attention.inner, grads, want_dx)? else {
            return Ok(None);
        };
        add::accumulate(&mut dx, &residual)?;
        Ok(Some(dx))
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linears().into_iter().chain(self.mlp.linears())
    }

    /// Moves everything but the linear maps to a device.
    pub fn move_norms_to(&mut self, device: &Device) -> Result<()> {
        self.attention_norm.move_to(device)?;
        self.mlp_norm.move_to(device)
    }

    pub fn linears_mut(&mut self) -> [&mut Linear; 6] {
        let a = &mut self.attention;
        [&mut a.query, &mut a.key, &mut a.value, &mut a.output, &mut self.mlp.up, &mut self.mlp.down]
    }
}
