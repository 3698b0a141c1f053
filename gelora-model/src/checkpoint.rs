//! Which files of a model folder hold its weights, and what is in them.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use gelora_kernels::Tensor;
use gelora_lora::files::{check_downloaded, read_entries, read_tensors};
use serde_json::Value;

use crate::config::check_no_adapter;
use crate::gguf::{Gguf, is_gguf};
use crate::{Error, Result, bitsandbytes, torch_file};

/// The files that weights, or an index of files with weights, may be in. The first that is there is taken.
pub const FILES: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Whether a file of [`FILES`] names others.
pub fn is_index(file: &str) -> bool {
    file.ends_with(".index.json")
}

/// The files of a folder that hold its weights, in the order in which they are read.
///
/// # Errors
/// If there are none, or an index is damaged or names a file that is not there.
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

/// The files that an index names, each once.
///
/// # Errors
/// If it cannot be read, has no weight_map, or names a file outside its folder.
pub fn shards(index: &Path) -> Result<Vec<String>> {
    let mut shards: Vec<String> = weight_map(index)?.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    Ok(shards)
}

/// The file of [`FILES`] that is taken.
fn first(model: &Path) -> Result<(PathBuf, &'static str)> {
    let there = FILES.into_iter().map(|name| (model.join(name), name)).find(|(path, _)| path.exists());
    if there.is_none() {
        check_no_adapter(model)?;
    }
    there.ok_or_else(|| Error::file(model, format!("expected one of {} in this folder", FILES.join(", "))))
}

/// Names of tensors and the files that they are in.
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
        None => {
            Err(Error::file(index, format!("tensor {name} is said to be in {file}; expected a file of this folder")))
        }
    };
    map.iter().map(entry).collect()
}

/// Buffers that old checkpoints carry; they are not weights.
pub(crate) fn is_weight(name: &str) -> bool {
    const BUFFERS: [&str; 5] =
        ["position_ids", "token_type_ids", "rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];
    !BUFFERS.iter().any(|buffer| name.ends_with(buffer))
}

/// All weights of a model by their names in a Hugging Face checkpoint, and the file that names them.
///
/// # Errors
/// If a file is missing, damaged or of a kind that is not supported, or a tensor is in none of the files of an index.
pub fn read(model: &Path) -> Result<(PathBuf, BTreeMap<String, Tensor>)> {
    if is_gguf(model) {
        return Ok((model.into(), Gguf::open(model)?.tensors()?));
    }
    let (path, name) = first(model)?;
    let files = files(model)?;
    let is_safetensors = |file: &Path| file.extension().is_some_and(|end| end == "safetensors");
    // Parts of one quantised weight may be in two shards.
    let mut quantised = bitsandbytes::Parts::default();
    for file in files.iter().filter(|file| is_safetensors(file)) {
        let (bytes, entries) = read_entries(file)?;
        quantised.add(file, bytes, entries);
    }
    let mut tensors = BTreeMap::new();
    let is_plain = |name: &str| is_weight(name) && !quantised.has(name);
    for file in &files {
        tensors.extend(match is_safetensors(file) {
            true => read_tensors(file, is_plain)?,
            false => torch_file::read_tensors(file, is_plain)?,
        });
    }
    let weights = quantised.tensors()?;
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
