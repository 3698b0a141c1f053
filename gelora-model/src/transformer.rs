use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gelora_kernels::ops::{embedding, scale};
use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::{Adapter, AdapterConfig, LoraLayer};
use serde::{Deserialize, Serialize};

use crate::block::{Block, Saved as BlockSaved};
use crate::family::{self, Family, Tables};
use crate::kv_cache::KvCache;
use crate::linear::{Grads, Linear, stored_on};
use crate::norm::{Norm, Saved as NormSaved};
use crate::pass::{self, Pass, Site};
use crate::position::{RelativeBias, RelativeEmbedding, Rope};
use crate::sublayer::Context;
use crate::weights::Weights;
use crate::{Batch, Config, Error, Result, adapter};

/// A transformer without a task head: embeddings and L blocks, so L + 1 hidden states.
pub struct Transformer {
    config: Config,
    /// The folder or file that the base weights were loaded from.
    source: PathBuf,
    /// What the model is called in files and messages.
    name: String,
    /// Type that products with frozen weights are computed in.
    dtype: DType,
    device: Device,
    /// Tensors that an adapter has trained whole, by their names inside a task model, the head's left out.
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

/// Where hidden states are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// Before the first block and after each.
    #[default]
    Block,
    /// Also between the two halves of each block: after attention, before the MLP.
    Sublayer,
}

impl Granularity {
    /// The name in ranks.json and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Granularity::Block => "block",
            Granularity::Sublayer => "sublayer",
        }
    }

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

/// What [`Transformer::backward`] needs.
pub(crate) struct Saved {
    /// The lowest block with an adapter and all above it.
    blocks: Vec<BlockSaved>,
    last_norm: Option<NormSaved>,
}

impl Transformer {
    /// Loads a Hugging Face folder (config.json and model.safetensors or pytorch_model.bin, single or sharded) or a
    /// .gguf file.
    ///
    /// # Errors
    /// If a file is missing or damaged, the family is not supported, or a tensor is missing or of the wrong shape.
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

    /// The model of an adapter without the task head: base weights, what the adapter saves whole, and its adapters.
    ///
    /// # Errors
    /// If the base model cannot be loaded, the adapter names modules that it lacks, or sizes differ.
    pub fn with_adapter(model: &Path, adapter: Adapter) -> Result<Self> {
        let (transformer, weights) = Self::adapted(model, adapter)?;
        weights.all_saved_taken("a model without a task head")?;
        Ok(transformer)
    }

    /// As [`Transformer::with_adapter`], with the tensors that are left for a head.
    pub(crate) fn adapted(model: &Path, adapter: Adapter) -> Result<(Self, Weights)> {
        let config = Config::load(model)?;
        let family = family::find(&config.family).map_or("", |family| family.prefix);
        let (adapter, is_bare) = adapter::of_task_model(adapter, family);
        let mut weights = Weights::open(model)?.with_saved(adapter.saved.clone());
        let mut transformer = Self::from_weights(config, &mut weights)?;
        transformer.saved = adapter.saved.into_iter().filter(|(name, _)| !weights.awaits(name)).collect();
        transformer.attach_all(&adapter.config, adapter.layers, is_bare)?;
        Ok((transformer, weights))
    }

    /// Computes the products with frozen weights in f32 (the default) or bf16 from now on: bf16 rounds their factors, and sums
    /// stay in f32 (see [`gelora_kernels::ops::linear::Weight`]).
    ///
    /// # Errors
    /// If the type is neither.
    pub fn compute_in(&mut self, dtype: DType) -> Result<()> {
        self.linears_mut().try_for_each(|linear| linear.compute_in(dtype))?;
        self.dtype = dtype;
        Ok(())
    }

    /// Type that products with frozen weights are computed in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The folder or file that the base weights were loaded from.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// What the model is called in files and messages: the path that it was loaded from, unless [`Transformer::set_name`] gave
    /// it another name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives the model another name for files and messages, such as its id on a hub.
    pub fn set_name(&mut self, name: impl Into<String>) {
        self.name = name.into();
    }

    /// Moves all weights and adapters to a device, where everything runs from now on. Weights of a type that the device lacks
    /// become f32.
    ///
    /// # Errors
    /// If the device fails or its memory does not suffice.
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.linears_mut().try_for_each(|linear| linear.move_to(device))?;
        let of_blocks = self.blocks.iter_mut().flat_map(Block::norms_mut);
        of_blocks.chain(&mut self.norm).chain(&mut self.last_norm).try_for_each(|norm| norm.move_to(device))?;
        self.blocks.iter_mut().filter_map(|block| block.convolution.as_mut()).try_for_each(|c| c.move_to(device))?;
        if let Some(distances) = &mut self.distances {
            distances.table = distances.table.to_device(device)?;
        }
        let Tables { words, positions, types, .. } = &mut self.tables;
        for table in [words].into_iter().chain(positions.as_mut().map(|(table, _)| table)).chain(types) {
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

    /// What the model's module names begin with inside a task model, such as `bert.`.
    pub fn prefix(&self) -> &'static str {
        self.family().prefix
    }

