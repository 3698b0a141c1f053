//! Weights that bitsandbytes quantized to 4 bits, NF4 or FP4, as transformers stores them in safetensors files.
//!
//! A weight `W` is stored in several tensors. `W` holds the codes, two in a byte. `W.absmax` holds the scale of every
//! block of values. `W.quant_map` holds the 16 values of the codes. `W.quant_state.bitsandbytes__nf4` (or `__fp4`)
//! holds the other settings as the bytes of a JSON object. If the scales are quantized too, `W.absmax` holds 8-bit
//! codes into `W.nested_quant_map`, `W.nested_absmax` holds their scales, and the object has the offset that was
//! subtracted from all scales.
//!
//! Source: `QuantState` in bitsandbytes' functional.py.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gelora_kernels::{DType, Rounding, SharedBytes, Tensor, four_bit};
use gelora_lora::files::Entry;
use serde_json::{Map, Value};

use crate::config::Json;
use crate::{Error, Result};

/// Separator between the name of a weight and its kind, in the name of the tensor that describes the weight.
const STATE: &str = ".quant_state.bitsandbytes__";
/// Key of config.json.
const CONFIG: &str = "quantization_config";

/// One tensor of a file.
struct Part {
    path: PathBuf,
    bytes: SharedBytes,
    entry: Entry,
}

impl Part {
    fn bytes(&self) -> &[u8] {
        &self.bytes.bytes()[self.entry.range.clone()]
    }

    fn error(&self, problem: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("tensor {}: {problem}", self.entry.name))
    }

    /// Reads the values of an f32 tensor.
    fn floats(&self) -> Result<Vec<f32>> {
        match &self.entry.dtype[..] {
            "F32" => Ok(self.bytes().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            other => Err(self.error(format!("expected F32, got {other}"))),
        }
    }

    /// Reads the values of a byte tensor.
    fn integers(&self) -> Result<&[u8]> {
        match &self.entry.dtype[..] {
            "U8" => Ok(self.bytes()),
            other => Err(self.error(format!("expected U8, got {other}"))),
        }
    }
}

/// The tensors of a checkpoint from which quantized weights are assembled.
#[derive(Default)]
pub(crate) struct Parts {
    /// All tensors of the files, by name.
    all: BTreeMap<String, Part>,
    /// Names of the quantized weights.
    weights: BTreeSet<String>,
}

impl Parts {
    /// Adds the tensors of a file.
    pub fn add(&mut self, path: &Path, bytes: SharedBytes, entries: Vec<Entry>) {
        for entry in entries {
            if let Some((weight, _)) = entry.name.split_once(STATE) {
                self.weights.insert(weight.to_owned());
            }
            self.all.insert(entry.name.clone(), Part { path: path.into(), bytes: bytes.clone(), entry });
        }
    }

    /// Whether a tensor is part of a quantized weight.
    pub fn has(&self, name: &str) -> bool {
        self.weight_of(name).is_some()
    }

    /// Name of the quantized weight that a tensor is part of.
    fn weight_of(&self, name: &str) -> Option<&String> {
        let prefixes = name.match_indices('.').map(|(at, _)| &name[..at]).chain([name]);
        prefixes.filter_map(|prefix| self.weights.get(prefix)).next()
    }

    /// Assembles all quantized weights. A weight keeps its blocks if its rows are whole blocks of 64 values; otherwise
    /// it is decoded to the type that represents its values.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let parts = self.all.iter().filter_map(|(name, part)| Some((self.weight_of(name)?, name, part)));
        let mut parts_of_weights: BTreeMap<&String, BTreeMap<&str, &Part>> = BTreeMap::new();
        for (weight, name, part) in parts {
            let role = name[weight.len()..].strip_prefix('.').unwrap_or("");
            parts_of_weights.entry(weight).or_default().insert(role, part);
        }
        parts_of_weights.into_iter().map(|(name, parts)| Ok((name.clone(), weight(name, parts)?))).collect()
    }
}

