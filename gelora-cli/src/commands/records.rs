//! Records of a training in progress: metrics.jsonl, event files of TensorBoard, and predictions of held-out rows.

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Result;
use gelora_model::Event;
use gelora_model::evaluate::{Metric, Metrics};

use super::log::{LOG, Log};
use crate::output::OutDir;
use crate::tensorboard::{EventFile, remove_event_files};

/// What a training writes while it runs, and keeps for its report.
pub struct Records {
    log: Log,
    folder: PathBuf,
    /// Whether event files are written.
    tensorboard: bool,
    events: Option<EventFile>,
    /// Predictions of the latest evaluation.
    latest: Option<Rc<Predictions>>,
    /// For each metric, the best value so far with its predictions: the adapter of that step may be the one kept.
    best: Vec<(Metric, Option<Best>)>,
}

/// The best value of a metric so far, and the predictions behind it.
type Best = (f64, Rc<Predictions>);

/// Predictions of the held-out rows in an evaluation.
#[derive(Debug)]
pub struct Predictions {
    /// Number of finished steps.
    pub step: usize,
    /// Logits of every row. Empty for a language model.
    pub logits: Vec<Vec<f32>>,
}

impl Records {
    /// Returns the records of a training into `out`, whose task has these metrics. Files are opened when the training
    /// begins.
    pub fn new(out: &OutDir, tensorboard: bool, metrics: Vec<Metric>) -> Self {
        let folder = out.path().to_owned();
        let best = metrics.into_iter().map(|metric| (metric, None)).collect();
        Self { log: Log::new(out.file(LOG)), folder, tensorboard, events: None, latest: None, best }
    }

    /// Records an event.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub fn write(&mut self, event: Event<'_>) -> Result<()> {
        self.log.write(event)?;
        match event {
            Event::Training { first, .. } => {
                // Curves of an earlier training in this folder would mix with those of this one.
                if first == 0 {
                    remove_event_files(&self.folder)?;
                }
                if self.tensorboard {
                    self.events = Some(EventFile::create(&self.folder, first)?);
                }
            }
            Event::Step(record) => {
                if let Some(events) = &mut self.events {
                    let values = [
                        ("train/loss", record.loss),
                        ("train/lr", record.lr),
                        ("train/grad_norm", record.grad_norm),
                        ("train/tokens_per_second", record.tokens_per_s),
                    ];
                    events.scalars(record.step, values)?;
                }
            }
            Event::Evaluated { step, metrics, logits, .. } => {
                if let Some(events) = &mut self.events {
                    let tags: Vec<String> = metrics.iter().map(|(name, _)| format!("eval/{name}")).collect();
                    events.scalars(step, tags.iter().map(String::as_str).zip(metrics.iter().map(|(_, v)| *v)))?;
                }
                self.keep(metrics, Predictions { step, logits: logits.to_vec() });
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes all buffered lines to the files.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.log.flush()
    }

    /// Keeps the predictions of an evaluation as the latest, and where they are better than all before.
    fn keep(&mut self, metrics: &Metrics, predictions: Predictions) {
        let predictions = Rc::new(predictions);
        for (metric, best) in &mut self.best {
            let Some((_, value)) = metrics.iter().find(|(name, _)| *name == metric.name) else { continue };
            if metric.is_better(*value, best.as_ref().map(|(value, _)| *value)) {
                *best = Some((*value, Rc::clone(&predictions)));
            }
        }
        self.latest = Some(predictions);
    }

    /// Returns the predictions that were kept, those of the latest evaluation first.
    pub fn into_predictions(self) -> Vec<Rc<Predictions>> {
        let best = self.best.into_iter().filter_map(|(_, best)| Some(best?.1));
        self.latest.into_iter().chain(best).collect()
    }
}

#[cfg(test)]
mod tests {
    use gelora_model::evaluate::metrics;

    use super::*;

    #[test]
    fn predictions_of_the_best_and_of_the_latest_evaluation_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let out = OutDir::prepare(folder.path(), &[], "--out").unwrap();
        let mut records = Records::new(&out, false, metrics(None));
        let values = [(1, f64::NAN, 9.0), (2, 0.5, 3.0), (3, 0.5, 2.0), (4, 0.7, 4.0)];
        for (step, loss, perplexity) in values {
            let metrics = vec![("loss", loss), ("perplexity", perplexity), ("tokens", 1.0)];
            records.keep(&metrics, Predictions { step, logits: Vec::new() });
        }
        let steps: Vec<usize> = records.into_predictions().iter().map(|predictions| predictions.step).collect();
        assert_eq!(steps, [4, 2, 3]);
    }
}
