//! Keys and values of the tokens that were generated from so far.

use gelora_kernels::Tensor;
use gelora_kernels::ops::concat;

use crate::Result;

/// Keys and values of the tokens so far, by layer.
pub(crate) struct KvCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
}

impl KvCache {
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![None; layers] }
    }

    /// Adds the keys and values of new tokens of a layer; returns all of the layer.
    pub fn extend(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        let all = match self.layers[layer].take() {
            Some((mut past_k, mut past_v)) => {
                concat::append(&mut past_k, &k)?;
                concat::append(&mut past_v, &v)?;
                (past_k, past_v)
            }
            None => (k, v),
        };
        self.layers[layer] = Some(all.clone());
        Ok(all)
    }
}
