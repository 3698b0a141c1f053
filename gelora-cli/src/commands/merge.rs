//! `gelora merge`: a model without an adapter that computes what the adapter did.

use std::path::Path;

use anyhow::{Context, Result};
use gelora_model::gguf::is_gguf;
use gelora_model::{CausalLm, Classifier};

use super::learner::CAUSAL_LM;
use super::{INFO_NAME, adapter_info, check_not_input, load_classifier, read_adapter};
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
    let mut owned = vec!["config.json", "model.safetensors", INFO_NAME];
    owned.extend(tokenizer_files());
    let adapter = read_adapter(&args.adapter)?;
    let lm = adapter.config.task_type.as_deref() == Some(CAUSAL_LM);
    let learner = match lm {
        true => Merging::Lm(Box::new(CausalLm::with_adapter(&args.model.path, adapter)?)),
        false => Merging::Classifier(Box::new(load_classifier(&args.model.path, Some(&args.adapter))?)),
    };
    check_not_input(&args.out, "--out", &[&args.model.path, &args.adapter])?;
    let out = OutDir::prepare(&args.out, &owned, "--out")?;
    out.create()?;
    match &learner {
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
    let transformer = match &learner {
        Merging::Lm(lm) => lm.transformer(),
        Merging::Classifier(classifier) => classifier.transformer(),
    };
    let adapted = transformer.linears().filter(|linear| linear.lora.is_some()).count();
    if args.output.json {
        ui::result(serde_json::json!({"out": args.out, "modules": adapted}).to_string())?;
    } else {
        ui::result(format!("{adapted} modules merged; the model is in {}", args.out.display()))?;
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
