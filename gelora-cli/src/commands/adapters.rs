//! Reads and checks the adapter that a command is given, and warns where it may not fit the model.

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_lora::{Adapter, CONFIG_NAME, WEIGHTS_NAME};
use gelora_model::gguf::{is_gguf, read_adapter as read_gguf_adapter};
use gelora_model::{AdapterTask, Classifier, Config};

use super::{AdapterInfo, adapter_info};
use crate::args::ModelArgs;
use crate::ui;

/// PEFT's task type of adapters whose model has no task head.
pub const FEATURES: &str = "FEATURE_EXTRACTION";

/// Reads an adapter folder, or an adapter of `model` in a .gguf file. If its config leaves the task open, the returned
/// config names the task of `model`.
///
/// # Errors
/// Returns an error if the path is no adapter folder, a file is damaged, or the adapter's task is not supported.
pub fn read_adapter(folder: &Path, model: &Path) -> Result<Adapter> {
    if is_gguf(folder) {
        return Ok(read_gguf_adapter(folder, &Config::load(model)?)?);
    }
    if !folder.join(CONFIG_NAME).is_file() {
        bail!("{}: no {CONFIG_NAME}; expected an adapter folder from `gelora train` or PEFT", folder.display());
    }
    let mut adapter = gelora_model::read_adapter(folder)?;
    let task = AdapterTask::of(&adapter, model).with_context(|| folder.display().to_string())?;
    adapter.config.task_type = Some(task.name().into());
    Ok(adapter)
}

/// Loads a model for evaluation, with an adapter or with its own head.
///
/// # Errors
/// Returns an error if a folder cannot be read, or there is no head.
pub fn load_classifier(model: &Path, adapter: Option<&Path>) -> Result<Classifier> {
    let Some(folder) = adapter else {
        let task = adapter_info(model)?.and_then(AdapterInfo::task);
        return Ok(Classifier::load(model, task)?);
    };
    let adapter = read_adapter(folder, model)?;
    if adapter.config.task_type.as_deref() == Some(FEATURES) {
        bail!(
            "{}: the adapter is of a model without a task head ({FEATURES}), which predicts nothing; expected one of \
             SEQ_CLS or CAUSAL_LM. `gelora merge` takes it into the model",
            folder.display()
        );
    }
    let task = adapter_info(folder)?.and_then(AdapterInfo::task);
    Classifier::with_adapter(model, adapter, task).with_context(|| folder.display().to_string())
}

/// Warns if the adapter names another base model than the one that it is used with.
pub fn check_base(adapter: &Adapter, folder: &Path, model: &ModelArgs) {
    let Some(named) = adapter.config.base_model_name_or_path.as_deref().filter(|named| !named.is_empty()) else {
        return;
    };
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().to_lowercase());
    let is_same = model.name == Path::new(named)
        || last(&model.name) == last(Path::new(named))
        || matches!((model.path.canonicalize(), Path::new(named).canonicalize()), (Ok(a), Ok(b)) if a == b);
    if !is_same {
        let (folder, name) = (folder.display(), model.name.display());
        ui::warn(format!("{folder}: the adapter names {named} as its base model, and is used with {name}"));
    }
}

/// A hash of a .gguf adapter, or of the files that an adapter folder may have.
///
/// # Errors
/// Returns an error if a file cannot be read.
pub fn hash_of_adapter(adapter: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let of_folder = [CONFIG_NAME, WEIGHTS_NAME, "adapter_model.bin"].map(|name| adapter.join(name));
    for path in of_folder.into_iter().chain([adapter.to_owned()]).filter(|path| path.is_file()) {
        hasher.update_mmap_rayon(&path).with_context(|| path.display().to_string())?;
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}
