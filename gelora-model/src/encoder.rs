use std::path::Path;

use gelora_kernels::ops::dropout::Dropout;
use gelora_kernels::ops::embedding;
use gelora_kernels::{DType, Device, Tensor};

use crate::block::{Block, Saved as BlockSaved};
use crate::family::{self, Tables};
use crate::linear::{Grads, Linear, stored_on};
use crate::norm::LayerNorm;
use crate::pass::{self, Pass, Site};
use crate::weights::Weights;
use crate::{Batch, Config, Error, Result};

/// A transformer encoder: embeddings and L blocks, so L + 1 hidden states.
pub struct Encoder {
    config: Config,
    device: Device,
    prefix: &'static str,
    tables: Tables,
    norm: LayerNorm,
    blocks: Vec<Block>,
    pub(crate) pooler: Option<Linear>,
}

/// Where hidden states are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Granularity {
    /// Before the first block and after each.
    #[default]
    Block,
    /// Also between the two halves of each block: after attention, before the MLP.
    Sublayer,
}

impl Granularity {
    /// Steps from state to state in one block.
    pub fn steps_per_block(self) -> usize {
        match self {
            Granularity::Block => 1,
            Granularity::Sublayer => 2,
        }
    }

    /// The step that a linear module of a block belongs to.
    pub fn step_of(self, block: usize, attention: bool) -> usize {
        match self {
            Granularity::Block => block,
            Granularity::Sublayer => 2 * block + usize::from(!attention),
        }
    }
}

/// A linear module that can carry an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearInfo {
    /// Its full name inside the task model.
    pub name: String,
    /// Its block, or None outside the blocks (the pooler).
    pub layer: Option<usize>,
    /// Whether it is one of attention's four projections, which the GeLoRA paper adapts.
    pub attention: bool,
    /// C_in.
    pub c_in: usize,
    /// C_out.
    pub c_out: usize,
}

/// What [`Encoder::backward`] needs.
pub(crate) struct Saved {
    /// The lowest block with an adapter and all above it.
    blocks: Vec<BlockSaved>,
}

impl Encoder {
    /// Loads a Hugging Face folder: config.json and model.safetensors, single or sharded.
    ///
    /// # Errors
    /// If a file is missing or damaged, the family is not supported, or a tensor is missing or of the wrong shape.
    pub fn load(model: &Path) -> Result<Self> {
        let config = Config::load(model)?;
        Self::from_weights(config, &mut Weights::open(model)?)
    }

    pub(crate) fn from_weights(config: Config, weights: &mut Weights) -> Result<Self> {
        let parts = family::load(&config, weights)?;
        let family::Parts { prefix, tables, norm, blocks, pooler } = parts;
        Ok(Self { config, device: Device::Cpu, prefix, tables, norm, blocks, pooler })
    }

    /// Computes the products with frozen weights in f32 (the default) or bf16 from now on: bf16 rounds their factors, and sums
    /// stay in f32 (see [`gelora_kernels::ops::linear::Weight`]).
    ///
    /// # Errors
    /// If the type is neither.
    pub fn compute_in(&mut self, dtype: DType) -> Result<()> {
        self.linears_mut().try_for_each(|linear| linear.compute_in(dtype))
    }

