//! What a model is trained to predict, and the metric that it is scored by.

use anyhow::{Context, Result};
use gelora_model::Task as ModelTask;
use gelora_model::evaluate::{Metric, metrics};

use crate::data::LabelSet;

/// What a fresh head predicts.
pub fn model_task(labels: &LabelSet) -> ModelTask {
    match labels {
        LabelSet::Classes(labels) => ModelTask::Classification { labels: labels.clone() },
        LabelSet::Sets(sets) => ModelTask::MultiLabel { labels: sets.names.clone() },
        LabelSet::Scores => ModelTask::Regression,
    }
}

/// Returns the metric that the option names, or the usual one of the task. Without labels this is a language model.
///
/// # Errors
/// Returns an error that lists the metrics of the task if the name is not among them.
pub fn metric(name: Option<&str>, labels: Option<&LabelSet>) -> Result<Metric> {
    let known = metrics(labels.map(model_task).as_ref());
    let found = known.iter().find(|metric| name.is_none_or(|name| name == metric.name));
    found.copied().with_context(|| {
        let names = known.iter().map(|metric| metric.name).collect::<Vec<_>>().join(", ");
        format!("--metric {}: expected one of {names} for this task", name.unwrap_or_default())
    })
}