/// Assembles one weight.
fn weight(name: &str, mut parts: BTreeMap<&str, &Part>) -> Result<Tensor> {
    let key = parts.keys().find(|role| role.starts_with(&STATE[1..])).copied().unwrap_or_default();
    let Some(described) = parts.remove(key) else {
        // Does not happen: the separator is what put the weight on the list.
        return Err(Error::Value(format!("tensor {name} has no {}", &STATE[1..])));
    };
    let state = State::read(described)?;
    let mut part = |role: &'static str| {
        let full = format!("{name}.{role}");
        let missing = || described.error(format!("expected a tensor {} beside it", full.trim_end_matches('.')));
        parts.remove(role).ok_or_else(missing)
    };
    // The codes may have any type: bitsandbytes can store them under the type of other weights.
    let codes = part("")?;
    let map = part("quant_map")?;
    // The code table must be the one that the decoder uses.
    let (values, table) = (map.floats()?, state.table());
    let near = |(found, known): (&f32, &f32)| (found - known).abs() <= 1e-5;
    if values.len() != table.len() || !values.iter().zip(table).all(near) {
        return Err(map.error(format!("expected the 16 values of {}, got {values:?}", state.kind)));
    }
    let scales = part("absmax")?;
    // Scales, decoded if they are quantized: code value times outer scale, plus offset.
    let absmax = match &state.nested {
        None => scales.floats()?,
        Some(nested) => {
            let (outer, map) = (part("nested_absmax")?, part("nested_quant_map")?);
            let (codes, values, outer_values) = (scales.integers()?, map.floats()?, outer.floats()?);
            if values.len() != 256 {
                return Err(map.error(format!("expected 256 values, got {}", values.len())));
            }
            let expected = codes.len().div_ceil(nested.block);
            if outer_values.len() != expected {
                let (n, block) = (codes.len(), nested.block);
                return Err(outer.error(format!(
                    "{n} scales in blocks of {block} need {expected} values, got {}",
                    outer_values.len()
                )));
            }
            let scale =
                |(i, code): (usize, &u8)| values[usize::from(*code)] * outer_values[i / nested.block] + nested.offset;
            codes.iter().enumerate().map(scale).collect()
        }
    };
    if let Some((role, part)) = parts.first_key_value() {
        let known = "absmax, quant_map, nested_absmax, nested_quant_map";
        return Err(part.error(format!("{role:?} is not known for a weight of bitsandbytes; expected {known}")));
    }
    let [rows, cols] = state.shape;
    let count = rows * cols; // State::read checked the product
    if codes.bytes().len() != count.div_ceil(2) {
        let (expected, got) = (count.div_ceil(2), codes.bytes().len());
        return Err(codes.error(format!("expected {expected} bytes for [{rows}, {cols}], got {got}")));
    }
    if absmax.len() != count.div_ceil(state.block) {
        let (expected, got) = (count.div_ceil(state.block), absmax.len());
        return Err(scales.error(format!("expected {expected} scales for [{rows}, {cols}], got {got}")));
    }
    // Rows of whole blocks stay quantized; other weights are decoded.
    if four_bit::fits(cols, state.block) {
        let blocks = four_bit::blocks(codes.bytes(), &absmax, state.block)?;
        let end = blocks.len();
        return Ok(Tensor::from_bytes(Arc::new(blocks), 0..end, state.dtype, [rows, cols])?);
    }
    let values = four_bit::values(state.dtype, codes.bytes(), &absmax, state.block, count)?;
    Ok(Tensor::from_vec(values, [rows, cols])?.to_dtype(state.dtype.unquantized())?)
}

/// Description of a weight.
struct State {
    kind: String,
    dtype: DType,
    block: usize,
    shape: [usize; 2],
    nested: Option<Nested>,
}

/// Description of quantized scales.
struct Nested {
    block: usize,
    offset: f32,
}

