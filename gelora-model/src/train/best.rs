//! The best evaluation of a training: whose adapter is kept, and when no better one is waited for.

use std::path::Path;

use gelora_kernels::Device;
use gelora_lora::Adapter;
use serde::{Deserialize, Serialize};

use crate::evaluate::{Metric, metrics};
use crate::record::{Best, Metrics};
use crate::{Error, Result, Task};

/// The adapter that a training ends with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Keep {
    /// The adapter of the last step.
    #[default]
    Last,
    /// The adapter of the best evaluation.
    Best,
}

impl Keep {
    /// The name on the command line and in checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Best => "best",
        }
    }
}

/// Compares the evaluations of a training.
#[derive(Debug)]
pub(super) struct Watch {
    metric: Metric,
    keep: Keep,
    patience: Option<usize>,
    /// The best evaluation so far. An evaluation whose metric is NaN is never the best.
    best: Option<Evaluated>,
    /// Number of evaluations since.
    waited: usize,
}

/// An evaluation, with the adapter at that time if it may be kept.
#[derive(Debug)]
struct Evaluated {
    step: usize,
    value: f64,
    metrics: Metrics,
    adapter: Option<Adapter>,
}

/// The part of a [`Watch`] that a checkpoint's state holds; the adapter is in files.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WatchState {
    waited: usize,
    best: Option<BestState>,
}

/// Numbers are text, which gives back the same bits.
#[derive(Debug, Serialize, Deserialize)]
struct BestState {
    step: usize,
    value: String,
    metrics: Vec<(String, String)>,
}

impl Watch {
    /// Returns None if nothing depends on how evaluations compare. The task of a language model is None.
    ///
    /// # Errors
    /// Returns an error if the task has no metric of the name.
    pub fn new(metric: Option<&str>, keep: Keep, patience: Option<usize>, task: Option<&Task>) -> Result<Option<Self>> {
        if metric.is_none() && keep == Keep::Last && patience.is_none() {
            return Ok(None);
        }
        let known = metrics(task);
        let found = known.iter().find(|known| metric.is_none_or(|name| name == known.name));
        let Some(metric) = found.copied() else {
            let names = known.iter().map(|metric| metric.name).collect::<Vec<_>>().join(", ");
            let name = metric.unwrap_or_default();
            return Err(Error::Value(format!("metric {name}: expected one of {names} for this task")));
        };
        Ok(Some(Self { metric, keep, patience, best: None, waited: 0 }))
    }

    /// Name of the metric.
    pub fn metric(&self) -> &'static str {
        self.metric.name
    }

    /// Takes the metrics of the evaluation after `step`. Calls `adapter` if they are better than all before and the
    /// adapter may be kept. Returns whether the training should end.
    pub fn compare(&mut self, step: usize, metrics: &Metrics, adapter: impl FnOnce() -> Adapter) -> Result<bool> {
        let value = metrics.iter().find(|(name, _)| *name == self.metric.name).map_or(f64::NAN, |(_, value)| *value);
        let is_better = self.metric.is_better(value, self.best.as_ref().map(|best| best.value));
        self.waited += 1;
        if is_better {
            let adapter = (self.keep == Keep::Best).then(|| on_the_cpu(adapter())).transpose()?;
            self.best = Some(Evaluated { step, value, metrics: metrics.clone(), adapter });
            self.waited = 0;
        }
        Ok(self.patience.is_some_and(|patience| self.waited >= patience))
    }

    /// The adapter and the metrics that are kept, unless they are those of the last step.
    pub fn kept(&self) -> Option<(&Adapter, &Metrics)> {
        self.best.as_ref().and_then(|best| Some((best.adapter.as_ref()?, &best.metrics)))
    }

    /// The best evaluation of a training that ended after `last_step`.
    pub fn best(&self, last_step: usize) -> Option<Best> {
        self.best.as_ref().map(|best| Best {
            metric: self.metric.name,
            value: best.value,
            step: best.step,
            kept: best.adapter.is_some(),
            last_step,
            stopped_early: self.patience.filter(|patience| self.waited >= *patience),
        })
    }

    /// Writes the best adapter into a folder, if it may be kept. Returns the rest of what is to be restored.
    pub fn write(&self, folder: &Path) -> Result<WatchState> {
        if let Some((adapter, _)) = self.kept() {
            adapter.write(folder)?;
        }
        let best = self.best.as_ref().map(|best| BestState {
            step: best.step,
            value: best.value.to_string(),
            metrics: best.metrics.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect(),
        });
        Ok(WatchState { waited: self.waited, best })
    }

    /// Restores what [`write`](Self::write) wrote and returned. `names` are the names of all metrics of the task.
    pub fn restore(&mut self, state: WatchState, folder: &Path, names: &[&'static str]) -> Result<()> {
        self.waited = state.waited;
        let Some(BestState { step, value, metrics }) = state.best else { return Ok(()) };
        let number = |text: &str| {
            text.parse::<f64>().map_err(|_| Error::file(folder, format!("the state has the metric {text:?}")))
        };
        // A metric that this version does not know is only left out of what is displayed.
        let metrics = metrics.iter().filter_map(|(name, value)| {
            let name = names.iter().find(|known| **known == name)?;
            Some(number(value).map(|value| (*name, value)))
        });
        let metrics = metrics.collect::<Result<_>>()?;
        let adapter = (self.keep == Keep::Best).then(|| Adapter::read(folder)).transpose()?;
        self.best = Some(Evaluated { step, value: number(&value)?, metrics, adapter });
        Ok(())
    }
}

