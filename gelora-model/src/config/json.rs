//! config.json, with lookups whose errors name the file and the key.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gelora_kernels::ops::activation::Activation;
use gelora_lora::CONFIG_NAME;
use gelora_lora::files::check_downloaded;
use serde_json::{Map, Value};

use crate::gguf::{Gguf, is_gguf};
use crate::{Error, Result};

/// Largest size in a config. It ensures that products of two sizes do not overflow.
const LARGEST_SIZE: u64 = u32::MAX as u64;

/// Returns an error if the folder holds an adapter instead of its base model.
pub(crate) fn check_no_adapter(model: &Path) -> Result<()> {
    let path = model.join(CONFIG_NAME);
    let Ok(text) = std::fs::read(&path) else { return Ok(()) };
    let config: Value = serde_json::from_slice(&text).unwrap_or_default();
    let base = config.get("base_model_name_or_path").and_then(Value::as_str).filter(|name| !name.is_empty());
    let (base_suffix, base) = match base {
        Some(base) => (format!(" of {base}"), format!("{base}, its base model,")),
        None => (String::new(), "its base model".into()),
    };
    let problem = format!(
        "holds an adapter{base_suffix} ({CONFIG_NAME}), not a model; give {base} as MODEL and this folder with \
         --adapter"
    );
    Err(Error::file(model, problem))
}

/// The object in a config.json, or an equivalent object made from the metadata of a .gguf file.
pub(crate) struct Json {
    pub path: PathBuf,
    pub map: Map<String, Value>,
    /// Keys that were looked up.
    seen: RefCell<BTreeSet<String>>,
}

/// Keys of all families that do not change what the model computes or that are read elsewhere.
const HARMLESS: &[&str] = &[
    "_name_or_path",
    "_model_name_or_path",
    "_attn_implementation_autoset",
    "_attn_implementation",
    "attn_implementation",
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "transformers.js_config",
    "use_cache",
    "cache_implementation",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "id2label",
    "label2id",
    "num_labels",
    "_num_labels",
    "sentence_transformers",
    "problem_type",
    "finetuning_task",
    "initializer_range",
    "initializer_factor",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "return_dict",
    "use_return_dict",
    "torchscript",
    "gradient_checkpointing",
    "chunk_size_feed_forward",
    "tokenizer_class",
    "task_specific_params",
    "prefix",
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "num_return_sequences",
    "output_scores",
    "return_dict_in_generate",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "tf_legacy_loss",
    "use_bfloat16",
    "pretraining_tp",
    "is_llama_config",
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "tie_encoder_decoder",
    "tie_weights_",
    "n_ctx",
    "predict_special_tokens",
    "n_special",
    "eos_token_ids",
    "language",
    "name",
    "unsloth_version",
    "unsloth_fixed",
    "tie_word_embeddings",
];

impl Json {
    pub fn new(path: PathBuf, map: Map<String, Value>) -> Self {
        Self { path, map, seen: RefCell::default() }
    }

    pub fn load(model: &Path) -> Result<Self> {
        if is_gguf(model) {
            let gguf = Gguf::open(model)?;
            if gguf.metadata().get("general.type").is_some_and(|kind| kind == "adapter") {
                let problem = "is an adapter (general.type), not a model; give its base model as MODEL and this file \
                               with --adapter";
                return Err(Error::file(model, problem));
            }
            return Ok(Self::new(model.into(), gguf.config()?));
        }
        let path = model.join("config.json");
        if !path.exists() {
            check_no_adapter(model)?;
            return Err(Error::file(&path, "is missing; expected the config of a Hugging Face model"));
        }
        Self::read(path)
    }

