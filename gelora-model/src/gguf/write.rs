//! Writes GGUF files: keys with typed values, and tensors that are converted one at a time.

use std::io::Error as IoError;
use std::path::Path;

use gelora_kernels::{DType, Tensor};
use gelora_lora::files;

use crate::{Error, Result};

/// Alignment of the values of every tensor, in bytes.
const ALIGNMENT: usize = 32;
const VERSION: u32 = 3;
/// Number of values in a block of Q8_0.
const BLOCK: usize = 32;

/// The value of a key, in one of the format's types.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MetadataValue {
    /// An unsigned integer.
    Unsigned(u32),
    /// A number in single precision.
    Float(f32),
    /// A boolean.
    Flag(bool),
    /// A string.
    Text(String),
    /// A list of strings.
    Texts(Vec<String>),
    /// A list of integers.
    Integers(Vec<i32>),
    /// A list of numbers in single precision.
    Floats(Vec<f32>),
    /// A value of any type, copied from another file: the number of its type, and its bytes.
    Stored(u32, Vec<u8>),
}

impl MetadataValue {
    /// Returns the number of the type and the bytes of the value.
    fn encoded(&self) -> (u32, Vec<u8>) {
        const ARRAY: u32 = 9;
        let array = |kind: u32, length: usize, values: Vec<u8>| {
            (ARRAY, [&kind.to_le_bytes()[..], &(length as u64).to_le_bytes(), &values].concat())
        };
        match self {
            Self::Unsigned(value) => (4, value.to_le_bytes().to_vec()),
            Self::Float(value) => (6, value.to_le_bytes().to_vec()),
            Self::Flag(value) => (7, vec![u8::from(*value)]),
            Self::Text(value) => (8, text(value)),
            Self::Texts(all) => array(8, all.len(), all.iter().flat_map(|value| text(value)).collect()),
            Self::Integers(all) => array(5, all.len(), all.iter().flat_map(|value| value.to_le_bytes()).collect()),
            Self::Floats(all) => array(6, all.len(), all.iter().flat_map(|value| value.to_le_bytes()).collect()),
            Self::Stored(kind, bytes) => (*kind, bytes.clone()),
        }
    }
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

/// The type of a file's matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoredType {
    /// Single precision.
    F32,
    /// Half precision, with values up to 65,504.
    #[default]
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32 values in 8 bits each, with one scale in f16.
    Q8_0,
}

impl StoredType {
    /// Number of the type in a tensor's header.
    fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    /// Value of `general.file_type`, as llama.cpp numbers it.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }

    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::Bf16,
            Self::Q8_0 => DType::Q8_0,
        }
    }

    /// Returns the type of one tensor: f32 for a vector and for the position table, f16 if Q8_0 is wanted but the rows
    /// are not whole blocks, and otherwise this type. llama.cpp converts models by the same rule.
    pub(super) fn of_tensor(self, name: &str, shape: &[usize]) -> Self {
        match (self, shape.last()) {
            _ if shape.len() < 2 || name == "position_embd.weight" => Self::F32,
            (Self::Q8_0, Some(columns)) if !columns.is_multiple_of(BLOCK) => Self::F16,
            _ => self,
        }
    }
}

/// A tensor to write.
pub(super) struct Output<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub stored: StoredType,
    /// Computes the values, in that shape and in any element type.
    pub values: Box<dyn Fn() -> Result<Tensor> + 'a>,
}

