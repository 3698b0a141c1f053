//! The trait of the part inside a residual connection (attention, MLP), and the values that all blocks of a forward
//! pass share.

use std::cell::RefCell;

use gelora_kernels::ops::rotary::Angles;
use gelora_kernels::{Offsets, Tensor};

use crate::Result;
use crate::kv_cache::KvCache;
use crate::linear::Grads;
use crate::mode::Mode;
use crate::position::Distances;

/// Values that all blocks of a forward pass share.
pub(crate) struct Context<'a> {
    pub mode: &'a Mode,
    pub sequences: &'a Offsets,
    /// Angles of each rotary embedding of the model.
    pub angles: Vec<Angles>,
    /// Bias of the scores by distance, if the model has one.
    pub bias: Option<Tensor>,
    /// Embeddings of distances, if the model has them.
    pub distances: Option<Distances<'a>>,
    /// Keys and values of earlier tokens, during generation.
    pub cache: Option<&'a RefCell<KvCache>>,
}

/// The part of a block inside one residual connection: attention or MLP.
pub(crate) trait Sublayer {
    type Saved;

    fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<(Tensor, Self::Saved)>;

    /// Returns dx, or None if no layer below needs it.
    fn backward(
        &self,
        dy: &Tensor,
        context: &Context<'_>,
        saved: Self::Saved,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>>;
}
