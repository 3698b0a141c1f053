//! A whole language model as a GGUF file, its adapters merged.
//!
//! Source: llama.cpp, `convert_hf_to_gguf.py` for the keys, `src/models/*.cpp` for what it computes without being told:
//! the nonlinearity, no windows but Gemma's, and the scale of scores.

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

/// How a model is written as a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct GgufOptions {
    /// The type of matrices. Vectors are in f32, as llama.cpp wants them, and so is GPT-2's table of positions.
    pub stored: StoredType,
    /// The model's name, `general.name`. A .gguf file keeps its own.
    pub name: Option<String>,
    /// The keys of the tokenizer, `tokenizer.*`. A .gguf file keeps its own.
    pub tokenizer: Vec<(String, MetadataValue)>,
}

/// Keys of a base file that do not hold for what is written.
const NOT_KEPT: [&str; 4] = ["general.file_type", "general.quantization_version", "general.alignment", "split."];
/// What `general.quantization_version` is of blocks as they are now.
const QUANTIZATION_VERSION: u32 = 2;

impl CausalLm {
    /// Writes the model with its adapters merged into the weights as a GGUF file, which llama.cpp and what is built on
    /// it load. `model` is what this was loaded from. Returns remarks on what the file says otherwise than the model.
    ///
    /// # Errors
    /// If GGUF has no name for the model's family or for a tensor, llama.cpp would compute something else than the
    /// model, a value is too large for the type, or a file cannot be read or written.
    pub fn write_gguf(&self, model: &Path, out: &Path, options: &GgufOptions) -> Result<Vec<String>> {
        let config = self.transformer().config();
        let architecture = Architecture::of_family(&config.family).ok_or_else(|| {
            let problem = format!("a {} is not written as GGUF; expected {}", config.family, Architecture::all());
            Error::file(model, problem)
        })?;
        let mut tensors = Vec::new();
        let of_file = [
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
        keys.extend(of_file.into_iter().map(|(key, value)| (key.to_owned(), value)));
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
            let (offset, turned) = (architecture.norm_offset(&stored), architecture.is_transposed(&stored));
            let dtype = options.stored.of_tensor(&stored, tensor.shape());
            let place = stored.clone();
            let made = move |tensor: &Tensor| match heads {
                Some(heads) => {
                    let problem = |problem| Error::file(model, format!("tensor {place} {problem}"));
                    reorder(tensor, heads, RowOrder::Pairs).map_err(problem)
                }
                None if turned => transposed(tensor),
                None => plus(tensor, offset),
            };
            let mut output = output(stored, tensor, dtype, made);
            if turned {
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
    made: impl Fn(&Tensor) -> Result<Tensor> + 'a,
) -> Output<'a> {
    Output { name, shape: tensor.shape().to_vec(), stored, values: Box::new(move || made(&tensor)) }
}

/// The keys of a base file that hold for the merged one too.
fn kept_keys(gguf: &Gguf) -> Vec<(String, MetadataValue)> {
    let kept = gguf.stored_keys().filter(|(name, ..)| !NOT_KEPT.iter().any(|key| name.starts_with(key)));
    kept.map(|(name, kind, bytes)| (name.to_owned(), MetadataValue::Stored(kind, bytes.to_vec()))).collect()
}

type Keys = (Vec<(String, MetadataValue)>, Option<Tensor>, Vec<String>);

/// The keys of an architecture from config.json, the factors of frequencies, and remarks.
fn keys_of_config(json: &Json, config: &Config, architecture: &Architecture) -> Result<Keys> {
    let computed = match architecture.name {
        "gemma3" | "gpt2" => Activation::GeluTanh,
        _ => Activation::Silu,
    };
    if config.activation != computed {
        let (got, name) = (config.activation, architecture.name);
        return Err(json.error(format!("has the nonlinearity {got:?}; a {name} in a GGUF file has {computed:?}")));
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
            "llama.cpp has no sliding window for a {}: the file's context_length is the window, {window}, within which both \
             compute the same",
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
    let (of_rotations, factors) = rope::keys(json, config, architecture)?;
    keys.extend(of_rotations);
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
                format!("query_pre_attn_scalar = {scalar} cannot be said in a GGUF file; expected {computed}");
            return Err(json.error(problem));
        }
    }
    Ok((keys, factors, remarks))
}

/// The P of a Gemma whose every P-th layer sees all tokens, and no other does.
fn sliding_period(json: &Json, config: &Config) -> Result<usize> {
    let slides: Vec<bool> = config.layer_kinds.iter().map(|kind| kind.window.is_some()).collect();
    // One more than the layers where all of them slide.
    let period = slides.iter().position(|slides| !slides).map_or(config.layers, |first| first) + 1;
    match slides.iter().enumerate().all(|(l, slides)| *slides != (l + 1).is_multiple_of(period)) {
        true => Ok(period),
        false => {
            let problem = "layer_types has no period, which a GGUF file needs: every so many layers full_attention, the others \
                           sliding_attention";
            Err(json.error(problem))
        }
    }
}
