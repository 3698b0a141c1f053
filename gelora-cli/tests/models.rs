//! Broken model folders and files of users: not downloaded, an adapter instead of a model, contradicting files. Each
//! gives an error that says what to do, or a warning.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Run, fixture, gelora, logits, words};
use serde_json::{Value, json};

/// Returns a changed copy of the tiny model with an adapter's head, so that it can be evaluated.
fn model(dir: &Path, change: impl FnOnce(&Path)) -> PathBuf {
    let folder = dir.join("model");
    let _ = fs::remove_dir_all(&folder);
    let line = "merge {} --adapter {} --out {} -q";
    gelora(words(line, &[&fixture("tiny-bert"), &fixture("tiny-bert-peft"), &folder])).ok();
    change(&folder);
    folder
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON");
    change(&mut json);
    fs::write(path, json.to_string()).expect("a file");
}

fn eval(model: &Path) -> Run {
    gelora(words("eval {} --data {} --json", &[model, &fixture("tiny-bert.jsonl")]))
}

fn warnings(run: &Value) -> String {
    run["warnings"].to_string()
}

#[test]
fn files_that_were_not_downloaded_are_recognized() {
    let dir = tempfile::tempdir().expect("a folder");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n";
    let page = "<!DOCTYPE html>\n<html><head><title>model.safetensors</title></head></html>";
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        for (text, said) in [(pointer, "is a pointer of Git LFS, not the file itself"), (page, "is a web page")] {
            let folder = model(dir.path(), |folder| fs::write(folder.join(name), text).expect("a file"));
            eval(&folder).fails_with(&[&format!("{name}: {said}")]);
        }
    }
    let gguf = dir.path().join("model.gguf");
    fs::write(&gguf, pointer).expect("a file");
    eval(&gguf).fails_with(&["model.gguf: is a pointer of Git LFS", "`git lfs pull`"]);
    let adapter = dir.path().join("adapter");
    fs::create_dir_all(&adapter).expect("a folder");
    fs::copy(fixture("tiny-bert-peft/adapter_config.json"), adapter.join("adapter_config.json")).expect("a copy");
    fs::write(adapter.join("adapter_model.safetensors"), pointer).expect("a file");
    let line = "eval {} --data {} --adapter {}";
    let run = gelora(words(line, &[&fixture("tiny-bert"), &fixture("tiny-bert.jsonl"), &adapter]));
    run.fails_with(&["adapter_model.safetensors: is a pointer of Git LFS"]);
}