    /// Moves all weights and adapters to a device, where everything runs from now on. Weights of a type that the device lacks
    /// become f32.
    ///
    /// # Errors
    /// If the device fails or its memory does not suffice.
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.linears_mut().try_for_each(|linear| linear.move_to(device))?;
        self.blocks.iter_mut().try_for_each(|block| block.move_norms_to(device))?;
        self.norm.move_to(device)?;
        let tables = &mut self.tables;
        for table in [&mut tables.words, &mut tables.positions, &mut tables.types] {
            *table = stored_on(table, device)?;
        }
        self.device = device.clone();
        Ok(())
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Sizes and options.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the encoder's module names begin with inside a task model, such as `bert.`.
    pub fn prefix(&self) -> &'static str {
        self.prefix
    }

    /// Every linear module, from the input up.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears).chain(&self.pooler)
    }

    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).chain(&mut self.pooler)
    }

    /// Name, block and sizes of every linear module, from the input up.
    pub fn linear_infos(&self) -> Vec<LinearInfo> {
        let info = |linear: &Linear, layer, attention| {
            let (c_out, c_in) = (linear.weight.c_out(), linear.weight.c_in());
            LinearInfo { name: linear.name.clone(), layer, attention, c_in, c_out }
        };
        let of_block = |b: &Block| {
            let attention = b.attention.linears().map(|linear| info(linear, Some(b.index), true));
            attention.into_iter().chain(b.mlp.linears().map(|linear| info(linear, Some(b.index), false)))
        };
        let blocks = self.blocks.iter().flat_map(of_block);
        blocks.chain(self.pooler.iter().map(|p| info(p, None, false))).collect()
    }

    /// Calls `visit(s, state)` with each hidden state (N, C) from the input up, s = 0 being the embeddings: L + 1 of them, or
    /// 2 L + 1 where the halves of a block count. Only one state is in memory at a time.
    ///
    /// # Errors
    /// If a token id, type or position is outside its table, or `visit` fails.
    pub fn hidden_states(
        &self,
        batch: &Batch,
        granularity: Granularity,
        mut visit: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let pass = Pass::inference();
        let mut x = self.embed(batch, &pass)?;
        let mut seen = 0;
        visit(seen, &x)?;
        for block in &self.blocks {
            let h = block.attention_half(&x, batch.sequences(), &pass)?.0;
            if granularity == Granularity::Sublayer {
                seen += 1;
                visit(seen, &h)?;
            }
            x = block.mlp_half(&h, &pass)?.0;
            seen += 1;
            visit(seen, &x)?;
        }
        Ok(())
    }

    fn embed(&self, batch: &Batch, pass: &Pass) -> Result<Tensor> {
        if batch.sequences().longest() > self.config.max_positions {
            let (longest, most) = (batch.sequences().longest(), self.config.max_positions);
            return Err(Error::Value(format!("a sequence has {longest} tokens; the model has {most} positions")));
        }
        let tables = &self.tables;
        let sum = embedding::forward(&[
            (&tables.words, batch.ids()),
            (&tables.types, batch.types()),
            (&tables.positions, batch.positions()),
        ])?;
        let dropout: Option<Dropout> = pass.dropout(Site::Embeddings, 0, self.config.hidden_dropout);
        pass::apply(dropout, self.norm.forward(&sum, None)?.0)
    }

    /// The last hidden state (N, C), and what backward needs: nothing of blocks below the lowest one with an adapter.
    pub(crate) fn forward(&self, batch: &Batch, pass: &Pass) -> Result<(Tensor, Saved)> {
        let lowest = self.lowest_adapted();
        let mut x = self.embed(batch, pass)?;
        let mut blocks = Vec::new();
        for block in &self.blocks {
            let (y, saved) = block.forward(&x, batch.sequences(), pass)?;
            if lowest.is_some_and(|lowest| block.index >= lowest) {
                blocks.push(saved);
            }
            x = y;
        }
        Ok((x, Saved { blocks }))
    }

    /// The adapters' gradients, from the gradient of the last hidden state (N, C).
    pub(crate) fn backward(&self, d_last: Tensor, batch: &Batch, saved: Saved, grads: &mut Grads) -> Result<()> {
        let Some(lowest) = self.lowest_adapted() else {
            return Ok(());
        };
        let mut d = d_last;
        for (block, saved) in self.blocks[lowest..].iter().zip(saved.blocks).rev() {
            match block.backward(&d, batch.sequences(), saved, grads, block.index > lowest)? {
                Some(dx) => d = dx,
                None => break,
            }
        }
        Ok(())
    }

    pub(crate) fn lowest_adapted(&self) -> Option<usize> {
        self.blocks.iter().position(|b| b.linears().any(|linear| linear.lora.is_some()))
    }
}
