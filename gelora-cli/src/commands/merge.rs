//! `gelora merge`: merges an adapter into its base model.

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_model::gguf::is_gguf;
use gelora_model::{CausalLm, Classifier, Transformer};

use super::{
    CAUSAL_LM, FEATURES, INFO_NAME, adapter_info, check_base, check_not_input, eval, export, load_classifier,
    read_adapter,
};
use crate::args::{MergeArgs, MergedTypeArg};
use crate::output::OutDir;
use crate::tokenize::gguf::as_files;
use crate::{tokenize, ui};

/// Returns the names of the base model's files that are copied unchanged, where they exist.
fn tokenizer_files() -> impl Iterator<Item = &'static str> {
    tokenize::FILES.into_iter().flatten().chain(&tokenize::ASIDE).copied()
}

/// A model with its adapter, by kind of head.
enum MergedModel {
    Lm(Box<CausalLm>),
    Classifier(Box<Classifier>),
    Features(Box<Transformer>),
}

pub fn run(args: &MergeArgs) -> Result<()> {
    let adapter = read_adapter(&args.adapter, &args.model.path)?;
    check_base(&adapter, &args.adapter, &args.model);
    let place = || args.adapter.display().to_string();
    let model = match adapter.config.task_type.as_deref() {
        Some(CAUSAL_LM) => {
            MergedModel::Lm(Box::new(CausalLm::with_adapter(&args.model.path, adapter).with_context(place)?))
        }
        Some(FEATURES) => {
            MergedModel::Features(Box::new(Transformer::with_adapter(&args.model.path, adapter).with_context(place)?))
        }
        _ => {
            let mut classifier = load_classifier(&args.model.path, Some(&args.adapter))?;
            eval::decide_task(args.task, &mut classifier, &args.adapter)?;
            MergedModel::Classifier(Box::new(classifier))
        }
    };
    if let Some(path) = &args.gguf {
        let MergedModel::Lm(lm) = &model else {
            let problem = "the adapter is a classifier's or a model's without a head; a GGUF file holds a language \
                           model. --out writes a folder";
            bail!("{}: {problem}", args.adapter.display());
        };
        export::check_target(path, &[&args.model.path, &args.adapter])?;
        export::write_model(lm, &args.model, path, args.stored.stored())?;
    }
    if let Some(out) = &args.out {
        write_folder(args, &model, out)?;
    }
    let transformer = match &model {
        MergedModel::Lm(lm) => lm.transformer(),
        MergedModel::Classifier(classifier) => classifier.transformer(),
        MergedModel::Features(model) => model,
    };
    let adapted = transformer.linears().filter(|linear| linear.lora.is_some()).count();
    if args.output.json {
        let written = serde_json::json!({"out": args.out, "gguf": args.gguf, "modules": adapted});
        return Ok(ui::result(ui::with_warnings(written).to_string())?);
    }
    for place in [&args.out, &args.gguf].into_iter().flatten() {
        ui::result(format!("{adapted} modules merged; the model is in {}", place.display()))?;
    }
    Ok(())
}

/// Writes the merged model as a folder that transformers loads.
fn write_folder(args: &MergeArgs, model: &MergedModel, out: &Path) -> Result<()> {
    let mut owned = vec!["config.json", "model.safetensors", INFO_NAME];
    owned.extend(tokenizer_files());
    check_not_input(out, "--out", &[&args.model.path, &args.adapter])?;
    let out = OutDir::prepare(out, &owned, "--out")?;
    out.create()?;
    let (base, dtype) = (&args.model.path, args.dtype.and_then(MergedTypeArg::dtype));
    let remarks = match model {
        MergedModel::Lm(lm) => [lm.remarks(), &lm.write_merged_as(base, out.path(), dtype)?].concat(),
        MergedModel::Classifier(classifier) => classifier.write_merged_as(base, out.path(), dtype)?,
        MergedModel::Features(model) => model.write_merged_as(base, out.path(), dtype)?,
    };
    remarks.into_iter().for_each(ui::warn);
    if is_gguf(&args.model.path) {
        for (name, text) in as_files(&args.model.path)? {
            out.write(name, text.as_bytes())?;
        }
    }
    for name in tokenizer_files() {
        copy(&args.model.path.join(name), &out, name)?;
    }
    if let Some(info) = adapter_info(&args.adapter)? {
        out.write_json(INFO_NAME, &info)?;
    }
    Ok(())
}

fn copy(from: &Path, out: &OutDir, name: &str) -> Result<()> {
    if from.is_file() {
        let bytes = std::fs::read(from).with_context(|| from.display().to_string())?;
        out.write(name, &bytes)?;
    }
    Ok(())
}
