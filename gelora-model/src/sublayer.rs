//! The part of a block between its norms (attention, MLP), and what all blocks of a pass share.

use std::cell::RefCell;

use gelora_kernels::ops::rotary::Angles;
use gelora_kernels::{Offsets, Tensor};

use crate::Result;
use crate::kv_cache::KvCache;
use crate::linear::Grads;
use crate::mode::Mode;
use crate::position::Distances;

/// What all blocks of a pass share.
pub(crate) struct Context<'a> {
    pub mode: &'a Mode,
    pub sequences: &'a Offsets,
    /// The angles of each of the model's rotations.
    pub angles: Vec<Angles>,
    /// The bias by distance, if the model has one.
    pub bias: Option<Tensor>,
    /// The embeddings of distances, if the model has them.
    pub distances: Option<Distances<'a>>,
    /// Keys and values of tokens before these, while generating.
    pub cache: Option<&'a RefCell<KvCache>>,
}

/// What a half of a block does between its norms.
pub(crate) trait Sublayer {
    type Saved;

    fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<(Tensor, Self::Saved)>;

    /// dx, or None where nothing below wants it.
    fn backward(
        &self,
        dy: &Tensor,
        context: &Context<'_>,
        saved: Self::Saved,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>>;
}
