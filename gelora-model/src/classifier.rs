use std::fmt;
use std::ops::Range;
use std::path::Path;

use gelora_kernels::ops::loss::{self, CrossEntropy};
use gelora_kernels::ops::{pool, scale};
use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::{Adapter, AdapterConfig};
use serde_json::{Map, Value, json};

use crate::head::{Dense, Head};
use crate::linear::Grads;
use crate::merged::Merged;
use crate::weights::Weights;
use crate::{Batch, Config, Error, Mode, Result, Transformer};

/// The task of a sequence classifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Predicts one of the named classes, trained with cross entropy.
    Classification {
        /// Names of the classes; logit i belongs to class i.
        labels: Vec<String>,
    },
    /// Predicts which of the named classes a text is of, in any number. Every class is a decision of its own, trained
    /// with binary cross entropy; this is `multi_label_classification` in transformers.
    MultiLabel {
        /// Names of the classes; logit i belongs to class i.
        labels: Vec<String>,
    },
    /// Predicts one number, trained with squared error.
    Regression,
}

impl Task {
    /// Number of outputs of the head.
    pub fn outputs(&self) -> usize {
        match self {
            Task::Classification { labels } | Task::MultiLabel { labels } => labels.len(),
            Task::Regression => 1,
        }
    }

    /// Names of the classes; None in regression.
    pub fn labels(&self) -> Option<&[String]> {
        match self {
            Task::Classification { labels } | Task::MultiLabel { labels } => Some(labels),
            Task::Regression => None,
        }
    }

    /// Name of the task in config.json of transformers (`problem_type`).
    pub fn problem_type(&self) -> &'static str {
        match self {
            Task::Classification { .. } => "single_label_classification",
            Task::MultiLabel { .. } => MULTI_LABEL,
            Task::Regression => "regression",
        }
    }

    /// The task of these classes. Without a problem type, they exclude each other.
    pub fn of_classes(labels: Vec<String>, problem_type: Option<&str>) -> Self {
        match problem_type {
            Some(MULTI_LABEL) => Task::MultiLabel { labels },
            _ => Task::Classification { labels },
        }
    }
}

/// The problem type of [`Task::MultiLabel`].
const MULTI_LABEL: &str = "multi_label_classification";

/// The expected outputs of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// A class for each sequence.
    Classes(&'a [usize]),
    /// The classes of each sequence.
    Sets(&'a [&'a [usize]]),
    /// A number for each sequence.
    Scores(&'a [f32]),
}

/// A transformer with the task head of its family. The head reads one token of each sequence: the first token in an
/// encoder, the last token in a decoder.
///
/// Training updates the parameters of the head and the adapters.
pub struct Classifier {
    model: Transformer,
    task: Task,
    /// Whether the caller gave the task; false if it was derived from the shape of the head.
    is_known: bool,
    /// Weights of the classes and label smoothing.
    loss: CrossEntropy,
    head: Head,
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Classifier").field("model", &self.model).field("task", &self.task).finish_non_exhaustive()
    }
}

impl Classifier {
    /// Loads a model and gives it a new head: weights are normal with standard deviation 0.02, drawn from `seed`, and
    /// biases are zero, as in transformers.
    ///
    /// # Errors
    /// Returns an error if the model cannot be loaded, it lacks the pooler that its head needs, or there are fewer than
    /// two classes.
    pub fn new(model: &Path, task: Task, seed: u64) -> Result<Self> {
        if let Some(labels) = task.labels()
            && labels.len() < 2
        {
            return Err(Error::Value(format!("classification needs at least two classes, got {labels:?}")));
        }
        Self::with_new_head(model, Transformer::load(model)?, task, seed)
    }

    /// Makes a classifier of which only config.json is needed, as [`CausalLm::planned`](crate::CausalLm::planned) makes
    /// a language model.
    ///
    /// # Errors
    /// Returns an error if config.json cannot be read, or rows of a weight are not whole blocks of `stored`.
    pub fn planned(model: &Path, stored: DType, task: Task) -> Result<Self> {
        let mut weights = Weights::planned(model, stored);
        Self::with_new_head(model, Transformer::from_weights(Config::load(model)?, &mut weights)?, task, 0)
    }

