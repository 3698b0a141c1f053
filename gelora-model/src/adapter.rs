//! PEFT adapters: their task, their files, and the names of their modules.

use std::path::Path;

use gelora_lora::{Adapter, AdapterConfig, CONFIG_NAME, WEIGHTS_NAME};

use crate::config::Json;
use crate::family;
use crate::{Error, Result, checkpoint, torch_file};

/// PEFT's weight file before it adopted safetensors.
const PICKLE_NAME: &str = "adapter_model.bin";

/// Reads a PEFT adapter folder: adapter_config.json with adapter_model.safetensors or adapter_model.bin.
///
/// # Errors
/// Returns the errors of [`Adapter::read`], and an error if adapter_model.bin is damaged or holds anything but tensors.
pub fn read_adapter(folder: &Path) -> Result<Adapter> {
    let pickle = folder.join(PICKLE_NAME);
    if folder.join(WEIGHTS_NAME).exists() || !pickle.exists() {
        return Ok(Adapter::read(folder)?);
    }
    let config = AdapterConfig::read(&folder.join(CONFIG_NAME))?;
    Ok(Adapter::from_tensors(config, torch_file::read_tensors(&pickle, checkpoint::is_weight)?, &pickle)?)
}

/// The task for which an adapter was trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterTask {
    /// Predicts classes or scores of sequences: [`crate::Classifier`].
    SequenceClassification,
    /// Predicts the next token: [`crate::CausalLm`].
    CausalLm,
    /// Computes hidden states, as a sentence encoder does: [`crate::Transformer`].
    Features,
}

impl AdapterTask {
    /// PEFT's name of the task.
    pub fn name(self) -> &'static str {
        match self {
            Self::SequenceClassification => "SEQ_CLS",
            Self::CausalLm => "CAUSAL_LM",
            Self::Features => "FEATURE_EXTRACTION",
        }
    }

    /// Returns the task in adapter_config.json. PEFT's `get_peft_model` writes `task_type: null` for a model that the
    /// user built. The task then follows from the class of the base model (`auto_mapping`), or else from the parts of
    /// the base model in `model`.
    ///
    /// # Errors
    /// Returns an error if the task is not one of these three, or the base model's config.json is needed and cannot be
    /// read.
    pub fn of(adapter: &Adapter, model: &Path) -> Result<Self> {
        let config = &adapter.config;
        let problem = |what: String| {
            let expected = "expected SEQ_CLS, CAUSAL_LM or FEATURE_EXTRACTION";
            Error::Value(format!("{CONFIG_NAME}: {what}, which is not supported; {expected}"))
        };
        match config.task_type.as_deref() {
            Some("SEQ_CLS") => return Ok(Self::SequenceClassification),
            Some("CAUSAL_LM") => return Ok(Self::CausalLm),
            Some("FEATURE_EXTRACTION") | None => {}
            Some(other) => return Err(problem(format!("task_type is {other:?}"))),
        }
        let class = config.other.get("auto_mapping").and_then(|mapping| mapping.get("base_model_class"));
        if let Some(class) = class.and_then(|class| class.as_str()) {
            let known = [
                ("ForSequenceClassification", Self::SequenceClassification),
                ("ForCausalLM", Self::CausalLm),
                ("LMHeadModel", Self::CausalLm),
                ("Model", Self::Features),
            ];
            let task = known.into_iter().find(|(end, _)| class.ends_with(end)).map(|(_, task)| task);
            return task.ok_or_else(|| problem(format!("auto_mapping.base_model_class is {class:?}")));
        }
        let json = Json::load(model)?;
        let Some(family) = json.text("model_type").and_then(family::find) else { return Ok(Self::Features) };
        let names = || adapter.layers.keys().chain(adapter.saved.keys());
        if !names().any(|name| name.starts_with(family.prefix)) {
            return Ok(Self::Features);
        }
        let is_of_head = |name: &String| family.head.modules().iter().any(|module| name.starts_with(module));
        let classifies = json.class() == Some(family.classes[0]);
        Ok(match adapter.saved.keys().any(is_of_head) || classifies {
            true => Self::SequenceClassification,
            false if family.classes[1].is_empty() => Self::Features,
            false => Self::CausalLm,
        })
    }
}

/// Converts the names of an adapter to those inside a task model. The second value is true if the adapter was made with
/// the model alone, whose names have no prefix.
pub(crate) fn in_task_model(adapter: Adapter, prefix: &str) -> (Adapter, bool) {
    let is_bare = !adapter.layers.is_empty() && !adapter.layers.keys().any(|name| name.starts_with(prefix));
    if !is_bare {
        return (adapter, false);
    }
    let Adapter { config, layers, saved } = adapter;
    let layers = layers.into_iter().map(|(name, layer)| (format!("{prefix}{name}"), layer)).collect();
    let saved = saved.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect();
    (Adapter { config, layers, saved }, true)
}
