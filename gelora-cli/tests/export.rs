//! Writes GGUF files and reads them again. fixtures/check_llama_cpp.py checks them in llama.cpp.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fixture, gelora, words};
use serde_json::{Value, json};

fn model() -> PathBuf {
    fixture("gguf/tiny.gguf")
}

/// Returns an adapter of the tiny model after a short training, with a different rank in each layer, rsLoRA, and a
/// separate alpha for the queries.
fn adapter(dir: &Path) -> (PathBuf, PathBuf) {
    let (data, folder, ranks) = (dir.join("rows.jsonl"), dir.join("adapter"), dir.join("ranks"));
    let row =
        |i: usize| json!({"instruction": format!("Say {i} of {}", i * i), "output": format!("the lane {}", i % 7)});
    fs::write(&data, (0..40).map(|i| row(i).to_string()).collect::<Vec<_>>().join("\n")).expect("rows");
    gelora(words("rank {} --data {} --out {} --no-cache -q", &[&model(), &data, &ranks])).ok();
    let path = ranks.join("ranks.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("ranks")).expect("JSON");
    for (i, module) in json["modules"].as_object_mut().into_iter().flat_map(serde_json::Map::values_mut).enumerate() {
        (module["rank"], module["alpha"]) = (json!(1 + i % 3), json!(2 + 2 * (i % 3)));
    }
    fs::write(&path, json.to_string()).expect("ranks");
    let line = "train {} --data {} --ranks {} --rslora --lr 0.02 --steps 6 --batch-size 8 --out {} -q";
    gelora(words(line, &[&model(), &data, &path, &folder])).ok();
    let config = folder.join("adapter_config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config).expect("a config")).expect("JSON");
    json["alpha_pattern"]["q_proj"] = json!(17);
    fs::write(&config, json.to_string()).expect("a config");
    (data, folder)
}

#[test]
fn exported_and_merged_files_agree_with_the_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, folder) = adapter(dir.path());
    let (file, merged, both) = (dir.path().join("a.gguf"), dir.path().join("m.gguf"), dir.path().join("both"));
    let run = gelora(words("export {} --adapter {} --gguf {}", &[&model(), &folder, &file])).ok();
    assert!(run.stdout.contains("modules of ranks 1 to 3; the adapter is in"), "{}", run.stdout);
    gelora(words("merge {} --adapter {} --gguf {} --gguf-type f32 --out {}", &[&model(), &folder, &merged, &both]))
        .ok();

    let loss = |model: &Path, adapter: Option<&Path>| {
        let mut args = words("eval {} --data {} --task causal-lm --json", &[model, &data]);
        args.extend(adapter.into_iter().flat_map(|path| ["--adapter".into(), path.display().to_string()]));
        gelora(args).json()["loss"].as_f64().expect("a loss")
    };
    let want = loss(&model(), Some(&folder));
    assert!((want - loss(&model(), None)).abs() > 0.05, "the adapter does nothing");
    let got = loss(&model(), Some(&file));
    assert!((got - want).abs() < 1e-5, "{got} {want}");
    // Merged weights are rounded to the base's type, here f16 for some.
    let got = loss(&both, None);
    assert!((got - want).abs() < 1e-3, "{got} {want}");
    assert!((loss(&merged, None) - got).abs() < 1e-5, "{got}");
    // The other commands read the file as an adapter too.
    let again = dir.path().join("again.gguf");
    gelora(words("merge {} --adapter {} --gguf {} --gguf-type f32", &[&model(), &file, &again])).ok();
    assert!((loss(&again, None) - got).abs() < 1e-5);
    let says = |model: &Path, adapter: &[&str]| {
        let mut args = words("generate {} --prompt lane --max-tokens 24 --json -q", &[model]);
        args.extend(adapter.iter().map(|word| (*word).to_owned()));
        gelora(args).json()["tokens"].clone()
    };
    let result = says(&model(), &["--adapter", &folder.display().to_string()]);
    assert_eq!(result, says(&model(), &["--adapter", &file.display().to_string()]));
    assert_eq!(result, says(&merged, &[]));

    // A model without an adapter, in fewer bits, with its tokenizer and template.
    let plain = dir.path().join("plain.gguf");
    let line = "export {} --gguf {} --gguf-type q8_0 --json";
    let run = gelora(words(line, &[&both, &plain])).ok();
    assert_eq!(run.stdout.trim(), json!({"gguf": plain}).to_string());
    assert!((loss(&plain, None) - want).abs() < 0.05);
    let size = |path: &Path| fs::metadata(path).expect("a file").len();
    assert!(size(&plain) * 2 < size(&merged), "{} {}", size(&plain), size(&merged));
    gelora(words("generate {} --message lane --max-tokens 2", &[&plain])).ok();
}

#[test]
fn errors_of_export_are_one_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let (out, bert) = (dir.path().join("a.gguf"), fixture("tiny-bert"));
    let classifier = fixture("tiny-bert-peft");
    let line = "export {} --adapter {} --gguf {}";
    gelora(words(line, &[&bert, &classifier, &out])).fails_with(&["a bert has no adapters in GGUF files", "llama"]);
    gelora(words("merge {} --adapter {} --gguf {}", &[&bert, &classifier, &out])).fails_with(&["a classifier's"]);
    let score = fixture("families/llama/adapter");
    gelora(words(line, &[&fixture("families/llama"), &score, &out])).fails_with(&["score.weight", "trained whole"]);
    let text = dir.path().join("a.txt");
    gelora(words(line, &[&model(), &classifier, &text])).fails_with(&["--gguf", "a name that ends with .gguf"]);
    fs::copy(model(), &out).expect("a copy");
    gelora(words("export {} --gguf {}", &[&out, &out])).fails_with(&["--gguf would overwrite what is read"]);
    let run = gelora(words("generate {} --adapter {} --prompt lane", &[&model(), &out]));
    run.fails_with(&["a.gguf", "expected an adapter"]);
    assert_eq!(gelora(words("merge {} --adapter {}", &[&model(), &score])).code, Some(2));
    assert_eq!(gelora(words("merge {} --adapter {} --out x --gguf-type f32", &[&model(), &score])).code, Some(2));
}
