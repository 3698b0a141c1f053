use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gelora_kernels::ops::activation::Activation;
use gelora_lora::CONFIG_NAME;
use gelora_lora::files::check_downloaded;
use serde_json::{Map, Value};

use crate::gguf::{Gguf, is_gguf};
use crate::{Error, Result, family};

/// The sizes and options of a model, whatever its family calls them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The family, as `model_type` in config.json.
    pub family: String,
    /// Whether a token sees itself and those before it alone.
    pub causal: bool,
    /// Rows of the word embedding, V.
    pub vocabulary: usize,
    /// Channels, C.
    pub hidden: usize,
    /// Number of blocks, L.
    pub layers: usize,
    /// Heads of attention, H.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Channels of a head, D.
    pub head_size: usize,
    /// Channels inside the MLP.
    pub intermediate: usize,
    /// The longest sequence.
    pub max_positions: usize,
    /// Rows of the token type embedding, 0 without one.
    pub token_types: usize,
    /// Added to the variance in norms.
    pub norm_eps: f32,
    /// The MLP's nonlinearity.
    pub activation: Activation,
    /// Dropout of embeddings and of each half of a block.
    pub hidden_dropout: f32,
    /// Dropout of attention probabilities.
    pub attention_dropout: f32,
    /// Dropout before the task head.
    pub head_dropout: f32,
    /// Names of the classes, if the checkpoint has a task head.
    pub labels: Vec<String>,
    /// Whether config.json says that the checkpoint is a language model (`architectures`).
    pub is_language_model: bool,
    /// Whether a text may be of several of these classes at once (`problem_type`).
    pub multi_label: bool,
    /// The tokens that end a text, if config.json says so; the first is the one that training puts there.
    pub eos: Vec<u32>,
    /// The token that batches are padded with in transformers, if config.json or the family says so: a decoder's classifier looks
    /// at the last token that is another, and RoBERTa counts positions without it.
    pub pad: Option<u32>,
    /// The tokens that end generation: those of generation_config.json, or else `eos`.
    pub stop: Vec<u32>,
    /// How rotations turn queries and keys, the kinds that the layers have; none in a model without them.
    pub(crate) ropes: Vec<RopeConfig>,
    /// Which of them each layer has, and how many tokens a token of it sees.
    pub(crate) layer_kinds: Vec<LayerKind>,
    /// Whether the language-model head is the word embedding.
    pub(crate) tied: bool,
    /// What DeBERTa's attention knows of distances.
    pub(crate) deberta: Option<family::DebertaOptions>,
}

/// A rotation's inverse frequencies, scaled as the model scales them, and what its cosines and sines are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeConfig {
    pub frequencies: Vec<f32>,
    pub factor: f32,
}

/// What tells a layer from others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LayerKind {
    pub rope: usize,
    pub window: Option<usize>,
}

impl Config {
    /// The sizes under these keys ([C, L, H]) and the options that most families leave alone: heads split the channels,
    /// attention sees every token, there is no dropout.
    pub(crate) fn of_sizes(json: &Json, [hidden, layers, heads]: [&str; 3]) -> Result<Self> {
        let (c, l, h) = (json.size(hidden)?, json.size(layers)?, json.size(heads)?);
        if l > MOST_LAYERS {
            return Err(json.error(format!("{layers} is {l}; expected at most {MOST_LAYERS}")));
        }
        Ok(Self {
            family: String::new(),
            causal: false,
            vocabulary: json.size("vocab_size")?,
            hidden: c,
            layers: l,
            heads: h,
            kv_heads: h,
            head_size: c / h,
            intermediate: 4 * c,
            max_positions: usize::MAX,
            token_types: 0,
            norm_eps: 1e-12,
            activation: Activation::Gelu,
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
            head_dropout: 0.0,
            labels: json.labels(),
            is_language_model: json
                .class()
                .is_some_and(|class| ["ForCausalLM", "LMHeadModel"].iter().any(|end| class.ends_with(end))),
            multi_label: json.map.get("problem_type").is_some_and(|kind| kind == "multi_label_classification"),
            eos: json.eos()?,
            stop: json.eos()?,
            pad: json.pad(None)?,
            ropes: Vec::new(),
            layer_kinds: vec![LayerKind::default(); l],
            tied: true,
            deberta: None,
        })
    }

