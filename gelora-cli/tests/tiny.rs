//! The whole workflow on a tiny model: rank, train, eval, merge, stop and resume.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{assert_close, checkpoints, data, fixture, floats, gelora, logits, words};
use serde_json::{Value, json};

#[test]
fn rank_train_eval_merge() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (model, data) = (fixture("tiny-bert"), data(dir.path()));

    let line = "rank {} --data {} --out {} --points {} --json --quiet";
    let ranks = gelora(words(line, &[&model, &data, &at("ranks"), &at("points.safetensors")])).json();
    assert_eq!(ranks["states"].as_array().map(Vec::len), Some(4));
    assert_eq!(ranks["modules"].as_object().map(|m| m.len()), Some(12));
    let of_layer = |l: usize| ranks["layers"][l]["rank"].as_u64().expect("a rank");
    let query = |l: usize| ranks["modules"][format!("bert.encoder.layer.{l}.attention.self.query")]["rank"].as_u64();
    assert!((0..3).all(|l| query(l) == Some(of_layer(l))));
    let parameters: u64 = (0..3).map(|l| of_layer(l) * 4 * 64).sum();
    assert_eq!(ranks["parameters"], parameters);
    assert_eq!(floats(&at("points.safetensors"))["layer_3"].len(), 96 * 32);
    for name in ["ranks.json", "report.html", "adapter_config.json", "id_profile.svg"] {
        assert!(at("ranks").join(name).is_file(), "{name}");
    }

    let line = "train {} --data {} --ranks {} --out {} --epochs 12 --lr 1e-2 --batch-size 16 --json --quiet";
    let trained = gelora(words(line, &[&model, &data, &at("ranks/ranks.json"), &at("adapter")])).json();
    let accuracy = trained["eval"]["accuracy"].as_f64().expect("an accuracy");
    assert!(accuracy > 0.9, "held-out accuracy {accuracy}");
    let log = fs::read_to_string(at("adapter/metrics.jsonl")).expect("the log");
    assert_eq!(log.lines().count(), 12 * 6 + 12 + 1, "a line a step, one an epoch, and one at the end");
    assert!(!at("adapter/checkpoint").exists());

    let line = "eval {} --data {} --adapter {} --predictions {} --json --quiet";
    let scores = gelora(words(line, &[&model, &data, &at("adapter"), &at("p.jsonl")])).json();
    assert_eq!(scores["accuracy"], trained["eval"]["accuracy"]);
    assert_eq!(scores["rows"], 32);
    let first = fs::read_to_string(at("p.jsonl")).expect("predictions");
    let first: Value = serde_json::from_str(first.lines().next().expect("a line")).expect("JSON");
    assert_eq!((&first["row"], &first["label"]), (&json!(1), &json!("yes")));

    gelora(words("merge {} --adapter {} --out {}", &[&model, &at("adapter"), &at("merged")])).ok();
    let line = "eval {} --data {} --predictions {} --json --quiet";
    let merged = gelora(words(line, &[&at("merged"), &data, &at("m.jsonl")])).json();
    assert_eq!(merged["accuracy"], scores["accuracy"]);
    assert_close("merged", &logits(&at("m.jsonl")), &logits(&at("p.jsonl")), 1e-4);
}

