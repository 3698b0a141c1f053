use std::path::Path;

use gelora_kernels::ops::{loss, pool, scale};
use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::{Adapter, AdapterConfig, files};
use serde_json::{Map, Value, json};

use crate::config::Json;
use crate::head::{Dense, Head};
use crate::linear::Grads;
use crate::weights::Weights;
use crate::{Batch, Config, Error, Pass, Result, Transformer};

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

/// A transformer with its family's head on one token of each sequence: the first of an encoder's, the last of a decoder's.
///
/// Trained are the head's parameters, and the adapters.
pub struct Classifier {
    model: Transformer,
    task: Task,
    head: Head,
}

impl Classifier {
    /// A model with a fresh head: weights normal with standard deviation 0.02 from the seed, biases zero, as transformers
    /// initialises them.
    ///
    /// # Errors
    /// If the model cannot be loaded, it lacks the pooler that its head needs, or there are fewer than two classes.
    pub fn new(model: &Path, task: Task, seed: u64) -> Result<Self> {
        if let Task::Classification { labels } = &task
            && labels.len() < 2
        {
            return Err(Error::Value(format!("classification needs at least two classes, got {labels:?}")));
        }
        let transformer = Transformer::load(model)?;
        let config = transformer.config();
        let sizes = [task.outputs(), config.hidden];
        let head = Head::fresh(transformer.family().head, sizes, config.head_dropout, seed)?;
        Self::assemble(model, transformer, task, head)
    }

    /// A checkpoint with the head in it (a merged model, or any sequence classifier). Without `labels` the classes have the
    /// names of its config.json.
    ///
    /// # Errors
    /// If the model cannot be loaded or has no pooler or head.
    pub fn load(model: &Path, labels: Option<Vec<String>>) -> Result<Self> {
        let config = Config::load(model)?;
        let mut weights = Weights::open(model)?;
        let labels = labels.unwrap_or_else(|| config.labels.clone());
        let (hidden, dropout) = (config.hidden, config.head_dropout);
        let transformer = Transformer::from_weights(config, &mut weights)?;
        let kind = transformer.family().head;
        let Some(head) = Head::take(kind, hidden, dropout, &mut weights)? else {
            let names = Head::names(kind);
            let problem = format!("no task head ({names}); give an adapter that has one, or a merged model");
            return Err(Error::file(model, problem));
        };
        let task = task_of(head.outputs(), labels);
        Self::assemble(model, transformer, task, head)
    }

    /// The model of an adapter folder: base weights, adapters and head. Names of the classes are not in PEFT's files; without
    /// `labels` they are the base model's if their number fits, else 0, 1, ...
    ///
    /// # Errors
    /// If the base model cannot be loaded, the adapter names modules that it lacks, or sizes differ.
    pub fn with_adapter(model: &Path, adapter: Adapter, labels: Option<Vec<String>>) -> Result<Self> {
        let transformer = Transformer::load(model)?;
        let (kind, config) = (transformer.family().head, transformer.config());
        let head = Head::found(kind, config.hidden, config.head_dropout, |name| adapter.saved.get(name).cloned())?;
        let head = head.ok_or_else(|| {
            let names = Head::names(kind);
            Error::Value(format!("the adapter has no {names}; expected a sequence classification adapter"))
        })?;
        let known = labels.unwrap_or_else(|| config.labels.clone());
        let task = task_of(head.outputs(), known);
        let mut classifier = Self::assemble(model, transformer, task, head)?;
        classifier.model.attach_all(&adapter.config, adapter.layers)?;
        Ok(classifier)
    }

    fn assemble(model: &Path, transformer: Transformer, task: Task, head: Head) -> Result<Self> {
        if matches!(transformer.family().head.dense, Dense::Pooler) && transformer.pooler.is_none() {
            let problem = "tensor pooler.dense.weight is missing; a classification head needs a pooler";
            return Err(Error::file(model, problem));
        }
        Ok(Self { model: transformer, task, head })
    }