    fn with_new_head(model: &Path, transformer: Transformer, task: Task, seed: u64) -> Result<Self> {
        let config = transformer.config();
        let sizes = [task.outputs(), config.hidden];
        let head = Head::fresh(transformer.family().head, sizes, config.head_dropout, seed)?;
        Ok(Self { is_known: true, ..Self::assemble(model, transformer, task, head)? })
    }

    /// Loads a checkpoint that contains a head (a merged model, or any sequence classifier). Without a `task`, or if it
    /// does not fit the head, the task comes from config.json.
    ///
    /// # Errors
    /// Returns an error if the model cannot be loaded or has no pooler or head.
    pub fn load(model: &Path, task: Option<Task>) -> Result<Self> {
        let config = Config::load(model)?;
        let mut weights = Weights::open(model)?;
        let (hidden, dropout) = (config.hidden, config.head_dropout);
        let transformer = Transformer::from_weights(config, &mut weights)?;
        let kind = transformer.family().head;
        let Some(head) = Head::take(kind, hidden, dropout, &mut weights)? else {
            let names = Head::names(kind);
            let problem = format!("no task head ({names}); give an adapter that has one, or a merged model");
            return Err(Error::file(model, problem));
        };
        let is_known = task.is_some();
        let task = task_of(head.outputs(), task, transformer.config());
        Ok(Self { is_known, ..Self::assemble(model, transformer, task, head)? })
    }

    /// Loads the base model with an adapter folder: its LoRA layers, the tensors that it saves whole, and its head.
    /// Tensors of the head that the adapter lacks come from the base model. PEFT's files contain neither class names
    /// nor the problem type: without a `task`, or if it does not fit the head, the classes are named as in the base
    /// model if their number fits, else 0, 1, ...
    ///
    /// # Errors
    /// Returns an error if the base model cannot be loaded, the adapter names modules that the model lacks, or sizes
    /// differ.
    pub fn with_adapter(model: &Path, adapter: Adapter, task: Option<Task>) -> Result<Self> {
        let (transformer, mut weights) = Transformer::adapted(model, adapter)?;
        let (kind, config) = (transformer.family().head, transformer.config());
        let missing = Head::missing(kind, |name| weights.awaits(name) || weights.stores(name)).join(", ");
        let head = Head::take(kind, config.hidden, config.head_dropout, &mut weights)?;
        let head = head.ok_or_else(|| {
            Error::Value(format!(
                "neither the adapter nor the base model has {missing}; expected a sequence classification adapter with \
                 its head"
            ))
        })?;
        weights.all_saved_taken("a sequence classifier")?;
        let is_known = task.is_some();
        let task = task_of(head.outputs(), task, config);
        Ok(Self { is_known, ..Self::assemble(model, transformer, task, head)? })
    }

    fn assemble(model: &Path, transformer: Transformer, task: Task, head: Head) -> Result<Self> {
        if matches!(transformer.family().head.dense, Dense::Pooler) && transformer.pooler.is_none() {
            let problem = "tensor pooler.dense.weight is missing; a classification head needs a pooler";
            return Err(Error::file(model, problem));
        }
        Ok(Self { model: transformer, task, is_known: false, loss: CrossEntropy::default(), head })
    }

    /// Adds new adapters, as [`Transformer::add_adapters`] does.
    ///
    /// # Errors
    /// Returns the errors of [`Transformer::add_adapters`].
    pub fn add_adapters(&mut self, config: &AdapterConfig, seed: u64) -> Result<usize> {
        self.model.add_adapters(config, seed)
    }

