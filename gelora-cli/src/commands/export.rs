//! `gelora export`: writes an adapter or a model as a GGUF file for llama.cpp and the programs built on it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_model::gguf::{GgufOptions, StoredType, is_gguf, write_adapter};
use gelora_model::{CausalLm, Config};
use serde_json::json;

use super::{check_base, read_adapter};
use crate::args::{ExportArgs, ModelArgs};
use crate::tokenize::to_gguf;
use crate::ui;

pub fn run(args: &ExportArgs) -> Result<()> {
    let model = &args.model.path;
    let Some(path) = &args.adapter else {
        check_target(&args.gguf, &[model])?;
        write_model(&CausalLm::load(model)?, &args.model, &args.gguf, args.stored.stored())?;
        return match args.output.json {
            true => Ok(ui::result(ui::with_warnings(json!({"gguf": args.gguf})).to_string())?),
            false => Ok(ui::result(format!("the model is in {}", args.gguf.display()))?),
        };
    };
    check_target(&args.gguf, &[model, path])?;
    let adapter = read_adapter(path, model)?;
    check_base(&adapter, path, &args.model);
    let modules = write_adapter(&args.gguf, &adapter, &Config::load(model)?)?;
    let ranks = adapter.layers.values().map(|layer| layer.rank());
    let (least, most) = ranks.fold((usize::MAX, 0), |(least, most), rank| (least.min(rank), most.max(rank)));
    if args.output.json {
        let written = json!({"gguf": args.gguf, "modules": modules, "least_rank": least, "largest_rank": most});
        return Ok(ui::result(ui::with_warnings(written).to_string())?);
    }
    let ranks = if least == most { format!("rank {least}") } else { format!("ranks {least} to {most}") };
    ui::result(format!("{modules} modules of {ranks}; the adapter is in {}", args.gguf.display()))?;
    ui::note(args.output.quiet, "llama.cpp takes it beside the base model's file: llama-cli -m BASE.gguf --lora FILE");
    Ok(())
}

/// Returns an error if `path` does not end with .gguf or is one of `inputs`.
pub fn check_target(path: &Path, inputs: &[&Path]) -> Result<()> {
    if !is_gguf(path) {
        bail!("{}: --gguf names a file; expected a name that ends with .gguf", path.display());
    }
    let Ok(existing) = path.canonicalize() else { return Ok(()) }; // the file does not exist yet
    if inputs.iter().any(|input| input.canonicalize().is_ok_and(|input| input == existing)) {
        bail!("{}: --gguf would overwrite what is read; expected another place", path.display());
    }
    Ok(())
}

/// Writes a language model, its merged adapters and its tokenizer to a GGUF file. Warns of settings that the file
/// cannot express as the model has them.
pub fn write_model(lm: &CausalLm, model: &ModelArgs, path: &Path, stored: StoredType) -> Result<()> {
    let mut options = GgufOptions { stored, ..Default::default() };
    let mut remarks = lm.remarks().to_vec();
    if !is_gguf(&model.path) {
        options.name = model.name.file_name().map(|name| name.to_string_lossy().into_owned());
        let rows = lm.transformer().config().vocabulary;
        let keys = to_gguf::keys(&model.path, rows).with_context(|| model.path.display().to_string())?;
        options.tokenizer = keys.keys;
        remarks.extend(keys.remarks);
    }
    remarks.extend(lm.write_gguf(&model.path, path, &options)?);
    remarks.iter().for_each(|remark| ui::warn(format!("{}: {remark}", path.display())));
    Ok(())
}
