//! Checks that the processes of a run read the same files with the same options.

use std::path::Path;

use anyhow::{Context, Result};
use gelora_kernels::Device;
use gelora_model::checkpoint;

use super::hash_of_adapter;
use crate::args::ComputeArgs;
use crate::data::Dataset;
use crate::launch::Group;
use crate::tokenize::Tokenizer;

/// Checks what every command reads: rows, tokenizer, the files of the model, and how this process computes. A machine
/// hashes the files of its model once.
///
/// # Errors
/// Returns an error that names what differs, and in which processes.
pub fn check_inputs<'a>(
    group: &Group,
    model: &Path,
    datasets: impl IntoIterator<Item = &'a Dataset>,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<()> {
    let processes = &group.processes;
    if processes.is_alone() {
        return Ok(());
    }
    processes.check_same("the version of gelora", Some(env!("CARGO_PKG_VERSION").as_bytes()))?;
    for data in datasets {
        let hash = data.fingerprint().map(u32::to_le_bytes).concat();
        processes.check_same(&data.path.display().to_string(), Some(&hash))?;
    }
    let tokens = tokenizer.fingerprint().map(u32::to_le_bytes).concat();
    processes.check_same(&format!("{}: the tokenizer", model.display()), Some(&tokens))?;
    let hash = group.is_first_of_machine().then(|| hash_of_model(model)).transpose()?;
    processes.check_same(&model.display().to_string(), hash.as_ref().map(|hash| &hash[..]))?;
    // Vector instructions may change the last bits of a result, which would make the copies of the adapter differ.
    let level = match device.kind() {
        gelora_kernels::DeviceKind::Cpu => format!("cpu {:?}", gelora_kernels::cpu::level()),
        _ => device.name(),
    };
    let what = format!("the device ({level} in process {}; --device, GELORA_CPU)", processes.rank());
    Ok(processes.check_same(&what, Some(level.as_bytes()))?)
}

/// Checks that all processes apply the same model and adapter to the same rows, in batches of one size.
///
/// # Errors
/// As [`check_inputs`].
pub fn check_model_on_rows(
    group: &Group,
    (model, adapter): (&Path, Option<&Path>),
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    device: &Device,
    (batch_size, compute): (usize, ComputeArgs),
) -> Result<()> {
    let processes = &group.processes;
    if processes.is_alone() {
        return Ok(());
    }
    check_inputs(group, model, [dataset], tokenizer, device)?;
    let options = format!("{batch_size:?} {compute:?}");
    processes.check_same("the options of the command line", Some(options.as_bytes()))?;
    let Some(adapter) = adapter else { return Ok(()) };
    let hash = hash_of_adapter(adapter)?;
    Ok(processes.check_same(&adapter.display().to_string(), Some(hash.as_bytes()))?)
}

/// A hash of the model's weights and config.
pub fn hash_of_model(model: &Path) -> Result<[u8; 32]> {
    let mut files = if model.is_file() { vec![model.to_owned()] } else { checkpoint::files(model)? };
    files.extend(Some(model.join("config.json")).filter(|_| !model.is_file()));
    let mut hasher = blake3::Hasher::new();
    for file in files {
        hasher.update_mmap_rayon(&file).with_context(|| format!("{}", file.display()))?;
    }
    Ok(*hasher.finalize().as_bytes())
}
