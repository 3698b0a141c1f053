//! LoRA adapters in GGUF files, in the form that llama.cpp reads.
//!
//! ```text
//! general.type           "adapter"
//! general.architecture   architecture of the base model
//! adapter.type           "lora"
//! adapter.lora.alpha     alpha
//! MODULE.weight.lora_a   A (R, C_in)       MODULE is the name in the base file: blk.0.attn_q
//! MODULE.weight.lora_b   B (C_out, R)      rows in the order of the base file
//! ```
//!
//! llama.cpp scales every module by alpha / R, with one alpha for all modules and the rank R of each module. If alpha
//! is 0, the scale is 1. One alpha cannot represent different alphas for each module, or rsLoRA. Files written here
//! therefore have alpha 0 and the scale multiplied into B.
//!
//! Source: llama.cpp, `src/llama-adapter.h`, `llama_adapter_lora_weight::get_scale`, and `src/llama-adapter.cpp`.

use std::collections::BTreeMap;
use std::path::Path;

use gelora_kernels::{DType, Tensor};
use gelora_lora::{Adapter, AdapterConfig, LoraLayer};
use serde_json::Value;

use super::Gguf;
use super::names::{Architecture, RowOrder, reorder};
use super::write::{self, MetadataValue, Output, StoredType};
use crate::{Config, Error, Result};

const ALPHA: &str = "adapter.lora.alpha";
const SUFFIXES: [&str; 2] = [".weight.lora_a", ".weight.lora_b"];
/// PEFT's name of the language-modeling task.
const CAUSAL_LM: &str = "CAUSAL_LM";

/// Writes an adapter as a GGUF file in f32. `config` is the config of the adapter's base model. llama.cpp computes with
/// the file what PEFT computes with the folder, whatever the ranks, alphas and patterns are. Returns the number of
/// modules.
///
/// # Errors
/// Returns an error if GGUF has no name for the model's family or for a module, a module is not in the model or has
/// other sizes, the adapter trains modules whole, or the file cannot be written.
pub fn write_adapter(path: &Path, adapter: &Adapter, config: &Config) -> Result<usize> {
    let architecture = architecture_of(path, config)?;
    let adapter = &adapter.clone().folded()?;
    if let Some(name) = adapter.saved.keys().next() {
        let problem = "which is trained whole; a GGUF adapter has only A and B. `gelora merge` keeps it";
        return Err(Error::file(path, format!("the adapter has {name}, {problem}")));
    }
    if adapter.layers.values().any(|layer| layer.magnitude.is_some()) {
        let problem = "the adapter has magnitudes (DoRA); a GGUF adapter has only A and B. `gelora merge` keeps them";
        return Err(Error::file(path, problem));
    }
    if adapter.layers.is_empty() {
        return Err(Error::file(path, "the adapter has no modules; expected at least one"));
    }
    let linears = architecture.linears(config);
    let mut tensors = Vec::new();
    for (name, layer) in &adapter.layers {
        // If the adapter was made for a model without a task head, its names lack the prefix.
        let is_named = |known: &str| known == name || known.strip_prefix(architecture.prefix) == Some(name);
        let Some(linear) = linears.iter().find(|linear| is_named(&linear.name)) else {
            let known = architecture.name;
            let problem = format!("has no name in a GGUF file of the architecture {known}, or is not in this model");
            return Err(Error::file(path, format!("the adapter's module {name} {problem}")));
        };
        if layer.a.shape() != [layer.rank(), linear.c_in] || layer.b.shape() != [linear.c_out, layer.rank()] {
            let (a, b) = (layer.a.shape(), layer.b.shape());
            let problem = format!("{name} is {} -> {}; the adapter has A {a:?} and B {b:?}", linear.c_in, linear.c_out);
            return Err(Error::file(path, problem));
        }
        let scaled = layer.b.to_vec()?.into_iter().map(|v| v * layer.scaling).collect();
        let mut b = Tensor::from_vec(scaled, layer.b.shape())?;
        if let Some(heads) = architecture.reordered_heads(&linear.stored, config.heads, config.kv_heads) {
            let problem = |problem| Error::file(path, format!("B of {name} {problem}"));
            b = reorder(&b, heads, RowOrder::Pairs).map_err(problem)?;
        }
        for (suffix, tensor) in SUFFIXES.into_iter().zip([layer.a.clone(), b]) {
            let (name, shape) = (format!("{}{suffix}", linear.stored), tensor.shape().to_vec());
            let values = Box::new(move || Ok(tensor.clone()));
            tensors.push(Output { name, shape, stored: StoredType::F32, values });
        }
    }
    let text = |text: &str| MetadataValue::Text(text.to_owned());
    let keys = [
        ("general.architecture", text(architecture.name)),
        ("general.type", text("adapter")),
        ("general.file_type", MetadataValue::Unsigned(StoredType::F32.file_type())),
        ("adapter.type", text("lora")),
        (ALPHA, MetadataValue::Float(0.0)),
    ];
    let keys: Vec<_> = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    write::write(path, &keys, &tensors)?;
    Ok(adapter.layers.len())
}

