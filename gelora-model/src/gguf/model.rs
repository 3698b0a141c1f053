//! Writes a whole language model, with its adapters merged, as a GGUF file.
//!
//! Sources: llama.cpp, `convert_hf_to_gguf.py` for the keys; `src/models/*.cpp` for properties that llama.cpp assumes
//! without a key: the activation, no sliding windows except Gemma's, and the scale of the scores.

use std::path::Path;

use gelora_kernels::Tensor;
use gelora_kernels::ops::activation::Activation;
use serde_json::Value;

use super::config::GEMMA_27B_LAYERS;
use super::names::{Architecture, RowOrder, plus, reorder, transposed};
use super::write::{self, MetadataValue, Output, StoredType};
use super::{Gguf, ROPE_FACTORS, is_gguf, rope};
use crate::config::Json;
use crate::{CausalLm, Config, Error, Result};

/// Options for writing a model as a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct GgufOptions {
    /// The type of matrices. Vectors are stored in f32, as llama.cpp requires, and so is GPT-2's position table.
    pub stored: StoredType,
    /// Name of the model, `general.name`. A model from a .gguf file keeps its name.
    pub name: Option<String>,
    /// Keys of the tokenizer, `tokenizer.*`. A model from a .gguf file keeps its tokenizer.
    pub tokenizer: Vec<(String, MetadataValue)>,
}

/// Keys of a base file that are not copied, because they describe the base file itself.
const NOT_KEPT: [&str; 4] = ["general.file_type", "general.quantization_version", "general.alignment", "split."];
/// Value of `general.quantization_version` for the current block formats.
const QUANTIZATION_VERSION: u32 = 2;

impl CausalLm {
    /// Merges the adapters into the weights and writes the model as a GGUF file for llama.cpp and programs built on it.
    /// `model` is the path that this model was loaded from. Returns remarks on properties in which the file differs
    /// from the model.
    ///
    /// # Errors
    /// Returns an error if GGUF has no name for the model's family or for a tensor, llama.cpp would not compute the
    /// same as the model, a value is too large for the type, or a file cannot be read or written.
    pub fn write_gguf(&self, model: &Path, out: &Path, options: &GgufOptions) -> Result<Vec<String>> {
        let config = self.transformer().config();
        let architecture = Architecture::of_family(&config.family).ok_or_else(|| {
            let problem = format!("a {} cannot be written as GGUF; expected {}", config.family, Architecture::all());
            Error::file(model, problem)
        })?;
        let mut tensors = Vec::new();
        let file_keys = [
            ("general.file_type", MetadataValue::Unsigned(options.stored.file_type())),
            ("general.quantization_version", MetadataValue::Unsigned(QUANTIZATION_VERSION)),
        ];
        let (mut keys, factors, remarks) = if is_gguf(model) {
            let gguf = Gguf::open(model)?;
            (kept_keys(&gguf), gguf.rope_factors()?, Vec::new())
        } else {
            let json = Json::load(model)?;
            let (mut keys, factors, remarks) = keys_of_config(&json, config, architecture)?;
            keys.extend(options.name.iter().map(|name| ("general.name".into(), MetadataValue::Text(name.clone()))));
            keys.extend(options.tokenizer.iter().cloned());
            (keys, factors, remarks)
        };
        keys.extend(file_keys.into_iter().map(|(key, value)| (key.to_owned(), value)));
        if let Some(factors) = factors {
            tensors.push(output(ROPE_FACTORS.into(), factors, StoredType::F32, |t| Ok(t.clone())));
        }
        for (name, tensor) in self.merged_tensors(model)? {
            let Some(stored) = architecture.stored_name(&name) else {
                let problem =
                    format!("tensor {name} has no name in a GGUF file of the architecture {}", architecture.name);
                return Err(Error::file(model, problem));
            };
            let heads = architecture.reordered_heads(&stored, config.heads, config.kv_heads);
            let (offset, is_transposed) = (architecture.norm_offset(&stored), architecture.is_transposed(&stored));
            let dtype = options.stored.of_tensor(&stored, tensor.shape());
            let stored_name = stored.clone();
            let convert = move |tensor: &Tensor| match heads {
                Some(heads) => {
                    let problem = |problem| Error::file(model, format!("tensor {stored_name} {problem}"));
                    reorder(tensor, heads, RowOrder::Pairs).map_err(problem)
                }
                None if is_transposed => transposed(tensor),
                None => plus(tensor, offset),
            };
            let mut output = output(stored, tensor, dtype, convert);
            if is_transposed {
                output.shape.reverse();
                output.stored = options.stored.of_tensor(&output.name, &output.shape);
            }
            tensors.push(output);
        }
        write::write(out, &keys, &tensors)?;
        Ok(remarks)
    }
}

