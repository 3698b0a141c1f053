//! Checkpoints of a training, and the checks before a training resumes from one.
//!
//! ```text
//! checkpoint/step-40/            a folder for each checkpoint that is kept
//!     adapter_config.json, adapter_model.safetensors     the adapter after step 40
//!     optimizer.safetensors      the optimizer's moments
//!     adalora.safetensors        with AdaLoRA, the factors as they train and their importance
//!     best/                      the adapter of the best evaluation so far, if it may be kept
//!     state.json                 step, settings, hashes of these files and of itself
//! ```
//!
//! A checkpoint is written under another name and renamed when all of it is on the disk. Older ones are removed after
//! that, so that a complete checkpoint exists at all times.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use gelora_lora::Adapter;
use gelora_lora::files::write_atomic;
use serde_json::{Value, json};

use super::Trainer;
use super::options::Checkpoints;
use super::state::{STATE, State};
use crate::evaluate::reported;
use crate::event::Report;
use crate::optim::Optimizer;
use crate::{Error, Event, Result};

/// The file with the optimizer's moments.
const OPTIMIZER: &str = "optimizer.safetensors";
/// The file of AdaLoRA: the factors as they train, and their importance.
const TRIPLETS: &str = "adalora.safetensors";
/// The folder of the best adapter.
const BEST: &str = "best";
/// Names of checkpoints end with this and the number of steps.
const STEP: &str = "step-";
/// Name of the folder of checkpoints while it is removed.
const REMOVED: &str = ".gelora-checkpoint.partial";
/// File beside the checkpoints of a training that is over.
const FINISHED: &str = "finished";

impl Checkpoints {
    /// Whether a training can resume from a checkpoint in `folder`, or has to say why not: there is one, whole or
    /// damaged, of a training that is not over.
    pub fn can_resume(folder: &Path) -> bool {
        !folder.join(FINISHED).is_file() && !found_in(folder).is_empty()
    }

    /// Cleans up after a training whose adapter is written: removes the checkpoints, or marks them as those of a
    /// training that is over if several are kept.
    ///
    /// # Errors
    /// Returns an error if the mark cannot be written.
    pub fn finish(&self) -> Result<()> {
        if !self.folder.is_dir() {
            return Ok(());
        }
        if self.keep > 1 {
            return Ok(write_atomic(&self.folder.join(FINISHED), b"")?);
        }
        // Under another name, a folder that is half removed is no checkpoint. One that stays costs disk space only.
        let gone = self.folder.with_file_name(REMOVED);
        let _ = fs::remove_dir_all(&gone);
        let moved = fs::rename(&self.folder, &gone).is_ok();
        let _ = fs::remove_dir_all(if moved { &gone } else { &self.folder });
        Ok(())
    }
}