    /// The adapters, the head, and other tensors that an adapter trained whole, in the form that [`Adapter::write`]
    /// takes.
    pub fn adapter(&self, config: AdapterConfig) -> Adapter {
        let mut saved = self.model.saved().clone();
        saved.extend(self.head.parameters().map(|(name, t)| (name, t.clone())));
        Adapter { config, layers: self.model.adapters(), saved }
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

    /// What the head predicts.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Whether the caller gave the task. Otherwise it was derived from the number of outputs and config.json.
    pub fn is_task_known(&self) -> bool {
        self.is_known
    }

    /// Sets what the head predicts, where its files do not say it.
    ///
    /// # Errors
    /// Returns an error if the head has another number of outputs.
    pub fn set_task(&mut self, task: Task) -> Result<()> {
        let (has, needs) = (self.head.outputs(), task.outputs());
        if has != needs {
            return Err(Error::Value(format!("the head has {has} outputs, but the task needs {needs}")));
        }
        (self.task, self.is_known) = (task, true);
        Ok(())
    }

    /// Weights of the classes and label smoothing of the loss.
    pub fn loss(&self) -> &CrossEntropy {
        &self.loss
    }

    /// Sets weights of the classes and label smoothing of the loss of [`Classifier::backward`].
    ///
    /// # Errors
    /// Returns an error if they do not fit the classes, or classes do not exclude each other.
    pub fn set_loss(&mut self, loss: CrossEntropy) -> Result<()> {
        match &self.task {
            Task::Classification { labels } => loss.check(labels.len())?,
            Task::MultiLabel { .. } | Task::Regression if loss.is_plain() => {}
            other => {
                let is = if *other == Task::Regression { "regression" } else { "multi-label classification" };
                return Err(Error::Value(format!(
                    "class weights and label smoothing are for classes that exclude each other; this is {is}"
                )));
            }
        }
        self.loss = loss;
        Ok(())
    }

    pub(crate) fn set_dropout(&mut self, dropout: f32) {
        self.model.set_dropout(dropout);
    }

    /// All trained parameters with their names, in a fixed order.
    pub fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut all = self.model.adapter_parameters_mut();
        all.extend(self.head.parameters_mut());
        all
    }

    /// Computes the logits (B, K). In regression K = 1, and the logit is the score.
    ///
    /// # Errors
    /// Returns an error if a token is outside the model's tables.
    pub fn logits(&self, batch: &Batch) -> Result<Tensor> {
        let last = self.model.last_state(batch)?;
        let x = pool::rows(&last, &self.chosen(batch))?;
        Ok(self.head.forward(x, self.model.pooler.as_ref(), &Mode::inference())?.0)
    }

    /// Row of the token that represents each sequence: its first token, or its last token that is not the padding
    /// token. If a sequence has padding tokens only, this is its first token.
    ///
    /// Source: `GenericForSequenceClassification` of transformers 5.23. It recognizes padding by the token id, even
    /// where a tokenizer ends texts with that token.
    fn chosen(&self, batch: &Batch) -> Vec<usize> {
        let (is_first, pad) = (self.head.takes_first(), self.model.config().pad);
        let chosen_row = |mut rows: Range<usize>| {
            let first = rows.start;
            if is_first { first } else { rows.rfind(|row| Some(batch.ids()[*row]) != pad).unwrap_or(first) }
        };
        batch.sequences().ranges().map(chosen_row).collect()
    }

    /// Sets the type of products with frozen weights, as [`Transformer::compute_in`] does. The head stays in f32.
    ///
    /// # Errors
    /// Returns an error if `dtype` is neither f32 nor bf16.
    pub fn compute_in(&mut self, dtype: DType) -> Result<()> {
        self.model.compute_in(dtype)
    }

