//! Keys and values of all tokens processed so far during generation.

use gelora_kernels::Tensor;
use gelora_kernels::ops::concat;

use crate::Result;

/// Keys and values of all tokens so far, for each layer.
pub(crate) struct KvCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
}

impl KvCache {
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![None; layers] }
    }

    /// Appends the keys and values of new tokens in a layer. Returns the keys and values of all tokens in that layer.
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