/// Reads an adapter in a GGUF file as a language model's adapter in PEFT's form. `config` is the config of its base
/// model.
///
/// # Errors
/// Returns an error if the file is damaged, is not a LoRA adapter or is for another architecture, or has a tensor that
/// is neither A nor B of a linear module of the model, an A without a B, or a tensor of a wrong shape.
pub fn read_adapter(path: &Path, config: &Config) -> Result<Adapter> {
    let gguf = Gguf::open(path)?;
    let architecture = architecture_of(path, config)?;
    let text = |key: &str| gguf.metadata().get(key).and_then(Value::as_str).unwrap_or("");
    if text("general.type") != "adapter" {
        let kind = text("general.type");
        return Err(gguf.error(format!("general.type is {kind:?}; expected an adapter, \"adapter\"")));
    }
    if text("adapter.type") != "lora" {
        return Err(gguf.error(format!("adapter.type is {:?}; expected \"lora\"", text("adapter.type"))));
    }
    if gguf.architecture() != architecture.name {
        let (got, wanted) = (gguf.architecture(), architecture.name);
        return Err(gguf.error(format!("is an adapter for the architecture {got:?}; the model has {wanted:?}")));
    }
    if gguf.metadata().contains_key("adapter.alora.invocation_tokens") {
        return Err(gguf.error("adapter.alora.invocation_tokens (an activated LoRA) is not supported"));
    }
    let alpha = gguf.metadata().get(ALPHA).and_then(Value::as_f64).unwrap_or(0.0);
    let linears = architecture.linears(config);
    let (mut a, mut b) = (BTreeMap::new(), BTreeMap::new());
    for info in &gguf.tensors {
        let [module_of_a, module_of_b] = SUFFIXES.map(|suffix| info.name.strip_suffix(suffix));
        let linear =
            module_of_a.or(module_of_b).and_then(|stored| linears.iter().find(|linear| linear.stored == stored));
        let Some(linear) = linear else {
            let problem = "expected lora_a or lora_b of a linear module of the model's blocks";
            return Err(gguf.error(format!("tensor {}: {problem}", info.name)));
        };
        let mut tensor = gguf.tensor(info)?.to_dtype(DType::F32)?;
        let heads = architecture.reordered_heads(&linear.stored, config.heads, config.kv_heads);
        if let Some(heads) = heads.filter(|_| module_of_b.is_some()) {
            let problem = |problem| gguf.error(format!("tensor {} {problem}", info.name));
            tensor = reorder(&tensor, heads, RowOrder::Halves).map_err(problem)?;
        }
        let matrices = if module_of_a.is_some() { &mut a } else { &mut b };
        if matrices.insert(linear.name.clone(), tensor).is_some() {
            return Err(gguf.error(format!("tensor {} occurs twice", info.name)));
        }
    }
    let (mut layers, mut ranks) = (BTreeMap::new(), Vec::new());
    for linear in &linears {
        let (a, b) = match (a.remove(&linear.name), b.remove(&linear.name)) {
            (Some(a), Some(b)) => (a, b),
            (None, None) => continue,
            (a, _) => {
                let missing = SUFFIXES[usize::from(a.is_some())];
                return Err(gguf.error(format!("tensor {}{missing} is missing", linear.stored)));
            }
        };
        let rank = a.shape().first().copied().unwrap_or(0);
        if rank == 0 || a.shape() != [rank, linear.c_in] || b.shape() != [linear.c_out, rank] {
            let sizes = format!("{} is {} -> {}", linear.name, linear.c_in, linear.c_out);
            return Err(gguf.error(format!("{sizes}; the adapter has A {:?} and B {:?}", a.shape(), b.shape())));
        }
        let alpha = if alpha == 0.0 { rank as f64 } else { alpha };
        ranks.push((linear.name.clone(), rank, alpha));
        layers.insert(
            linear.name.clone(),
            LoraLayer {
                a,
                b,
                scaling: (alpha / rank as f64) as f32,
                dropout: 0.0,
                magnitude: None,
                initial: None,
                singular: None,
            },
        );
    }
    let all: Vec<&str> = linears.iter().map(|linear| linear.name.as_str()).collect();
    let config =
        AdapterConfig::for_modules(&ranks, architecture.prefix, &all).map_err(|error| gguf.error(error.to_string()))?;
    let config = AdapterConfig { task_type: Some(CAUSAL_LM.into()), inference_mode: true, ..config };
    Ok(Adapter { config, layers, saved: BTreeMap::new() })
}

/// Returns the architecture of a model, which a GGUF file of its adapter names.
fn architecture_of(path: &Path, config: &Config) -> Result<&'static Architecture> {
    Architecture::of_family(&config.family).ok_or_else(|| {
        let problem = format!("a {} has no adapters in GGUF files; expected {}", config.family, Architecture::all());
        Error::file(path, problem)
    })
}

#[cfg(test)]
mod tests;