#[test]
fn a_resumed_training_equals_an_uninterrupted_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (model, data) = (fixture("tiny-bert"), data(dir.path()));
    let line = "train {} --data {} --rank 2 --steps 12 --batch-size 16 --lora-dropout 0.1 --checkpoint-every 5 --quiet \
                --out {}";
    gelora(words(line, &[&model, &data, &at("whole")])).ok();

    // A folder in the place of the last file simulates a crash after the second checkpoint.
    let out = at("stopped");
    fs::create_dir_all(out.join("adapter_model.safetensors")).expect("a folder in the way");
    let stopped = gelora(words(line, &[&model, &data, &out]));
    assert_eq!(stopped.code, Some(1), "{}", stopped.stderr);
    assert_eq!(checkpoints(&out), [out.join("checkpoint/step-10")]);
    fs::remove_dir(out.join("adapter_model.safetensors")).expect("it is empty");
    for (option, value) in [("seed", "1"), ("lr", "0.5"), ("clip", "0")] {
        let other = format!("{line} --resume --{option} {value}");
        gelora(words(&other, &[&model, &data, &out])).fails_with(&["--resume", &format!("another {option}")]);
    }
    let fails = |options: &str, data: &Path, name: &str| {
        let run = gelora(words(&format!("{line} --resume {options}"), &[&model, data, &out]));
        run.fails_with(&["--resume", &format!("another {name} (")]);
    };
    fails("--group-by-length", &data, "group-by-length");
    fails("--max-length 6", &data, "max-length");
    let text = fs::read_to_string(data.join("train.jsonl")).expect("the data");
    let (first, rest) = text.split_once('\n').expect("rows");
    let moved = at("moved.jsonl");
    fs::write(&moved, format!("{rest}{first}\n")).expect("a data file");
    fails("", &moved, "data");
    let resumed = format!("{line} --resume");
    gelora(words(&resumed, &[&model, &data, &out])).ok();

    let files = |folder: &str| floats(&at(folder).join("adapter_model.safetensors"));
    assert_eq!(files("whole"), files("stopped"));
    let log = fs::read_to_string(out.join("metrics.jsonl")).expect("the log");
    let steps: Vec<u64> = log
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .filter(|v| v.get("loss").is_some())
        .filter_map(|v| v["step"].as_u64())
        .collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());

    let finished = gelora(words(&resumed, &[&model, &data, &out]));
    finished.fails_with(&["--resume", "state.json"]);
}

/// Methods beside LoRA, with their options.
const METHODS: [(&str, &str); 5] = [
    ("eva", "--init eva"),
    ("lora-plus", "--lora-plus 4"),
    ("pissa", "--init pissa"),
    ("dora", "--dora"),
    ("adalora", "--adalora --adalora-t-init 1 --adalora-t-final 2 --adalora-interval 2"),
];

/// Every method: a resumed training equals an uninterrupted one, and the folder computes what the trained model did.
#[test]
fn methods_resume_and_are_read_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (model, data) = (fixture("tiny-bert"), data(dir.path()));
    for (method, options) in METHODS {
        let line = format!(
            "train {{}} --data {{}} --rank 2 --steps 8 --batch-size 16 --checkpoint-every 3 --lr 1e-2 {options} \
             --json --quiet --out {{}}"
        );
        let whole = at(&format!("{method}-whole"));
        let trained = gelora(words(&line, &[&model, &data, &whole])).json();
        let out = at(&format!("{method}-stopped"));
        fs::create_dir_all(out.join("adapter_model.safetensors")).expect("a folder in the way");
        assert_eq!(gelora(words(&line, &[&model, &data, &out])).code, Some(1));
        fs::remove_dir(out.join("adapter_model.safetensors")).expect("it is empty");
        let plain = line.replace(options, "");
        gelora(words(&format!("{plain} --resume"), &[&model, &data, &out])).fails_with(&["--resume", "another "]);
        gelora(words(&format!("{line} --resume"), &[&model, &data, &out])).ok();
        let files = |folder: &Path| floats(&folder.join("adapter_model.safetensors"));
        assert_eq!(files(&whole), files(&out), "{method}");

        let evaluate = "eval {} --data {} --adapter {} --json --quiet";
        let read = gelora(words(evaluate, &[&model, &data, &whole])).json();
        for metric in ["accuracy", "matthews"] {
            assert_eq!(trained["eval"][metric], read[metric], "{method}: {metric}");
        }
    }
}

