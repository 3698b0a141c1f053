//! A model together with its task, for training and evaluation.

use gelora_kernels::ops::loss::CrossEntropy;
use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::{Adapter, AdapterConfig};

use crate::{AdapterTask, Batch, CausalLm, Classifier, Error, Grads, Labels, Mode, Result, Task, Tokens, Transformer};

/// A transformer with a task head or a language-model head. [`Trainer`](crate::Trainer) trains it, and
/// [`evaluate`](crate::evaluate()) evaluates it.
#[non_exhaustive]
#[derive(Debug)]
pub enum TaskModel {
    /// Predicts a class or a score for each sequence.
    Classifier(Box<Classifier>),
    /// Predicts the next token.
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

/// Calls a method that both variants have.
macro_rules! either {
    ($model:expr, $inner:ident => $call:expr) => {
        match $model {
            TaskModel::Classifier($inner) => $call,
            TaskModel::CausalLm($inner) => $call,
        }
    };
}

impl TaskModel {
    /// The transformer below the head.
    pub fn transformer(&self) -> &Transformer {
        either!(self, model => model.transformer())
    }

    pub(crate) fn transformer_mut(&mut self) -> &mut Transformer {
        either!(self, model => model.transformer_mut())
    }

    /// The task in PEFT's terms.
    pub fn adapter_task(&self) -> AdapterTask {
        match self {
            Self::Classifier(_) => AdapterTask::SequenceClassification,
            Self::CausalLm(_) => AdapterTask::CausalLm,
        }
    }

    /// Sets the type of products with frozen weights, as [`Transformer::compute_in`] does. The head of a language model
    /// is included.
    ///
    /// # Errors
    /// Returns the errors of [`Transformer::compute_in`].
    pub fn compute_in(&mut self, dtype: DType) -> Result<()> {
        either!(self, model => model.compute_in(dtype))
    }

    /// Moves the transformer and the head to a device, as [`Transformer::move_to`] does.
    ///
    /// # Errors
    /// Returns the errors of [`Transformer::move_to`].
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        either!(self, model => model.move_to(device))
    }

    /// The adapters and the tensors saved with them, in the form that [`Adapter::write`] takes.
    pub fn adapter(&self, config: AdapterConfig) -> Adapter {
        either!(self, model => model.adapter(config))
    }

    pub(crate) fn add_adapters(&mut self, config: &AdapterConfig, seed: u64) -> Result<usize> {
        either!(self, model => model.add_adapters(config, seed))
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        either!(self, model => model.parameters_mut())
    }

    /// Loads the base model again with the parameters of a checkpoint. The type and the device stay as they are.
    pub(crate) fn reload(&mut self, adapter: Adapter) -> Result<()> {
        let transformer = self.transformer();
        let (source, name) = (transformer.source().to_owned(), transformer.name().to_owned());
        let (dtype, device) = (transformer.dtype(), transformer.device().clone());
        match self {
            Self::Classifier(classifier) => {
                let loss = classifier.loss().clone();
                let task = classifier.task().clone();
                **classifier = Classifier::with_adapter(&source, adapter, Some(task))?;
                classifier.set_loss(loss)?;
            }
            Self::CausalLm(lm) => **lm = CausalLm::with_adapter(&source, adapter)?,
        }
        either!(self, model => model.set_name(name));
        self.compute_in(dtype)?;
        self.move_to(&device)
    }

    /// Returns an error if the labels do not fit the model's task or there is not one for each row.
    pub(crate) fn check_labels(&self, labels: Labels<'_>, rows: usize) -> Result<()> {
        let number = match (self, labels) {
            (Self::CausalLm(_), Labels::None) => return Ok(()),
            (Self::Classifier(model), labels) => match (model.task(), labels) {
                (Task::Classification { .. }, Labels::Classes(classes)) => classes.len(),
                (Task::MultiLabel { .. }, Labels::Sets(sets)) => sets.len(),
                (Task::Regression, Labels::Scores(scores)) => scores.len(),
                (Task::Classification { .. }, _) => {
                    return Err(Error::Value("the model's head needs a class for each row".into()));
                }
                (Task::MultiLabel { .. }, _) => {
                    return Err(Error::Value("the model's head needs a set of classes for each row".into()));
                }
                (Task::Regression, _) => {
                    return Err(Error::Value("the model's head needs a score for each row".into()));
                }
            },
            (Self::CausalLm(_), _) => {
                return Err(Error::Value("a language model predicts tokens; expected rows without labels".into()));
            }
        };
        match number == rows {
            true => Ok(()),
            false => Err(Error::Value(format!("{rows} rows need as many labels, got {number}"))),
        }
    }

