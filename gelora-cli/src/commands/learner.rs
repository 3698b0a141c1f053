//! What `gelora train` trains and `gelora eval` measures: a classifier, or a language model.

use std::path::Path;

use anyhow::{Context, Result};
use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::{Adapter, AdapterConfig};
use gelora_model::{Batch, CausalLm, Classifier, Grads, Pass, Targets as ModelTargets, Transformer};

use crate::data::{Dataset, Targets};
use crate::tokenize::{Encoded, Tokenizer};
use crate::ui::{self, Progress};

/// A model with what its loss needs beside the tokens.
pub enum Learner {
    Classifier(Box<Classifier>, Targets),
    Lm(Box<CausalLm>),
}

impl Learner {
    pub fn transformer(&self) -> &Transformer {
        match self {
            Learner::Classifier(classifier, _) => classifier.transformer(),
            Learner::Lm(lm) => lm.transformer(),
        }
    }

    /// Computes in a type on a device from now on.
    pub fn prepare(&mut self, dtype: DType, device: &Device) -> Result<()> {
        match self {
            Learner::Classifier(classifier, _) => {
                classifier.compute_in(dtype)?;
                classifier.move_to(device)?;
            }
            Learner::Lm(lm) => {
                lm.remarks().iter().for_each(ui::warn);
                lm.compute_in(dtype)?;
                lm.move_to(device)?;
            }
        }
        Ok(())
    }

    pub fn add_adapters(&mut self, config: &AdapterConfig, seed: u64) -> Result<usize> {
        Ok(match self {
            Learner::Classifier(classifier, _) => classifier.add_adapters(config, seed)?,
            Learner::Lm(lm) => lm.add_adapters(config, seed)?,
        })
    }

    /// PEFT's name of the task, and the modules that it saves whole.
    pub fn task_of(&self, config: AdapterConfig) -> AdapterConfig {
        match self {
            Learner::Classifier(..) => config,
            Learner::Lm(_) => of_lm(config),
        }
    }

    pub fn adapter(&self, config: AdapterConfig) -> Adapter {
        match self {
            Learner::Classifier(classifier, _) => classifier.adapter(config),
            Learner::Lm(lm) => lm.adapter(config),
        }
    }

    /// Takes the place of what it was with the parameters of a checkpoint.
    pub fn reload(&mut self, model: &Path, adapter: Adapter) -> Result<()> {
        match self {
            Learner::Classifier(classifier, _) => {
                let labels = match classifier.task() {
                    gelora_model::Task::Classification { labels } => Some(labels.clone()),
                    gelora_model::Task::Regression => None,
                };
                **classifier = Classifier::with_adapter(model, adapter, labels)?;
            }
            Learner::Lm(lm) => **lm = CausalLm::with_adapter(model, adapter)?,
        }
        Ok(())
    }

    pub fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        match self {
            Learner::Classifier(classifier, _) => classifier.parameters_mut(),
            Learner::Lm(lm) => lm.parameters_mut(),
        }
    }

    /// What is averaged over in a loss: rows, or tokens to predict.
    pub fn weight(&self, rows: &[Encoded]) -> usize {
        match self {
            Learner::Classifier(..) => rows.len(),
            Learner::Lm(_) => rows.iter().map(answered).sum(),
        }
    }

    /// The mean loss of rows, whose gradients times `share` are added to `grads`.
    pub fn backward(
        &self,
        (indices, rows): (&[usize], &[Encoded]),
        batch: &Batch,
        pass: &Pass,
        share: f32,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let (classes, scores);
        let (classifier, targets) = match self {
            Learner::Lm(lm) => return Ok(lm.backward(batch, &to_predict(rows), pass, share, grads)?),
            Learner::Classifier(classifier, Targets::Classes(all)) => {
                classes = indices.iter().map(|&i| all[i]).collect::<Vec<_>>();
                (classifier, ModelTargets::Classes(&classes))
            }
            Learner::Classifier(classifier, Targets::Scores(all)) => {
                scores = indices.iter().map(|&i| all[i] as f32).collect::<Vec<_>>();
                (classifier, ModelTargets::Scores(&scores))
            }
        };
        Ok(classifier.backward(batch, targets, pass, share, grads)?)
    }

    /// The task in words, for what must be the same when training goes on.
    pub fn task(&self) -> String {
        match self {
            Learner::Classifier(classifier, _) => format!("{:?}", classifier.task()),
            Learner::Lm(_) => CAUSAL_LM.into(),
        }
    }
}

/// PEFT's name of language modelling.
pub const CAUSAL_LM: &str = "CAUSAL_LM";

/// The config of a language model's adapter: no head is saved with it.
pub fn of_lm(config: AdapterConfig) -> AdapterConfig {
    AdapterConfig { task_type: Some(CAUSAL_LM.into()), modules_to_save: None, ..config }
}

/// Tokens of a row that are to be predicted.
fn answered(row: &Encoded) -> usize {
    row.targets.iter().skip(1).filter(|target| **target).count()
}

/// Whether each token is to be predicted.
fn to_predict(rows: &[Encoded]) -> Vec<bool> {
    rows.iter().flat_map(|row| &row.targets).copied().collect()
}

/// What a language model learns from: rows with answers as they are, other texts in blocks. Rows whose answer is cut off
/// are left out.
pub fn lm_rows(tokenizer: &Tokenizer, dataset: &Dataset) -> Result<Vec<Encoded>> {
    if !dataset.has_answers() {
        return tokenizer.blocks(dataset);
    }
    if dataset.examples.iter().any(|example| !example.chat.is_empty()) {
        tokenizer.template().with_context(|| dataset.path.display().to_string())?;
    }
    let rows = tokenizer.encode_all(&dataset.examples).with_context(|| {
        let row = tokenizer.first_bad(&dataset.examples);
        row.map_or_else(|| dataset.path.display().to_string(), |row| dataset.place(row))
    })?;
    Ok(rows.into_iter().filter(|row| answered(row) > 0).collect())
}

/// Mean loss and perplexity over all tokens that are to be predicted, and their number.
pub fn perplexity(lm: &CausalLm, rows: &[Encoded], batch_size: usize, quiet: bool) -> Result<Vec<(&'static str, f64)>> {
    let progress = Progress::new(quiet, "eval", rows.len() as u64);
    let (mut sum, mut count) = (0.0, 0);
    for rows in rows.chunks(batch_size) {
        let (of_batch, tokens) = lm.loss(&super::batch(rows)?, &to_predict(rows))?;
        sum += of_batch;
        count += tokens;
        progress.inc(rows.len() as u64);
    }
    progress.finish();
    let loss = sum / count as f64;
    Ok(vec![("loss", loss), ("perplexity", loss.exp()), ("tokens", count as f64)])
}