/// The rate with the best score on rows that were set aside is trained with, and a resumed training has the same.
#[test]
fn the_rate_is_chosen_on_rows_of_the_training() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (model, data) = (fixture("tiny-bert"), data(dir.path()));
    let line = "train {} --data {} --rank 2 --steps 60 --batch-size 16 --lr auto --checkpoint-every 20 --json --quiet \
                --out {}";
    let json = gelora(words(line, &[&model, &data, &at("whole")])).json();
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(at(name).join("lr.json")).expect("lr.json")).expect("JSON")
    };
    let (tried, lr) = (read("whole"), read("whole")["lr"].as_f64().expect("a rate"));
    let rates: Vec<(f64, Option<f64>)> = serde_json::from_value(tried["rates"].clone()).expect("rates with scores");
    assert_eq!((rates.len(), tried["steps"].as_u64(), tried["metric"].as_str()), (6, Some(60), Some("accuracy")));
    let best = rates.iter().filter_map(|(_, score)| *score).fold(0.0, f64::max);
    let first = rates.iter().find(|(_, score)| *score == Some(best)).expect("the best");
    assert_eq!(first.0, lr);
    assert!(json["eval"]["accuracy"].as_f64().expect("an accuracy") > 0.9, "{json}");
    assert!(fs::read_to_string(at("whole").join("README.md")).expect("a card").contains(&lr.to_string()));
    // The training itself has this rate, and keeps it when it is resumed.
    let fixed = line.replace("--lr auto", &format!("--lr {lr}"));
    gelora(words(&fixed, &[&model, &data, &at("fixed")])).ok();
    let files = |name: &str| floats(&at(name).join("adapter_model.safetensors"));
    assert_eq!(files("whole"), files("fixed"));
    fs::create_dir_all(at("stopped").join("adapter_model.safetensors")).expect("a folder in the way");
    assert_eq!(gelora(words(line, &[&model, &data, &at("stopped")])).code, Some(1));
    fs::remove_dir(at("stopped").join("adapter_model.safetensors")).expect("it is empty");
    let changed = fs::read_to_string(at("stopped").join("lr.json")).expect("lr.json");
    fs::write(at("stopped").join("lr.json"), changed.replace("\"metric\"", "\"metric_\"")).expect("a file");
    gelora(words(&format!("{line} --resume"), &[&model, &data, &at("stopped")])).fails_with(&["lr.json"]);
    fs::write(at("stopped").join("lr.json"), changed).expect("a file");
    gelora(words(&format!("{line} --resume"), &[&model, &data, &at("stopped")])).ok();
    assert_eq!(files("whole"), files("stopped"));

    // Whole numbers of steps are shares of a short training.
    let long = line.replace("--steps 60", "--steps 130 --warmup 110 --adalora --adalora-t-init 10");
    gelora(words(&long, &[&model, &data, &at("long")])).ok();
    assert_eq!(read("long")["steps"], 100);
    let resumed = gelora(words(&format!("{fixed} --overwrite"), &[&model, &data, &at("long")]));
    resumed.ok();
    assert!(!at("long").join("lr.json").exists());
    let wrong = line.replace("--lr auto", "--lr fast");
    let wrong = gelora(words(&wrong, &[&model, &data, &at("bad")]));
    assert!(wrong.code == Some(2) && wrong.stderr.contains("above 0, or auto"), "{}", wrong.stderr);
    let on = format!("{} --init-adapter {}", line.replace("--rank 2 ", ""), at("whole").display());
    gelora(words(&on, &[&model, &data, &at("bad")])).fails_with(&["--lr auto", "--init-adapter"]);
}

/// Evaluations with more ranks than are kept do not compete.
#[test]
fn adalora_keeps_its_budget() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data, out) = (fixture("tiny-bert"), data(dir.path()), dir.path().join("a"));
    let line = "train {} --data {} --rank 2 --steps 10 --batch-size 16 --lr 1e-2 --adalora --keep best --eval-every 1 \
                --json --quiet --out {}";
    let json = gelora(words(line, &[&model, &data, &out])).json();
    let adapter = gelora_lora::Adapter::read(&out).expect("a PEFT folder");
    let ranks: Vec<usize> = adapter.layers.values().map(gelora_lora::LoraLayer::rank).collect();
    // Three layers of four modules.
    assert_eq!(ranks.iter().sum::<usize>(), 24, "{ranks:?}");
    let parameters: usize = adapter.layers.values().map(gelora_lora::LoraLayer::parameters).sum();
    assert_eq!(json["parameters"], parameters, "{json}");
    let best = json["best"]["step"].as_u64().expect("a step");
    assert!(best >= 7, "the ranks are settled after step 7: {json}");
    let log = fs::read_to_string(out.join("metrics.jsonl")).expect("the log");
    let first: Value =
        serde_json::from_str(log.lines().find(|line| line.contains("loss")).expect("a step")).expect("JSON");
    assert!(first["penalty"].as_f64().is_some_and(|penalty| penalty > 0.1), "{first}");
    let steps = |options: &str| {
        let line = format!("train {{}} --data {{}} --rank 2 --batch-size 16 {options} --quiet --out {{}}");
        gelora(words(&line, &[&model, &data, &dir.path().join("bad")]))
    };
    steps("--steps 1 --adalora").fails_with(&["AdaLoRA", "expected more steps"]);
    let alone = steps("--steps 9 --adalora-start 2");
    assert!(alone.code == Some(2) && alone.stderr.contains("--adalora"), "{}", alone.stderr);
    let low = steps("--steps 9 --adalora --adalora-start 0.5");
    assert!(low.code == Some(2) && low.stderr.contains("at least 1"), "{}", low.stderr);
}

