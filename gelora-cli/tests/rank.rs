//! `gelora rank` on a tiny model: policies, sublayers, stability, the cache, and the errors of wrong options.

mod common;

use std::fs;
use std::path::Path;

use common::{Run, data, fixture, gelora, words};
use serde_json::Value;

/// Runs `gelora rank` in a folder that has data/, with output to `out` and a separate cache.
fn rank(dir: &Path, out: &str, options: &str) -> Run {
    let line = format!("rank {{}} --data {{}} --out {{}} --no-cache {options}");
    gelora(words(&line, &[&fixture("tiny-bert"), &dir.join("data"), &dir.join(out)]))
}

fn ranks(result: &Value) -> Vec<u64> {
    result["layers"].as_array().expect("layers").iter().map(|l| l["rank"].as_u64().expect("a rank")).collect()
}

#[test]
fn every_policy_assigns_its_ranks() {
    let dir = tempfile::tempdir().expect("a folder");
    data(dir.path());
    let of = |out: &str, options: &str| rank(dir.path(), out, &format!("--json --quiet {options}")).json();
    let gelora = of("gelora", "");
    let one = 4 * (32 + 32); // parameters of rank 1 in one layer
    let deltas: Vec<f64> =
        gelora["layers"].as_array().expect("layers").iter().filter_map(|l| l["delta"].as_f64()).collect();
    let rule = |growth: f64| growth.ceil().max(0.0) as u64 + 1;
    assert_eq!(ranks(&gelora), deltas.iter().map(|d| rule(*d)).collect::<Vec<_>>());

    let upper = of("upper", "--policy gelora-upper --confidence 0.8");
    let bounds = upper["layers"].as_array().expect("layers").iter().filter_map(|l| l["upper"].as_f64());
    assert_eq!(ranks(&upper), bounds.map(|u| rule(u).min(32)).collect::<Vec<_>>());
    assert!(ranks(&upper).iter().zip(ranks(&gelora)).all(|(u, g)| *u >= g));

    let budget = of("budget", "--policy budget --budget-rank 9");
    let spent = budget["parameters"].as_u64().expect("parameters");
    assert!(spent <= 9 * 3 * one && spent > 8 * 3 * one, "{spent}");
    assert!(ranks(&budget).iter().zip(ranks(&gelora)).all(|(b, g)| *b >= g));
    assert_eq!(budget["policy"]["parameters"], 9 * 3 * one);

    let uniform = of("uniform", "--rank 5");
    assert_eq!((ranks(&uniform), &uniform["policy"]["name"]), (vec![5; 3], &Value::from("uniform")));
    assert_eq!(ranks(&of("fixed", "--policy fixed --rank 5")), [5; 3], "its name in the first version");

    let random = of("random", "--policy random --budget 5000 --seed 4");
    assert_eq!(ranks(&random).iter().sum::<u64>(), 5000 / one);
    let mut dealt = ranks(&of("shuffled", "--policy shuffled --seed 4"));
    let mut dealt_from = ranks(&of("seed", "--seed 4"));
    dealt.sort_unstable();
    dealt_from.sort_unstable();
    assert_eq!(dealt, dealt_from);

    assert_eq!(gelora["scale"], 96);
    assert!(ranks(&of("multiple", "--rank-multiple 4")).iter().all(|r| r % 4 == 0));
    assert_eq!(of("served", "--rank 9 --serve vllm")["serve"]["max_lora_rank"], 16);
    let names: Vec<&str> =
        gelora["policies"].as_array().expect("policies").iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(names, ["gelora", "gelora-upper", "budget", "uniform", "random", "shuffled"]);
}

