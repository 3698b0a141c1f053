use gelora_kernels::ops::layer_norm::{self, Saved};
use gelora_kernels::{Device, Tensor};

use crate::Result;

/// A frozen layer norm with the residual sum before it.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    pub gamma: Tensor,
    pub beta: Tensor,
    pub eps: f32,
}

impl LayerNorm {
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.gamma = self.gamma.to_device(device)?;
        self.beta = self.beta.to_device(device)?;
        Ok(())
    }

    pub fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<(Tensor, Saved)> {
        Ok(layer_norm::forward_saving(x, residual, &self.gamma, &self.beta, self.eps)?)
    }

    /// The gradient of x and of the residual alike.
    pub fn backward(&self, dy: &Tensor, saved: Saved) -> Result<Tensor> {
        Ok(layer_norm::backward(dy, &self.gamma, saved)?)
    }
}
