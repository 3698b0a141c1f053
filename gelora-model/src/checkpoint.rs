//! Finds and reads the files of a model folder that hold its weights.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use gelora_kernels::Tensor;
use gelora_lora::files::{check_downloaded, read_entries, read_tensors};
use serde_json::Value;

use crate::config::check_no_adapter;
use crate::gguf::{Gguf, is_gguf};
use crate::{Error, Result, bitsandbytes, torch_file};

/// Names of files with weights or with an index of such files. The first file that exists is used.
pub const FILES: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Whether a file of [`FILES`] is an index that names other files.
pub fn is_index(file: &str) -> bool {
    file.ends_with(".index.json")
}

/// Returns the paths of a folder's weight files, in reading order.
///
/// # Errors
/// Returns an error if there are none, or an index is damaged or names a missing file.
///
/// ```no_run
/// let files = gelora_model::checkpoint::files("all-MiniLM-L6-v2".as_ref())?;
/// assert!(files[0].ends_with("model.safetensors"));
/// # Ok::<(), gelora_model::Error>(())
/// ```
pub fn files(model: &Path) -> Result<Vec<PathBuf>> {
    let (first, _) = first(model)?;
    if !is_index(&first.to_string_lossy()) {
        return Ok(vec![first]);
    }
    let file = |shard: String| {
        let path = model.join(&shard);
        match path.exists() {
            true => Ok(path),
            false => Err(Error::file(&first, format!("names the shard {shard}, which is not in this folder"))),
        }
    };
    shards(&first)?.into_iter().map(file).collect()
}

/// Returns the names of the files in an index, without duplicates.
///
/// # Errors
/// Returns an error if the index cannot be read, has no weight_map, or names a file outside its folder.
pub fn shards(index: &Path) -> Result<Vec<String>> {
    let mut shards: Vec<String> = weight_map(index)?.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    Ok(shards)
}

/// Returns path and name of the file of [`FILES`] that is used.
fn first(model: &Path) -> Result<(PathBuf, &'static str)> {
    let found = FILES.into_iter().map(|name| (model.join(name), name)).find(|(path, _)| path.exists());
    if found.is_none() {
        check_no_adapter(model)?;
    }
    found.ok_or_else(|| Error::file(model, format!("expected one of {} in this folder", FILES.join(", "))))
}

/// Reads the names of tensors and of their files.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(index).map_err(|source| Error::Io { path: index.into(), source })?;
    check_downloaded(index, text.as_bytes())?;
    let json: Value = serde_json::from_str(&text).map_err(|e| Error::file(index, format!("not valid JSON: {e}")))?;
    let Some(Value::Object(map)) = json.get("weight_map") else {
        let problem = "the key weight_map is missing; expected an object from tensor names to files";
        return Err(Error::file(index, problem));
    };
    let inside = |file: &str| Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
    let entry = |(name, file): (&String, &Value)| match file.as_str().filter(|file| inside(file) && !file.is_empty()) {
        Some(file) => Ok((name.clone(), file.to_owned())),
        None => Err(Error::file(index, format!("tensor {name} is in {file}; expected a file of this folder"))),
    };
    map.iter().map(entry).collect()
}

/// Whether a tensor is a weight. Old checkpoints also store buffers.
pub(crate) fn is_weight(name: &str) -> bool {
    const BUFFERS: [&str; 5] =
        ["position_ids", "token_type_ids", "rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];
    !BUFFERS.iter().any(|buffer| name.ends_with(buffer))
}

/// Reads all weights of a model by their names in a Hugging Face checkpoint, and returns the file that names them.
///
/// # Errors
/// Returns an error if a file is missing, damaged or of an unsupported kind, or a tensor of an index is in none of its
/// files.
pub fn read(model: &Path) -> Result<(PathBuf, BTreeMap<String, Tensor>)> {
    if is_gguf(model) {
        return Ok((model.into(), Gguf::open(model)?.tensors()?));
    }
    let (path, name) = first(model)?;
    let files = files(model)?;
    let is_safetensors = |file: &Path| file.extension().is_some_and(|end| end == "safetensors");
    // The parts of one quantized weight may be in different shards.
    let mut quantized = bitsandbytes::Parts::default();
    for file in files.iter().filter(|file| is_safetensors(file)) {
        let (bytes, entries) = read_entries(file)?;
        quantized.add(file, bytes, entries);
    }
    let mut tensors = BTreeMap::new();
    let is_plain = |name: &str| is_weight(name) && !quantized.has(name);
    for file in &files {
        tensors.extend(match is_safetensors(file) {
            true => read_tensors(file, is_plain)?,
            false => torch_file::read_tensors(file, is_plain)?,
        });
    }
    let weights = quantized.tensors()?;
    bitsandbytes::check_promise(model, weights.is_empty())?;
    tensors.extend(weights);
    if is_index(name) {
        let missing = weight_map(&path)?.into_keys().find(|name| is_plain(name) && !tensors.contains_key(name));
        if let Some(name) = missing {
            return Err(Error::file(&path, format!("tensor {name} is in none of the files that the index names")));
        }
    }
    Ok((path, tensors))
}