    /// Moves the transformer and the head to a device, as [`Transformer::move_to`] does.
    ///
    /// # Errors
    /// Returns the errors of [`Transformer::move_to`].
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.head.move_to(device)?;
        self.model.move_to(device)
    }

    /// Computes the mean loss of a batch and adds its gradients, multiplied by `weight`, to `grads`. The loss is one
    /// value on the model's device. With gradient accumulation, `weight` is the share of the batch in the rows of the
    /// step, or in the weights of their classes ([`CrossEntropy::total`]).
    ///
    /// # Errors
    /// Returns an error if the targets do not fit the task or the batch, or a token is outside the model's tables.
    pub fn backward(
        &self,
        batch: &Batch,
        targets: Targets<'_>,
        mode: &Mode,
        weight: f32,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let (last, saved) = self.model.forward(batch, mode)?;
        let (n, chosen, pooler) = (last.rows(), self.chosen(batch), self.model.pooler.as_ref());
        let (logits, head) = self.head.forward(pool::rows(&last, &chosen)?, pooler, mode)?;
        drop(last);
        let (loss, mut d_logits) = match (&self.task, targets) {
            (Task::Classification { .. }, Targets::Classes(labels)) => {
                loss::weighted_cross_entropy(&logits, labels, &self.loss)?
            }
            (Task::MultiLabel { .. }, Targets::Sets(sets)) => {
                loss::binary_cross_entropy(&logits, &indicators(sets, logits.cols())?)?
            }
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
            self.model.backward(pool::rows_backward(&d_chosen, &chosen, n)?, batch, mode, saved, grads)?;
        }
        Ok(loss)
    }

    /// Merges the adapters into the weights and writes the result as a sequence classifier that transformers loads:
    /// `model.safetensors` and `config.json`. `model` is the folder that this classifier was loaded from. Returns
    /// remarks for the user.
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
        let mut merged = Merged::of(&self.model, model, dtype)?;
        for (name, tensor) in self.head.parameters() {
            merged.insert(name, tensor.clone());
        }
        self.configure(&mut merged.config);
        merged.write(out, dtype)
    }

    /// Writes the task into a config.json. If the caller gave no task, the entries of the base model stay: an adapter
    /// does not tell whether classes exclude each other (`problem_type`).
    fn configure(&self, config: &mut Map<String, Value>) {
        config.insert("architectures".into(), json!([self.model.family().classes[0]]));
        let labels = self.task.labels().map_or_else(|| vec!["LABEL_0".to_owned()], <[String]>::to_vec);
        let base_problem = config.get("problem_type").and_then(Value::as_str);
        let one_score = self.task == Task::Regression && base_problem != Some(MULTI_LABEL);
        if self.is_known || one_score {
            config.insert("problem_type".into(), json!(self.task.problem_type()));
        }
        let named = config.get("id2label").and_then(Value::as_object).map_or(0, Map::len);
        if self.is_known || named != labels.len() {
            let ids = labels.iter().enumerate();
            config.insert("label2id".into(), ids.clone().map(|(i, l)| (l.clone(), json!(i))).collect());
            config.insert("id2label".into(), ids.map(|(i, l)| (i.to_string(), json!(l))).collect());
        }
    }
}

/// The task of a head with this number of outputs: the given one if it fits, else the one that config.json describes.
fn task_of(outputs: usize, given: Option<Task>, config: &Config) -> Task {
    let names = |labels: &[String]| match labels.len() == outputs {
        true => labels.to_vec(),
        false => (0..outputs).map(|i| i.to_string()).collect(),
    };
    match given {
        Some(task) if task.outputs() == outputs => task,
        _ if outputs == 1 => Task::Regression,
        Some(Task::MultiLabel { labels }) => Task::MultiLabel { labels: names(&labels) },
        Some(task) => Task::Classification { labels: names(task.labels().unwrap_or_default()) },
        None if config.multi_label => Task::MultiLabel { labels: names(&config.labels) },
        None => Task::Classification { labels: names(&config.labels) },
    }
}

/// 1 for every class of a row and 0 for the others, row by row.
fn indicators(sets: &[&[usize]], classes: usize) -> Result<Vec<f32>> {
    let mut all = vec![0.0; sets.len() * classes];
    for (row, set) in all.chunks_mut(classes.max(1)).zip(sets) {
        for class in *set {
            let target = row.get_mut(*class);
            *target.ok_or_else(|| Error::Value(format!("classes must be below {classes}, got {class}")))? = 1.0;
        }
    }
    Ok(all)
}
