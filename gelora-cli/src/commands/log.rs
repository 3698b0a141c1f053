//! Writes metrics.jsonl: one line for each optimizer step, one for each evaluation, one for the best of them if they
//! are compared, and one at the end of a run.

use std::fs::{self, File};
use std::io::{LineWriter, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use gelora_lora::files::write_atomic;
use gelora_model::{Event, Work};
use serde_json::{Map, Value, json};

use crate::{memory, profile, ui};

/// File name of the log.
pub const LOG: &str = "metrics.jsonl";

/// Log of a training run.
pub struct Log {
    path: PathBuf,
    file: Option<LineWriter<File>>,
    /// Number of steps before this run, and of finished steps.
    first: usize,
    step: usize,
    began: Instant,
}

impl Log {
    /// Returns a log whose file is opened when the training begins.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, first: 0, step: 0, began: Instant::now() }
    }

    /// Writes the line of an event, if it has one.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or written.
    pub fn write(&mut self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Training { first, .. } => {
                self.open(first)?;
                (self.first, self.step, self.began) = (first, first, Instant::now());
            }
            Event::Step(record) => {
                self.step = record.step;
                let line = serde_json::to_string(record)?;
                self.line(&line)?;
                profile::step(record.tokens);
            }
            Event::Evaluated { step, metrics, .. } => {
                let named: Map<String, Value> = metrics.iter().map(|(n, v)| ((*n).to_owned(), json!(v))).collect();
                self.line(&with_memory(json!({"step": step, "eval": named})).to_string())?;
            }
            Event::Finished { work: Work::Training } => {
                let run = json!({"first_step": self.first + 1, "seconds": self.began.elapsed().as_secs_f64()});
                self.line(&json!({"step": self.step, "run": with_memory(run)}).to_string())?;
            }
            Event::Best(best) => self.line(&json!({"step": best.last_step, "best": best}).to_string())?,
            Event::Checkpoint { .. } => {
                self.flush()?;
                // A checkpoint that is written while the folder is moved away makes the folder anew, without the log.
                if self.file.is_some() && !self.path.is_file() {
                    bail!("{}: vanished during the training", self.path.display());
                }
            }
            Event::StepEnded => profile::skip(),
            _ => {}
        }
        Ok(())
    }

    /// Writes all buffered lines to the file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        match &mut self.file {
            Some(file) => file.flush().with_context(|| self.path.display().to_string()),
            None => Ok(()),
        }
    }

    /// Appends a line.
    fn line(&mut self, line: &str) -> Result<()> {
        match &mut self.file {
            Some(file) => writeln!(file, "{line}").with_context(|| self.path.display().to_string()),
            None => Ok(()),
        }
    }

    /// Opens the file and removes the lines of steps that will run again.
    fn open(&mut self, first: usize) -> Result<()> {
        let path = &self.path;
        let (mut kept, mut steps) = (String::new(), 0);
        if first > 0 && path.is_file() {
            for line in fs::read_to_string(path).with_context(|| path.display().to_string())?.lines() {
                let record: Value = serde_json::from_str(line).unwrap_or_default();
                if record["step"].as_u64().is_some_and(|step| step as usize <= first) {
                    steps += usize::from(record.get("loss").is_some());
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
        }
        if steps < first {
            let path = path.display();
            ui::warn(format!("{path}: lacks {} of the {first} steps before the checkpoint", first - steps));
        }
        write_atomic(path, kept.as_bytes())?;
        let file = File::options().append(true).open(path).with_context(|| path.display().to_string())?;
        self.file = Some(LineWriter::new(file));
        Ok(())
    }
}

/// Adds the peak memory so far, where the system tells it.
fn with_memory(mut object: Value) -> Value {
    if let Some(bytes) = memory::peak_resident_bytes() {
        object["peak_memory_bytes"] = json!(bytes);
    }
    object
}
