//! `gelora plan` beside what a training takes.
#![cfg(feature = "wgpu")]
#![allow(clippy::print_stdout)] // the figures are worth seeing

mod common;

use std::fs;
use std::path::Path;

use common::{fixture, gelora, words};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

const HIDDEN: usize = 256;
const INNER: usize = 1024;
const LAYERS: usize = 4;

/// Writes a BERT of random weights beside the tokenizer of tiny-bert. Its activations are much larger than the program.
fn bert(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    for file in fs::read_dir(fixture("tiny-bert")).expect("the fixture").flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if name.contains("token") || name == "vocab.txt" {
            fs::copy(file.path(), folder.join(&name)).expect("a copy");
        }
    }
    let text = fs::read_to_string(fixture("tiny-bert/config.json")).expect("its config");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    let sizes = [
        ("hidden_size", HIDDEN),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", 4),
        ("intermediate_size", INNER),
        ("max_position_embeddings", 128),
    ];
    sizes.into_iter().for_each(|(key, size)| config[key] = json!(size));
    fs::write(folder.join("config.json"), config.to_string()).expect("a config");
    let vocabulary = config["vocab_size"].as_u64().expect("a size") as usize;
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![vocabulary, HIDDEN]),
        ("embeddings.position_embeddings.weight".into(), vec![128, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, HIDDEN]),
    ];
    let norm = |name: String| [(format!("{name}.weight"), vec![HIDDEN]), (format!("{name}.bias"), vec![HIDDEN])];
    shapes.extend(norm("embeddings.LayerNorm".into()));
    let linear = |name: String, c_in, c_out| {
        [(format!("{name}.weight"), vec![c_out, c_in]), (format!("{name}.bias"), vec![c_out])]
    };
    for layer in 0..LAYERS {
        let at = |name: &str| format!("encoder.layer.{layer}.{name}");
        for name in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            shapes.extend(linear(at(name), HIDDEN, HIDDEN));
        }
        shapes.extend(linear(at("intermediate.dense"), HIDDEN, INNER));
        shapes.extend(linear(at("output.dense"), INNER, HIDDEN));
        ["attention.output.LayerNorm", "output.LayerNorm"].into_iter().for_each(|name| shapes.extend(norm(at(name))));
    }
    shapes.extend(linear("pooler.dense".into(), HIDDEN, HIDDEN));
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let len: usize = shape.iter().product();
            let value = |i: usize| ((i * 7919 + len) % 1000) as f32 / 25_000.0 - 0.02;
            let bytes = (0..len).flat_map(|i| value(i).to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let view = |(name, shape, bytes): &'_ (String, Vec<usize>, Vec<u8>)| (name.clone(), shape.clone(), bytes.clone());
    let owned: Vec<_> = bytes.iter().map(view).collect();
    let views = owned.iter().map(|(name, shape, bytes)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor"))
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("weights");
}

/// Rows that are longer than 128 tokens.
fn long_rows(folder: &Path) -> std::path::PathBuf {
    let vocabulary = fs::read_to_string(fixture("tiny-bert/vocab.txt")).expect("the vocabulary");
    let known: Vec<&str> =
        vocabulary.lines().filter(|word| word.len() > 2 && word.chars().all(char::is_alphabetic)).collect();
    let row = |i: usize| {
        let text: Vec<&str> = (0..200).map(|k| known[(i * 31 + k * 7) % known.len()]).collect();
        json!({"text": text.join(" "), "label": if i.is_multiple_of(2) { "yes" } else { "no" }}).to_string()
    };
    let path = folder.join("long.jsonl");
    fs::write(&path, (0..200).map(row).collect::<Vec<_>>().join("\n")).expect("rows");
    path
}

#[test]
fn the_planned_peak_of_the_cpu_is_that_of_a_training() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data) = (dir.path().join("model"), long_rows(dir.path()));
    bert(&model);
    let line = "plan {} --device cpu --batch-size 48 --max-length 128 --json --quiet";
    let plan = gelora(words(line, &[&model])).json();
    for (key, option) in [("activations", ""), ("checkpoint_activations", "--checkpoint-activations")] {
        let line = format!(
            "train {{}} --data {{}} --out {{}} --device cpu --rank 8 --steps 4 --batch-size 48 --max-length 128 \
             --dry-run --json --quiet {option}"
        );
        let run = gelora(words(&line, &[&model, &data, &dir.path().join("out")])).json();
        // Only Linux tells the peak of a process.
        let Some(measured) = run["peak_memory_bytes"].as_f64() else { return };
        let planned = plan[key]["peak_bytes"].as_f64().expect("a number");
        println!("{key}: planned {planned} bytes, measured {measured}");
        assert!((planned / measured - 1.0).abs() < 0.12, "{key}: planned {planned} bytes, measured {measured}");
        assert_eq!(plan["parameters"], run["parameters"]);
    }
    let stored = fs::metadata(model.join("model.safetensors")).expect("weights").len();
    let weights = plan["weights_bytes"].as_f64().expect("a number");
    assert!((weights / stored as f64 - 1.0).abs() < 0.01, "{weights} bytes of weights in a file of {stored}");
}