impl State {
    fn read(part: &Part) -> Result<Self> {
        let json: Map<String, Value> =
            serde_json::from_slice(part.integers()?).map_err(|e| part.error(format!("expected a JSON object: {e}")))?;
        let wrong = |key: &str, expected: &str| {
            let got = json.get(key).unwrap_or(&Value::Null);
            part.error(format!("{key} must be {expected}, got {got}"))
        };
        let text = |key: &str| json.get(key).and_then(Value::as_str).unwrap_or_default();
        let size = |key: &str| {
            let size = json.get(key).and_then(Value::as_u64).filter(|n| *n > 0);
            size.map(|n| n as usize).ok_or_else(|| wrong(key, "a positive integer"))
        };
        let rounding = match text("dtype") {
            "float32" => Rounding::F32,
            "bfloat16" => Rounding::Bf16,
            "float16" => Rounding::F16,
            _ => return Err(wrong("dtype", "float32, bfloat16 or float16")),
        };
        let dtype = match text("quant_type") {
            "nf4" => DType::Nf4(rounding),
            "fp4" => DType::Fp4(rounding),
            _ => return Err(wrong("quant_type", "nf4 or fp4")),
        };
        let sizes = json.get("shape").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let sizes: Option<Vec<usize>> = sizes.iter().map(|n| n.as_u64().map(|n| n as usize)).collect();
        let shape: Option<[usize; 2]> = sizes.and_then(|sizes| sizes.try_into().ok());
        let shape = shape.filter(|[rows, cols]| rows.checked_mul(*cols).is_some_and(|n| n > 0));
        let shape = shape.ok_or_else(|| wrong("shape", "that of a matrix"))?;
        let nested = match json.get("nested_offset") {
            None => None,
            Some(_) if text("nested_dtype") != "float32" => return Err(wrong("nested_dtype", "float32")),
            Some(offset) => {
                let offset = offset.as_f64().ok_or_else(|| wrong("nested_offset", "a number"))?;
                Some(Nested { block: size("nested_blocksize")?, offset: offset as f32 })
            }
        };
        const KNOWN: [&str; 7] =
            ["quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset"];
        if let Some(key) = json.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            return Err(part.error(format!("{key} is not known; expected {}", KNOWN.join(", "))));
        }
        Ok(Self { kind: text("quant_type").to_owned(), dtype, block: size("blocksize")?, shape, nested })
    }

    fn table(&self) -> &'static [f32; 16] {
        if let DType::Fp4(_) = self.dtype { &four_bit::FP4 } else { &four_bit::NF4 }
    }
}

/// Returns an error if the model is quantized in another way than to 4 bits by bitsandbytes. The details are stored
/// with each weight.
pub(crate) fn check_config(json: &Json) -> Result<()> {
    let Some(config) = json.get(CONFIG) else { return Ok(()) };
    let method = config.get("quant_method").and_then(Value::as_str).unwrap_or("bitsandbytes");
    if method == "bitsandbytes" && promises_four_bits(config) {
        return match json.text("model_type") {
            Some("gpt2") => Err(json.error(format!("{CONFIG} is not supported for gpt2, whose weights it transposes"))),
            _ => Ok(()),
        };
    }
    let got = match config.get("load_in_8bit") {
        Some(Value::Bool(true)) => format!("{method} with load_in_8bit"),
        _ => method.to_owned(),
    };
    Err(json.error(format!("{CONFIG} names {got}, which is not supported; expected bitsandbytes with load_in_4bit")))
}

/// The 4-bit type that config.json promises, with values rounded to the type of the model; None without such a promise.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn stored_type(json: &Json, rounding: Rounding) -> Option<DType> {
    let config = json.map.get(CONFIG).filter(|config| promises_four_bits(config))?;
    Some(match config.get("bnb_4bit_quant_type").and_then(Value::as_str) {
        Some("nf4") => DType::Nf4(rounding),
        _ => DType::Fp4(rounding), // the default of transformers
    })
}

fn promises_four_bits(config: &Value) -> bool {
    ["load_in_4bit", "_load_in_4bit"].iter().any(|key| config.get(key) == Some(&Value::Bool(true)))
}

/// Returns an error if config.json says that the weights have 4 bits but none has. transformers would then quantize
/// them while loading and compute something else.
pub(crate) fn check_promise(model: &Path, none: bool) -> Result<()> {
    if !none || !model.join("config.json").exists() {
        return Ok(());
    }
    let json = Json::load(model)?;
    match json.get(CONFIG) {
        Some(config) if promises_four_bits(config) => Err(json.error(format!(
            "{CONFIG} says that weights have 4 bits, but none has: remove it to use them as they are, or quantize the \
             model and save it"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
