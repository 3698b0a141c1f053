//! Checkpoints: what is needed to go on, and what must be the same to do so.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gelora_lora::Adapter;
use gelora_lora::files::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Trainer;
use super::options::Checkpoints;
use crate::optim::Optimizer;
use crate::{Error, Result};

/// The file of a checkpoint folder that is written last.
const STATE: &str = "state.json";
/// The file with the optimizer's moments.
const OPTIMIZER: &str = "optimizer.safetensors";

/// Where a checkpoint was taken, and what must be the same to go on from it.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: usize,
    /// Folder inside the checkpoint with adapter and optimizer of this step.
    files: String,
    /// Everything that the result depends on.
    settings: BTreeMap<String, Value>,
}

impl Trainer<'_> {
    /// Writes a new folder of files, then the state that names it, then removes the old folder: at no time is there no
    /// checkpoint.
    pub(super) fn write_checkpoint(&self, at: &Checkpoints, step: usize, optimizer: &Optimizer) -> Result<()> {
        let files = format!("step-{step}");
        let path = at.folder.join(&files);
        fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        self.adapter().write(&path)?;
        optimizer.save(&path.join(OPTIMIZER))?;
        let state = State { step, files, settings: self.settings(at)? };
        let mut json = serde_json::to_vec_pretty(&state).map_err(|e| Error::file(&at.folder, e.to_string()))?;
        json.push(b'\n');
        write_atomic(&at.folder.join(STATE), &json)?;
        for entry in fs::read_dir(&at.folder).map_err(|e| Error::io(&at.folder, e))?.flatten() {
            if entry.path().is_dir() && entry.file_name() != *state.files {
                // An old checkpoint that stays costs space, nothing else.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    /// Everything that the result depends on.
    fn settings(&self, at: &Checkpoints) -> Result<BTreeMap<String, Value>> {
        let o = &self.options;
        let config = serde_json::to_value(&self.config).map_err(|e| Error::file(&at.folder, e.to_string()))?;
        let own = [
            ("model", json!(self.model.transformer().name())),
            ("adapter", config),
            ("steps", json!(self.steps())),
            ("task", json!(self.model.task())),
            ("seed", json!(o.seed)),
            ("group-by-length", json!(o.group_by_length)),
            ("batch-size", json!(o.batch_size)),
            ("accumulate", json!(o.accumulate)),
            ("lr", json!(o.lr)),
            ("warmup", json!(o.warmup)),
            ("weight-decay", json!(o.weight_decay)),
            ("clip", json!(o.clip)),
            ("dtype", json!(self.model.transformer().dtype().to_string())),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        Ok(own.chain(at.settings.clone()).collect())
    }

    /// Takes the adapter and the optimizer from the checkpoint; returns the steps done.
    pub(super) fn restore(&mut self, at: &Checkpoints, optimizer: &mut Optimizer) -> Result<usize> {
        let path = at.folder.join(STATE);
        if !path.is_file() {
            return Err(Error::file(&path, "is missing; there is no checkpoint to go on from"));
        }
        let state = read(&path)?;
        let expected = self.settings(at)?;
        if let Some((name, now)) = expected.iter().find(|(name, now)| state.settings.get(*name) != Some(*now)) {
            let then = state.settings.get(name).unwrap_or(&Value::Null);
            let problem = format!("is of a training with another {name} ({then}; now it is {now})");
            return Err(Error::file(&path, problem));
        }
        let files = at.folder.join(&state.files);
        self.model.reload(Adapter::read(&files)?)?;
        let device = self.model.transformer().device().clone();
        optimizer.restore(&files.join(OPTIMIZER), state.step as u64, &device)?;
        Ok(state.step)
    }
}

fn read(path: &Path) -> Result<State> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))
}