    pub fn read(path: PathBuf) -> Result<Self> {
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        check_downloaded(&path, text.as_bytes())?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => Ok(Self::new(path, map)),
            Ok(_) => Err(Error::file(&path, "expected a JSON object")),
            Err(e) => Err(Error::file(&path, format!("not valid JSON: {e}"))),
        }
    }

    pub fn error(&self, problem: impl Into<String>) -> Error {
        Error::file(&self.path, problem)
    }

    /// Returns the value of a key, or None if it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.seen.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Returns an error if a key was not looked up and might change what the model computes.
    pub fn all_known(&self) -> Result<()> {
        let family = self.text("model_type").unwrap_or("this family").to_owned();
        let seen = self.seen.borrow();
        let unknown = |(key, value): &(&String, &Value)| {
            !value.is_null() && !seen.contains(*key) && !HARMLESS.contains(&key.as_str())
        };
        match self.map.iter().find(unknown) {
            Some((key, value)) => Err(self.error(format!(
                "the option {key} = {value} is not known for {family}, and might change what the model computes; if it \
                 does not, remove it"
            ))),
            None => Ok(()),
        }
    }

    pub fn size(&self, key: &str) -> Result<usize> {
        match self.get(key).map(Value::as_u64) {
            Some(Some(n)) if n > LARGEST_SIZE => {
                Err(self.error(format!("{key} is {n}; expected at most {LARGEST_SIZE}")))
            }
            Some(Some(n)) if n > 0 => Ok(n as usize),
            Some(_) => Err(self.error(format!("{key} must be a positive integer, got {}", self.map[key]))),
            None => Err(self.error(format!("the key {key} is missing; expected a positive integer"))),
        }
    }

    /// Returns a size, or `default` if it is absent or null.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.size(key) } else { Ok(default) }
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.error(format!("{key} must be true or false, got {value}"))),
        }
    }

    pub fn number(&self, key: &str, default: f64) -> Result<f32> {
        match self.get(key) {
            None => Ok(default as f32),
            Some(value) => match value.as_f64() {
                Some(v) if v.is_finite() && v >= 0.0 => Ok(v as f32),
                _ => Err(self.error(format!("{key} must be a number of at least 0, got {value}"))),
            },
        }
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    /// Returns an error unless the option is absent, null or equal to its one supported value.
    pub fn only(&self, key: &str, supported: &Value) -> Result<()> {
        match self.get(key) {
            None => Ok(()),
            Some(value) if value == supported => Ok(()),
            Some(value) => Err(self.error(format!("{key} = {value} is not supported; expected {supported}"))),
        }
    }

    pub fn activation(&self, key: &str) -> Result<Activation> {
        match self.text(key) {
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("tanh") => Ok(Activation::Tanh),
            Some(other) => {
                Err(self
                    .error(format!("{key} = {other:?} is not supported; expected gelu, gelu_new, relu, silu or tanh")))
            }
            None => Err(self.error(format!("the key {key} is missing; expected gelu, gelu_new, relu, silu or tanh"))),
        }
    }

    /// Name of the checkpoint's class in transformers.
    pub fn class(&self) -> Option<&str> {
        self.map.get("architectures")?.get(0)?.as_str()
    }

    /// The ids in eos_token_id, which holds one id or a list.
    pub fn eos(&self) -> Result<Vec<u32>> {
        let Some(value) = self.get("eos_token_id") else { return Ok(Vec::new()) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let ids: Option<_> = ids.iter().map(id).collect();
        ids.ok_or_else(|| self.error(format!("eos_token_id must be a token's id or a list of them, got {value}")))
    }

    /// The id in pad_token_id. null means no padding token. If the key is missing, the result is `family_default`, the
    /// value of the family's class in transformers. Old Llama models have -1, which is not a token.
    pub fn pad(&self, family_default: Option<u32>) -> Result<Option<u32>> {
        let Some(value) = self.map.get("pad_token_id") else { return Ok(family_default) };
        match (value, value.as_i64()) {
            (Value::Null, _) => Ok(None),
            (_, Some(id)) if id <= i64::from(u32::MAX) => Ok(u32::try_from(id).ok()),
            _ => Err(self.error(format!("pad_token_id must be a token's id or null, got {value}"))),
        }
    }

    /// Class names from id2label, in the order of their ids. Without names transformers writes LABEL_0, LABEL_1, ...;
    /// these become 0, 1, ...
    pub fn labels(&self) -> Vec<String> {
        let Some(Value::Object(map)) = self.map.get("id2label") else {
            return Vec::new();
        };
        let name = |label: &str| label.strip_prefix("LABEL_").unwrap_or(label).to_string();
        (0..map.len()).map_while(|i| Some(name(map.get(&i.to_string())?.as_str()?))).collect()
    }
}