#[test]
fn config_json_is_enough() {
    let dir = tempfile::tempdir().expect("a folder");
    let copy = |name: &str| {
        let folder = dir.path().join(name);
        fs::create_dir_all(&folder).expect("a folder");
        fs::copy(fixture(&format!("families/{name}/config.json")), folder.join("config.json")).expect("a config");
        folder
    };
    let llama = copy("llama");
    let plan = |options: &str| gelora(words(&format!("plan {{}} --device cuda --json {options}"), &[&llama])).json();
    // The driver takes 600 MiB of the memory.
    let (small, large) = (plan("--memory 0.65"), plan("--memory 0.7"));
    assert!(small["weights_bytes"] == large["weights_bytes"] && small["adapter_bytes"] == large["adapter_bytes"]);
    let rows = |plan: &Value, key: &str| plan[key]["largest_batch"].as_u64().expect("a number");
    assert!(rows(&large, "activations") > rows(&small, "activations") && rows(&small, "activations") > 0);
    assert!(rows(&large, "checkpoint_activations") >= rows(&large, "activations"));
    let per_token = |plan: &Value| plan["activations"]["activation_bytes_per_token"].as_f64().expect("a number");
    assert!(per_token(&large) > large["checkpoint_activations"]["activation_bytes_per_token"].as_f64().expect("one"));
    assert!(plan("--memory 0.65 --weights f16")["weights_bytes"].as_u64() < large["weights_bytes"].as_u64());
    let lower = plan("--memory 0.65 --rank 4");
    assert_eq!(large["parameters"].as_u64(), lower["parameters"].as_u64().map(|parameters| 2 * parameters));
    assert_eq!(large["optimizer_bytes"].as_u64(), large["parameters"].as_u64().map(|parameters| 8 * parameters));
    let text = gelora(words("plan {} --device cpu --memory 0.1", &[&llama])).ok().stdout;
    for word in ["weights", "adapters", "gradients", "optimizer", "a token", "largest", "--checkpoint-activations"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn what_cannot_be_planned_is_one_message() {
    let (bert, llama) = (fixture("tiny-bert"), fixture("families/llama"));
    let run = |line: &str, model: &Path| gelora(words(&format!("plan {{}} --device cpu {line}"), &[model]));
    run("--task causal-lm", &bert).fails_with(&["tiny-bert", "encoder"]);
    run("--target-modules nothing", &llama).fails_with(&["--target-modules", "nothing"]);
    run("--max-length 100000", &llama).fails_with(&["--max-length 100000", "positions"]);
    run("--rank 100000", &llama).fails_with(&["100000"]);
    run("--batch-size 1000000000", &llama).fails_with(&["--batch-size 1000000000", "at most 524288 tokens"]);
    run("--classes 1", &bert).fails_with(&["--classes 1: expected 2 to"]);
    run("--weights q4_k", &llama).fails_with(&["q4_k", "256"]);
    run("", Path::new("/no/such/model")).fails_with(&["/no/such/model"]);
}
