mod adapters;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use gelora_kernels::ops::{embedding, scale};
use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::Adapter;

use crate::block::{Block, Saved as BlockSaved};
use crate::family::{self, Family, Tables};
use crate::kv_cache::KvCache;
use crate::linear::{Grads, Linear, naming, stored_on};
use crate::mode::{self, DropoutSite, Mode};
use crate::norm::{Norm, Saved as NormSaved};
use crate::position::{RelativeBias, RelativeEmbedding, Rope};
use crate::sublayer::Context;
use crate::weights::Weights;
use crate::{Batch, Config, Error, Granularity, Result, adapter};

/// A transformer without a task head: embeddings and L blocks, which give L + 1 hidden states.
pub struct Transformer {
    config: Config,
    /// The folder or file that the base weights were loaded from.
    source: PathBuf,
    /// Name of the model in files and messages.
    name: String,
    /// Type in which products with frozen weights are computed.
    dtype: DType,
    device: Device,
    /// Tensors that an adapter trained and saved whole, by their names inside a task model; tensors of the head
    /// excepted.
    saved: BTreeMap<String, Tensor>,
    tables: Tables,
    norm: Option<Norm>,
    blocks: Vec<Block>,
    last_norm: Option<Norm>,
    ropes: Vec<Rope>,
    bias: Option<RelativeBias>,
    distances: Option<RelativeEmbedding>,
    pub(crate) pooler: Option<Linear>,
}

/// A linear module that can carry an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearInfo {
    /// Full name inside the task model.
    pub name: String,
    /// Index of the block, or None outside the blocks (the pooler).
    pub layer: Option<usize>,
    /// Whether the module is one of the four projections of attention, which the GeLoRA paper adapts.
    pub attention: bool,
    /// Number of input channels, C_in.
    pub c_in: usize,
    /// Number of output channels, C_out.
    pub c_out: usize,
}

/// Values that [`Transformer::backward`] needs.
pub(crate) struct Saved {
    /// Saved values of the lowest block with an adapter and of all blocks above it.
    blocks: Vec<BlockSaved>,
    last_norm: Option<NormSaved>,
}

impl fmt::Debug for Transformer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transformer")
            .field("source", &self.source)
            .field("layers", &self.config.layers)
            .field("hidden", &self.config.hidden)
            .finish_non_exhaustive()
    }
}

impl Transformer {
    /// Loads a model from a Hugging Face folder (config.json and model.safetensors or pytorch_model.bin, single or
    /// sharded) or from a .gguf file.
    ///
    /// # Errors
    /// Returns an error if a file is missing or damaged, the family is not supported, or a tensor is missing or has a
    /// wrong shape.
    pub fn load(model: &Path) -> Result<Self> {
        let config = Config::load(model)?;
        Self::from_weights(config, &mut Weights::open(model)?)
    }

    pub(crate) fn from_weights(config: Config, weights: &mut Weights) -> Result<Self> {
        let parts = family::load(&config, weights)?;
        let family::Parts { tables, norm, blocks, last_norm, bias, distances, pooler } = parts;
        let ropes = config.ropes.iter().map(|rope| Rope::new(rope.frequencies.clone())).collect();
        let device = Device::Cpu;
        let saved = BTreeMap::new();
        let (source, dtype) = (weights.model().to_owned(), DType::F32);
        let name = source.display().to_string();
        Ok(Self {
            config,
            source,
            name,
            dtype,
            device,
            saved,
            tables,
            norm,
            blocks,
            last_norm,
            ropes,
            bias,
            distances,
            pooler,
        })
    }

    /// Loads the base model, without a task head, and applies an adapter: its LoRA layers and the tensors that it saves
    /// whole.
    ///
    /// # Errors
    /// Returns an error if the base model cannot be loaded, the adapter names modules that the model lacks, or sizes
    /// differ.
    pub fn with_adapter(model: &Path, adapter: Adapter) -> Result<Self> {
        let (transformer, weights) = Self::adapted(model, adapter)?;
        weights.all_saved_taken("a model without a task head")?;
        Ok(transformer)
    }

    /// Does the same as [`Transformer::with_adapter`], and returns the weights that are left for a head.
    pub(crate) fn adapted(model: &Path, adapter: Adapter) -> Result<(Self, Weights)> {
        let config = Config::load(model)?;
        let family = family::find(&config.family).map_or("", |family| family.prefix);
        let (adapter, is_bare) = adapter::in_task_model(adapter, family);
        let mut weights = Weights::open(model)?.with_saved(adapter.saved.clone());
        let mut transformer = Self::from_weights(config, &mut weights)?;
        transformer.saved = adapter.saved.into_iter().filter(|(name, _)| !weights.awaits(name)).collect();
        transformer.attach_all(&adapter.config, adapter.layers, is_bare)?;
        Ok((transformer, weights))
    }

