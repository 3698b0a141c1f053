//! Writes predictions as JSON lines or CSV.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use gelora_model::Task;
use gelora_model::evaluate::{independent_probabilities, predicted_class, predicted_set, probabilities};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::super::eval::class_json;
use crate::args::FormatArg;
use crate::data::Example;

/// An open file of predictions, or standard output.
pub struct Writer {
    out: Output,
    place: String,
    task: Task,
    /// Names of the columns that are repeated: of the text, and of the second text of a pair.
    columns: Option<(String, Option<String>)>,
}

enum Output {
    Jsonl(Box<dyn Write>),
    Csv(Box<csv::Writer<Box<dyn Write>>>),
}

/// A line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    row: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Pairs<'a, &'a str>>,
    #[serde(flatten)]
    prediction: Prediction<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Prediction<'a> {
    Class { predicted: Value, probability: f32, probabilities: Pairs<'a, f32> },
    Classes { predicted: Vec<Value>, probabilities: Pairs<'a, f32> },
    Score { score: f32 },
}

/// Separator of the predicted classes in a cell of CSV, if there may be several.
const SEPARATOR: &str = "|";

/// An object with its keys in the order given.
struct Pairs<'a, V>(Vec<(&'a str, V)>);

impl<V: Serialize> Serialize for Pairs<'_, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        self.0.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
        map.end()
    }
}

impl Writer {
    /// Opens a file, or standard output. A table begins with its header.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn open(
        path: Option<&Path>,
        format: FormatArg,
        task: &Task,
        columns: Option<(String, Option<String>)>,
    ) -> Result<Self> {
        let place = path.map_or("standard output".to_owned(), |path| path.display().to_string());
        let out: Box<dyn Write> = match path {
            Some(path) => Box::new(BufWriter::new(File::create(path).with_context(|| place.clone())?)),
            None => Box::new(BufWriter::new(io::stdout())),
        };
        let out = match format {
            FormatArg::Jsonl => Output::Jsonl(out),
            FormatArg::Csv => Output::Csv(Box::new(csv::Writer::from_writer(out))),
        };
        let mut writer = Self { out, place, task: task.clone(), columns };
        let header = writer.header();
        if let Output::Csv(table) = &mut writer.out {
            table.write_record(&header).map_err(io::Error::from).with_context(|| writer.place.clone())?;
        }
        Ok(writer)
    }

    fn header(&self) -> Vec<String> {
        let mut header = vec!["row".to_owned()];
        let columns = self.columns.iter().flat_map(|(text, pair)| [Some(text), pair.as_ref()]).flatten();
        header.extend(columns.map(|name| format!("input_{name}")));
        match &self.task {
            Task::Classification { labels } => {
                header.extend(["predicted".to_owned(), "probability".to_owned()]);
                header.extend(labels.iter().map(|label| format!("probability_{label}")));
            }
            Task::MultiLabel { labels } => {
                header.push("predicted".to_owned());
                header.extend(labels.iter().map(|label| format!("probability_{label}")));
            }
            Task::Regression => header.push("score".to_owned()),
        }
        header
    }

    /// Writes the prediction of a row.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn row(&mut self, row: usize, example: &Example, logits: &[f32]) -> Result<()> {
        let written = match &mut self.out {
            Output::Jsonl(out) => {
                let input = self.columns.as_ref().map(|(text, pair)| {
                    let pair = pair.as_deref().zip(example.pair.as_deref());
                    Pairs([(text.as_str(), example.text.as_str())].into_iter().chain(pair).collect())
                });
                let prediction = match &self.task {
                    Task::Classification { labels } => {
                        let (class, shares) = (predicted_class(logits), probabilities(logits));
                        Prediction::Class {
                            predicted: class_json(&labels[class]),
                            probability: shares[class],
                            probabilities: Pairs(labels.iter().map(String::as_str).zip(shares).collect()),
                        }
                    }
                    Task::MultiLabel { labels } => Prediction::Classes {
                        predicted: predicted_set(logits).into_iter().map(|class| class_json(&labels[class])).collect(),
                        probabilities: Pairs(
                            labels.iter().map(String::as_str).zip(independent_probabilities(logits)).collect(),
                        ),
                    },
                    Task::Regression => Prediction::Score { score: logits[0] },
                };
                serde_json::to_writer(&mut *out, &Line { row, input, prediction })
                    .map_err(io::Error::from)
                    .and_then(|()| out.write_all(b"\n"))
            }
            Output::Csv(table) => {
                let mut cells = vec![row.to_string()];
                if let Some((_, pair)) = &self.columns {
                    cells.push(example.text.clone());
                    cells.extend(pair.iter().map(|_| example.pair.clone().unwrap_or_default()));
                }
                match &self.task {
                    Task::Classification { labels } => {
                        let (class, shares) = (predicted_class(logits), probabilities(logits));
                        cells.extend([labels[class].clone(), shares[class].to_string()]);
                        cells.extend(shares.iter().map(f32::to_string));
                    }
                    Task::MultiLabel { labels } => {
                        let names = predicted_set(logits).into_iter().map(|class| labels[class].as_str());
                        cells.push(names.collect::<Vec<_>>().join(SEPARATOR));
                        cells.extend(independent_probabilities(logits).iter().map(f32::to_string));
                    }
                    Task::Regression => cells.push(logits[0].to_string()),
                }
                table.write_record(&cells).map_err(io::Error::from)
            }
        };
        written.with_context(|| self.place.clone())
    }

    /// Hands everything to the system, so that readers see it.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        let flushed = match &mut self.out {
            Output::Jsonl(out) => out.flush(),
            Output::Csv(table) => table.flush(),
        };
        flushed.with_context(|| self.place.clone())
    }
}
