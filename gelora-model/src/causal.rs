use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use gelora_kernels::ops::linear::{self, Weight};
use gelora_kernels::ops::{concat, loss, pool, scale};
use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::{Adapter, AdapterConfig};

use crate::linear::{Grads, naming, weight_on};
use crate::merged::Merged;
use crate::weights::Weights;
use crate::{Batch, Config, Error, Mode, Result, Transformer};

/// Number of rows whose logits are in memory at once.
const CHUNK: usize = 128;

/// A decoder with its language-model head, which predicts the token after each token.
///
/// Training updates the adapters alone.
pub struct CausalLm {
    model: Transformer,
    /// Weight of the head, (V, C). If the head is tied, this is the word embedding.
    head: Weight,
    tied: bool,
    remarks: Vec<String>,
}

/// Name of the head in a checkpoint.
const HEAD: &str = "lm_head.weight";

/// Names of the word embedding in decoders.
const WORDS: [&str; 2] = ["embed_tokens.weight", "wte.weight"];

impl fmt::Debug for CausalLm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CausalLm").field("model", &self.model).field("tied", &self.tied).finish_non_exhaustive()
    }
}

impl CausalLm {
    /// Loads a decoder from a Hugging Face folder or a .gguf file.
    ///
    /// # Errors
    /// Returns an error if the model cannot be loaded or is an encoder.
    pub fn load(model: &Path) -> Result<Self> {
        let config = Config::load(model)?;
        check_decoder(&config, model)?;
        let mut weights = Weights::open(model)?;
        let transformer = Transformer::from_weights(config, &mut weights)?;
        Self::assemble(transformer, weights)
    }

    /// Makes a decoder of which only config.json is needed, with weights of the type `stored`. All weights are zero and
    /// take no memory, until they are read or moved to a device. See [`crate::plan`].
    ///
    /// # Errors
    /// Returns an error if config.json cannot be read, the model is an encoder, or rows of a weight are not whole
    /// blocks of `stored`.
    pub fn planned(model: &Path, stored: DType) -> Result<Self> {
        let config = Config::load(model)?;
        check_decoder(&config, model)?;
        let mut weights = Weights::planned(model, stored);
        let transformer = Transformer::from_weights(config, &mut weights)?;
        Self::assemble(transformer, weights)
    }

    /// Loads the base model with an adapter folder: its LoRA layers and the tensors that it saves whole.
    ///
    /// # Errors
    /// Returns an error if the base model cannot be loaded or is an encoder, the adapter names modules that the model
    /// lacks, or sizes differ.
    pub fn with_adapter(model: &Path, adapter: Adapter) -> Result<Self> {
        check_decoder(&Config::load(model)?, model)?;
        let (transformer, weights) = Transformer::adapted(model, adapter)?;
        Self::assemble(transformer, weights)
    }

    /// Puts a head on the transformer: the head of the adapter, or else the head of the checkpoint. A tied head is the
    /// word embedding. If the adapter trained another word embedding, the head is the base model's, because PEFT leaves
    /// the head unchanged. If the checkpoint stores a head whose values differ from the word embedding, the head is not
    /// tied, whatever config.json says, as in transformers 5.
    fn assemble(mut transformer: Transformer, mut weights: Weights) -> Result<Self> {
        let config = transformer.config();
        let (tied, shape) = (config.tied, [config.vocabulary, config.hidden]);
        let mut remarks = Vec::new();
        let trained = weights.take_saved(HEAD, &shape)?;
        let words = WORDS.iter().find_map(|name| weights.replaced(name)).cloned();
        let stored = if tied && !weights.stores(HEAD) { None } else { Some(weights.take(HEAD, &shape)?) };
        weights.all_saved_taken("a language model")?;
        let untied = match (trained, stored) {
            (Some(trained), _) => {
                transformer.keep_saved(HEAD, trained.clone());
                Some(trained)
            }
            (None, Some(stored)) if !tied => Some(stored),
            (None, stored) => {
                let words_of_base = words.as_ref().unwrap_or(transformer.words());
                let other = stored.filter(|stored| !same_values(stored, words_of_base));
                if other.is_some() {
                    remarks.push(format!(
                        "config.json says tie_word_embeddings, but {HEAD} has other values than the word embedding; \
                         they are used as they are, as in transformers 5"
                    ));
                }
                other.or(words)
            }
        };
        let tied = untied.is_none();
        let head = untied.unwrap_or_else(|| transformer.words().clone());
        Ok(Self { model: transformer, head: Weight::new(head, DType::F32)?, tied, remarks })
    }

    /// Remarks for the user about how the model was loaded.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Adds new adapters, as [`Transformer::add_adapters`] does.
    ///
    /// # Errors
    /// Returns the errors of [`Transformer::add_adapters`].
    pub fn add_adapters(&mut self, config: &AdapterConfig, seed: u64) -> Result<usize> {
        self.model.add_adapters(config, seed)
    }

    /// The adapters, and other tensors that an adapter trained whole, in the form that [`Adapter::write`] takes.
    pub fn adapter(&self, config: AdapterConfig) -> Adapter {
        Adapter { config, layers: self.model.adapters(), saved: self.model.saved().clone() }
    }

    /// The transformer below the head.
    pub fn transformer(&self) -> &Transformer {
        &self.model
    }

    pub(crate) fn transformer_mut(&mut self) -> &mut Transformer {
        &mut self.model
    }

    /// Sets the model's name, as [`Transformer::set_name`] does.
    pub fn set_name(&mut self, name: impl Into<String>) {
        self.model.set_name(name);
    }

