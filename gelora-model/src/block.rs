use gelora_kernels::Tensor;
use gelora_kernels::ops::add;
use gelora_kernels::ops::dropout::Dropout;

use crate::Result;
use crate::attention::Attention;
use crate::convolution::Convolution;
use crate::linear::{Grads, Linear};
use crate::mlp::Mlp;
use crate::mode::{self, DropoutSite};
use crate::norm::{Norm, Saved as NormSaved};
use crate::sublayer::{Context, Sublayer};

/// A residual connection around a sublayer: y = last(x + drop(after(inner(before(x))))).
///
/// Each norm is optional. BERT has the norm after the sum (`last`), GPT-2 and Llama the norm before the sublayer
/// (`before`), and Gemma 3 norms before and after the sublayer (`before`, `after`).
pub(crate) struct Residual<S> {
    pub before: Option<Norm>,
    pub inner: S,
    pub after: Option<Norm>,
    pub last: Option<Norm>,
    pub dropout: f32,
}

/// A transformer block: attention, then the MLP, and in a few models a convolution parallel to both.
pub(crate) struct Block {
    pub index: usize,
    pub attention: Residual<Attention>,
    pub mlp: Residual<Mlp>,
    pub convolution: Option<Convolution>,
}

/// Values that the backward pass of a [`Residual`] needs.
pub(crate) struct ResidualSaved<T> {
    before: Option<NormSaved>,
    inner: T,
    after: Option<NormSaved>,
    dropout: Option<Dropout>,
    last: Option<NormSaved>,
}

/// Values that the backward pass of a block needs.
pub(crate) struct Parts {
    attention: ResidualSaved<<Attention as Sublayer>::Saved>,
    mlp: ResidualSaved<<Mlp as Sublayer>::Saved>,
    convolution: Option<NormSaved>,
}

/// Values saved for [`Block::backward`].
pub(crate) enum Saved {
    /// All values.
    Whole(Box<Parts>),
    /// Only the input of the block, from which the backward pass computes all other values again.
    Input(Tensor),
}

impl<S: Sublayer> Residual<S> {
    pub fn forward(
        &self,
        x: &Tensor,
        site: DropoutSite,
        layer: usize,
        context: &Context<'_>,
    ) -> Result<(Tensor, ResidualSaved<S::Saved>)> {
        let normed = self.before.as_ref().map(|norm| norm.forward(x, None)).transpose()?;
        let (input, before) = match normed {
            Some((input, saved)) => (input, Some(saved)),
            None => (x.clone(), None),
        };
        let (mut y, inner) = self.inner.forward(&input, context)?;
        drop(input);
        let mut after = None;
        if let Some(norm) = &self.after {
            let (normed, saved) = norm.forward(&y, None)?;
            (y, after) = (normed, Some(saved));
        }
        let dropout = context.mode.dropout(site, layer, self.dropout);
        y = mode::apply_dropout(dropout, y)?;
        let mut last = None;
        match &self.last {
            Some(norm) => {
                let (normed, saved) = norm.forward(&y, Some(x))?;
                (y, last) = (normed, Some(saved));
            }
            None => add::accumulate(&mut y, x)?,
        }
        Ok((y, ResidualSaved { before, inner, after, dropout, last }))
    }

    /// Returns dx, or None if no layer below needs it.
    pub fn backward(
        &self,
        dy: &Tensor,
        context: &Context<'_>,
        saved: ResidualSaved<S::Saved>,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        // y = last(x + d), so both x and d receive this gradient.
        let residual = through(&self.last, saved.last, dy)?;
        let d = mode::apply_dropout(saved.dropout, residual.clone())?;
        let d = through(&self.after, saved.after, &d)?;
        let Some(d_input) = self.inner.backward(&d, context, saved.inner, grads, want_dx)? else {
            return Ok(None);
        };
        // x receives a gradient through the sublayer and through the residual connection.
        let mut dx = through(&self.before, saved.before, &d_input)?;
        drop(d_input);
        add::accumulate(&mut dx, &residual)?;
        Ok(Some(dx))
    }

    pub fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        self.before.iter_mut().chain(&mut self.after).chain(&mut self.last)
    }
}

/// Backward pass of an optional norm.
fn through(norm: &Option<Norm>, saved: Option<NormSaved>, dy: &Tensor) -> Result<Tensor> {
    match norm.as_ref().zip(saved) {
        Some((norm, saved)) => norm.backward(dy, saved),
        None => Ok(dy.clone()),
    }
}

impl Block {
    /// Computes h, the output of attention with its residual connection.
    pub fn attention_residual(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        Ok(self.attention.forward(x, DropoutSite::AttentionOutput, self.index, context)?.0)
    }

    /// Computes y, the output of the MLP with its residual connection, and adds the convolution of the block's input x.
    pub fn mlp_residual(&self, x: &Tensor, h: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let y = self.mlp.forward(h, DropoutSite::MlpOutput, self.index, context)?.0;
        Ok(self.convolve(x, y, context)?.0)
    }

    fn convolve(&self, x: &Tensor, y: Tensor, context: &Context<'_>) -> Result<(Tensor, Option<NormSaved>)> {
        let Some(convolution) = &self.convolution else { return Ok((y, None)) };
        let (y, saved) = convolution.forward(x, &y, context)?;
        Ok((y, Some(saved)))
    }

    pub fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<(Tensor, Saved)> {
        let (y, parts) = self.parts(x, context)?;
        let recomputed = context.mode.recomputes();
        Ok((y, if recomputed { Saved::Input(x.clone()) } else { Saved::Whole(Box::new(parts)) }))
    }

    fn parts(&self, x: &Tensor, context: &Context<'_>) -> Result<(Tensor, Parts)> {
        let (h, attention) = self.attention.forward(x, DropoutSite::AttentionOutput, self.index, context)?;
        let (y, mlp) = self.mlp.forward(&h, DropoutSite::MlpOutput, self.index, context)?;
        let (y, convolution) = self.convolve(x, y, context)?;
        Ok((y, Parts { attention, mlp, convolution }))
    }

    /// Returns dx, or None if no layer below needs it.
    pub fn backward(
        &self,
        dy: &Tensor,
        context: &Context<'_>,
        saved: Saved,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let Parts { attention, mlp, convolution } = match saved {
            Saved::Whole(parts) => *parts,
            Saved::Input(x) => self.parts(&x, context)?.1,
        };
        let before;
        let mut dy = dy;
        if let Some((part, saved)) = self.convolution.as_ref().zip(convolution) {
            before = part.norm.backward(dy, saved)?;
            dy = &before;
        }
        // Attention needs dh if one of its modules has an adapter or a layer below needs dx.
        let attention_adapted = self.attention.inner.linears().any(|linear| linear.lora.is_some());
        let Some(dh) = self.mlp.backward(dy, context, mlp, grads, want_dx || attention_adapted)? else {
            return Ok(None);
        };
        self.attention.backward(&dh, context, attention, grads, want_dx)
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.inner.linears().chain(self.mlp.inner.linears())
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.attention.inner.linears_mut().chain(self.mlp.inner.linears_mut())
    }

    pub fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        let Residual { before, inner, after, last, .. } = &mut self.attention;
        let attention_norms = before.iter_mut().chain(after).chain(last).chain(inner.norms_mut());
        attention_norms.chain(self.mlp.norms_mut())
    }
}
