//! Converts a file's metadata to the equivalent config.json.

use serde_json::{Map, Value, json};

use super::{Gguf, ROPE_FACTORS};
use crate::Result;

/// Number of layers of Gemma 3 27B. It is the only size whose scores are not scaled by the size of its heads.
///
/// Source: llama.cpp, `src/models/gemma3.cpp`, which also recognizes the model by this number.
pub(super) const GEMMA_27B_LAYERS: usize = 62;

/// Keys of config.json and the corresponding keys of a file's architecture.
const COMMON: [(&str, &str); 9] = [
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("max_position_embeddings", "context_length"),
    ("head_dim", "attention.key_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("sliding_window", "attention.sliding_window"),
];

const GPT2: [(&str, &str); 6] = [
    ("n_embd", "embedding_length"),
    ("n_layer", "block_count"),
    ("n_inner", "feed_forward_length"),
    ("n_head", "attention.head_count"),
    ("n_positions", "context_length"),
    ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
];

impl Gguf {
    /// Returns the equivalent of config.json.
    pub(crate) fn config(&self) -> Result<Map<String, Value>> {
        let family = self.known_architecture()?.family;
        let mut config = Map::new();
        let mut set = |key: &str, value: Option<Value>| value.map(|value| config.insert(key.to_owned(), value));
        set("model_type", Some(family.into()));
        let words = self.tensors.iter().find(|t| t.name == "token_embd.weight");
        set("vocab_size", words.and_then(|t| t.shape.first()).map(|n| json!(n)));
        let tied = !self.tensors.iter().any(|t| t.name == "output.weight");
        set("tie_word_embeddings", Some(tied.into()));
        set("eos_token_id", self.metadata.get("tokenizer.ggml.eos_token_id").cloned());
        set("pad_token_id", Some(self.metadata.get("tokenizer.ggml.padding_token_id").cloned().unwrap_or_default()));
        let keys: &[_] = if family == "gpt2" { &GPT2 } else { &COMMON };
        for (key, option) in keys {
            set(key, self.option(option).cloned());
        }
        match family {
            "gpt2" => {
                set("activation_function", Some("gelu_new".into()));
                return Ok(config);
            }
            "gemma3_text" => {
                set("hidden_activation", Some("gelu_pytorch_tanh".into()));
                set("rope_local_base_freq", self.option("rope.freq_base_swa").cloned());
                for (key, value) in self.gemma_options()? {
                    set(key, Some(value));
                }
            }
            _ => {
                set("hidden_act", Some("silu".into()));
                if self.option("attention.sliding_window").is_some() {
                    let problem = "attention.sliding_window is not supported in a GGUF file; use the model's folder";
                    return Err(self.error(problem));
                }
            }
        }
        if self.option("attention.key_length").is_none() {
            set("head_dim", self.option("rope.dimension_count").cloned());
        }
        let theta = if family == "gemma3_text" { 1e6 } else { 1e4 };
        set("rope_theta", Some(self.option("rope.freq_base").cloned().unwrap_or(json!(theta))));
        let kind = self.option("rope.scaling.type").and_then(Value::as_str).unwrap_or("none");
        let scaling = |key: &str| self.option(&format!("rope.scaling.{key}")).cloned();
        if kind != "none" {
            let trained = scaling("original_context_length").unwrap_or(Value::Null);
            let factor = scaling("factor").unwrap_or(Value::Null);
            let mut map = json!({"rope_type": kind, "factor": factor});
            if !trained.is_null() {
                map["original_max_position_embeddings"] = trained;
            }
            set("rope_scaling", Some(map));
        }
        if let Some(factors) = self.tensors.iter().find(|t| t.name == ROPE_FACTORS) {
            set("rope_factors", Some(json!(self.tensor(factors)?.to_vec()?)));
        }
        Ok(config)
    }

    /// Returns the options of a Gemma model: which layers have a sliding window, and the scale of the scores.
    fn gemma_options(&self) -> Result<Vec<(&'static str, Value)>> {
        let number = |key: &str| self.option(key).and_then(Value::as_u64).unwrap_or(0) as usize;
        let (layers, mut options) = (number("block_count"), Vec::new());
        match self.option("attention.sliding_window_pattern") {
            None => {}
            Some(Value::Array(sliding)) => {
                let kind = |slides: &Value| {
                    if slides == &Value::Bool(true) || slides.as_u64().is_some_and(|flag| flag > 0) {
                        "sliding_attention"
                    } else {
                        "full_attention"
                    }
                };
                options.push(("layer_types", sliding.iter().map(kind).collect::<Vec<_>>().into()));
            }
            Some(period) => match period.as_u64() {
                Some(0) => options.push(("layer_types", vec!["sliding_attention"; layers.min(1 << 16)].into())),
                Some(_) => options.push(("sliding_window_pattern", period.clone())),
                None => {
                    let problem = "expected a number of layers or a value for each";
                    return Err(self.error(format!("attention.sliding_window_pattern is {period}; {problem}")));
                }
            },
        }
        if layers == GEMMA_27B_LAYERS {
            let heads = number("attention.head_count").max(1);
            options.push(("query_pre_attn_scalar", json!(number("embedding_length") / heads)));
        }
        Ok(options)
    }
}