    pub(crate) fn set_dropout(&mut self, dropout: f32) {
        self.model.set_dropout(dropout);
    }

    /// All trained parameters with their names, in a fixed order.
    pub fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        self.model.adapter_parameters_mut()
    }

    /// Sets the type of products with frozen weights, as [`Transformer::compute_in`] does, the head included.
    ///
    /// # Errors
    /// Returns an error if `dtype` is neither f32 nor bf16.
    pub fn compute_in(&mut self, dtype: DType) -> Result<()> {
        self.head = Weight::new(self.head.tensor().clone(), dtype)?;
        self.model.compute_in(dtype)
    }

    /// Moves the transformer and the head to a device, as [`Transformer::move_to`] does.
    ///
    /// # Errors
    /// Returns the errors of [`Transformer::move_to`].
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.model.move_to(device)?;
        let head = if self.tied { self.model.words().clone() } else { naming(HEAD, weight_on(&self.head, device))? };
        self.head = Weight::new(head, self.head.compute())?;
        Ok(())
    }

    /// Computes the logits (number of rows, V) of some rows of a batch. They predict the token after each of these
    /// rows.
    ///
    /// # Errors
    /// Returns an error if a token id or a row is out of range.
    pub fn logits(&self, batch: &Batch, rows: &[usize]) -> Result<Tensor> {
        let last = self.model.last_state(batch)?;
        self.logits_of(&pool::rows(&last, rows)?)
    }

    pub(crate) fn logits_of(&self, last: &Tensor) -> Result<Tensor> {
        Ok(linear::forward(last, &self.head, None)?)
    }

    /// Returns the sum of the losses of all targets in a batch, and the number of targets. `targets` has one entry for
    /// each token: whether it is predicted from the tokens before it. The first token of a sequence is never predicted.
    ///
    /// # Errors
    /// Returns an error if there are no targets or their number differs from the number of tokens.
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

    /// Computes the mean loss over the targets of a batch (see [`CausalLm::loss`]) and adds its gradients, multiplied
    /// by `weight`, to `grads`. The loss is one value on the model's device. Logits are in memory for 128 tokens at a
    /// time.
    ///
    /// # Errors
    /// Returns the errors of [`CausalLm::loss`].
    pub fn backward(
        &self,
        batch: &Batch,
        targets: &[bool],
        mode: &Mode,
        weight: f32,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let (rows, labels) = predicted(batch, targets)?;
        let (last, saved) = self.model.forward(batch, mode)?;
        let (n, head) = (last.rows(), self.head.kept());
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for (chunk, labels) in rows.chunks(CHUNK).zip(labels.chunks(CHUNK)) {
            // Loss and gradient of each chunk, weighted by its share of the targets.
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
        self.model.backward(pool::rows_backward(&d, &rows, n)?, batch, mode, saved, grads)?;
        // The mean loss is the sum of the weighted losses: their mean times their number.
        let losses = concat::rows(&losses.iter().collect::<Vec<_>>())?;
        let sequences = gelora_kernels::Offsets::from_lengths(&[losses.rows()])?;
        let mut sum = pool::mean(&losses, &sequences)?;
        scale::in_place(losses.rows() as f32, &mut sum)?;
        Ok(sum.reshape([1])?)
    }

    /// Returns the language model with its adapters merged into the weights.
    pub(crate) fn merged(&self, model: &Path, dtype: Option<DType>) -> Result<Merged> {
        let mut merged = Merged::of(&self.model, model, dtype)?;
        if !self.tied {
            merged.insert(HEAD.into(), self.head.tensor().clone());
            merged.config.insert("tie_word_embeddings".into(), false.into());
        }
        Ok(merged)
    }

    /// Returns every tensor of the language model by its name in a checkpoint, with adapters merged.
    pub(crate) fn merged_tensors(&self, model: &Path) -> Result<BTreeMap<String, Tensor>> {
        Ok(self.merged(model, None)?.into_tensors())
    }

    /// Merges the adapters into the weights and writes the result as a language model that transformers loads. `model`
    /// is the folder or file that this model was loaded from. Returns remarks for the user.
    ///
    /// # Errors
    /// Returns an error if the base files cannot be read again or the new files cannot be written.
    pub fn write_merged(&self, model: &Path, out: &Path) -> Result<Vec<String>> {
        self.write_merged_as(model, out, None)
    }

    /// [`write_merged`](Self::write_merged) with all tensors in `dtype`: f32, f16 or bf16; None keeps the types of the
    /// base model.
    ///
    /// # Errors
    /// Returns the errors of [`write_merged`](Self::write_merged), and an error if a value is too large for `dtype`.
    pub fn write_merged_as(&self, model: &Path, out: &Path, dtype: Option<DType>) -> Result<Vec<String>> {
        let mut merged = self.merged(model, dtype)?;
        merged.config.insert("architectures".into(), serde_json::json!([self.model.family().classes[1]]));
        merged.write(out, dtype)
    }
}

fn check_decoder(config: &Config, model: &Path) -> Result<()> {
    if config.causal {
        return Ok(());
    }
    let problem = format!("is a {}, an encoder; a language model needs a decoder", config.family);
    Err(Error::file(model, problem))
}

/// Whether two tensors have the same values. Two NaN count as the same value.
fn same_values(a: &Tensor, b: &Tensor) -> bool {
    if a.dtype() == b.dtype() {
        return matches!((a.bytes(), b.bytes()), (Ok(a), Ok(b)) if a == b);
    }
    matches!((a.to_f32(), b.to_f32()), (Ok(a), Ok(b)) if a == b)
}

/// Rows of the tokens before the targets, and the target ids.
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