    /// As [`Transformer::add_adapters`].
    ///
    /// # Errors
    /// As there.
    pub fn add_adapters(&mut self, config: &AdapterConfig, seed: u64) -> Result<usize> {
        self.model.add_adapters(config, seed)
    }

    /// The adapters and the head, as [`Adapter::write`] wants them.
    pub fn adapter(&self, config: AdapterConfig) -> Adapter {
        let saved = self.head.parameters().map(|(name, t)| (name, t.clone())).collect();
        Adapter { config, layers: self.model.adapters(), saved }
    }

    /// The model under the head.
    pub fn transformer(&self) -> &Transformer {
        &self.model
    }

    /// What the head predicts.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Every trained parameter by its name, in a fixed order.
    pub fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut all = self.model.adapter_parameters_mut();
        all.extend(self.head.parameters_mut());
        all
    }

    /// Logits (B, K); a regression's score is the one logit.
    ///
    /// # Errors
    /// If a token is outside the model's tables.
    pub fn logits(&self, batch: &Batch) -> Result<Tensor> {
        let last = self.model.last_state(batch)?;
        let x = pool::rows(&last, &self.chosen(batch))?;
        Ok(self.head.forward(x, self.model.pooler.as_ref(), &Pass::inference())?.0)
    }

    /// The token of each sequence that stands for it.
    fn chosen(&self, batch: &Batch) -> Vec<usize> {
        let first = self.head.takes_first();
        batch.sequences().ranges().map(|rows| if first { rows.start } else { rows.end - 1 }).collect()
    }

    /// As [`Transformer::compute_in`]; the head stays in f32.
    ///
    /// # Errors
    /// If the type is neither f32 nor bf16.
    pub fn compute_in(&mut self, dtype: DType) -> Result<()> {
        self.model.compute_in(dtype)
    }

    /// As [`Transformer::move_to`], with the head.
    ///
    /// # Errors
    /// As [`Transformer::move_to`].
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.head.move_to(device)?;
        self.model.move_to(device)
    }

    /// The mean loss of a batch, as one value on the model's device; its gradients times `weight` are added to `grads`
    /// (gradient accumulation weighs each batch by its share of the step's rows).
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
        let (last, saved) = self.model.forward(batch, pass)?;
        let (n, chosen, pooler) = (last.rows(), self.chosen(batch), self.model.pooler.as_ref());
        let (logits, head) = self.head.forward(pool::rows(&last, &chosen)?, pooler, pass)?;
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
        let below = self.model.lowest_adapted().is_some();
        if let Some(d_chosen) = self.head.backward(&d_logits, pooler, head, grads, below)?
            && below
        {
            self.model.backward(pool::rows_backward(&d_chosen, &chosen, n)?, batch, pass, saved, grads)?;
        }
        Ok(loss)
    }

    /// Writes the model with its adapters merged into the weights: `model.safetensors` and `config.json` of a sequence
    /// classifier that transformers loads. `model` is the folder that this classifier was loaded from.
    ///
    /// # Errors
    /// If the base files cannot be read again or the new ones not be written.
    pub fn write_merged(&self, model: &Path, out: &Path) -> Result<()> {
        let mut tensors = self.model.merged(model)?;
        tensors.extend(self.head.parameters().map(|(name, t)| (name, t.clone())));
        let config = serde_json::to_vec_pretty(&Value::Object(self.merged_config(model)?))
            .map_err(|e| Error::file(&out.join("config.json"), e.to_string()))?;
        files::write_tensors(&out.join("model.safetensors"), tensors.iter().map(|(name, t)| (name.clone(), t)))?;
        files::write_atomic(&out.join("config.json"), &config)?;
        Ok(())
    }

    fn merged_config(&self, model: &Path) -> Result<Map<String, Value>> {
        let mut config = Json::load(model)?.map;
        config.insert("architectures".into(), json!([self.model.family().classes[0]]));
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