#[test]
fn adapters_instead_of_a_model_are_recognized() {
    let dir = tempfile::tempdir().expect("a folder");
    let adapter = dir.path().join("adapter");
    fs::create_dir_all(&adapter).expect("a folder");
    let config = json!({"peft_type": "LORA", "base_model_name_or_path": "some-org/tiny"});
    fs::write(adapter.join("adapter_config.json"), config.to_string()).expect("a file");
    let said = [
        "adapter: holds an adapter of some-org/tiny (adapter_config.json), not a model",
        "give some-org/tiny, its base model, as MODEL and this folder with --adapter",
    ];
    eval(&adapter).fails_with(&said);
    // Some trainers copy the base model's config beside the adapter.
    fs::copy(fixture("tiny-bert/config.json"), adapter.join("config.json")).expect("a copy");
    eval(&adapter).fails_with(&said);

    let gguf = dir.path().join("adapter.gguf");
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let entry = |key: &str, value: &str| [text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat();
    let header = [&b"GGUF"[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &2u64.to_le_bytes()].concat();
    let bytes = [header, entry("general.type", "adapter"), entry("general.architecture", "llama")].concat();
    fs::write(&gguf, bytes).expect("a file");
    eval(&gguf).fails_with(&["adapter.gguf: is an adapter (general.type), not a model", "with --adapter"]);
}

#[test]
fn gguf_files_without_a_word_splitting_are_warned_of() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("no-pre.gguf");
    let mut bytes = fs::read(fixture("gguf/tiny.gguf")).expect("the fixture");
    let key = b"tokenizer.ggml.pre";
    let at = bytes.windows(key.len()).position(|part| part == key).expect("the key");
    bytes[at + key.len() - 1] = b'x';
    fs::write(&path, bytes).expect("a file");
    let text = dir.path().join("text.txt");
    fs::write(&text, "There in lane 7, then the theatre.").expect("a text");
    let eval = |model: &Path| gelora(words("eval {} --data {} --task causal-lm --json", &[model, &text])).ok();
    let run = eval(&path);
    assert_eq!(run.stderr.matches("warning: ").count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains("no-pre.gguf: tokenizer.ggml.pre is missing"), "{}", run.stderr);
    assert!(warnings(&run.json()).contains("tokenizer.ggml.pre is missing"));
    assert!(eval(&fixture("gguf/tiny.gguf")).json().get("warnings").is_none());
}

/// As in transformers 5.23, tokenizer_config.json or its defaults take precedence for the BERT tokenizer classes.
#[test]
fn tokenizer_config_determines_the_case() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("rows.jsonl");
    let row = |text: &str| format!("{}\n", json!({"text": text, "label": 0}));
    let predicted = |stored: bool, config: Value, text: &str| {
        fs::write(&data, row(text)).expect("rows");
        let folder = model(dir.path(), |folder| {
            edit(&folder.join("tokenizer.json"), |json| json["normalizer"]["lowercase"] = json!(stored));
            fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("a config");
        });
        let out = dir.path().join("p.jsonl");
        let run = gelora(words("eval {} --data {} --predictions {} --json", &[&folder, &data, &out])).json();
        (logits(&out), warnings(&run))
    };
    let bert = |lower: Value| json!({"tokenizer_class": "BertTokenizer", "do_lower_case": lower});
    let (small, unknown) = ("the film was good", "[UNK] [UNK] was good");
    let want = [small, unknown].map(|text| predicted(true, bert(json!(true)), text).0);
    assert_ne!(want[0], want[1]);
    let upper = "The Film was good";
    for (stored, config, lowers, warns) in [
        (true, bert(json!(true)), true, false),
        (true, bert(json!(false)), false, true),
        (false, bert(json!(false)), false, false),
        (false, bert(json!(true)), true, true),
        (false, bert(Value::Null), true, true),
        (false, json!({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": true}), false, false),
        (true, json!({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": false}), true, false),
    ] {
        let (got, said) = predicted(stored, config.clone(), upper);
        assert_eq!(got, want[usize::from(!lowers)], "{stored} {config}");
        assert_eq!(said.contains("do_lower_case is"), warns, "{stored} {config}: {said}");
    }
}

#[test]
fn plain_tokens_without_an_embedding_are_reported_and_are_errors_in_texts() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = model(dir.path(), |folder| {
        edit(&folder.join("tokenizer.json"), |json| {
            let token = json!({"id": 69, "content": "quagga", "special": false, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false});
            json["added_tokens"].as_array_mut().expect("a list").push(token);
        });
    });
    let run = eval(&folder).json();
    assert!(warnings(&run).contains("the token \\\"quagga\\\" and 0 more"), "{run}");
    let data = dir.path().join("rows.jsonl");
    fs::write(&data, "{\"text\": \"good\", \"label\": 0}\n{\"text\": \"a quagga\", \"label\": 0}\n").expect("rows");
    let run = gelora(words("eval {} --data {}", &[&folder, &data]));
    run.fails_with(&["rows.jsonl: row 2", "the token \"quagga\" has the id 69, and the model 69 embeddings"]);
}

#[test]
fn a_config_says_that_classes_do_not_exclude_each_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = model(dir.path(), |folder| {
        edit(&folder.join("config.json"), |json| json["problem_type"] = json!("multi_label_classification"));
    });
    let run = eval(&folder).json();
    assert_eq!(run["dataset"]["task"], "multi-label classification", "{run}");
    assert!(run["micro_f1"].is_number() && run["subset_accuracy"].is_number(), "{run}");
}
