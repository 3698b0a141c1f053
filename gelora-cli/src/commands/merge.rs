//! `gelora merge`: a model without an adapter that computes what the adapter did.

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_model::gguf::is_gguf;
use gelora_model::{CausalLm, Classifier};

use super::learner::CAUSAL_LM;
use super::{INFO_NAME, adapter_info, check_not_input, export, load_classifier, read_adapter};
use crate::args::MergeArgs;
use crate::output::OutDir;
use crate::tokenize::gguf::as_files;
use crate::{tokenize, ui};

/// Files of the base model that go along as they are, where they exist.
fn tokenizer_files() -> impl Iterator<Item = &'static str> {
    tokenize::FILES.into_iter().flatten().chain(&tokenize::ASIDE).copied()
}

enum Merging {
    Lm(Box<CausalLm>),
    Classifier(Box<Classifier>),
}

pub fn run(args: &MergeArgs) -> Result<()> {
    let adapter = read_adapter(&args.adapter, &args.model.path)?;
    let lm = adapter.config.task_type.as_deref() == Some(CAUSAL_LM);
    let learner = match lm {
        true => Merging::Lm(Box::new(CausalLm::with_adapter(&args.model.path, adapter)?)),
        false => Merging::Classifier(Box::new(load_classifier(&args.model.path, Some(&args.adapter))?)),
    };
    if let Some(path) = &args.gguf {
        let Merging::Lm(lm) = &learner else {
            let problem = "the adapter is a classifier's; a GGUF file holds a language model. --out writes a folder";
            bail!("{}: {problem}", args.adapter.display());
        };
        export::check_target(path, &[&args.model.path, &args.adapter])?;
        export::write_model(lm, &args.model, path, args.stored.stored(), args.output.quiet)?;
    }
    if let Some(out) = &args.out {
        write_folder(args, &learner, out)?;
    }
    let transformer = match &learner {
        Merging::Lm(lm) => lm.transformer(),
        Merging::Classifier(classifier) => classifier.transformer(),
    };
    let adapted = transformer.linears().filter(|linear| linear.lora.is_some()).count();
    if args.output.json {
        let written = serde_json::json!({"out": args.out, "gguf": args.gguf, "modules": adapted});
        return Ok(ui::result(written.to_string())?);
    }
    for place in [&args.out, &args.gguf].into_iter().flatten() {
        ui::result(format!("{adapted} modules merged; the model is in {}", place.display()))?;
    }
    Ok(())
}

/// A folder that transformers loads.
fn write_folder(args: &MergeArgs, learner: &Merging, out: &Path) -> Result<()> {
    let mut owned = vec!["config.json", "model.safetensors", INFO_NAME];
    owned.extend(tokenizer_files());
    check_not_input(out, "--out", &[&args.model.path, &args.adapter])?;
    let out = OutDir::prepare(out, &owned, "--out")?;
    out.create()?;
    match learner {
        Merging::Lm(lm) => lm.write_merged(&args.model.path, out.path())?,
        Merging::Classifier(classifier) => classifier.write_merged(&args.model.path, out.path())?,
    }
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