#[test]
fn batches_of_similar_length_train_as_well() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("a");
    let line =
        "train {} --data {} --rank 2 --epochs 12 --lr 1e-2 --batch-size 8 --group-by-length --out {} --json --quiet";
    let trained = gelora(words(line, &[&fixture("tiny-bert"), &data(dir.path()), &out])).json();
    let accuracy = trained["eval"]["accuracy"].as_f64().expect("an accuracy");
    assert!(accuracy > 0.9, "held-out accuracy {accuracy}");
}

#[test]
fn accumulation_only_changes_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data) = (fixture("tiny-bert"), data(dir.path()));
    let losses = |accumulate: usize| -> Vec<f64> {
        let out = dir.path().join(format!("a{accumulate}"));
        let line = format!(
            "train {{}} --data {{}} --rank 2 --steps 1 --batch-size 16 --accumulate {accumulate} --quiet --out {{}}"
        );
        gelora(words(&line, &[&model, &data, &out])).ok();
        let log = fs::read_to_string(out.join("metrics.jsonl")).expect("the log");
        let rows = log.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        rows.filter_map(|v| v["loss"].as_f64()).collect()
    };
    // Dropout of the base model draws different masks for each part, so only the size of the loss can be compared.
    assert!((losses(1)[0] - losses(4)[0]).abs() < 0.3);
}

#[test]
fn regression_on_scores_in_a_tsv_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let mut text = String::from("sentence1\tsentence2\tscore\n");
    for i in 0..40 {
        text.push_str(&format!("the film {}\tthe plot\t{}\n", "good ".repeat(i % 5), i % 5));
    }
    fs::write(at("train.tsv"), text).expect("a data file");
    let line = "train {} --data {} --eval-data {} --rank 2 --epochs 30 --lr 1e-2 --out {} --json --quiet";
    let paths = [&fixture("tiny-bert"), &at("train.tsv"), &at("train.tsv"), &at("a")];
    let result = gelora(words(line, &paths.map(PathBuf::as_path))).json();
    let pearson = result["eval"]["pearson"].as_f64().expect("a correlation");
    assert!(pearson > 0.8, "Pearson {pearson}");
}

#[test]
fn first_token_pooling_says_that_the_embeddings_are_constant() {
    let dir = tempfile::tempdir().expect("a folder");
    let line = "rank {} --data {} --pool first --out {}";
    let run = gelora(words(line, &[&fixture("tiny-bert"), &data(dir.path()), &dir.path().join("r")])).ok();
    assert!(run.stdout.contains("constant"), "{}", run.stdout);
}

#[test]
fn devices_are_listed_with_or_without_a_driver() {
    let run = gelora(["devices"]).ok();
    assert!(run.stdout.contains("cpu") && run.stdout.contains("cuda"), "{}", run.stdout);
}

#[test]
fn a_profile_has_phases_steps_and_operators() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let mut train = words(
        "train {} --data {} --out {} --rank 2 --steps 5 --batch-size 16 --overwrite --quiet",
        &[&fixture("tiny-bert"), &data(dir.path()), &at("adapter")],
    );
    let stderr = gelora([&train[..], &["--profile".into()]].concat()).ok().stderr;
    assert!(stderr.contains("first step") && stderr.contains("GFLOP/s"), "{stderr}");
    train.push(format!("--profile={}", at("profile.json").display()));
    gelora(train).ok();
    let profile: Value =
        serde_json::from_slice(&fs::read(at("profile.json")).expect("the profile")).expect("a JSON object");
    let steps = profile["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 5);
    assert!(steps.iter().all(|s| s["ms"].as_f64() > Some(0.0) && s["tokens"].as_u64() > Some(16)));
    let ends: Vec<f64> =
        profile["phases"].as_array().into_iter().flatten().filter_map(|phase| phase["end"].as_f64()).collect();
    assert!(ends.len() > 3 && ends.is_sorted() && ends.last() < profile["seconds"].as_f64().as_ref(), "{ends:?}");
    let operators = profile["operators"].as_array().expect("operators");
    let adamw = operators.iter().find(|o| o["op"] == "adamw").expect("the optimizer");
    assert_eq!(adamw["calls"].as_u64().map(|calls| calls % 5), Some(0));
}
