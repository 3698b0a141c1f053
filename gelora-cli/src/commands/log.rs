//! Writes metrics.jsonl: one line for each optimizer step, and one for each evaluation.

use std::fs::{self, File};
use std::io::{LineWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use gelora_lora::files::write_atomic;
use gelora_model::Event;
use serde_json::{Map, Value, json};

use crate::profile;

/// File name of the log.
pub const LOG: &str = "metrics.jsonl";

/// Log of a training run.
pub struct Log {
    path: PathBuf,
    file: Option<LineWriter<File>>,
}

impl Log {
    /// Returns a log whose file is opened when the training begins.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Writes the line of an event, if it has one.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or written.
    pub fn write(&mut self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Training { first, .. } => self.open(first)?,
            Event::Step(record) => {
                let line = serde_json::to_string(record)?;
                self.line(&line)?;
                profile::step(record.tokens);
            }
            Event::Evaluated { step, metrics } => {
                let named: Map<String, Value> = metrics.iter().map(|(n, v)| ((*n).to_owned(), json!(v))).collect();
                self.line(&json!({"step": step, "eval": named}).to_string())?;
            }
            Event::Checkpoint { .. } => self.flush()?,
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

    fn line(&mut self, line: &str) -> Result<()> {
        match &mut self.file {
            Some(file) => writeln!(file, "{line}").with_context(|| self.path.display().to_string()),
            None => Ok(()),
        }
    }

    /// Opens the file and removes the lines of steps that will run again.
    fn open(&mut self, first: usize) -> Result<()> {
        let path = &self.path;
        let mut kept = String::new();
        if first > 0 && path.is_file() {
            for line in fs::read_to_string(path).with_context(|| path.display().to_string())?.lines() {
                let step = serde_json::from_str(line).ok().and_then(|v: Value| v["step"].as_u64());
                if step.is_some_and(|s| s as usize <= first) {
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
        }
        write_atomic(path, kept.as_bytes())?;
        let file = File::options().append(true).open(path).with_context(|| path.display().to_string())?;
        self.file = Some(LineWriter::new(file));
        Ok(())
    }
}