    /// The head's modules inside a sequence classifier, which PEFT saves whole.
    pub fn head_modules(&self) -> Vec<String> {
        self.family().head.modules()
    }

    pub(crate) fn family(&self) -> &'static Family {
        family::find(&self.config.family).expect("the config came of a family")
    }

    /// The word embedding, (V, C).
    pub(crate) fn words(&self) -> &Tensor {
        &self.tables.words
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
            let attention = b.attention.inner.linears().map(|linear| info(linear, Some(b.index), true));
            attention.chain(b.mlp.inner.linears().map(|linear| info(linear, Some(b.index), false))).collect::<Vec<_>>()
        };
        let blocks = self.blocks.iter().flat_map(of_block);
        blocks.chain(self.pooler.iter().map(|p| info(p, None, false))).collect()
    }

    /// Calls `visit(s, state)` with each hidden state (N, C) from the input up, s = 0 being the embeddings: L + 1 of them, or
    /// 2 L + 1 where the halves of a block count. The last one is that after the last norm, where a model has one. Only one
    /// state is in memory at a time.
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
        let context = self.context(batch, &pass, None)?;
        let mut x = self.embed(batch, &pass)?;
        let mut seen = 0;
        visit(seen, &x)?;
        for block in &self.blocks {
            let h = block.attention_half(&x, &context)?;
            if granularity == Granularity::Sublayer {
                seen += 1;
                visit(seen, &h)?;
            }
            x = block.mlp_half(&x, &h, &context)?;
            seen += 1;
            match &self.last_norm {
                Some(norm) if block.index + 1 == self.blocks.len() => visit(seen, &norm.forward(&x, None)?.0)?,
                _ => visit(seen, &x)?,
            }
        }
        Ok(())
    }

    /// What the blocks need to know of a batch.
    fn context<'a>(
        &'a self,
        batch: &'a Batch,
        pass: &'a Pass,
        cache: Option<&'a RefCell<KvCache>>,
    ) -> Result<Context<'a>> {
        let sequences = batch.sequences();
        let angles = self.ropes.iter().map(|rope| rope.at(batch.positions(), &self.device)).collect::<Result<_>>()?;
        let bias = self.bias.as_ref().map(|bias| bias.by_distance(sequences.longest(), &self.device)).transpose()?;
        let distances = self.distances.as_ref().map(|distances| distances.within(sequences.longest()));
        Ok(Context { pass, sequences, angles, bias, distances, cache })
    }

    fn embed(&self, batch: &Batch, pass: &Pass) -> Result<Tensor> {
        let most = self.config.max_positions;
        if let Some(longest) = batch.positions().iter().max().map(|p| *p as usize + 1).filter(|n| *n > most) {
            return Err(Error::Value(format!("a sequence has {longest} tokens; the model has {most} positions")));
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
        let dropout = pass.dropout(Site::Embeddings, 0, self.config.hidden_dropout);
        let normed = match &self.norm {
            Some(norm) => norm.forward(&sum, None)?.0,
            None => sum,
        };
        pass::apply(dropout, normed)
    }

    /// The last hidden state (N, C), and what backward needs: nothing of blocks below the lowest one with an adapter.
    pub(crate) fn forward(&self, batch: &Batch, pass: &Pass) -> Result<(Tensor, Saved)> {
        self.run(batch, pass, None, self.lowest_adapted())
    }

    /// The last hidden state (N, C) where there will be no backward: nothing is kept of the blocks on the way.
    pub(crate) fn last_state(&self, batch: &Batch) -> Result<Tensor> {
        Ok(self.run(batch, &Pass::inference(), None, None)?.0)
    }

    /// The last hidden state of tokens that follow those in the cache, which takes them in.
    pub(crate) fn forward_cached(&self, batch: &Batch, cache: &RefCell<KvCache>) -> Result<Tensor> {
        Ok(self.run(batch, &Pass::inference(), Some(cache), None)?.0)
    }

    /// Keeps what backward needs of the blocks from `lowest` on.
    fn run(
        &self,
        batch: &Batch,
        pass: &Pass,
        cache: Option<&RefCell<KvCache>>,
        lowest: Option<usize>,
    ) -> Result<(Tensor, Saved)> {
        let context = self.context(batch, pass, cache)?;
        let mut x = self.embed(batch, pass)?;
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

    /// The adapters' gradients, from the gradient of the last hidden state (N, C).
    pub(crate) fn backward(
        &self,
        d_last: Tensor,
        batch: &Batch,
        pass: &Pass,
        saved: Saved,
        grads: &mut Grads,
    ) -> Result<()> {
        let Some(lowest) = self.lowest_adapted() else {
            return Ok(());
        };
        let context = self.context(batch, pass, None)?;
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

    pub(crate) fn lowest_adapted(&self) -> Option<usize> {
        self.blocks.iter().position(|b| b.linears().any(|linear| linear.lora.is_some()))
    }

    /// Puts fresh adapters on every module that the config targets, and returns how many parameters they have.
    ///
    /// # Errors
    /// If no module is targeted or a rank is above min(C_in, C_out).
    pub fn add_adapters(&mut self, config: &AdapterConfig, seed: u64) -> Result<usize> {
        let mut layers = BTreeMap::new();
        let matcher = config.matcher()?;
        for info in self.linear_infos() {
            if let Some(module) = matcher.module(&info.name)? {
                layers.insert(info.name.clone(), LoraLayer::new(&info.name, info.c_in, info.c_out, &module, seed)?);
            }
        }
        if layers.is_empty() {
            return Err(Error::Value("the adapter config targets no linear module of this model".into()));
        }
        let parameters = layers.values().map(LoraLayer::parameters).sum();
        self.attach(layers)?;
        Ok(parameters)
    }

    /// Puts these adapters on the modules that they are named for.
    ///
    /// # Errors
    /// If a module is not there or of other sizes.
    pub(crate) fn attach(&mut self, mut layers: BTreeMap<String, LoraLayer>) -> Result<()> {
        let device = self.device.clone();
        for linear in self.linears_mut() {
            let Some(mut layer) = layers.remove(&linear.name) else {
                continue;
            };
            let (c_out, c_in) = (linear.weight.c_out(), linear.weight.c_in());
            if layer.a.cols() != c_in || layer.b.rows() != c_out {
                let (a, b, name) = (layer.a.shape(), layer.b.shape(), &linear.name);
                return Err(Error::Value(format!("{name} is {c_in} -> {c_out}; the adapter has A {a:?} and B {b:?}")));
            }
            layer.move_to(&device)?;
            linear.lora = Some(layer);
        }
        match layers.keys().next() {
            Some(name) => Err(Error::Value(format!(
                "the adapter is for a module {name} that the model does not have among those that can carry one (linear modules \
                 of its blocks, and a pooler)"
            ))),
            None => Ok(()),
        }
    }

    /// Takes the adapters of a PEFT folder, which must have one for every module that its config targets.
    fn attach_all(&mut self, config: &AdapterConfig, layers: BTreeMap<String, LoraLayer>, is_bare: bool) -> Result<()> {
        let (matcher, prefix) = (config.matcher()?, self.prefix());
        for linear in self.linears() {
            let bare = linear.name.strip_prefix(prefix).unwrap_or(&linear.name);
            // The config's patterns are of the names that the adapter was made with.
            let targeted = matcher.module(if is_bare { bare } else { &linear.name })?.is_some();
            if targeted && !layers.contains_key(&linear.name) {
                let name = &linear.name;
                return Err(Error::Value(format!(
                    "the adapter's config targets {name}, but its file has no weights for it"
                )));
            }
        }
        self.attach(layers)
    }

    /// The adapters by the names of their modules.
    pub(crate) fn adapters(&self) -> BTreeMap<String, LoraLayer> {
        self.linears().filter_map(|linear| Some((linear.name.clone(), linear.lora.clone()?))).collect()
    }

    /// A and B of every adapter by their names, in a fixed order.
    pub(crate) fn adapter_parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut all = Vec::new();
        for linear in self.linears_mut() {
            if let Some(layer) = &mut linear.lora {
                all.push((format!("{}.lora_A.weight", linear.name), &mut layer.a));
                all.push((format!("{}.lora_B.weight", linear.name), &mut layer.b));
            }
        }
        all
    }

    /// Tensors that an adapter has trained whole, the head's left out.
    pub(crate) fn saved(&self) -> &BTreeMap<String, Tensor> {
        &self.saved
    }

    /// Notes a tensor beside the transformer's own that an adapter has trained whole.
    pub(crate) fn keep_saved(&mut self, name: &str, tensor: Tensor) {
        self.saved.insert(name.to_owned(), tensor);
    }
}

/// Rows of the position table where the padding token, `first - 1`, has its own row and is not counted (RoBERTa), should a text
/// have it.
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
