use gelora_kernels::ops::dropout::{self, Dropout};
use gelora_kernels::{Tensor, random};

use crate::Result;

/// A place where dropout is applied. Each place has its own mask.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DropoutSite {
    Embeddings,
    AttentionProbabilities,
    AttentionOutput,
    MlpOutput,
    Lora,
    Head,
    Convolution,
    Distances,
}

/// How a forward pass runs: as inference, or as one training step with its dropout masks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    training: Option<(u64, u64)>,
    recompute: bool,
    for_distances: bool,
}

impl Mode {
    /// Inference, without dropout.
    pub fn inference() -> Self {
        Self::default()
    }

    /// Training: dropout masks are drawn from the seed and the step. If a step runs several batches (gradient
    /// accumulation), each batch needs its own number.
    pub fn training(seed: u64, step: u64) -> Self {
        Self { training: Some((seed, step)), ..Self::default() }
    }

    /// Adds activation checkpointing: each block keeps its input alone, and the backward pass computes the other
    /// activations again. A step takes a third longer and needs a fraction of the memory. The result is the same, bit
    /// for bit.
    pub fn recomputing(self) -> Self {
        Self { recompute: true, ..self }
    }

    /// Mode for the second use of a module, on distance embeddings instead of tokens. It has different dropout masks.
    pub(crate) fn for_distances(self) -> Self {
        Self { for_distances: true, ..self }
    }

    pub(crate) fn is_for_distances(&self) -> bool {
        self.for_distances
    }

    pub(crate) fn recomputes(&self) -> bool {
        self.recompute
    }

    /// The key of a mask, or None in inference. `index` identifies the layer or module.
    pub(crate) fn key(&self, site: DropoutSite, index: usize) -> Option<[u32; 2]> {
        let second: &[u64] = if self.for_distances { &[1] } else { &[] };
        let key = |(seed, step)| random::key(seed, &[&[step, site as u64, index as u64], second].concat());
        self.training.map(key)
    }

    /// Dropout at a site, or None in inference or if p is 0.
    pub(crate) fn dropout(&self, site: DropoutSite, index: usize, p: f32) -> Option<Dropout> {
        self.key(site, index).filter(|_| p > 0.0).map(|key| Dropout { p, key })
    }
}

/// Applies dropout to x. The forward and the backward pass both use it.
pub(crate) fn apply_dropout(d: Option<Dropout>, x: Tensor) -> Result<Tensor> {
    match d {
        Some(d) => Ok(dropout::apply(&x, d)?),
        None => Ok(x),
    }
}
