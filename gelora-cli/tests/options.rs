//! Options from a file, options by other names, dry runs, and policies in a training.

mod common;

use std::fs;
use std::path::Path;

use common::{data, fixture, floats, gelora, words};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

fn ranks_of(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("ranks.json")).expect("ranks.json");
    serde_json::from_str(&text).expect("JSON")
}

fn config_of(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("adapter_config.json")).expect("adapter_config.json");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn the_written_file_repeats_a_run_to_the_bit() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (model, rows) = (fixture("tiny-bert"), data(dir.path()));
    let line = "train {} --data {} --learning-rate 0.007 --num-train-epochs 2 --per-device-train-batch-size 4 \
                --gradient-accumulation-steps 3 --samples 50 --lora-dropout 0.1 --quiet --out {}";
    gelora(words(line, &[&model, &rows, &at("first")])).ok();
    let steps = |name: &str| fs::read_to_string(at(name).join("metrics.jsonl")).expect("a log").lines().count();
    assert_eq!(steps("first"), 2 * 96 / 12 + 2 + 1, "12 rows a step, an evaluation an epoch, a line of the run");
    let file = at("first/run.toml");
    gelora(words("train --config {} --out {}", &[&file, &at("again")])).ok();
    let weights = |name: &str| floats(&at(name).join("adapter_model.safetensors"));
    assert_eq!(weights("first"), weights("again"));
    // The command line wins over the file.
    gelora(words("train --config {} --out {} --lr 0.001", &[&file, &at("other")])).ok();
    assert_ne!(weights("first"), weights("other"));
    let text = fs::read_to_string(at("other/run.toml")).expect("a file");
    assert!(text.contains("lr = 0.001") && text.contains("warmup = 0.06"), "{text}");
}

#[test]
fn bad_options_of_a_file_are_named_with_the_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("run.toml");
    let run = |text: &str| {
        fs::write(&file, text).expect("a file");
        gelora(words("train --config {}", &[&file]))
    };
    for (text, expected) in [
        ("batchsize = 3", "run.toml: batchsize is not an option of gelora train; did you mean batch-size?"),
        ("lr = ", "run.toml"),
        ("lr = \"x\"\ndata = \"d\"\nmodel = \"m\"", "note: options may come from"),
    ] {
        let failed = run(text);
        assert_eq!(failed.code, Some(2), "{}", failed.stderr);
        assert!(failed.stderr.contains(expected), "{expected} in {}", failed.stderr);
    }
    let dataset = gelora(words("train m --data org/name --config sst2", &[])).stderr;
    assert!(dataset.contains("sst2: no such file; --config names a file of options, and --data-config"), "{dataset}");
    assert!(gelora(["train", "--config", "nowhere.toml"]).stderr.contains("nowhere.toml"));
    let typo = gelora(words("train m --data d --bach-size 3", &[])).stderr;
    assert!(typo.contains("'--batch-size'"), "{typo}");
}

#[test]
fn a_dry_run_measures_and_writes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, rows, out) = (fixture("tiny-bert"), data(dir.path()), dir.path().join("out"));
    let line = "train {} --data {} --out {} --dry-run --json --threads 1";
    let found = gelora(words(line, &[&model, &rows, &out])).json();
    assert_eq!((&found["steps"], &found["modules"]), (&json!(9), &json!(12)));
    assert!(found["parameters"].as_u64().is_some_and(|n| n >= 3 * 4 * 64), "{found}");
    assert!(found["seconds"].as_f64().is_some_and(|s| s > 0.0), "{found}");
    assert!(!cfg!(target_os = "linux") || found["peak_memory_bytes"].as_u64().is_some_and(|n| n > 1 << 20), "{found}");
    assert_eq!(found["dataset"]["rows"], 96);
    assert!(!out.exists());
    let text = gelora(words("train {} --data {} --out {} --dry-run --rank 2", &[&model, &rows, &out])).ok().stdout;
    assert!(text.contains("steps       9\n") && text.contains("1,536 in 12 modules"), "{text}");
}

#[test]
fn a_training_takes_the_policies_of_a_measurement() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (model, rows) = (fixture("tiny-bert"), data(dir.path()));
    let train = |name: &str, options: &str| {
        let line = format!("train {{}} --data {{}} --steps 1 --quiet --out {{}} {options}");
        gelora(words(&line, &[&model, &rows, &at(name)]))
    };
    train("budget", "--budget-rank 3").ok();
    gelora(words("rank {} --data {} --budget-rank 3 --out {} -q", &[&model, &rows, &at("ranks")])).ok();
    assert_eq!(ranks_of(&at("budget"))["policy"]["name"], "budget");
    assert_eq!(ranks_of(&at("budget"))["modules"], ranks_of(&at("ranks"))["modules"]);
    train("random", "--policy random --lora-alpha 8").ok();
    let random = ranks_of(&at("random"));
    assert_eq!((&random["policy"]["name"], &random["policy"]["alpha"]), (&json!("random"), &json!(8.0)));
    let modules = random["modules"].as_object().expect("modules");
    assert!(modules.values().all(|module| module["alpha"] == 8.0), "{modules:?}");
    train("fixed", "--rank 4 --lora-alpha 8").ok();
    let fixed = config_of(&at("fixed"));
    assert_eq!((&fixed["r"], &fixed["lora_alpha"]), (&json!(4), &json!(8)));
    train("uniform", "--policy uniform").fails_with(&["--policy uniform needs --rank"]);
    train("gelora", "--policy gelora --rank 2").fails_with(&["--rank is the rank of --policy uniform"]);
    assert_eq!(train("both", "--rank 2 --budget 100").code, Some(2));
}

#[test]
fn a_merged_model_has_the_type_that_is_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (model, rows) = (fixture("tiny-bert"), data(dir.path()));
    gelora(words("train {} --data {} --rank 2 --steps 3 -q --out {}", &[&model, &rows, &at("adapter")])).ok();
    for (name, dtype, key) in
        [("f32", Dtype::F32, "float32"), ("f16", Dtype::F16, "float16"), ("bf16", Dtype::BF16, "bfloat16")]
    {
        let line = format!("merge {{}} --adapter {{}} --dtype {name} --out {{}}");
        gelora(words(&line, &[&model, &at("adapter"), &at(name)])).ok();
        let bytes = fs::read(at(name).join("model.safetensors")).expect("weights");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        assert!(file.tensors().iter().all(|(_, tensor)| tensor.dtype() == dtype), "{name}");
        let config: Value =
            serde_json::from_slice(&fs::read(at(name).join("config.json")).expect("a config")).expect("JSON");
        assert!(config["torch_dtype"] == key || config["dtype"] == key, "{config}");
        let scores = gelora(words("eval {} --data {} --json -q", &[&at(name), &rows])).json();
        assert_eq!(scores["rows"], 32);
    }
    let line = "merge {} --adapter {} --dtype f16 --gguf {}";
    assert_eq!(gelora(words(line, &[&model, &at("adapter"), &at("m.gguf")])).code, Some(2));
}
