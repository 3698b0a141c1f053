//! Predictions of a task model on held-out rows, and their metrics.

mod metrics;

use crate::distributed::{Processes, bytes_of, floats_of, numbers};
use crate::event::{Reply, Report, report};
use crate::task_model::targets;
use crate::{Batch, CausalLm, Classifier, Error, Event, Labels, Result, Rows, Task, TaskModel, Tokens, Work};

pub use crate::record::Metrics;
pub use metrics::{Metric, metrics, multi_label, spearman};

/// Name of the number of tokens that a language model was evaluated on.
const TOKENS: &str = "tokens";

/// Result of [`evaluate`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Evaluation {
    /// Metrics of the task. Empty if the rows have no labels.
    pub metrics: Metrics,
    /// Logits of every row, if the model is a classifier.
    pub logits: Vec<Vec<f32>>,
}

/// Evaluates a model on rows. [`metrics()`] has the metrics of each task; a language model also reports the number of
/// tokens. A classifier also predicts rows without labels.
///
/// # Errors
/// Returns an error if a row cannot be tokenized, a token is outside the model's tables, the labels do not fit the
/// task, the device fails, or `progress` returns an error.
pub fn evaluate<R: Reply>(
    model: &TaskModel,
    rows: &dyn Rows,
    batch_size: usize,
    progress: &mut impl FnMut(Event<'_>) -> R,
) -> Result<Evaluation> {
    evaluated(model, rows, batch_size, &Processes::default(), &mut report(progress))
}

/// Evaluates as [`evaluate`] does, with the batches shared between processes. Every process returns the whole result,
/// which does not depend on their number.
///
/// # Errors
/// Returns the errors of [`evaluate`], and an error if a process does not answer in time.
pub fn evaluate_shared<R: Reply>(
    model: &TaskModel,
    rows: &dyn Rows,
    batch_size: usize,
    processes: &Processes,
    progress: &mut impl FnMut(Event<'_>) -> R,
) -> Result<Evaluation> {
    evaluated(model, rows, batch_size, processes, &mut report(progress))
}

/// Names of everything that an evaluation of a task reports. The task of a language model is None.
pub(crate) fn reported(task: Option<&Task>) -> Vec<&'static str> {
    metrics(task).into_iter().map(|metric| metric.name).chain([TOKENS]).collect()
}

pub(crate) fn evaluated(
    model: &TaskModel,
    rows: &dyn Rows,
    batch_size: usize,
    processes: &Processes,
    report: &mut Report<'_>,
) -> Result<Evaluation> {
    let batches = Batches { rows, size: batch_size.max(1), processes };
    match model {
        TaskModel::Classifier(classifier) => {
            let logits = predict(classifier, &batches, report)?;
            let metrics = score(&logits, rows.labels(), classifier.task().outputs())?;
            Ok(Evaluation { metrics, logits })
        }
        TaskModel::CausalLm(lm) => Ok(Evaluation { metrics: perplexity(lm, &batches, report)?, logits: Vec::new() }),
    }
}

/// The class with the largest logit; among equal logits, the first class.
pub fn predicted_class(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

/// The classes of a model whose classes do not exclude each other ([`Task::MultiLabel`]): those with a logit above 0,
/// which is a probability above 1/2.
pub fn predicted_set(logits: &[f32]) -> Vec<usize> {
    (0..logits.len()).filter(|class| logits[*class] > 0.0).collect()
}

/// The probability of every class if classes do not exclude each other: p_k = 1 / (1 + e^(-logits_k)). Computed in f64.
pub fn independent_probabilities(logits: &[f32]) -> Vec<f32> {
    logits.iter().map(|logit| (1.0 / (1.0 + (-f64::from(*logit)).exp())) as f32).collect()
}

/// The probability of every class: softmax(logits), p_k = e^(logits_k - peak) / sum_j e^(logits_j - peak), with peak
/// the largest logit. Computed in f64.
pub fn probabilities(logits: &[f32]) -> Vec<f32> {
    let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shares: Vec<f64> = logits.iter().map(|logit| (f64::from(*logit) - f64::from(peak)).exp()).collect();
    let sum: f64 = shares.iter().sum();
    shares.into_iter().map(|share| (share / sum) as f32).collect()
}

/// Rows in batches, which the processes share.
struct Batches<'a> {
    rows: &'a dyn Rows,
    size: usize,
    processes: &'a Processes,
}

impl Batches<'_> {
    /// Calls `visit` with the tokens of every batch of this process. Returns what it returned for the batches of all
    /// processes, in order.
    fn visit(
        &self,
        report: &mut Report<'_>,
        mut visit: impl FnMut(&[Tokens]) -> Result<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>> {
        let rows = self.rows.len();
        report(Event::Began { work: Work::Evaluation, units: rows })?;
        let (all, world) = ((0..rows).collect::<Vec<usize>>(), self.processes.world());
        let batches: Vec<&[usize]> = all.chunks(self.size).collect();
        let mut mine = Vec::new();
        for batch in self.processes.share(batches.len()) {
            mine.push(visit(&self.rows.tokens(batches[batch])?)?);
            // The other processes are about as far.
            let units = batches[batch / world * world..].iter().take(world).map(|rows| rows.len()).sum();
            report(Event::Advanced { units })?;
        }
        let found = self.processes.collect(batches.len(), mine)?;
        report(Event::Finished { work: Work::Evaluation })?;
        Ok(found)
    }
}

/// Returns the logits of every row, in order.
fn predict(classifier: &Classifier, batches: &Batches<'_>, report: &mut Report<'_>) -> Result<Vec<Vec<f32>>> {
    let found =
        batches.visit(report, |tokens| Ok(bytes_of(&classifier.logits(&Batch::of_tokens(tokens)?)?.to_vec()?)))?;
    let outputs = classifier.task().outputs();
    Ok(found
        .iter()
        .flat_map(|batch| floats_of(batch).chunks(outputs).map(<[f32]>::to_vec).collect::<Vec<_>>())
        .collect())
}

/// Returns the metrics for the kind of labels given.
fn score(logits: &[Vec<f32>], labels: Labels<'_>, classes: usize) -> Result<Metrics> {
    let check = |labels: usize| match labels == logits.len() {
        true => Ok(()),
        false => Err(Error::Value(format!("{} rows need as many labels, got {labels}", logits.len()))),
    };
    Ok(match labels {
        Labels::None => Metrics::new(),
        Labels::Classes(gold) => {
            check(gold.len())?;
            let predicted: Vec<usize> = logits.iter().map(|row| predicted_class(row)).collect();
            metrics::classification(&predicted, gold, classes)
        }
        Labels::Sets(gold) => {
            check(gold.len())?;
            if let Some(class) = gold.iter().flatten().find(|class| **class >= classes) {
                return Err(Error::Value(format!("classes must be below {classes}, got {class}")));
            }
            let predicted: Vec<Vec<usize>> = logits.iter().map(|row| predicted_set(row)).collect();
            multi_label(&predicted, gold, classes)
        }
        Labels::Scores(gold) => {
            check(gold.len())?;
            let predicted: Vec<f64> = logits.iter().map(|row| f64::from(row[0])).collect();
            metrics::regression(&predicted, gold)
        }
    })
}

/// Returns the mean loss and the perplexity over all tokens to predict, and the number of those tokens.
fn perplexity(lm: &CausalLm, batches: &Batches<'_>, report: &mut Report<'_>) -> Result<Metrics> {
    let found = batches.visit(report, |tokens| {
        let (loss, predicted) = lm.loss(&Batch::of_tokens(tokens)?, &targets(tokens))?;
        Ok([loss.to_bits(), predicted as u64].iter().flat_map(|number| number.to_le_bytes()).collect())
    })?;
    let (mut sum, mut count) = (0.0, 0);
    for batch in &found {
        let mut numbers = numbers(batch);
        sum += f64::from_bits(numbers.next().unwrap_or_default());
        count += numbers.next().unwrap_or_default();
    }
    let loss = sum / count as f64;
    Ok(vec![("loss", loss), ("perplexity", loss.exp()), (TOKENS, count as f64)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_predicted_above_one_half() {
        let logits = [0.0, 1e-3, -1e-3, 3f32.ln(), f32::MAX, f32::MIN];
        assert_eq!(predicted_set(&logits), [1, 3, 4]);
        let found = independent_probabilities(&logits);
        assert!((found[3] - 0.75).abs() < 1e-6, "{found:?}");
        assert_eq!((found[0], found[4], found[5]), (0.5, 1.0, 0.0));
    }

    #[test]
    fn probabilities_are_a_softmax_at_any_size_of_the_logits() {
        // e^0 : e^ln 3 = 1 : 3, wherever the logits lie.
        for shift in [0.0, 80.0, -1000.0] {
            let found = probabilities(&[shift, shift + 3f32.ln()]);
            assert!((found[0] - 0.25).abs() < 1e-4 && (found[1] - 0.75).abs() < 1e-4, "{found:?} at {shift}");
        }
        assert_eq!(probabilities(&[f32::MAX, 0.0]), [1.0, 0.0]);
        assert!(probabilities(&[]).is_empty());
    }
}