    /// What the loss of these rows is divided by: the weights of their classes, the number of rows, or the number of
    /// tokens to predict.
    pub(crate) fn weight(&self, (indices, rows): (&[usize], &[Tokens]), labels: Labels<'_>) -> f64 {
        match (self, labels) {
            (Self::Classifier(classifier), Labels::Classes(all)) => {
                classifier.loss().total(indices.iter().map(|&i| all[i]))
            }
            (Self::Classifier(_), _) => rows.len() as f64,
            (Self::CausalLm(_), _) => rows.iter().map(Tokens::predicted).sum::<usize>() as f64,
        }
    }

    /// Sets weights of the classes and label smoothing of the loss.
    pub(crate) fn set_loss(&mut self, loss: CrossEntropy) -> Result<()> {
        match self {
            Self::Classifier(classifier) => classifier.set_loss(loss),
            Self::CausalLm(_) if loss.is_plain() => Ok(()),
            Self::CausalLm(_) => Err(Error::Value(
                "class weights and label smoothing are for classification; this is a language model".into(),
            )),
        }
    }

    /// Sets the dropout probability of every adapter.
    pub(crate) fn set_dropout(&mut self, dropout: f32) {
        either!(self, model => model.set_dropout(dropout));
    }

    /// The task of a classifier; None for a language model.
    pub(crate) fn head_task(&self) -> Option<&Task> {
        match self {
            Self::Classifier(classifier) => Some(classifier.task()),
            Self::CausalLm(_) => None,
        }
    }

    /// Computes the mean loss of the rows and adds its gradients, multiplied by `share`, to `grads`.
    pub(crate) fn backward(
        &self,
        (indices, rows): (&[usize], &[Tokens]),
        labels: Labels<'_>,
        mode: &Mode,
        share: f32,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let batch = &Batch::of_tokens(rows)?;
        match (self, labels) {
            (Self::CausalLm(lm), _) => lm.backward(batch, &targets(rows), mode, share, grads),
            (Self::Classifier(classifier), Labels::Classes(all)) => {
                let classes: Vec<usize> = indices.iter().map(|&i| all[i]).collect();
                classifier.backward(batch, crate::Targets::Classes(&classes), mode, share, grads)
            }
            (Self::Classifier(classifier), Labels::Sets(all)) => {
                let sets: Vec<&[usize]> = indices.iter().map(|&i| &all[i][..]).collect();
                classifier.backward(batch, crate::Targets::Sets(&sets), mode, share, grads)
            }
            (Self::Classifier(classifier), Labels::Scores(all)) => {
                let scores: Vec<f32> = indices.iter().map(|&i| all[i] as f32).collect();
                classifier.backward(batch, crate::Targets::Scores(&scores), mode, share, grads)
            }
            (Self::Classifier(_), Labels::None) => {
                Err(Error::Value("a classifier cannot be trained on rows without labels".into()))
            }
        }
    }

    /// Description of the task, which a resumed training compares with its checkpoint.
    pub(crate) fn task(&self) -> String {
        match self {
            Self::Classifier(classifier) => format!("{:?}", classifier.task()),
            Self::CausalLm(_) => AdapterTask::CausalLm.name().into(),
        }
    }
}

/// Whether each token of a batch should be predicted.
pub(crate) fn targets(rows: &[Tokens]) -> Vec<bool> {
    rows.iter().flat_map(|row| &row.targets).copied().collect()
}