/// Returns the checkpoints in a folder, the one with the most steps first.
fn found_in(folder: &Path) -> Vec<PathBuf> {
    let steps = |path: &PathBuf| path.file_name()?.to_str()?.rsplit_once(STEP)?.1.parse::<usize>().ok();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<(usize, PathBuf)> = entries.filter_map(|path| Some((steps(&path)?, path))).collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

impl Trainer<'_> {
    /// Writes a checkpoint in the first process, and removes those that are too old or of an earlier training.
    pub(super) fn write_checkpoint(
        &mut self,
        checkpoints: &Checkpoints,
        step: usize,
        optimizer: &Optimizer,
    ) -> Result<()> {
        self.check_same_parameters(step)?;
        if !self.options.processes.is_first() {
            return Ok(());
        }
        let folder = &checkpoints.folder;
        // The folder that holds it must exist: if it vanished, the rest of the run's files is lost.
        if !folder.is_dir() {
            fs::create_dir(folder).map_err(|e| Error::io(folder, e))?;
        }
        let partial = folder.join(format!(".gelora-{STEP}{step}.partial"));
        let place = folder.join(format!("{STEP}{step}"));
        let written = self.write_files(checkpoints, step, optimizer, &partial).and_then(|()| replace(&partial, &place));
        if written.is_err() {
            let _ = fs::remove_dir_all(&partial);
            return written;
        }
        self.written.push(place);
        let surplus = self.written.len().saturating_sub(checkpoints.keep.max(1));
        self.written.drain(..surplus);
        for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
            // What cannot be removed costs disk space only.
            let path = entry.path();
            if path.is_dir() && !self.written.contains(&path) {
                let _ = fs::remove_dir_all(path);
            } else if entry.file_name() == FINISHED {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }

    fn write_files(&self, checkpoints: &Checkpoints, step: usize, optimizer: &Optimizer, path: &Path) -> Result<()> {
        if path.exists() {
            fs::remove_dir_all(path).map_err(|e| Error::io(path, e))?; // a write that was cut off
        }
        fs::create_dir(path).map_err(|e| Error::io(path, e))?;
        self.current().write(path)?;
        optimizer.save(&path.join(OPTIMIZER))?;
        if let Some(allocator) = &self.allocator {
            allocator.save(&path.join(TRIPLETS), &self.model.transformer().adapters())?;
        }
        let best = self.watch.as_ref().map(|watch| watch.write(&path.join(BEST))).transpose()?;
        State { step, settings: self.settings(checkpoints)?, best, files: BTreeMap::new() }.write(path)
    }

    /// Returns all settings that the result depends on, in the form in which a state file gives them back.
    fn settings(&self, checkpoints: &Checkpoints) -> Result<BTreeMap<String, Value>> {
        let options = &self.options;
        let problem = |e: serde_json::Error| Error::file(&checkpoints.folder, e.to_string());
        let config = serde_json::to_value(&self.config).map_err(problem)?;
        // Evaluations change the result only if they are compared.
        let compared = self.watch.as_ref().map(|watch| {
            let every = options.eval_every.map(|every| format!("{every:?}"));
            json!({"every": every, "metric": watch.metric(), "keep": options.keep.name(), "patience": options.patience})
        });
        let settings = [
            ("model", json!(self.model.transformer().name())),
            ("adapter", config),
            ("steps", json!(self.steps())),
            ("task", json!(self.model.task())),
            ("seed", json!(options.seed)),
            ("group-by-length", json!(options.group_by_length)),
            ("batch-size", json!(options.batch_size)),
            ("accumulate", json!(options.accumulate)),
            ("lr", json!(options.lr)),
            ("lora-plus", json!(options.lora_plus)),
            ("schedule", json!(options.schedule.name())),
            ("warmup", json!(options.warmup)),
            ("weight-decay", json!(options.weight_decay)),
            ("clip", json!(options.clip)),
            ("class-weights", json!(options.class_weights)),
            ("label-smoothing", json!(options.label_smoothing)),
            ("dtype", json!(self.model.transformer().dtype().to_string())),
            ("choice among evaluations", json!(compared)),
        ];
        let adalora = options.adalora.as_ref().map(|adalora| ("adalora", adalora.settings()));
        let eva = (!options.factors.is_empty()).then(|| ("init", json!("eva")));
        let settings = settings.into_iter().chain(adalora).chain(eva).map(|(name, value)| (name.to_owned(), value));
        let settings: BTreeMap<String, Value> = settings.chain(checkpoints.settings.clone()).collect();
        // A number that was read is not always the one that was written: serde_json may be off in its last bit.
        serde_json::to_string(&settings).and_then(|text| serde_json::from_str(&text)).map_err(problem)
    }

    /// Restores the adapter, the optimizer and the best evaluation from the newest checkpoint that is whole. Returns
    /// the number of finished steps.
    pub(super) fn restore(
        &mut self,
        checkpoints: &Checkpoints,
        optimizer: &mut Optimizer,
        report: &mut Report<'_>,
    ) -> Result<usize> {
        let folder = &checkpoints.folder;
        if folder.join(FINISHED).is_file() {
            return Err(Error::file(folder, format!("the training of these checkpoints ({STATE}) is over")));
        }
        let settings = self.settings(checkpoints)?;
        let (mut whole, mut damaged, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for path in found_in(folder) {
            match State::read(&path) {
                Err(error) => damaged.push(error),
                Ok(state) => match other_setting(&state, &settings) {
                    Some(problem) => others.push(Error::file(&path.join(STATE), problem)),
                    None => whole.push((path, state)),
                },
            }
        }
        self.written = whole.iter().rev().map(|(path, _)| path.clone()).collect();
        let Some((path, state)) = whole.into_iter().next() else {
            return Err(match (damaged.into_iter().next(), others.into_iter().next()) {
                (Some(damaged), _) => Error::Value(format!("{damaged}; no older checkpoint of this training is whole")),
                (None, Some(other)) => other,
                (None, None) => Error::file(folder, format!("holds no checkpoint to resume from (no {STATE})")),
            });
        };
        for problem in damaged {
            report(Event::Warning(&format!(
                "{problem}; the training goes on from {}, which is whole",
                path.display()
            )))?;
        }
        let adapter = Adapter::read(&path)?;
        self.model.reload(match () {
            () if self.config.is_pissa() => adapter.on_the_residual(&self.config)?,
            // The factors at the start have the sizes of those that train.
            () if self.config.is_adalora() => {
                Adapter { config: self.config.clone(), layers: self.model.transformer().adapters(), ..adapter }
            }
            () => adapter,
        })?;
        let device = self.model.transformer().device().clone();
        if let Some(allocator) = &mut self.allocator {
            allocator.restore(&path.join(TRIPLETS), self.model.parameters_mut(), &device)?;
        }
        optimizer.restore(&path.join(OPTIMIZER), state.step as u64, &device)?;
        if let (Some(watch), Some(best)) = (&mut self.watch, state.best) {
            watch.restore(best, &path.join(BEST), &reported(self.model.head_task()))?;
        }
        Ok(state.step)
    }
}

/// Says which setting of a checkpoint differs from those of this training.
fn other_setting(state: &State, settings: &BTreeMap<String, Value>) -> Option<String> {
    let (name, now) = settings.iter().find(|(name, now)| state.settings.get(*name) != Some(*now))?;
    let then = state.settings.get(name).unwrap_or(&Value::Null);
    Some(format!("belongs to a training with another {name} ({then}; now it is {now})"))
}

/// Gives a complete checkpoint its name. One that has the name already, of an earlier training, stays complete until
/// then under another name.
fn replace(partial: &Path, place: &Path) -> Result<()> {
    let moved = |from: &Path, to: &Path| fs::rename(from, to).map_err(|e| Error::io(to, e));
    if let Some(name) = place.file_name().filter(|_| place.exists()) {
        let old = place.with_file_name(format!("replaced-{}", name.to_string_lossy()));
        if old.exists() {
            fs::remove_dir_all(&old).map_err(|e| Error::io(&old, e))?;
        }
        moved(place, &old)?;
    }
    moved(partial, place)?;
    // The new name is on the disk when the folder is.
    if let Some(folder) = place.parent().and_then(|folder| File::open(folder).ok()) {
        let _ = folder.sync_all();
    }
    Ok(())
}
