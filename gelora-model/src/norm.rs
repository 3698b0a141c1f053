use gelora_kernels::Tensor;
use gelora_kernels::ops::layer_norm::{self, Saved};

use crate::Result;

/// A frozen layer norm with the residual sum before it.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    pub gamma: Tensor,
    pub beta: Tensor,
    pub eps: f32,
}

impl LayerNorm {
    pub fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<(Tensor, Saved)> {
        Ok(layer_norm::forward_saving(x, residual, &self.gamma, &self.beta, self.eps)?)
    }

    /// The gradient of x and of the residual alike.
    pub fn backward(&self, dy: &Tensor, saved: Saved) -> Result<Tensor> {
        Ok(layer_norm::backward(dy, &self.gamma, saved)?)
    }
}