/// Writes a file atomically: an existing file stays until the new file is complete. Computes and converts one tensor at
/// a time.
///
/// # Errors
/// Returns an error if a tensor cannot be computed, a value does not fit its type, or the file cannot be written.
pub(super) fn write(path: &Path, keys: &[(String, MetadataValue)], tensors: &[Output]) -> Result<()> {
    // Header: version, counts and keys.
    let mut header = [&b"GGUF"[..], &VERSION.to_le_bytes()].concat();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((keys.len() as u64).to_le_bytes());
    for (name, value) in keys {
        let (kind, bytes) = value.encoded();
        header.extend(text(name));
        header.extend(kind.to_le_bytes());
        header.extend(bytes);
    }
    // Header: name, shape, type and offset of each tensor.
    let mut end = 0usize;
    for tensor in tensors {
        header.extend(text(&tensor.name));
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        header.extend(tensor.shape.iter().rev().flat_map(|d| (*d as u64).to_le_bytes()));
        header.extend(tensor.stored.number().to_le_bytes());
        header.extend((end as u64).to_le_bytes());
        end += tensor.stored.dtype().bytes(tensor.shape.iter().product()).next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    // Values, each padded to the alignment.
    let mut failed = None;
    let written = files::write_with(path, |file| {
        file.write_all(&header)?;
        tensors.iter().try_for_each(|tensor| match encoded(path, tensor) {
            Ok(bytes) => {
                file.write_all(&bytes)?;
                file.write_all(&[0; ALIGNMENT][..bytes.len().next_multiple_of(ALIGNMENT) - bytes.len()])
            }
            Err(error) => {
                failed = Some(error);
                Err(IoError::other("a tensor cannot be stored"))
            }
        })
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

/// Converts a tensor to the type in which it is stored.
fn encoded(path: &Path, output: &Output) -> Result<Vec<u8>> {
    let tensor = (output.values)()?;
    if tensor.shape() != output.shape {
        let (name, got, wanted) = (&output.name, tensor.shape(), &output.shape);
        return Err(Error::file(path, format!("tensor {name} has the shape {got:?}; expected {wanted:?}")));
    }
    let values = tensor.to_f32()?;
    let holds_all = |stored: &[f32]| stored.iter().zip(values.iter()).all(|(s, v)| s.is_finite() || !v.is_finite());
    let (bytes, fits) = match output.stored {
        StoredType::Q8_0 => {
            let (bytes, scales) = q8_0(&values)?;
            let fits = scales.iter().all(|scale| scale.is_finite()) || values.iter().any(|v| !v.is_finite());
            (bytes, fits)
        }
        other => {
            let converted = tensor.to_dtype(other.dtype())?;
            let fits = holds_all(&converted.to_f32()?);
            (converted.bytes()?.to_vec(), fits)
        }
    };
    if !fits {
        let largest = values.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
        let (name, dtype) = (&output.name, output.stored.dtype());
        let problem =
            format!("tensor {name} has a value of {largest:e}, which {dtype} cannot hold; expected bf16 or f32");
        return Err(Error::file(path, problem));
    }
    Ok(bytes)
}

/// Encodes each block of 32 values x as d in f16 and q = round(x / d) in 8 bits, with d = max |x| / 127. Returns the
/// bytes and all d.
///
/// Source: ggml, `quantize_row_q8_0_ref`.
fn q8_0(values: &[f32]) -> Result<(Vec<u8>, Vec<f32>)> {
    let scale = |block: &[f32]| block.iter().fold(0.0f32, |largest, v| largest.max(v.abs())) / 127.0;
    let scales: Vec<f32> = values.chunks(BLOCK).map(scale).collect();
    let rounded = Tensor::from_vec(scales.clone(), [scales.len()])?.to_dtype(DType::F16)?;
    let mut bytes = Vec::with_capacity(values.len() / BLOCK * 34);
    for ((block, d), d_bytes) in values.chunks(BLOCK).zip(&scales).zip(rounded.bytes()?.chunks_exact(2)) {
        let inverse = if *d == 0.0 { 0.0 } else { 1.0 / d };
        bytes.extend_from_slice(d_bytes);
        bytes.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
    }
    Ok((bytes, rounded.to_vec()?))
}

#[cfg(test)]
mod tests {
    use super::super::Gguf;
    use super::*;

    fn output(name: &str, stored: StoredType, shape: [usize; 2], values: Vec<f32>) -> Output<'static> {
        let make = move || Ok(Tensor::from_vec(values.clone(), shape)?);
        Output { name: name.into(), shape: shape.into(), stored, values: Box::new(make) }
    }

    #[test]
    fn written_files_can_be_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f.gguf");
        let keys = [
            ("general.architecture", MetadataValue::Text("llama".into())),
            ("a", MetadataValue::Unsigned(7)),
            ("b", MetadataValue::Float(0.5)),
            ("c", MetadataValue::Flag(true)),
            ("d", MetadataValue::Texts(vec!["x".into(), "é".into()])),
            ("e", MetadataValue::Integers(vec![-1, 2])),
            ("f", MetadataValue::Floats(vec![0.25])),
            ("g", MetadataValue::Stored(10, 1u64.to_le_bytes().to_vec())),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let values: Vec<f32> = (0..96).map(|v| (v as f32 - 40.0) / 8.0).collect();
        let types = [StoredType::F32, StoredType::F16, StoredType::Bf16, StoredType::Q8_0];
        let all: Vec<Output> = types.iter().map(|t| output(&format!("{t:?}"), *t, [3, 32], values.clone())).collect();
        write(&path, &keys, &all).expect("it is written");
        let gguf = Gguf::open(&path).expect("it is read");
        let metadata = serde_json::to_string(gguf.metadata()).expect("JSON");
        let want =
            r#"{"a":7,"b":0.5,"c":true,"d":["x","é"],"e":[-1,2],"f":[0.25],"g":1,"general.architecture":"llama"}"#;
        assert_eq!(metadata, want);
        // The stored bytes of a key are those that another file can copy.
        for ((name, value), (stored, kind, bytes)) in keys.iter().zip(gguf.stored_keys()) {
            assert_eq!((name.as_str(), value.encoded()), (stored, (kind, bytes.to_vec())));
        }
        for (info, stored) in gguf.tensors.iter().zip(types) {
            let t = gguf.tensor(info).expect("its values");
            assert_eq!((t.shape(), t.dtype()), (&[3, 32][..], stored.dtype()));
            let largest = if stored == StoredType::Q8_0 { 7.0 / 127.0 / 2.0 } else { 0.0 };
            let error = t.to_vec().expect("f32").iter().zip(&values).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(error <= largest * 1.01, "{stored:?}: {error}");
        }
    }

    #[test]
    fn q8_0_blocks_match_the_gguf_package() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/gguf/blocks.golden.safetensors");
        let bytes = std::fs::read(path).expect("a fixture");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let data = |name: &str| file.tensor(name).expect("it is there").data().to_vec();
        let values: Vec<f32> = data("Q8_0.source").as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let (packed, scales) = q8_0(&values).expect("finite values");
        assert_eq!((values.len(), scales.len()), (256, 8));
        assert_eq!(packed, data("Q8_0.packed"));
    }

    #[test]
    fn values_that_do_not_fit_a_type_are_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f.gguf");
        std::fs::write(&path, "before").expect("a file");
        let mut values = vec![0.5; 32];
        values[3] = -1e5;
        let problem = |stored| write(&path, &[], &[output("w", stored, [1, 32], values.clone())]).err();
        let message = problem(StoredType::F16).expect("it is too large").to_string();
        assert!(
            message.contains("tensor w has a value of 1e5, which f16 cannot hold; expected bf16 or f32"),
            "{message}"
        );
        assert_eq!(std::fs::read(&path).expect("as it was"), b"before");
        values[3] = 1e7;
        let problem = |stored| write(&path, &[], &[output("w", stored, [1, 32], values.clone())]).err();
        assert!(problem(StoredType::Q8_0).expect("its scale is too large").to_string().contains("which q8_0 cannot"));
        assert!(problem(StoredType::Bf16).is_none() && problem(StoredType::F32).is_none());
    }

    #[test]
    fn vectors_positions_and_odd_rows_are_not_quantized() {
        let stored_type = |name: &str, shape: &[usize]| StoredType::Q8_0.of_tensor(name, shape);
        assert_eq!(stored_type("blk.0.attn_norm.weight", &[64]), StoredType::F32);
        assert_eq!(stored_type("position_embd.weight", &[64, 64]), StoredType::F32);
        assert_eq!(stored_type("blk.0.attn_q.weight", &[64, 48]), StoredType::F16);
        assert_eq!(stored_type("blk.0.attn_q.weight", &[48, 64]), StoredType::Q8_0);
        assert_eq!(StoredType::Bf16.of_tensor("blk.0.attn_q.weight", &[48, 5]), StoredType::Bf16);
    }
}
