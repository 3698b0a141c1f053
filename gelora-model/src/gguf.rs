//! GGUF files: a model in one file, with its options, its tokenizer, and quantized weights.
//!
//! Crates that read GGUF depend on a tensor library. The header is small enough to be read here.
//!
//! Layout: "GGUF", the version, the number of tensors, the number of keys; then each key with a typed value; then name,
//! shape, type and offset of each tensor; then the aligned values. Dimensions are stored innermost first.
//!
//! Source: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use gelora_kernels::{DType, SharedBytes, Tensor};
use gelora_lora::files;
use serde_json::{Value, json};

use crate::{Error, Result};

mod adapter;
mod config;
mod model;
mod names;
mod rope;
mod write;

pub use adapter::{read_adapter, write_adapter};
pub use model::GgufOptions;
use names::{Architecture, RowOrder, plus, reorder, transposed};
pub use write::{MetadataValue, StoredType};

/// Tensor with one factor for each frequency, which a file has instead of the parameters of llama3's RoPE scaling.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Whether the path names a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// A GGUF file, mapped into memory.
pub struct Gguf {
    path: PathBuf,
    metadata: BTreeMap<String, Value>,
    /// The keys in file order, with their types and the ranges of their values.
    keys: Vec<(String, u32, Range<usize>)>,
    tensors: Vec<Info>,
    bytes: SharedBytes,
    /// Offset of the tensor values in the file.
    data: usize,
}

struct Info {
    name: String,
    /// Dimensions, outermost first.
    shape: Vec<usize>,
    kind: u32,
    offset: usize,
}

/// Returns the type with this number in ggml. For an unsupported type, the error is its name.
fn dtype_of(kind: u32) -> Result<DType, &'static str> {
    const NAMES: [&str; 31] = [
        "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
        "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16",
        "I32", "I64", "F64", "IQ1_M", "BF16",
    ];
    Ok(match kind {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        10 => DType::Q2K,
        11 => DType::Q3K,
        12 => DType::Q4K,
        13 => DType::Q5K,
        14 => DType::Q6K,
        20 => DType::Iq4Nl,
        23 => DType::Iq4Xs,
        30 => DType::Bf16,
        other => return Err(NAMES.get(other as usize).copied().unwrap_or("an unknown type")),
    })
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Gguf {
    /// Maps a file into memory and reads its header.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is not a GGUF file of version 2 or 3, or is truncated.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path, files::map(path)?)
    }

    fn parse(path: &Path, bytes: SharedBytes) -> Result<Self> {
        let all = bytes.bytes();
        let mut cursor = Cursor { bytes: all, position: 0 };
        let mut header = || -> Option<Result<_, String>> {
            if cursor.take(4)? != b"GGUF" {
                return Some(Err("not a GGUF file".into()));
            }
            let version = cursor.u32()?;
            if !(2..=3).contains(&version) {
                return Some(Err(format!("is of GGUF version {version}; expected 2 or 3")));
            }
            let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
            // Keys with their values.
            let (mut metadata, mut ranges) = (BTreeMap::new(), Vec::new());
            for _ in 0..keys {
                let (name, kind) = (cursor.text()?, cursor.u32()?);
                let begin = cursor.position;
                match cursor.value(kind, 0)? {
                    Ok(value) => metadata.insert(name.clone(), value),
                    Err(problem) => return Some(Err(format!("key {name}: {problem}"))),
                };
                ranges.push((name, kind, begin..cursor.position));
            }
            // Name, shape, type and offset of each tensor.
            let mut infos = Vec::new();
            for _ in 0..tensors {
                let (name, dimensions) = (cursor.text()?, cursor.u32()?);
                if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
                    let expected = format!("expected 1 to {MAX_DIMENSIONS}");
                    return Some(Err(format!("tensor {name} has {dimensions} dimensions; {expected}")));
                }
                let mut shape = (0..dimensions).map(|_| cursor.u64()).collect::<Option<Vec<usize>>>()?;
                shape.reverse();
                infos.push(Info { name, shape, kind: cursor.u32()?, offset: cursor.u64()? });
            }
            Some(Ok((metadata, ranges, infos)))
        };
        let (metadata, keys, tensors) = match header() {
            Some(Ok(parts)) => parts,
            Some(Err(problem)) => return Err(Error::file(path, problem)),
            None if all.starts_with(b"GGUF") => {
                return Err(Error::file(
                    path,
                    format!("truncated: its header does not end within {} bytes", all.len()),
                ));
            }
            None => return Err(Error::file(path, "not a GGUF file")),
        };
        let alignment = metadata.get("general.alignment").and_then(Value::as_u64).filter(|n| *n > 0).unwrap_or(32);
        // ggml stores the alignment in 32 bits.
        let stride = u32::try_from(alignment).ok().map(|alignment| alignment as usize);
        let data = stride.and_then(|stride| cursor.position.checked_next_multiple_of(stride));
        let data =
            data.ok_or_else(|| Error::file(path, format!("general.alignment is {alignment}, more than a file has")))?;
        Ok(Self { path: path.into(), metadata, keys, tensors, bytes, data })
    }

    /// All keys with their values.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// All keys in file order, with the number of their type and the bytes of their value.
    pub(crate) fn stored_keys(&self) -> impl Iterator<Item = (&str, u32, &[u8])> {
        self.keys.iter().map(|(name, kind, range)| (name.as_str(), *kind, &self.bytes.bytes()[range.clone()]))
    }

    /// Name of the architecture, `general.architecture`.
    pub fn architecture(&self) -> &str {
        self.metadata.get("general.architecture").and_then(Value::as_str).unwrap_or("")
    }

    fn error(&self, problem: impl Into<String>) -> Error {
        Error::file(&self.path, problem)
    }

    /// Value of a key of the architecture, such as `llama.block_count`.
    fn option(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture()))
    }

    fn tensor(&self, info: &Info) -> Result<Tensor> {
        let Info { name, shape, kind, offset } = info;
        let dtype = dtype_of(*kind).map_err(|found| {
            let supported = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL or IQ4_XS";
            self.error(format!("tensor {name} is of the type {found}, which is not supported; expected {supported}"))
        })?;
        // Bound the number of values, so that the number of bytes cannot overflow: a value takes at most eight bytes.
        let values = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= usize::MAX >> 4);
        let begin = self.data.checked_add(*offset);
        let range = begin.zip(values).and_then(|(begin, n)| Some(begin..begin.checked_add(dtype.bytes(n))?));
        let size = self.bytes.bytes().len();
        match range.filter(|range| range.end <= size) {
            Some(range) => Ok(Tensor::from_bytes(self.bytes.clone(), range, dtype, shape.as_slice())?),
            None => {
                Err(self.error(format!("truncated: the values of tensor {name} end beyond the file's {size} bytes")))
            }
        }
    }

    /// Reads all tensors by their names in a Hugging Face checkpoint.
    pub(crate) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let number = |key: &str| self.option(key).and_then(Value::as_u64).unwrap_or(0) as usize;
        let heads = number("attention.head_count");
        let kv_heads = self.option("attention.head_count_kv").and_then(Value::as_u64).map_or(heads, |n| n as usize);
        let architecture = self.known_architecture()?;
        let mut all = BTreeMap::new();
        for info in self.tensors.iter().filter(|t| t.name != ROPE_FACTORS) {
            // Undo the differences between file and checkpoint: name, order of rows, transpose, offset of norms.
            let mut tensor = self.tensor(info)?;
            let Some(name) = architecture.checkpoint_name(&info.name) else {
                return Err(self.error(format!(
                    "tensor {} is not known for the architecture {}",
                    info.name,
                    self.architecture()
                )));
            };
            if let Some(heads) = architecture.reordered_heads(&info.name, heads, kv_heads) {
                let problem = |problem| self.error(format!("tensor {} {problem}", info.name));
                tensor = reorder(&tensor, heads, RowOrder::Halves).map_err(problem)?;
            }
            if architecture.is_transposed(&info.name) {
                if tensor.shape().len() != 2 {
                    let problem = format!("tensor {} has the shape {:?}; expected a matrix", info.name, tensor.shape());
                    return Err(self.error(problem));
                }
                tensor = transposed(&tensor)?;
            }
            all.insert(name, plus(&tensor, -architecture.norm_offset(&info.name))?);
        }
        Ok(all)
    }

    /// Returns the architecture, or an error if it is not supported.
    fn known_architecture(&self) -> Result<&'static Architecture> {
        let name = self.architecture();
        Architecture::named(name).ok_or_else(|| {
            self.error(format!("architecture {name:?} is not supported; expected {}", Architecture::all()))
        })
    }
}

