//! A model with the task that it is trained and evaluated for.

use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::{Adapter, AdapterConfig};

use crate::{AdapterTask, Batch, CausalLm, Classifier, Error, Grads, Labels, Pass, Result, Task, Tokens, Transformer};

/// A transformer with a task head, or with its vocabulary: what [`Trainer`](crate::Trainer) trains and
/// [`evaluate`](crate::evaluate) measures.
#[non_exhaustive]
pub enum TaskModel {
    /// Classes or scores of sequences.
    Classifier(Box<Classifier>),
    /// The next token.
    CausalLm(Box<CausalLm>),
}

impl From<Classifier> for TaskModel {
    fn from(classifier: Classifier) -> Self {
        Self::Classifier(Box::new(classifier))
    }
}

impl From<CausalLm> for TaskModel {
    fn from(lm: CausalLm) -> Self {
        Self::CausalLm(Box::new(lm))
    }
}

/// Calls a method that both kinds of models have.
macro_rules! either {
    ($model:expr, $inner:ident => $call:expr) => {
        match $model {
            TaskModel::Classifier($inner) => $call,
            TaskModel::CausalLm($inner) => $call,
        }
    };
}

impl TaskModel {
    /// The model under the head.
    pub fn transformer(&self) -> &Transformer {
        either!(self, model => model.transformer())
    }

    /// PEFT's name of the task.
    pub fn adapter_task(&self) -> AdapterTask {
        match self {
            Self::Classifier(_) => AdapterTask::SequenceClassification,
            Self::CausalLm(_) => AdapterTask::CausalLm,
        }
    }

    /// As [`Transformer::compute_in`], with the head of a language model.
    ///
    /// # Errors
    /// As there.
    pub fn compute_in(&mut self, dtype: DType) -> Result<()> {
        either!(self, model => model.compute_in(dtype))
    }

    /// As [`Transformer::move_to`], with the head.
    ///
    /// # Errors
    /// As there.
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        either!(self, model => model.move_to(device))
    }

    /// The adapters and what is saved with them, as [`Adapter::write`] wants them.
    pub fn adapter(&self, config: AdapterConfig) -> Adapter {
        either!(self, model => model.adapter(config))
    }

    pub(crate) fn add_adapters(&mut self, config: &AdapterConfig, seed: u64) -> Result<usize> {
        either!(self, model => model.add_adapters(config, seed))
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        either!(self, model => model.parameters_mut())
    }

    /// Loads the base model again with the parameters of a checkpoint, in the present type and on the present device.
    pub(crate) fn reload(&mut self, adapter: Adapter) -> Result<()> {
        let transformer = self.transformer();
        let (source, name) = (transformer.source().to_owned(), transformer.name().to_owned());
        let (dtype, device) = (transformer.dtype(), transformer.device().clone());
        match self {
            Self::Classifier(classifier) => {
                let labels = match classifier.task() {
                    Task::Classification { labels } => Some(labels.clone()),
                    Task::Regression => None,
                };
                **classifier = Classifier::with_adapter(&source, adapter, labels)?;
            }
            Self::CausalLm(lm) => **lm = CausalLm::with_adapter(&source, adapter)?,
        }
        either!(self, model => model.set_name(name));
        self.compute_in(dtype)?;
        self.move_to(&device)
    }

    /// Checks that the labels are of the model's task and one for each row.
    pub(crate) fn check_labels(&self, labels: Labels<'_>, rows: usize) -> Result<()> {
        let number = match (self, labels) {
            (Self::CausalLm(_), Labels::None) => return Ok(()),
            (Self::Classifier(model), Labels::Classes(classes)) if *model.task() != Task::Regression => classes.len(),
            (Self::Classifier(model), Labels::Scores(scores)) if *model.task() == Task::Regression => scores.len(),
            (Self::Classifier(model), _) => {
                let expected = if *model.task() == Task::Regression { "a score" } else { "a class" };
                return Err(Error::Value(format!("the model's head needs {expected} for each row")));
            }
            (Self::CausalLm(_), _) => {
                return Err(Error::Value("a language model predicts tokens; expected rows without labels".into()));
            }
        };
        match number == rows {
            true => Ok(()),
            false => Err(Error::Value(format!("{rows} rows need as many labels, got {number}"))),
        }
    }

    /// What a loss is averaged over: rows, or tokens to predict.
    pub(crate) fn weight(&self, rows: &[Tokens]) -> usize {
        match self {
            Self::Classifier(_) => rows.len(),
            Self::CausalLm(_) => rows.iter().map(Tokens::predicted).sum(),
        }
    }

    /// The mean loss of rows; its gradients times `share` are added to `grads`.
    pub(crate) fn backward(
        &self,
        (indices, rows): (&[usize], &[Tokens]),
        labels: Labels<'_>,
        pass: &Pass,
        share: f32,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let batch = &Batch::of_tokens(rows)?;
        match (self, labels) {
            (Self::CausalLm(lm), _) => lm.backward(batch, &targets(rows), pass, share, grads),
            (Self::Classifier(classifier), Labels::Classes(all)) => {
                let classes: Vec<usize> = indices.iter().map(|&i| all[i]).collect();
                classifier.backward(batch, crate::Targets::Classes(&classes), pass, share, grads)
            }
            (Self::Classifier(classifier), Labels::Scores(all)) => {
                let scores: Vec<f32> = indices.iter().map(|&i| all[i] as f32).collect();
                classifier.backward(batch, crate::Targets::Scores(&scores), pass, share, grads)
            }
            (Self::Classifier(_), Labels::None) => {
                Err(Error::Value("a classifier cannot learn rows without labels".into()))
            }
        }
    }

    /// The task in words, for what must be the same when training goes on.
    pub(crate) fn task(&self) -> String {
        match self {
            Self::Classifier(classifier) => format!("{:?}", classifier.task()),
            Self::CausalLm(_) => AdapterTask::CausalLm.name().into(),
        }
    }
}

/// Whether each token of a batch is to be predicted.
pub(crate) fn targets(rows: &[Tokens]) -> Vec<bool> {
    rows.iter().flat_map(|row| &row.targets).copied().collect()
}
