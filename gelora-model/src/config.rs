use std::path::{Path, PathBuf};

use gelora_kernels::ops::activation::Activation;
use serde_json::{Map, Value};

use crate::{Error, Result, family};

/// The sizes and options of an encoder, whatever its family calls them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The family, as `model_type` in config.json.
    pub family: String,
    /// Rows of the word embedding, V.
    pub vocabulary: usize,
    /// Channels, C.
    pub hidden: usize,
    /// Number of blocks, L.
    pub layers: usize,
    /// Heads of attention, H.
    pub heads: usize,
    /// Channels inside the MLP.
    pub intermediate: usize,
    /// The longest sequence.
    pub max_positions: usize,
    /// Rows of the token type embedding.
    pub token_types: usize,
    /// Added to the variance in layer norm.
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
}

impl Config {
    /// Reads MODEL/config.json.
    ///
    /// # Errors
    /// If the file is missing or no JSON object, the family is not supported, a key is missing or of the wrong type, or an
    /// option has a value that is not supported.
    pub fn load(model: &Path) -> Result<Self> {
        let json = Json::load(model)?;
        family::config(&json)
    }
}

/// A config.json, with lookups that name file and key when they fail.
pub(crate) struct Json {
    pub path: PathBuf,
    pub map: Map<String, Value>,
}

impl Json {
    pub fn load(model: &Path) -> Result<Self> {
        let path = model.join("config.json");
        if !path.exists() {
            return Err(Error::file(&path, "is missing; expected the config of a Hugging Face model"));
        }
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => Ok(Self { path, map }),
            Ok(_) => Err(Error::file(&path, "expected a JSON object")),
            Err(e) => Err(Error::file(&path, format!("not valid JSON: {e}"))),
        }
    }

    pub fn error(&self, problem: impl Into<String>) -> Error {
        Error::file(&self.path, problem)
    }

    pub fn size(&self, key: &str) -> Result<usize> {
        match self.map.get(key).map(Value::as_u64) {
            Some(Some(n)) if n > 0 => Ok(n as usize),
            Some(_) => Err(self.error(format!("{key} must be a positive integer, got {}", self.map[key]))),
            None => Err(self.error(format!("the key {key} is missing; expected a positive integer"))),
        }
    }

    pub fn number(&self, key: &str, default: f64) -> Result<f32> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(default as f32),
            Some(value) => match value.as_f64() {
                Some(v) if v.is_finite() && v >= 0.0 => Ok(v as f32),
                _ => Err(self.error(format!("{key} must be a number of at least 0, got {value}"))),
            },
        }
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.map.get(key).and_then(Value::as_str)
    }

    /// The option is absent, null or has its one supported value.
    pub fn only(&self, key: &str, supported: &Value) -> Result<()> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if value == supported => Ok(()),
            Some(value) => Err(self.error(format!("{key} = {value} is not supported; expected {supported}"))),
        }
    }

    pub fn activation(&self, key: &str) -> Result<Activation> {
        match self.text(key) {
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            Some(other) => {
                Err(self.error(format!("{key} = {other:?} is not supported; expected gelu, gelu_new or relu")))
            }
            None => Err(self.error(format!("the key {key} is missing; expected gelu, gelu_new or relu"))),
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
