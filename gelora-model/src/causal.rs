use std::collections::BTreeMap;
use std::path::Path;

use gelora_kernels::ops::linear::{self, Weight};
use gelora_kernels::ops::{concat, loss, pool, scale};
use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::{Adapter, AdapterConfig, files};

use crate::config::Json;
use crate::linear::{Grads, stored_on};
use crate::weights::Weights;
use crate::{Batch, Config, Error, Pass, Result, Transformer};

/// Rows whose logits are in memory at once.
const CHUNK: usize = 128;

/// A decoder with its language-model head: what comes next after each token.
///
/// Trained are the adapters alone.
pub struct CausalLm {
    model: Transformer,
    /// (V, C): the word embedding, if they are tied.
    head: Weight,
    tied: bool,
}

/// The head's name in a checkpoint.
const HEAD: &str = "lm_head.weight";

impl CausalLm {
    /// Loads a decoder: a Hugging Face folder or a .gguf file.
    ///
    /// # Errors
    /// If the model cannot be loaded or is an encoder.
    pub fn load(model: &Path) -> Result<Self> {
        let config = Config::load(model)?;
        if !config.causal {
            let problem = format!("is a {}, an encoder; a language model needs a decoder", config.family);
            return Err(Error::file(model, problem));
        }
        let mut weights = Weights::open(model)?;
        let (tied, shape) = (config.tied, [config.vocabulary, config.hidden]);
        let transformer = Transformer::from_weights(config, &mut weights)?;
        let head = if tied { transformer.words().clone() } else { weights.take(HEAD, &shape)? };
        Ok(Self { model: transformer, head: Weight::new(head, DType::F32)?, tied })
    }

    /// The model of an adapter folder.
    ///
    /// # Errors
    /// If the base model cannot be loaded, the adapter names modules that it lacks or trains others whole.
    pub fn with_adapter(model: &Path, adapter: Adapter) -> Result<Self> {
        if let Some(name) = adapter.saved.keys().next() {
            return Err(Error::Value(format!(
                "the adapter has {name}; expected a causal language model's, without a head"
            )));
        }
        let mut lm = Self::load(model)?;
        lm.model.attach_all(&adapter.config, adapter.layers)?;
        Ok(lm)
    }

    /// As [`Transformer::add_adapters`].
    ///
    /// # Errors
    /// As there.
    pub fn add_adapters(&mut self, config: &AdapterConfig, seed: u64) -> Result<usize> {
        self.model.add_adapters(config, seed)
    }

    /// The adapters, as [`Adapter::write`] wants them.
    pub fn adapter(&self, config: AdapterConfig) -> Adapter {
        Adapter { config, layers: self.model.adapters(), saved: Default::default() }
    }

    /// The model under the head.
    pub fn transformer(&self) -> &Transformer {
        &self.model
    }

