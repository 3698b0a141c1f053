use gelora_kernels::ops::dropout::{self, Dropout};
use gelora_kernels::{Tensor, random};

use crate::Result;

/// Where dropout happens, so that each place has a mask of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Site {
    Embeddings,
    AttentionProbabilities,
    AttentionOutput,
    MlpOutput,
    Lora,
    Head,
    Convolution,
    Distances,
}

/// How a forward pass runs: inference, or one step of training with its dropout masks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pass {
    training: Option<(u64, u64)>,
    recompute: bool,
    of_distances: bool,
}

impl Pass {
    /// Inference: no dropout.
    pub fn inference() -> Self {
        Self::default()
    }

    /// Training: dropout masks are drawn from the seed and the step. Steps that run several batches (gradient accumulation)
    /// count each of them.
    pub fn training(seed: u64, step: u64) -> Self {
        Self { training: Some((seed, step)), ..Self::default() }
    }

    /// The same pass with activation checkpointing: of each block the input alone is kept for backward, which computes the
    /// rest again. A step takes a third longer and needs a fraction of the memory; its result is the same, bit for bit.
    pub fn recomputing(self) -> Self {
        Self { recompute: true, ..self }
    }

    /// The same pass where modules are applied a second time, to distances rather than tokens: with masks of their own.
    pub(crate) fn of_distances(self) -> Self {
        Self { of_distances: true, ..self }
    }

    pub(crate) fn recomputes(&self) -> bool {
        self.recompute
    }

    /// The key of a mask, or None in inference. `index` tells layers or modules apart.
    pub(crate) fn key(&self, site: Site, index: usize) -> Option<[u32; 2]> {
        let second: &[u64] = if self.of_distances { &[1] } else { &[] };
        let key = |(seed, step)| random::key(seed, &[&[step, site as u64, index as u64], second].concat());
        self.training.map(key)
    }

    /// Dropout at a place; None in inference or where p is 0.
    pub(crate) fn dropout(&self, site: Site, index: usize, p: f32) -> Option<Dropout> {
        self.key(site, index).filter(|_| p > 0.0).map(|key| Dropout { p, key })
    }
}

/// x with dropout; forward and backward alike.
pub(crate) fn apply(d: Option<Dropout>, x: Tensor) -> Result<Tensor> {
    match d {
        Some(d) => Ok(dropout::apply(&x, d)?),
        None => Ok(x),
    }
}
