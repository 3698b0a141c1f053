//! A convolution over the tokens of each sequence, parallel to a model's first block (DeBERTa-v2).

use gelora_kernels::ops::activation::{self, Activation};
use gelora_kernels::ops::linear::{self, Weight};
use gelora_kernels::ops::{concat, embedding};
use gelora_kernels::{DType, Device, Tensor};

use crate::Result;
use crate::linear::stored_on;
use crate::mode::{self, DropoutSite};
use crate::norm::{Norm, Saved as NormSaved};
use crate::sublayer::Context;

/// Computes y' = norm(y + f(drop(b + sum over taps t of W_t x_(i + t - taps / 2)))), where x is the block's input and y
/// its output. x is 0 outside a sequence.
///
/// Only the first block has a convolution, so the gradient of x is never needed.
pub(crate) struct Convolution {
    /// Number of taps, odd: the token itself and as many neighbors on each side.
    pub taps: usize,
    /// (C, taps C), frozen.
    pub weight: Weight,
    /// (C), frozen.
    pub bias: Tensor,
    pub activation: Activation,
    pub norm: Norm,
    pub dropout: f32,
}

impl Convolution {
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.weight = Weight::new(stored_on(self.weight.tensor(), device)?, DType::F32)?;
        self.bias = self.bias.to_device(device)?;
        self.norm.move_to(device)
    }

    /// Returns y' and the values for the norm's backward pass. The gradient of y is that of the norm's input.
    pub fn forward(&self, x: &Tensor, y: &Tensor, context: &Context<'_>) -> Result<(Tensor, NormSaved)> {
        let neighbors = concat::columns(&self.neighbors(x, context)?.iter().collect::<Vec<_>>())?;
        let sums = linear::forward(&neighbors, &self.weight, Some(&self.bias))?;
        let dropped = mode::apply_dropout(context.mode.dropout(DropoutSite::Convolution, 0, self.dropout), sums)?;
        self.norm.forward(&activation::forward(self.activation, &dropped)?, Some(y))
    }

    /// Returns, for each tap, x shifted by the distance of that tap.
    fn neighbors(&self, x: &Tensor, context: &Context<'_>) -> Result<Vec<Tensor>> {
        let table = concat::rows(&[x, &Tensor::zeros([1, x.cols()], x.device())?])?;
        let (outside, half) = (x.rows() as u32, self.taps / 2);
        let tap = |tap: usize| {
            let mut rows = Vec::with_capacity(x.rows());
            for sequence in context.sequences.ranges() {
                rows.extend(sequence.clone().map(|i| match (i + tap).checked_sub(half) {
                    Some(row) if sequence.contains(&row) => row as u32,
                    _ => outside,
                }));
            }
            Ok(embedding::forward(&[(&table, &rows)])?)
        };
        (0..self.taps).map(tap).collect()
    }
}