/// Largest number of dimensions of a tensor, as in ggml.
const MAX_DIMENSIONS: u32 = 4;

/// Reads little-endian values. Each method returns None at the end of the file.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.position..self.position.checked_add(n)?)?;
        self.position += n;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?)).ok()
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u64()?;
        Some(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    /// Reads a value of one of the format's types. The inner error describes an invalid value.
    fn value(&mut self, kind: u32, depth: usize) -> Option<Result<Value, String>> {
        Some(Ok(match kind {
            0 => json!(self.array().map(u8::from_le_bytes)?),
            1 => json!(self.array().map(i8::from_le_bytes)?),
            2 => json!(self.array().map(u16::from_le_bytes)?),
            3 => json!(self.array().map(i16::from_le_bytes)?),
            4 => json!(self.u32()?),
            5 => json!(self.array().map(i32::from_le_bytes)?),
            6 => json!(self.array().map(f32::from_le_bytes)?),
            7 => json!(self.array().map(u8::from_le_bytes)? != 0),
            8 => json!(self.text()?),
            9 if depth < 4 => {
                let (kind, length) = (self.u32()?, self.u64()?);
                let mut all = Vec::new();
                for _ in 0..length {
                    match self.value(kind, depth + 1)? {
                        Ok(value) => all.push(value),
                        problem => return Some(problem),
                    }
                }
                Value::Array(all)
            }
            10 => json!(self.array().map(u64::from_le_bytes)?),
            11 => json!(self.array().map(i64::from_le_bytes)?),
            12 => json!(self.array().map(f64::from_le_bytes)?),
            other => return Some(Err(format!("a value of the unknown type {other}"))),
        }))
    }
}

#[cfg(test)]
mod tests;