    /// Every trained parameter by its name, in a fixed order.
    pub fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        self.model.adapter_parameters_mut()
    }

    /// As [`Transformer::compute_in`], with the head.
    ///
    /// # Errors
    /// If the type is neither f32 nor bf16.
    pub fn compute_in(&mut self, dtype: DType) -> Result<()> {
        self.head = Weight::new(self.head.tensor().clone(), dtype)?;
        self.model.compute_in(dtype)
    }

    /// As [`Transformer::move_to`], with the head.
    ///
    /// # Errors
    /// As there.
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.model.move_to(device)?;
        let head = if self.tied { self.model.words().clone() } else { stored_on(self.head.tensor(), device)? };
        self.head = Weight::new(head, self.head.compute())?;
        Ok(())
    }

    /// Logits (number of rows, V) of some rows of a batch: what comes after each of these tokens.
    ///
    /// # Errors
    /// If a token or row is outside of its range.
    pub fn logits(&self, batch: &Batch, rows: &[usize]) -> Result<Tensor> {
        let last = self.model.last_state(batch)?;
        self.logits_of(&pool::rows(&last, rows)?)
    }

    pub(crate) fn logits_of(&self, last: &Tensor) -> Result<Tensor> {
        Ok(linear::forward(last, &self.head, None)?)
    }

    /// The loss of each batch's targets, summed, and their number. `targets` says of each token whether it is to be predicted
    /// from those before it; the first of a sequence never is.
    ///
    /// # Errors
    /// If there are no targets or their number is not that of the tokens.
    pub fn loss(&self, batch: &Batch, targets: &[bool]) -> Result<(f64, usize)> {
        let last = self.model.last_state(batch)?;
        let (rows, labels) = predicted(batch, targets)?;
        let (mut sum, head) = (0.0, self.head.kept());
        for (rows, labels) in rows.chunks(CHUNK).zip(labels.chunks(CHUNK)) {
            let logits = linear::forward(&pool::rows(&last, rows)?, &head, None)?;
            sum += f64::from(loss::cross_entropy(&logits, labels)?.0.item()?) * rows.len() as f64;
        }
        Ok((sum, rows.len()))
    }

    /// The mean loss over a batch's targets (see [`CausalLm::loss`]), as one value on the model's device; its gradients times
    /// `weight` are added to `grads`. Logits exist for 128 tokens at a time.
    ///
    /// # Errors
    /// As [`CausalLm::loss`].
    pub fn backward(
        &self,
        batch: &Batch,
        targets: &[bool],
        pass: &Pass,
        weight: f32,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let (rows, labels) = predicted(batch, targets)?;
        let (last, saved) = self.model.forward(batch, pass)?;
        let (n, head) = (last.rows(), self.head.kept());
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for (chunk, labels) in rows.chunks(CHUNK).zip(labels.chunks(CHUNK)) {
            let share = chunk.len() as f32 / rows.len() as f32;
            let logits = linear::forward(&pool::rows(&last, chunk)?, &head, None)?;
            let (mut loss, d_logits) = loss::cross_entropy(&logits, labels)?;
            drop(logits);
            let mut d = linear::backward_input(&d_logits, &head)?;
            scale::in_place(share * weight, &mut d)?;
            gradients.push(d);
            scale::in_place(share, &mut loss)?;
            losses.push(loss.reshape([1, 1])?);
        }
        drop((last, head));
        let d = concat::rows(&gradients.iter().collect::<Vec<_>>())?;
        drop(gradients);
        self.model.backward(pool::rows_backward(&d, &rows, n)?, batch, pass, saved, grads)?;
        let losses = concat::rows(&losses.iter().collect::<Vec<_>>())?;
        let sequences = gelora_kernels::Offsets::from_lengths(&[losses.rows()])?;
        let mut sum = pool::mean(&losses, &sequences)?;
        scale::in_place(losses.rows() as f32, &mut sum)?;
        Ok(sum.reshape([1])?)
    }

    /// Every tensor of the language model by its name in a checkpoint, adapters merged.
    pub(crate) fn merged_tensors(&self, model: &Path) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = self.model.merged(model)?;
        if !self.tied {
            tensors.insert(HEAD.into(), self.head.tensor().clone());
        }
        Ok(tensors)
    }

    /// Writes the model with its adapters merged into the weights, as a language model that transformers loads. `model` is what
    /// this was loaded from.
    ///
    /// # Errors
    /// If the base files cannot be read again or the new ones not be written.
    pub fn write_merged(&self, model: &Path, out: &Path) -> Result<()> {
        let tensors = self.merged_tensors(model)?;
        let mut config = Json::load(model)?.map;
        config.insert("architectures".into(), serde_json::json!([self.model.family().classes[1]]));
        let config = serde_json::to_vec_pretty(&serde_json::Value::Object(config))
            .map_err(|e| Error::file(&out.join("config.json"), e.to_string()))?;
        files::write_tensors(&out.join("model.safetensors"), tensors.iter().map(|(name, t)| (name.clone(), t)))?;
        files::write_atomic(&out.join("config.json"), &config)?;
        Ok(())
    }
}

/// The rows before the targets, and what follows them.
fn predicted(batch: &Batch, targets: &[bool]) -> Result<(Vec<usize>, Vec<usize>)> {
    let ids = batch.ids();
    if targets.len() != ids.len() {
        return Err(Error::Value(format!("{} tokens need as many targets, got {}", ids.len(), targets.len())));
    }
    let followed = batch.sequences().ranges().flat_map(|rows| rows.start + 1..rows.end).filter(|i| targets[*i]);
    let (rows, labels): (Vec<_>, Vec<_>) = followed.map(|i| (i - 1, ids[i] as usize)).unzip();
    if rows.is_empty() {
        return Err(Error::Value("a batch has no token to predict; the first of a sequence is not predicted".into()));
    }
    Ok((rows, labels))
}
