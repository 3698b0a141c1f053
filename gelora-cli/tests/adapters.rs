//! Adapters of other programs on the command line: their task is recognized, unsupported adapters are refused, and
//! differences are reported.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fixture, gelora, words};
use serde_json::{Value, json};

/// Returns a copy of an adapter of the fixtures with changed values in its config.
fn adapter(dir: &Path, from: &str, changes: &[(&str, Value)]) -> PathBuf {
    let (from, folder) = (fixture(from), dir.join("adapter"));
    fs::create_dir_all(&folder).expect("a folder");
    fs::copy(from.join("adapter_model.safetensors"), folder.join("adapter_model.safetensors")).expect("a copy");
    let text = fs::read(from.join("adapter_config.json")).expect("a config");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    for (key, value) in changes {
        config[key] = value.clone();
    }
    fs::write(folder.join("adapter_config.json"), config.to_string()).expect("a config");
    folder
}

fn config_of(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).expect("a config")).expect("JSON")
}

#[test]
fn unsupported_tasks_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data, out) = (fixture("tiny-bert"), fixture("tiny-bert.jsonl"), dir.path().join("out"));
    let tokens = adapter(dir.path(), "tiny-bert-peft", &[("task_type", json!("TOKEN_CLS"))]);
    let said = ["adapter_config.json: task_type is \"TOKEN_CLS\"", "expected SEQ_CLS, CAUSAL_LM or FEATURE_EXTRACTION"];
    gelora(words("eval {} --data {} --adapter {}", &[&model, &data, &tokens])).fails_with(&said);
    gelora(words("merge {} --adapter {} --out {}", &[&model, &tokens, &out])).fails_with(&said);
    assert!(!out.exists());
    let classifier = fixture("tiny-bert-peft");
    let run = gelora(words("generate {} --prompt a --adapter {}", &[&fixture("gguf/tiny.gguf"), &classifier]));
    run.fails_with(&["the adapter's task is SEQ_CLS; expected a language model's, CAUSAL_LM"]);
}

#[test]
fn adapters_without_a_head_are_merged_but_cannot_predict() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, features, out) = (fixture("families/bert"), fixture("adapters/features"), dir.path().join("out"));
    let merged = gelora(words("merge {} --adapter {} --out {} --json", &[&model, &features, &out])).json();
    assert_eq!(merged["modules"], 6);
    assert_eq!(config_of(&out)["architectures"], json!(["BertModel"]));
    let run = gelora(words("eval {} --data {} --adapter {}", &[&model, &fixture("tiny-bert.jsonl"), &features]));
    run.fails_with(&["features", "a model without a task head"]);
}

#[test]
fn adapters_without_a_task_take_the_task_of_the_base_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    gelora(words("merge {} --adapter {} --out {}", &[&fixture("families/gpt2"), &fixture("adapters/gpt2-null"), &out]))
        .ok();
    assert_eq!(config_of(&out)["architectures"], json!(["GPT2LMHeadModel"]));
}

#[test]
fn a_different_base_model_is_a_warning() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data) = (fixture("tiny-bert"), fixture("tiny-bert.jsonl"));
    let line = "eval {} --data {} --adapter {} --json";
    let base = |name: &str| adapter(dir.path(), "tiny-bert-peft", &[("base_model_name_or_path", json!(name))]);
    let run = gelora(words(line, &[&model, &data, &base("some-org/other")])).ok();
    let warning_text = "the adapter names some-org/other as its base model, and is used with";
    assert_eq!(run.stderr.matches(warning_text).count(), 1, "{}", run.stderr);
    let warnings = run.json()["warnings"].clone();
    assert!(warnings[0].as_str().is_some_and(|warning| warning.contains(warning_text)), "{warnings}");
    for same in ["", "some-org/Tiny-BERT", "./tiny-bert/"] {
        let run = gelora(words(line, &[&model, &data, &base(same)]));
        assert!(!run.stderr.contains("base model"), "{same}: {}", run.stderr);
        assert!(run.json().get("warnings").is_none());
    }
}
