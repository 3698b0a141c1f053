use std::collections::BTreeMap;
use std::path::Path;

use gelora_kernels::ops::activation::{self, Activation};
use gelora_kernels::ops::linear::{self, Weight};
use gelora_kernels::ops::{loss, pool, scale};
use gelora_kernels::random::Stream;
use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::merge::merge;
use gelora_lora::{Adapter, AdapterConfig, LoraLayer, files};
use serde_json::{Map, Value, json};

use crate::config::Json;

use crate::linear::{Grads, Saved as LinearSaved, accumulate};
use crate::pass::{self, Pass, Site};
use crate::weights::{Weights, read_folder};
use crate::{Batch, Config, Encoder, Error, Result};

/// What the head predicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// One of the named classes, by cross entropy.
    Classification {
        /// Names of the classes; logit i is that of class i.
        labels: Vec<String>,
    },
    /// One number, by squared error.
    Regression,
}

impl Task {
    /// Outputs of the head.
    pub fn outputs(&self) -> usize {
        match self {
            Task::Classification { labels } => labels.len(),
            Task::Regression => 1,
        }
    }
}

/// What a batch should give.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// A class for each sequence.
    Classes(&'a [usize]),
    /// A number for each sequence.
    Scores(&'a [f32]),
}

/// An encoder with a head on the first token: logits = classifier(drop(tanh(pooler(h_first)))).
///
/// Trained are the head's weight and bias, and the adapters.
pub struct Classifier {
    encoder: Encoder,
    task: Task,
    /// `classifier.weight` (K, C).
    weight: Tensor,
    /// `classifier.bias` (K).
    bias: Tensor,
}

/// The head's names, as transformers and PEFT write them.
const WEIGHT: &str = "classifier.weight";
const BIAS: &str = "classifier.bias";

struct HeadSaved {
    first: Vec<usize>,
    pooler: LinearSaved,
    pooled: Tensor,
    dropout: Option<gelora_kernels::ops::dropout::Dropout>,
    features: Tensor,
}

impl Classifier {
    /// An encoder with a fresh head: weights normal with standard deviation 0.02 from the seed, biases zero, as transformers
    /// initialises them.
    ///
    /// # Errors
    /// If the model cannot be loaded, it has no pooler, or there are fewer than two classes.
    pub fn new(model: &Path, task: Task, seed: u64) -> Result<Self> {
        if let Task::Classification { labels } = &task
            && labels.len() < 2
        {
            return Err(Error::Value(format!("classification needs at least two classes, got {labels:?}")));
        }
        let encoder = Encoder::load(model)?;
        let (k, c) = (task.outputs(), encoder.config().hidden);
        let mut stream = Stream::at(seed, &[0x6865_6164]); // "head"
        let weight = Tensor::from_vec((0..k * c).map(|_| (0.02 * stream.normal()) as f32).collect(), [k, c])?;
        let bias = Tensor::from_vec(vec![0.0; k], [k])?;
        Self::assemble(model, encoder, task, weight, bias)
    }

    /// A checkpoint with the head in it (a merged model, or any sequence classifier). Without `labels` the classes have the
    /// names of its config.json.
    ///
    /// # Errors
    /// If the model cannot be loaded or has no pooler or head.
    pub fn load(model: &Path, labels: Option<Vec<String>>) -> Result<Self> {
        let config = Config::load(model)?;
        let mut weights = Weights::open(model)?;
        let head = (weights.take_any(WEIGHT), weights.take_any(BIAS));
        let (Some(weight), Some(bias)) = head else {
            let problem = format!("no task head ({WEIGHT}, {BIAS}); give an adapter that has one, or a merged model");
            return Err(Error::file(model, problem));
        };
        let labels = labels.unwrap_or_else(|| config.labels.clone());
        let encoder = Encoder::from_weights(config, &mut weights)?;
        let task = task_of(weight.rows(), labels);
        Self::assemble(model, encoder, task, weight, bias)
    }

    /// The model of an adapter folder: base weights, adapters and head. Names of the classes are not in PEFT's files; without
    /// `labels` they are the base model's if their number fits, else 0, 1, ...
    ///
    /// # Errors
    /// If the base model cannot be loaded, the adapter names modules that it lacks, or sizes differ.
    pub fn with_adapter(model: &Path, adapter: Adapter, labels: Option<Vec<String>>) -> Result<Self> {
        let encoder = Encoder::load(model)?;
        let part = |name: &str| {
            let missing =
                || Error::Value(format!("the adapter has no {name}; expected a sequence classification adapter"));
            Ok::<_, Error>(adapter.saved.get(name).ok_or_else(missing)?.clone())
        };
        let (weight, bias) = (part(WEIGHT)?, part(BIAS)?);
        let known = labels.unwrap_or_else(|| encoder.config().labels.clone());
        let task = task_of(weight.rows(), known);
        let matcher = adapter.config.matcher()?;
        for linear in encoder.linears() {
            if matcher.module(&linear.name)?.is_some() && !adapter.layers.contains_key(&linear.name) {
                let name = &linear.name;
                return Err(Error::Value(format!(
                    "the adapter's config targets {name}, but its file has no weights for it"
                )));
            }
        }
        let mut classifier = Self::assemble(model, encoder, task, weight, bias)?;
        classifier.attach(adapter.layers)?;
        Ok(classifier)
    }

    fn assemble(model: &Path, encoder: Encoder, task: Task, weight: Tensor, bias: Tensor) -> Result<Self> {
        let (k, c) = (task.outputs(), encoder.config().hidden);
        if weight.shape() != [k, c] || bias.shape() != [k] {
            let (w, b) = (weight.shape(), bias.shape());
            return Err(Error::file(model, format!("the head must be [{k}, {c}] and [{k}], got {w:?} and {b:?}")));
        }
        if encoder.pooler.is_none() {
            let problem = "tensor pooler.dense.weight is missing; a classification head needs a pooler";
            return Err(Error::file(model, problem));
        }
        Ok(Self { encoder, task, weight: weight.to_dtype(DType::F32)?, bias: bias.to_dtype(DType::F32)? })
    }

    /// Puts fresh adapters on every module that the config targets, and returns how many parameters they have.
    ///
    /// # Errors
    /// If no module is targeted or a rank is above min(C_in, C_out).
    pub fn add_adapters(&mut self, config: &AdapterConfig, seed: u64) -> Result<usize> {
        let mut layers = BTreeMap::new();
        let matcher = config.matcher()?;
        for info in self.encoder.linear_infos() {
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

    fn attach(&mut self, mut layers: BTreeMap<String, LoraLayer>) -> Result<()> {
        let device = self.encoder.device().clone();
        for linear in self.encoder.linears_mut() {
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
            Some(name) => Err(Error::Value(format!("the adapter is for a module {name} that the model does not have"))),
            None => Ok(()),
        }
    }

    /// The adapters and the head, as [`Adapter::write`] wants them.
    pub fn adapter(&self, config: AdapterConfig) -> Adapter {
        let layers = self.encoder.linears().filter_map(|linear| Some((linear.name.clone(), linear.lora.clone()?)));
        let saved = [(WEIGHT.to_string(), self.weight.clone()), (BIAS.to_string(), self.bias.clone())];
        Adapter { config, layers: layers.collect(), saved: saved.into() }
    }

    /// The encoder.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// What the head predicts.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Every trained parameter by its name, in a fixed order.
    pub fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut all = Vec::new();
        for linear in self.encoder.linears_mut() {
            if let Some(layer) = &mut linear.lora {
                all.push((format!("{}.lora_A.weight", linear.name), &mut layer.a));
                all.push((format!("{}.lora_B.weight", linear.name), &mut layer.b));
            }
        }
        all.push((WEIGHT.into(), &mut self.weight));
        all.push((BIAS.into(), &mut self.bias));
        all
    }

    /// Logits (B, K); a regression's score is the one logit.
    ///
    /// # Errors
    /// If a token is outside the model's tables.
    pub fn logits(&self, batch: &Batch) -> Result<Tensor> {
        let pass = Pass::inference();
        let (last, _) = self.encoder.forward(batch, &pass)?;
        Ok(self.head_forward(&last, batch, &pass)?.0)
    }

    /// As [`Encoder::compute_in`]; the head stays in f32.
    ///
    /// # Errors
    /// If the type is neither f32 nor bf16.
    pub fn compute_in(&mut self, dtype: DType) -> Result<()> {
        self.encoder.compute_in(dtype)
    }

    /// As [`Encoder::move_to`], with the head.
    ///
    /// # Errors
    /// As [`Encoder::move_to`].
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.weight = self.weight.to_device(device)?;
        self.bias = self.bias.to_device(device)?;
        self.encoder.move_to(device)
    }

    /// The head's weight as it is now, ready for products.
    fn head(&self) -> Result<Weight> {
        Ok(Weight::new(self.weight.clone(), DType::F32)?)
    }

    /// The mean loss of a batch, as one value on the model's device; its gradients times `weight` are added to `grads` (gradient accumulation weighs each batch by
    /// its share of the step's rows).
    ///
    /// # Errors
    /// If the targets do not fit the task or the batch, or a token is outside the model's tables.
    pub fn backward(
        &self,
        batch: &Batch,
        targets: Targets<'_>,
        pass: &Pass,
        weight: f32,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let (last, saved) = self.encoder.forward(batch, pass)?;
        let (logits, head) = self.head_forward(&last, batch, pass)?;
        let n = last.rows();
        drop(last);
        let (loss, mut d_logits) = match (&self.task, targets) {
            (Task::Classification { .. }, Targets::Classes(labels)) => loss::cross_entropy(&logits, labels)?,
            (Task::Regression, Targets::Scores(scores)) => loss::squared_error(&logits, scores)?,
            _ => {
                return Err(Error::Value(format!("targets do not fit the task {:?}", self.task)));
            }
        };
        if weight != 1.0 {
            scale::in_place(weight, &mut d_logits)?;
        }
        if let Some(d_last) = self.head_backward(&d_logits, head, n, grads)? {
            self.encoder.backward(d_last, batch, saved, grads)?;
        }
        Ok(loss)
    }

    fn head_forward(&self, last: &Tensor, batch: &Batch, pass: &Pass) -> Result<(Tensor, HeadSaved)> {
        let Some(pooler_layer) = &self.encoder.pooler else {
            return Err(Error::Value("the model has no pooler".into()));
        };
        let first: Vec<usize> = batch.sequences().ranges().map(|rows| rows.start).collect();
        let (pooled, pooler) = pooler_layer.forward(&pool::rows(last, &first)?, pass)?;
        let dropout = pass.dropout(Site::Head, 0, self.encoder.config().head_dropout);
        let features = pass::apply(dropout, activation::forward(Activation::Tanh, &pooled)?)?;
        let logits = linear::forward(&features, &self.head()?, Some(&self.bias))?;
        Ok((logits, HeadSaved { first, pooler, pooled, dropout, features }))
    }

    /// The gradient of the last hidden state (n, C), or None if no adapter below wants it.
    fn head_backward(
        &self,
        d_logits: &Tensor,
        saved: HeadSaved,
        n: usize,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        let (dw, db) = linear::backward_weight(d_logits, &saved.features)?;
        accumulate(grads, WEIGHT.into(), dw)?;
        accumulate(grads, BIAS.into(), db)?;
        let Some(pooler) = &self.encoder.pooler else {
            return Ok(None);
        };
        let below = self.encoder.lowest_adapted().is_some();
        if !below && pooler.lora.is_none() {
            return Ok(None);
        }
        let d_features = pass::apply(saved.dropout, linear::backward_input(d_logits, &self.head()?)?)?;
        let d_pooled = activation::backward(Activation::Tanh, &d_features, &saved.pooled)?;
        if !below {
            pooler.backward_parameters(&d_pooled, saved.pooler, grads)?;
            return Ok(None);
        }
        let d_first = pooler.backward(&d_pooled, saved.pooler, grads)?;
        Ok(Some(pool::rows_backward(&d_first, &saved.first, n)?))
    }

    /// Writes the model with its adapters merged into the weights: `model.safetensors` and `config.json` of a sequence
    /// classifier that transformers loads. `model` is the folder that this classifier was loaded from.
    ///
    /// # Errors
    /// If the base files cannot be read again or the new ones not be written.
    pub fn write_merged(&self, model: &Path, out: &Path) -> Result<()> {
        let (_, base) = read_folder(model)?;
        let prefix = self.encoder.prefix();
        let prefixed = base.keys().any(|name| name.starts_with(prefix));
        let mut tensors: BTreeMap<String, Tensor> = base
            .into_iter()
            .filter(|(name, _)| !prefixed || name.starts_with(prefix))
            .map(|(name, t)| (if prefixed { name } else { format!("{prefix}{name}") }, t))
            .collect();
        for linear in self.encoder.linears() {
            if let Some(layer) = &linear.lora {
                tensors.insert(format!("{}.weight", linear.name), merge(linear.weight.tensor(), layer)?);
            }
        }
        tensors.insert(WEIGHT.into(), self.weight.clone());
        tensors.insert(BIAS.into(), self.bias.clone());
        let config = serde_json::to_vec_pretty(&Value::Object(self.merged_config(model)?))
            .map_err(|e| Error::file(&out.join("config.json"), e.to_string()))?;
        files::write_tensors(&out.join("model.safetensors"), tensors.iter().map(|(name, t)| (name.clone(), t)))?;
        files::write_atomic(&out.join("config.json"), &config)?;
        Ok(())
    }

    fn merged_config(&self, model: &Path) -> Result<Map<String, Value>> {
        let mut config = Json::load(model)?.map;
        config.insert("architectures".into(), json!(["BertForSequenceClassification"]));
        let (labels, problem) = match &self.task {
            Task::Classification { labels } => (labels.clone(), "single_label_classification"),
            Task::Regression => (vec!["LABEL_0".to_string()], "regression"),
        };
        let ids = labels.iter().enumerate();
        config.insert("label2id".into(), ids.clone().map(|(i, l)| (l.clone(), json!(i))).collect());
        config.insert("id2label".into(), ids.map(|(i, l)| (i.to_string(), json!(l))).collect());
        config.insert("problem_type".into(), json!(problem));
        Ok(config)
    }
}

fn task_of(outputs: usize, labels: Vec<String>) -> Task {
    match outputs {
        1 => Task::Regression,
        k if labels.len() == k => Task::Classification { labels },
        k => Task::Classification { labels: (0..k).map(|i| i.to_string()).collect() },
    }
}
