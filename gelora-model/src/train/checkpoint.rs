//! Checkpoints of a training, and the checks before a training resumes from one.

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

/// The step of a checkpoint, and the settings that a resumed training must share.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: usize,
    /// Folder inside the checkpoint that holds the adapter and the optimizer of this step.
    files: String,
    /// All settings that the result depends on.
    settings: BTreeMap<String, Value>,
}

impl Trainer<'_> {
    /// Writes a new folder of files, then the state file that names it, and then removes the old folder. A complete
    /// checkpoint exists at all times.
    pub(super) fn write_checkpoint(&self, checkpoints: &Checkpoints, step: usize, optimizer: &Optimizer) -> Result<()> {
        let files = format!("step-{step}");
        let path = checkpoints.folder.join(&files);
        fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        self.adapter().write(&path)?;
        optimizer.save(&path.join(OPTIMIZER))?;
        let state = State { step, files, settings: self.settings(checkpoints)? };
        let mut json =
            serde_json::to_vec_pretty(&state).map_err(|e| Error::file(&checkpoints.folder, e.to_string()))?;
        json.push(b'\n');
        write_atomic(&checkpoints.folder.join(STATE), &json)?;
        for entry in fs::read_dir(&checkpoints.folder).map_err(|e| Error::io(&checkpoints.folder, e))?.flatten() {
            if entry.path().is_dir() && entry.file_name() != *state.files {
                // If an old checkpoint cannot be removed, it costs disk space only.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    /// Returns all settings that the result depends on.
    fn settings(&self, checkpoints: &Checkpoints) -> Result<BTreeMap<String, Value>> {
        let options = &self.options;
        let config = serde_json::to_value(&self.config).map_err(|e| Error::file(&checkpoints.folder, e.to_string()))?;
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
            ("warmup", json!(options.warmup)),
            ("weight-decay", json!(options.weight_decay)),
            ("clip", json!(options.clip)),
            ("dtype", json!(self.model.transformer().dtype().to_string())),
        ];
        let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value));
        Ok(settings.chain(checkpoints.settings.clone()).collect())
    }

    /// Restores the adapter and the optimizer from the checkpoint. Returns the number of finished steps.
    pub(super) fn restore(&mut self, checkpoints: &Checkpoints, optimizer: &mut Optimizer) -> Result<usize> {
        let path = checkpoints.folder.join(STATE);
        if !path.is_file() {
            return Err(Error::file(&path, "is missing; there is no checkpoint to resume from"));
        }
        let state = read(&path)?;
        let expected = self.settings(checkpoints)?;
        if let Some((name, now)) = expected.iter().find(|(name, now)| state.settings.get(*name) != Some(*now)) {
            let then = state.settings.get(name).unwrap_or(&Value::Null);
            let problem = format!("belongs to a training with another {name} ({then}; now it is {now})");
            return Err(Error::file(&path, problem));
        }
        let files = checkpoints.folder.join(&state.files);
        let adapter = Adapter::read(&files)?;
        self.model.reload(match self.config.is_pissa() {
            true => adapter.on_the_residual(&self.config)?,
            false => adapter,
        })?;
        let device = self.model.transformer().device().clone();
        optimizer.restore(&files.join(OPTIMIZER), state.step as u64, &device)?;
        Ok(state.step)
    }
}

fn read(path: &Path) -> Result<State> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))
}