    /// Reads MODEL/config.json, or the metadata of a .gguf file; and MODEL/generation_config.json, where models that were taught to
    /// converse name the end of a turn.
    ///
    /// # Errors
    /// If a file is missing (but the latter) or no JSON object, the family is not supported, a key is missing or of the wrong type, or an
    /// option is not known or has a value that is not supported.
    pub fn load(model: &Path) -> Result<Self> {
        let mut config = family::config(&Json::load(model)?)?;
        let path = model.join(GENERATION);
        if path.exists() {
            let stop = Json::read(path)?.eos()?;
            config.stop = if stop.is_empty() { config.stop } else { stop };
        }
        Ok(config)
    }
}

/// The most layers of a model: memory for them is asked for before their weights are looked for.
const MOST_LAYERS: usize = 10_000;

/// The largest size of a config, so that products of two sizes can be computed.
const LARGEST_SIZE: u64 = u32::MAX as u64;

/// What a folder says of how its model is to generate.
const GENERATION: &str = "generation_config.json";

/// Returns an error if this is the folder of an adapter, which stands where its base model should.
pub(crate) fn check_no_adapter(model: &Path) -> Result<()> {
    let path = model.join(CONFIG_NAME);
    let Ok(text) = std::fs::read(&path) else { return Ok(()) };
    let config: Value = serde_json::from_slice(&text).unwrap_or_default();
    let base = config.get("base_model_name_or_path").and_then(Value::as_str).filter(|name| !name.is_empty());
    let (of, base) = match base {
        Some(base) => (format!(" of {base}"), format!("{base}, its base model,")),
        None => (String::new(), "its base model".into()),
    };
    let problem = format!(
        "holds an adapter{of} ({CONFIG_NAME}), not a model; give {base} as MODEL and this folder with --adapter"
    );
    Err(Error::file(model, problem))
}

/// A config.json, with lookups that name file and key when they fail.
pub(crate) struct Json {
    pub path: PathBuf,
    pub map: Map<String, Value>,
    /// The keys that were looked up.
    seen: RefCell<BTreeSet<String>>,
}

/// Keys of every family that do not change what the model computes, or that are looked at elsewhere.
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
                let problem = "is an adapter (general.type), not a model; give its base model as MODEL and this file with \
                               --adapter";
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

    fn read(path: PathBuf) -> Result<Self> {
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

    /// The value of a key, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.seen.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// That every key was looked up, or cannot change what the model computes.
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

    /// A size that may be absent or null.
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

    /// The option is absent, null or has its one supported value.
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

    /// The class of the checkpoint in transformers.
    pub fn class(&self) -> Option<&str> {
        self.map.get("architectures")?.get(0)?.as_str()
    }

    /// eos_token_id, one or several.
    pub fn eos(&self) -> Result<Vec<u32>> {
        let Some(value) = self.get("eos_token_id") else { return Ok(Vec::new()) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let ids: Option<_> = ids.iter().map(id).collect();
        ids.ok_or_else(|| self.error(format!("eos_token_id must be a token's id or a list of them, got {value}")))
    }

    /// pad_token_id, which null turns off; where the key is missing, that of the family's class in transformers. Old models of
    /// Llama have -1, which no token is.
    pub fn pad(&self, of_family: Option<u32>) -> Result<Option<u32>> {
        let Some(value) = self.map.get("pad_token_id") else { return Ok(of_family) };
        match (value, value.as_i64()) {
            (Value::Null, _) => Ok(None),
            (_, Some(id)) if id <= i64::from(u32::MAX) => Ok(u32::try_from(id).ok()),
            _ => Err(self.error(format!("pad_token_id must be a token's id or null, got {value}"))),
        }
    }

    /// Class names from id2label, in the order of their ids. transformers writes LABEL_0, LABEL_1, ... for want of names;
    /// the data then says 0, 1, ...
    pub fn labels(&self) -> Vec<String> {
        let Some(Value::Object(map)) = self.map.get("id2label") else {
            return Vec::new();
        };
        let name = |label: &str| label.strip_prefix("LABEL_").unwrap_or(label).to_string();
        (0..map.len()).map_while(|i| Some(name(map.get(&i.to_string())?.as_str()?))).collect()
    }
}