/// Moves an adapter to the CPU, so that it takes no memory of a GPU until the end.
fn on_the_cpu(mut adapter: Adapter) -> Result<Adapter> {
    adapter.layers.values_mut().try_for_each(|layer| layer.move_to(&Device::Cpu))?;
    for tensor in adapter.saved.values_mut() {
        *tensor = tensor.to_device(&Device::Cpu)?;
    }
    Ok(adapter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(metric: &str, patience: Option<usize>) -> Watch {
        let classes = Task::Classification { labels: vec!["a".into(), "b".into()] };
        let task = Some(&classes).filter(|_| metric != "loss");
        Watch::new(Some(metric), Keep::Last, patience, task).expect("the metric is known").expect("a metric is given")
    }

    fn no_adapter() -> Adapter {
        Adapter { config: Default::default(), layers: [].into(), saved: [].into() }
    }

    /// Steps at which the values are better, and the number of values until the training ends.
    fn compared(metric: &'static str, patience: Option<usize>, values: &[f64]) -> (Vec<usize>, usize) {
        let (mut watch, mut better) = (watch(metric, patience), Vec::new());
        for (step, value) in values.iter().enumerate() {
            let ends = watch.compare(step, &vec![("other", 9.0), (metric, *value)], no_adapter).expect("no device");
            if watch.best(step).is_some_and(|best| best.step == step) {
                better.push(step);
            }
            if ends {
                return (better, step + 1);
            }
        }
        (better, values.len())
    }

    #[test]
    fn ties_and_nan_are_not_better() {
        assert_eq!(compared("accuracy", None, &[0.5, 0.5, 0.4, 0.6, 0.6]), (vec![0, 3], 5));
        assert_eq!(compared("loss", None, &[2.0, 3.0, 2.0, 1.0, f64::NAN]), (vec![0, 3], 5));
        assert_eq!(compared("loss", None, &[f64::NAN, f64::INFINITY, 5.0]), (vec![1, 2], 3));
        assert_eq!(compared("accuracy", None, &[f64::NAN]), (vec![], 1));
    }

    #[test]
    fn patience_counts_evaluations_without_a_better_value() {
        assert_eq!(compared("accuracy", Some(2), &[0.5, 0.5, 0.6, 0.6, 0.6, 0.9]), (vec![0, 2], 5));
        assert_eq!(compared("accuracy", Some(1), &[0.1, 0.2, 0.2]), (vec![0, 1], 3));
        assert_eq!(compared("loss", Some(2), &[2.0, 2.5, 1.0, 1.5, 1.25]), (vec![0, 2], 5));
        assert_eq!(compared("loss", Some(2), &[f64::NAN, f64::NAN, 1.0]), (vec![], 2));
    }

    #[test]
    fn a_metric_is_one_of_the_task() {
        let new = |metric: Option<&str>, keep: Keep| {
            Watch::new(metric, keep, None, Some(&Task::Regression)).map(|watch| watch.map(|watch| watch.metric()))
        };
        assert_eq!(new(None, Keep::Last).expect("no metric"), None);
        assert_eq!(new(None, Keep::Best).expect("the first metric"), Some("pearson"));
        assert_eq!(new(Some("spearman"), Keep::Last).expect("it is known"), Some("spearman"));
        let error = new(Some("bleu"), Keep::Best).expect_err("it is not known").to_string();
        assert_eq!(error, "metric bleu: expected one of pearson, spearman for this task");
    }

    #[test]
    fn a_restored_watch_goes_on_with_the_same_bits() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = watch("accuracy", Some(3));
        let values = [0.1 + 0.2, f64::INFINITY];
        let metrics = vec![("accuracy", values[0]), ("f1", values[1]), ("matthews", 1.0 / 3.0)];
        first.compare(7, &metrics, no_adapter).expect("no device");
        first.compare(8, &vec![("accuracy", 0.0)], no_adapter).expect("no device");
        let state = serde_json::to_string(&first.write(folder.path()).expect("no files")).expect("JSON");
        let mut second = watch("accuracy", Some(3));
        let state = serde_json::from_str(&state).expect("a state");
        second.restore(state, folder.path(), &["accuracy", "f1", "matthews"]).expect("a state");
        let best = second.best.as_ref().expect("the best");
        assert_eq!((best.step, best.value, &best.metrics, second.waited), (7, values[0], &metrics, 1));
        // A tie with the restored value is not better.
        assert!(!second.compare(9, &metrics, no_adapter).expect("no device"));
        assert!(second.compare(10, &metrics, no_adapter).expect("no device"));
        let said = second.best(10).expect("the best").to_string();
        assert_eq!(
            said,
            "stopped early after step 10: 3 evaluations without a better accuracy; the best accuracy was 0.3000 at \
             step 7; the adapter is that of step 10"
        );
    }
}
