//! Reader of `.safetensors` files: every matrix of F32, F64, F16 or BF16.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_kernels::Tensor;
use gelora_lora::files::read_tensors;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::{Entry, choose};

/// Reads the requested matrix, or every matrix of the file.
pub fn read(path: &Path, tensor: Option<&str>) -> Result<Vec<(String, Tensor)>> {
    read_tensors(path, |_| false)?; // checks the header and the file's length
    let metadata = header(path).with_context(|| format!("{}: its header cannot be read", path.display()))?;
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| Entry {
        name,
        shape: info.shape.clone(),
        dtype: info.dtype.to_string(),
        readable: matches!(info.dtype, Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16),
    };
    let chosen = choose(path, metadata.tensors().into_iter().map(entry).collect(), tensor)?;
    let mut tensors = read_tensors(path, |name| chosen.iter().any(|c| c == name))?;
    let mut matrices = Vec::with_capacity(chosen.len());
    for name in chosen {
        match tensors.remove(&name) {
            Some(matrix) => matrices.push((name, matrix)),
            None => bail!("{}: \"{name}\" was there a moment ago; is the file being written?", path.display()),
        }
    }
    Ok(matrices)
}

/// Reads the names, types and shapes of a file. [`read_tensors`] must have checked its header before.
fn header(path: &Path) -> Result<Metadata> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(length)).read_to_end(&mut header)?;
    Ok(serde_json::from_slice(&header)?)
}
