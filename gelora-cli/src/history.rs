//! Reads metrics.jsonl: the steps, the evaluations and the runs of a training.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The lines of metrics.jsonl, in their order.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub steps: Vec<Step>,
    pub evaluations: Vec<Evaluation>,
    /// One run, and one more for each time that the training was resumed. A run that was killed has left no line.
    pub runs: Vec<Run>,
}

/// An optimizer step. A value that is not finite is None.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    pub step: usize,
    pub loss: Option<f64>,
    pub lr: f64,
    pub grad_norm: Option<f64>,
    pub ms: f64,
    pub tokens_per_s: Option<f64>,
}

/// Metrics of the held-out rows after a step.
#[derive(Clone, Debug)]
pub struct Evaluation {
    pub step: usize,
    /// Name and value of each metric, in the order of the file.
    pub metrics: Vec<(String, Option<f64>)>,
}

/// The end of a run.
#[derive(Clone, Debug, Deserialize)]
pub struct Run {
    /// Wall-clock seconds from the first step to the end, evaluations and checkpoints included.
    pub seconds: f64,
    /// Largest resident set of the process.
    pub peak_memory_bytes: Option<u64>,
}

/// A line other than a step's.
#[derive(Deserialize)]
struct Line {
    step: usize,
    eval: Option<Map<String, Value>>,
    run: Option<Run>,
}

impl History {
    /// Reads a file. Lines of other kinds are skipped, so that older programs can read newer files.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or a line is not JSON.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut history = Self::default();
        for (i, line) in text.lines().enumerate() {
            let place = || format!("{}: line {}", path.display(), i + 1);
            if let Ok(step) = serde_json::from_str::<Step>(line) {
                history.steps.push(step);
                continue;
            }
            let line: Line = serde_json::from_str(line).with_context(place)?;
            if let Some(eval) = line.eval {
                let metrics = eval.into_iter().map(|(name, value)| (name, value.as_f64())).collect();
                history.evaluations.push(Evaluation { step: line.step, metrics });
            }
            history.runs.extend(line.run);
        }
        Ok(history)
    }

    /// Returns the names of the metrics, in the order of the first evaluation.
    pub fn metric_names(&self) -> Vec<&str> {
        self.evaluations.first().map_or(Vec::new(), |first| first.metrics.iter().map(|(name, _)| &**name).collect())
    }

    /// Returns the wall-clock seconds of all steps together, without evaluations and checkpoints.
    pub fn seconds_of_steps(&self) -> f64 {
        self.steps.iter().map(|step| step.ms).sum::<f64>() / 1e3
    }

    /// Returns the median of the tokens a second over the steps.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let mut rates: Vec<f64> = self.steps.iter().filter_map(|step| step.tokens_per_s).collect();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied()
    }

    /// Returns the largest peak memory of the runs, in bytes.
    pub fn peak_memory_bytes(&self) -> Option<u64> {
        self.runs.iter().filter_map(|run| run.peak_memory_bytes).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_evaluations_and_runs_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let lines = r#"{"step":1,"epoch":0.5,"loss":0.7,"lr":0.001,"grad_norm":2.0,"ms":500.0,"tokens_per_s":100.0}
{"step":2,"epoch":1.0,"loss":null,"lr":0.0,"grad_norm":2.0,"ms":1500.0,"tokens_per_s":300.0}
{"step":2,"eval":{"loss":0.25,"perplexity":null},"peak_memory_bytes":10}
{"step":2,"run":{"first_step":1,"seconds":2.5,"peak_memory_bytes":1024}}
{"step":2,"other":1}
"#;
        std::fs::write(&path, lines).unwrap();
        let history = History::read(&path).unwrap();
        assert_eq!(history.steps.iter().map(|s| s.loss).collect::<Vec<_>>(), [Some(0.7), None]);
        assert_eq!(history.evaluations.len(), 1);
        assert_eq!(history.metric_names(), ["loss", "perplexity"]);
        assert_eq!(history.evaluations[0].metrics[1].1, None);
        assert_eq!((history.seconds_of_steps(), history.tokens_per_second()), (2.0, Some(300.0)));
        assert_eq!((history.runs[0].seconds, history.peak_memory_bytes()), (2.5, Some(1024)));
        std::fs::write(&path, "{\"step\": 1\n").unwrap();
        assert!(format!("{:#}", History::read(&path).unwrap_err()).contains("metrics.jsonl: line 1"));
    }
}