fn output<'a>(
    name: String,
    tensor: Tensor,
    stored: StoredType,
    convert: impl Fn(&Tensor) -> Result<Tensor> + 'a,
) -> Output<'a> {
    Output { name, shape: tensor.shape().to_vec(), stored, values: Box::new(move || convert(&tensor)) }
}

/// Returns the keys of a base file that also describe the merged model.
fn kept_keys(gguf: &Gguf) -> Vec<(String, MetadataValue)> {
    let kept = gguf.stored_keys().filter(|(name, ..)| !NOT_KEPT.iter().any(|key| name.starts_with(key)));
    kept.map(|(name, kind, bytes)| (name.to_owned(), MetadataValue::Stored(kind, bytes.to_vec()))).collect()
}

type Keys = (Vec<(String, MetadataValue)>, Option<Tensor>, Vec<String>);

/// Converts config.json to the keys of an architecture, the factors of the RoPE frequencies, and remarks.
fn keys_of_config(json: &Json, config: &Config, architecture: &Architecture) -> Result<Keys> {
    let computed = match architecture.name {
        "gemma3" | "gpt2" => Activation::GeluTanh,
        _ => Activation::Silu,
    };
    if config.activation != computed {
        let (got, name) = (config.activation, architecture.name);
        return Err(json.error(format!("has the activation {got:?}; a {name} in a GGUF file has {computed:?}")));
    }
    let number = |key: &str, value: usize| -> Result<(String, MetadataValue)> {
        let value =
            u32::try_from(value).map_err(|_| json.error(format!("{key} = {value} is too large for a GGUF file")))?;
        Ok((format!("{}.{key}", architecture.name), MetadataValue::Unsigned(value)))
    };
    let float = |key: &str, value: f32| (format!("{}.{key}", architecture.name), MetadataValue::Float(value));
    let (mut context, mut remarks) = (config.max_positions, Vec::new());
    let is_gemma = architecture.name == "gemma3";
    let windows = config.layer_kinds.iter().filter_map(|kind| kind.window);
    if let Some(window) = windows.min().filter(|window| !is_gemma && *window < context) {
        context = window;
        remarks.push(format!(
            "llama.cpp has no sliding window for a {}: the file's context_length is the window, {window}, within \
             which both compute the same",
            architecture.name
        ));
    }
    let mut keys = vec![
        ("general.architecture".into(), MetadataValue::Text(architecture.name.into())),
        ("general.type".into(), MetadataValue::Text("model".into())),
        number("vocab_size", config.vocabulary)?,
        number("context_length", context)?,
        number("embedding_length", config.hidden)?,
        number("block_count", config.layers)?,
        number("feed_forward_length", config.intermediate)?,
        number("attention.head_count", config.heads)?,
    ];
    if architecture.name == "gpt2" {
        keys.push(float("attention.layer_norm_epsilon", config.norm_eps));
        return Ok((keys, None, remarks));
    }
    keys.extend([
        number("attention.head_count_kv", config.kv_heads)?,
        number("attention.key_length", config.head_size)?,
        number("attention.value_length", config.head_size)?,
        number("rope.dimension_count", config.head_size)?,
        float("attention.layer_norm_rms_epsilon", config.norm_eps),
    ]);
    let (rope_keys, factors) = rope::keys(json, config, architecture)?;
    keys.extend(rope_keys);
    if is_gemma {
        let window = config.layer_kinds.iter().find_map(|kind| kind.window);
        if let Some(window) = window {
            keys.push(number("attention.sliding_window", window)?);
            keys.push(number("attention.sliding_window_pattern", sliding_period(json, config)?)?);
        }
        let computed = match config.layers {
            GEMMA_27B_LAYERS => config.hidden / config.heads,
            _ => config.head_size,
        };
        let scalar = json.map.get("query_pre_attn_scalar").and_then(Value::as_f64).unwrap_or(computed as f64);
        if scalar != computed as f64 {
            let problem =
                format!("query_pre_attn_scalar = {scalar} cannot be represented in a GGUF file; expected {computed}");
            return Err(json.error(problem));
        }
    }
    Ok((keys, factors, remarks))
}

/// Returns the period P of a Gemma model in which every P-th layer has full attention and all others a sliding window.
fn sliding_period(json: &Json, config: &Config) -> Result<usize> {
    let slides: Vec<bool> = config.layer_kinds.iter().map(|kind| kind.window.is_some()).collect();
    // If all layers have a sliding window, the period is one more than the number of layers.
    let period = slides.iter().position(|slides| !slides).map_or(config.layers, |first| first) + 1;
    match slides.iter().enumerate().all(|(l, slides)| *slides != (l + 1).is_multiple_of(period)) {
        true => Ok(period),
        false => {
            let problem = "layer_types has no period P, which a GGUF file needs: every P-th layer full_attention, all \
                           others sliding_attention";
            Err(json.error(problem))
        }
    }
}