#[test]
fn sublayers_have_separate_ranks() {
    let dir = tempfile::tempdir().expect("a folder");
    data(dir.path());
    let result = rank(dir.path(), "out", "--json --quiet --granularity sublayer --target-modules all-linear").json();
    assert_eq!(result["states"].as_array().map(Vec::len), Some(7));
    assert_eq!(result["states"][1]["name"], "after attention 0");
    let layers = result["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 6);
    for (step, layer) in layers.iter().enumerate() {
        let (l, part) = (step / 2, ["attention", "mlp"][step % 2]);
        assert_eq!((&layer["layer"], &layer["part"]), (&Value::from(l), &Value::from(part)));
        let module = ["attention.self.query", "intermediate.dense"][step % 2];
        let module = &result["modules"][format!("bert.encoder.layer.{l}.{module}")];
        assert_eq!((&module["rank"], &module["alpha"]), (&layer["rank"], &layer["alpha"]));
    }
    assert_eq!(result["modules"].as_object().map(|m| m.len()), Some(3 * 6));
}

#[test]
fn stability_shows_the_ranks_of_halves() {
    let dir = tempfile::tempdir().expect("a folder");
    data(dir.path());
    let run = rank(dir.path(), "out", "--stability 5").ok();
    for word in ["ranks in 5 x 48 examples", "policy (* chosen)", "gelora*", "growth, 95 %", "report.html"] {
        assert!(run.stdout.contains(word) || run.stderr.contains(word), "no {word:?} in {}{}", run.stdout, run.stderr);
    }
    let ranks = fs::read_to_string(dir.path().join("out/ranks.json")).expect("ranks.json");
    let result: Value = serde_json::from_str(&ranks).expect("JSON");
    let sizes = result["stability"]["sizes"].as_array().expect("sizes");
    // A quarter of 96 is too few.
    assert_eq!((sizes.len(), &sizes[0]["n"]), (1, &Value::from(48)));
    let of_layers = sizes[0]["ranks"].as_array().expect("ranks");
    assert!(of_layers.len() == 3 && of_layers.iter().all(|l| l.as_array().map(Vec::len) == Some(5)));
    let page = fs::read_to_string(dir.path().join("out/report.html")).expect("the report");
    assert!(page.contains(result["stability"]["verdict"].as_str().expect("a verdict")));
}

#[test]
fn the_model_runs_once_for_several_policies() {
    let dir = tempfile::tempdir().expect("a folder");
    data(dir.path());
    let model = dir.path().join("model");
    fs::create_dir(&model).expect("a folder");
    for entry in fs::read_dir(fixture("tiny-bert")).expect("the fixture").flatten() {
        fs::copy(entry.path(), model.join(entry.file_name())).expect("a copy");
    }
    // The text length differs from that of other tests, so that the cache entries belong to this test.
    let run = |out: &str, options: &str| {
        let line = format!("rank {{}} --data {{}} --out {{}} --max-length 7 {options}");
        gelora(words(&line, &[&model, &dir.path().join("data"), &dir.path().join(out)])).ok()
    };
    let states = |out: &str| {
        let text = fs::read_to_string(dir.path().join(out).join("ranks.json")).expect("ranks.json");
        serde_json::from_str::<Value>(&text).expect("JSON")["states"].clone()
    };
    const BEFORE: &str = "as measured before";
    run("first", "");
    let second = run("second", "--policy gelora-upper");
    assert!(second.stderr.contains(BEFORE), "{}", second.stderr);
    assert!(!run("again", "--no-cache").stderr.contains(BEFORE));
    assert!(!run("pool", "--pool last --no-cache").stderr.contains(BEFORE));
    assert_eq!((states("first"), states("first")), (states("second"), states("again")));
    assert_ne!(states("first"), states("pool"));
    // Changed weights give another entry.
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).expect("weights");
    assert!(!run("changed", "--no-cache").stderr.contains(BEFORE));
    let seed = std::process::id();
    assert!(!run("changed", &format!("--pool token --seed {seed}")).stderr.contains(BEFORE));
    assert!(run("changed", &format!("--pool token --seed {seed}")).stderr.contains(BEFORE));
}

#[test]
fn errors_name_the_wrong_options() {
    let dir = tempfile::tempdir().expect("a folder");
    data(dir.path());
    let fails = |options: &str, words: &[&str]| {
        rank(dir.path(), "out", options).fails_with(words);
        assert!(!dir.path().join("out").exists(), "{options}");
    };
    fails("--policy budget", &["--budget PARAMETERS", "--budget-rank"]);
    fails("--policy uniform", &["--rank R"]);
    fails("--policy gelora --rank 3", &["--rank", "uniform"]);
    fails("--policy gelora --budget 3000", &["--budget", "random"]);
    // 96 examples have one scale.
    fails("--scale plateau", &["--scale plateau", "no state has a plateau"]);
    fails("--budget 700", &["768 parameters", "700"]);
    fails("--rank 33", &["1 to 32", "33"]);
    fails("--min-rank 9 --max-rank 8", &["min 9 and max 8"]);
    for options in ["--serve tgi", "--budget 9 --budget-rank 2", "--granularity token", "--estimator danco"] {
        let run = rank(dir.path(), "out", options);
        assert_eq!(run.code, Some(2), "{options}: {}", run.stderr);
    }
}