    /// Sets the type in which products with frozen weights are computed: f32 (the default) or bf16. With bf16 the
    /// factors are rounded and the sums stay in f32 (see [`gelora_kernels::ops::linear::Weight`]).
    ///
    /// # Errors
    /// Returns an error if `dtype` is neither f32 nor bf16.
    pub fn compute_in(&mut self, dtype: DType) -> Result<()> {
        self.linears_mut().try_for_each(|linear| linear.compute_in(dtype))?;
        self.dtype = dtype;
        Ok(())
    }

    /// Type in which products with frozen weights are computed.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The folder or file that the base weights were loaded from.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Name of the model in files and messages. This is the path that the model was loaded from, unless
    /// [`Transformer::set_name`] changed it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the name of the model in files and messages, such as its id on a hub.
    pub fn set_name(&mut self, name: impl Into<String>) {
        self.name = name.into();
    }

    /// Moves all weights and adapters to a device, on which all later computations run. Weights become f32 if the
    /// device does not support their type.
    ///
    /// # Errors
    /// Returns an error if the device fails or runs out of memory.
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.linears_mut().try_for_each(|linear| linear.move_to(device))?;
        let block_norms = self.blocks.iter_mut().flat_map(Block::norms_mut);
        block_norms.chain(&mut self.norm).chain(&mut self.last_norm).try_for_each(|norm| norm.move_to(device))?;
        self.blocks.iter_mut().filter_map(|block| block.convolution.as_mut()).try_for_each(|c| c.move_to(device))?;
        if let Some(distances) = &mut self.distances {
            distances.table = distances.table.to_device(device)?;
        }
        let Tables { words, positions, types, .. } = &mut self.tables;
        let positions = positions.as_mut().map(|(table, _)| ("the position embedding", table));
        let types = types.as_mut().map(|table| ("the type embedding", table));
        for (name, table) in [("the word embedding", words)].into_iter().chain(positions).chain(types) {
            *table = naming(name, stored_on(table, device))?;
        }
        self.device = device.clone();
        Ok(())
    }

    /// The device that holds the model.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Sizes and options of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Prefix of the model's module names inside a task model, such as `bert.`.
    pub fn prefix(&self) -> &'static str {
        self.family().prefix
    }

    /// Names of the head's modules in a sequence classifier, which PEFT saves whole.
    pub fn head_modules(&self) -> Vec<String> {
        self.family().head.modules()
    }

    pub(crate) fn family(&self) -> &'static Family {
        family::find(&self.config.family).expect("a config names one of the supported families")
    }

    /// The word embedding table, (V, C).
    pub(crate) fn words(&self) -> &Tensor {
        &self.tables.words
    }

    /// All linear modules, in order from the input to the output.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears).chain(&self.pooler)
    }

    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).chain(&mut self.pooler)
    }

    /// Name, block and sizes of all linear modules, in order from the input to the output.
    pub fn linear_infos(&self) -> Vec<LinearInfo> {
        let info = |linear: &Linear, layer, attention| {
            let (c_out, c_in) = (linear.weight.c_out(), linear.weight.c_in());
            LinearInfo { name: linear.name.clone(), layer, attention, c_in, c_out }
        };
        let infos_of_block = |b: &Block| {
            let attention = b.attention.inner.linears().map(|linear| info(linear, Some(b.index), true));
            attention.chain(b.mlp.inner.linears().map(|linear| info(linear, Some(b.index), false))).collect::<Vec<_>>()
        };
        let blocks = self.blocks.iter().flat_map(infos_of_block);
        blocks.chain(self.pooler.iter().map(|p| info(p, None, false))).collect()
    }

    /// Calls `visit(s, state)` with each hidden state (N, C), in order from the input to the output. State s = 0 is the
    /// embeddings. There are L + 1 states, or 2 L + 1 with [`Granularity::Sublayer`]. The last state is taken after the
    /// final norm, if the model has one. Only one state is in memory at a time.
    ///
    /// # Errors
    /// Returns an error if a token id, type or position is outside its table, or `visit` fails.
    pub fn hidden_states(
        &self,
        batch: &Batch,
        granularity: Granularity,
        mut visit: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let mode = Mode::inference();
        let context = self.context(batch, &mode, None)?;
        let mut x = self.embed(batch, &mode)?;
        let mut state = 0;
        visit(state, &x)?;
        for block in &self.blocks {
            let h = block.attention_residual(&x, &context)?;
            if granularity == Granularity::Sublayer {
                state += 1;
                visit(state, &h)?;
            }
            x = block.mlp_residual(&x, &h, &context)?;
            state += 1;
            match &self.last_norm {
                Some(norm) if block.index + 1 == self.blocks.len() => visit(state, &norm.forward(&x, None)?.0)?,
                _ => visit(state, &x)?,
            }
        }
        Ok(())
    }

    /// Collects the values that all blocks need for a batch.
    fn context<'a>(
        &'a self,
        batch: &'a Batch,
        mode: &'a Mode,
        cache: Option<&'a RefCell<KvCache>>,
    ) -> Result<Context<'a>> {
        let sequences = batch.sequences();
        let angles = self.ropes.iter().map(|rope| rope.at(batch.positions(), &self.device)).collect::<Result<_>>()?;
        let bias = self.bias.as_ref().map(|bias| bias.by_distance(sequences.longest(), &self.device)).transpose()?;
        let distances = self.distances.as_ref().map(|distances| distances.within(sequences.longest()));
        Ok(Context { mode, sequences, angles, bias, distances, cache })
    }

    fn embed(&self, batch: &Batch, mode: &Mode) -> Result<Tensor> {
        let max_positions = self.config.max_positions;
        if let Some(longest) = batch.positions().iter().max().map(|p| *p as usize + 1).filter(|n| *n > max_positions) {
            return Err(Error::Value(format!(
                "a sequence has {longest} tokens; the model has {max_positions} positions"
            )));
        }
        let Tables { words, positions, types, scale } = &self.tables;
        let rows: Vec<u32> = match positions {
            Some((_, 0)) => batch.positions().to_vec(),
            Some((_, first)) => rows_without_padding(batch, *first),
            None => Vec::new(),
        };
        let types = types.as_ref().map(|types| (types, batch.types()));
        let positions = positions.as_ref().map(|(table, _)| (table, &rows[..]));
        let all: Vec<_> = [(words, batch.ids())].into_iter().chain(types).chain(positions).collect();
        let mut sum = embedding::forward(&all)?;
        if *scale != 1.0 {
            scale::in_place(*scale, &mut sum)?;
        }
        let dropout = mode.dropout(DropoutSite::Embeddings, 0, self.config.hidden_dropout);
        let normed = match &self.norm {
            Some(norm) => norm.forward(&sum, None)?.0,
            None => sum,
        };
        mode::apply_dropout(dropout, normed)
    }

    /// Returns the last hidden state (N, C) and the values that `backward` needs. Blocks below the lowest block with an
    /// adapter save nothing.
    pub(crate) fn forward(&self, batch: &Batch, mode: &Mode) -> Result<(Tensor, Saved)> {
        self.run(batch, mode, None, self.lowest_adapted())
    }

    /// Returns the last hidden state (N, C) and keeps nothing for a backward pass.
    pub(crate) fn last_state(&self, batch: &Batch) -> Result<Tensor> {
        Ok(self.run(batch, &Mode::inference(), None, None)?.0)
    }

    /// Returns the last hidden state of tokens that follow the tokens in the cache, and adds them to the cache.
    pub(crate) fn forward_cached(&self, batch: &Batch, cache: &RefCell<KvCache>) -> Result<Tensor> {
        Ok(self.run(batch, &Mode::inference(), Some(cache), None)?.0)
    }

    /// Runs all blocks and keeps the values for `backward` of block `lowest` and the blocks above it.
    fn run(
        &self,
        batch: &Batch,
        mode: &Mode,
        cache: Option<&RefCell<KvCache>>,
        lowest: Option<usize>,
    ) -> Result<(Tensor, Saved)> {
        let context = self.context(batch, mode, cache)?;
        let mut x = self.embed(batch, mode)?;
        let mut blocks = Vec::new();
        for block in &self.blocks {
            let (y, saved) = block.forward(&x, &context)?;
            if lowest.is_some_and(|lowest| block.index >= lowest) {
                blocks.push(saved);
            }
            x = y;
        }
        let Some(norm) = &self.last_norm else { return Ok((x, Saved { blocks, last_norm: None })) };
        let (y, saved) = norm.forward(&x, None)?;
        Ok((y, Saved { blocks, last_norm: lowest.map(|_| saved) }))
    }

    /// Adds the adapters' gradients to `grads`, given the gradient of the last hidden state (N, C).
    pub(crate) fn backward(
        &self,
        d_last: Tensor,
        batch: &Batch,
        mode: &Mode,
        saved: Saved,
        grads: &mut Grads,
    ) -> Result<()> {
        let Some(lowest) = self.lowest_adapted() else {
            return Ok(());
        };
        let context = self.context(batch, mode, None)?;
        let mut d = d_last;
        if let Some((norm, saved)) = self.last_norm.as_ref().zip(saved.last_norm) {
            d = norm.backward(&d, saved)?;
        }
        for (block, saved) in self.blocks[lowest..].iter().zip(saved.blocks).rev() {
            match block.backward(&d, &context, saved, grads, block.index > lowest)? {
                Some(dx) => d = dx,
                None => break,
            }
        }
        Ok(())
    }
}

/// Rows of the position table for RoBERTa. The padding token, whose id is `first - 1`, takes row `first - 1` and does
/// not advance the position of the tokens after it.
fn rows_without_padding(batch: &Batch, first: u32) -> Vec<u32> {
    let mut rows = Vec::with_capacity(batch.ids().len());
    for sequence in batch.sequences().ranges() {
        let mut next = first;
        for id in &batch.ids()[sequence] {
            if *id == first - 1 {
                rows.push(first - 1);
            } else {
                rows.push(next);
                next += 1;
            }
        }
    }
    rows
}
