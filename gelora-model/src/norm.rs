use gelora_kernels::ops::{layer_norm, rms_norm};
use gelora_kernels::{Device, Tensor};

use crate::Result;

/// A frozen normalization of each row.
#[derive(Clone, Debug)]
pub(crate) enum Norm {
    Layer { gamma: Tensor, beta: Tensor, eps: f32 },
    Rms { gamma: Tensor, eps: f32 },
}

/// Values that [`Norm::backward`] needs.
pub(crate) enum Saved {
    Layer(layer_norm::Saved),
    Rms(rms_norm::Saved),
}

impl Norm {
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        let (Norm::Layer { gamma, .. } | Norm::Rms { gamma, .. }) = self;
        *gamma = gamma.to_device(device)?;
        if let Norm::Layer { beta, .. } = self {
            *beta = beta.to_device(device)?;
        }
        Ok(())
    }

    /// Computes the norm of x, or of x + residual.
    pub fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<(Tensor, Saved)> {
        Ok(match self {
            Norm::Layer { gamma, beta, eps } => {
                let (y, saved) = layer_norm::forward_saving(x, residual, gamma, beta, *eps)?;
                (y, Saved::Layer(saved))
            }
            Norm::Rms { gamma, eps } => {
                let (y, saved) = rms_norm::forward_saving(x, residual, gamma, *eps)?;
                (y, Saved::Rms(saved))
            }
        })
    }

    /// Returns the gradient of x, which is also the gradient of the residual.
    pub fn backward(&self, dy: &Tensor, saved: Saved) -> Result<Tensor> {
        match (self, saved) {
            (Norm::Layer { gamma, .. }, Saved::Layer(saved)) => Ok(layer_norm::backward(dy, gamma, saved)?),
            (Norm::Rms { gamma, .. }, Saved::Rms(saved)) => Ok(rms_norm::backward(dy, None, gamma, saved)?),
            _ => unreachable!("forward of this norm saved it"),
        }
    }

    /// Applies [`Norm::forward`] separately to every `size` values of a row: the heads of queries or keys.
    pub fn forward_heads(&self, x: Tensor, size: usize) -> Result<(Tensor, Saved)> {
        let shape = x.shape().to_vec();
        let heads = x.len() / size;
        let (y, saved) = self.forward(&x.reshape([heads, size])?, None)?;
        Ok((y.reshape(shape)?, saved))
    }

    /// Backward pass of [`Norm::forward_heads`].
    pub fn backward_heads(&self, dy: Tensor, size: usize, saved: Saved) -> Result<Tensor> {
        let shape = dy.shape().to_vec();
        let heads = dy.len() / size;
        Ok(self.backward(&dy.reshape([heads, size])?, saved)?.reshape(shape)?)
    }
}
