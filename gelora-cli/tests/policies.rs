//! Policies with a scale or ranks of their own: plateau, gradient, signal, eva and prune, in `gelora rank` and `gelora
//! train`.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Run, data, fixture, gelora, log_of, words};
use serde_json::{Value, json};

/// Parameters of rank 1 in one module of tiny-bert's attention, and the number of these modules.
const ONE: u64 = 32 + 32;
const MODULES: u64 = 12;

fn rank(data: &Path, out: &Path, options: &str) -> Run {
    gelora(words(
        &format!("rank {{}} --data {{}} --out {{}} --no-cache {options}"),
        &[&fixture("tiny-bert"), data, out],
    ))
}

fn read(path: PathBuf) -> Value {
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

fn modules(result: &Value) -> &serde_json::Map<String, Value> {
    result["modules"].as_object().expect("modules")
}

/// The rank of every module.
fn ranks(result: &Value) -> Vec<u64> {
    modules(result).values().map(|module| module["rank"].as_u64().expect("a rank")).collect()
}

fn mean_of_layer(result: &Value, layer: usize) -> f64 {
    let of_layer = modules(result).iter().filter(|(name, _)| name.contains(&format!("layer.{layer}.")));
    let ranks: Vec<f64> = of_layer.map(|(_, module)| module["rank"].as_f64().expect("a rank")).collect();
    ranks.iter().sum::<f64>() / ranks.len() as f64
}

/// Checks what all policies for single modules write, for a budget of the uniform rank 4.
fn check(result: &Value, policy: &str) {
    let spent: u64 = ranks(result).iter().map(|rank| rank * ONE).sum();
    assert_eq!(result["parameters"], spent);
    // All modules have one size, so the budget is spent to the last rank.
    assert_eq!((spent, ranks(result).len() as u64), (4 * MODULES * ONE, MODULES), "{policy}");
    assert_eq!((&result["policy"]["name"], &result["policy"]["parameters"]), (&json!(policy), &json!(spent)));
    for module in modules(result).values() {
        assert_eq!(module["alpha"].as_f64(), module["rank"].as_f64().map(|rank| 2.0 * rank));
    }
    // The dimensions are there too, and layers have the mean ranks of their modules.
    assert_eq!(result["states"].as_array().map(Vec::len), Some(4));
    for (l, layer) in result["layers"].as_array().expect("layers").iter().enumerate() {
        assert!(layer["delta"].is_f64() && layer["interval"][1].is_f64());
        assert_eq!(layer["mean_rank"].as_f64(), Some(mean_of_layer(result, l)));
        assert_eq!(layer["rank"].as_f64(), Some(mean_of_layer(result, l).round()));
    }
    let rows = result["policies"].as_array().expect("policies");
    let row = rows.iter().find(|row| row["name"] == policy).expect("the policy among all");
    assert_eq!((&row["adapter_parameters"], row["mean_ranks"].as_array().map(Vec::len)), (&json!(spent), Some(3)));
    assert!(rows.iter().any(|row| row["name"] == "budget" && row["parameters"] == spent), "{rows:?}");
}

#[test]
fn gradients_give_ranks_to_single_modules() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path());
    let of = |name: &str, options: &str| rank(&data, &dir.path().join(name), options);
    let gradient = of("gradient", "--policy gradient --budget-rank 4 --json --quiet").json();
    let signal = of("signal", &format!("--policy signal --budget {} --json --quiet", 4 * MODULES * ONE)).json();
    check(&gradient, "gradient");
    check(&signal, "signal");
    let number = |module: &Value| module["directions"]["number"].as_f64().expect("a number of directions");
    for result in [&gradient, &signal] {
        for module in modules(result).values() {
            let interval = &module["directions"]["interval"];
            let (low, high) = (interval[0].as_f64().expect("an end"), interval[1].as_f64().expect("an end"));
            assert!(low <= number(module) && number(module) <= high, "{module}");
        }
        for (l, layer) in result["layers"].as_array().expect("layers").iter().enumerate() {
            let of_layer = modules(result).iter().filter(|(name, _)| name.contains(&format!("layer.{l}.")));
            let sum: f64 = of_layer.map(|(_, module)| number(module)).sum();
            let directions = layer["directions"]["number"].as_f64().expect("a sum");
            assert!((directions - sum).abs() < 1e-9, "{directions} is not {sum}");
        }
        // One measurement serves both policies.
        let names: Vec<&str> =
            result["policies"].as_array().expect("policies").iter().filter_map(|p| p["name"].as_str()).collect();
        assert_eq!(names[names.len() - 2..], ["gradient", "signal"]);
    }
    let directions =
        |result: &Value| modules(result).values().map(|module| module["directions"].clone()).collect::<Vec<_>>();
    assert_eq!(directions(&gradient), directions(&signal));
    // The rank follows the number.
    let all = modules(&gradient);
    let most = all.values().max_by(|a, b| number(a).total_cmp(&number(b))).expect("modules");
    let least = all.values().min_by(|a, b| number(a).total_cmp(&number(b))).expect("modules");
    assert!(number(most) > 1.2 * number(least), "{most} {least}");
    assert!(most["rank"].as_u64() > least["rank"].as_u64(), "{most} {least}");

    // Tables, page, server, limits.
    let run = of("text", "--policy gradient --budget-rank 4 --serve vllm --max-rank 9").ok();
    for words in
        ["directions, 95 %", "mean rank", "gradient 3,072*", "signal 3,072", "Each module has a rank of its own"]
    {
        assert!(run.stdout.contains(words), "no {words:?} in {}", run.stdout);
    }
    assert!(run.stderr.contains("training the head alone"), "{}", run.stderr);
    let written = read(dir.path().join("text/ranks.json"));
    let largest = ranks(&written).into_iter().max().expect("ranks");
    assert!(largest <= 9);
    assert_eq!(written["serve"]["max_lora_rank"], if largest > 8 { 16 } else { 8 });
    let page = fs::read_to_string(dir.path().join("text/report.html")).expect("the report");
    for words in ["Directions of gradients", "gives each module a rank of its own", "</html>"] {
        assert!(page.contains(words), "{words}");
    }
    let config = read(dir.path().join("text/adapter_config.json"));
    assert!(config["rank_pattern"].as_object().is_some_and(|ranks| !ranks.is_empty()), "{config}");
}

#[test]
fn a_cut_gives_ranks_to_single_modules() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path());
    let run = rank(&data, &dir.path().join("prune"), "--policy prune --budget-rank 4").ok();
    assert!(run.stderr.contains("training the uniform rank 16"), "{}", run.stderr);
    assert!(run.stdout.contains("what a cut leaves of the uniform rank 16"), "{}", run.stdout);
    let result = read(dir.path().join("prune/ranks.json"));
    check(&result, "prune");
    assert_eq!(result["policy"]["trained_rank"], 16);
    assert!(ranks(&result).iter().any(|rank| *rank != 4), "{:?}", ranks(&result));
    assert!(modules(&result).values().all(|module| module.get("directions").is_none()));
    // Four times the rank is more than a module allows.
    let options = format!("--policy prune --budget {} --json --quiet --batch-size 5", 9 * MODULES * ONE);
    let large = rank(&data, &dir.path().join("large"), &options).json();
    assert_eq!((&large["policy"]["trained_rank"], ranks(&large).iter().sum::<u64>()), (&json!(32), 9 * MODULES));
}

#[test]
fn every_task_has_gradients() {
    let dir = tempfile::tempdir().expect("a folder");
    let texts = fs::read_to_string(data(dir.path()).join("train.jsonl")).expect("rows");
    let labeled = |name: &str, label: &dyn Fn(usize, &str) -> Value| {
        let row = |(i, line): (usize, &str)| {
            let row: Value = serde_json::from_str(line).expect("a row");
            let yes = row["label"] == "yes";
            json!({"text": row["text"], "label": label(i, if yes { "yes" } else { "no" })}).to_string()
        };
        let file = dir.path().join(name);
        fs::write(&file, texts.lines().enumerate().map(row).collect::<Vec<_>>().join("\n")).expect("a file");
        file
    };
    let sets = labeled("sets.jsonl", &|i, label| match i % 3 {
        0 => json!([label]),
        1 => json!([label, "third"]),
        _ => json!([]),
    });
    let scores =
        labeled("scores.jsonl", &|i, label| json!(if label == "yes" { 2.5 } else { 0.5 } + (i % 4) as f64 / 8.0));
    for (file, task) in [(sets, "multi-label classification"), (scores, "regression")] {
        for policy in ["gradient", "prune"] {
            let options = format!("--policy {policy} --budget-rank 4 --json --quiet");
            let result = rank(&file, &dir.path().join("out"), &options).json();
            check(&result, policy);
            assert_eq!(result["dataset"]["task"], task);
        }
    }
    // A language model needs no labels: rows with answers, and blocks of text.
    let texts: Vec<String> = texts.lines().map(|line| line.replace("\"label\"", "\"completion\"")).collect();
    let (answers, blocks) = (dir.path().join("answers.jsonl"), dir.path().join("blocks.txt"));
    fs::write(&answers, texts.join("\n").replace("\"text\"", "\"prompt\"")).expect("a file");
    let words: Vec<String> = (0..400).map(|i| format!("the word {i} of a text\n\n")).collect();
    fs::write(&blocks, words.concat()).expect("a file");
    for (file, policy) in [(&answers, "signal"), (&blocks, "gradient"), (&blocks, "eva"), (&blocks, "prune")] {
        let line =
            format!("rank {{}} --data {{}} --out {{}} --no-cache --policy {policy} --budget-rank 2 --max-length 24");
        let paths: [&Path; 3] = [&fixture("gguf/tiny.gguf"), file, &dir.path().join("out")];
        let result = gelora(words_of(&line, &paths)).json();
        assert_eq!(result["dataset"]["task"], "language model", "{policy}");
        let uniform = result["policies"].as_array().expect("policies").iter().find(|row| row["name"] == "uniform");
        let budget = uniform.and_then(|row| row["adapter_parameters"].as_u64()).expect("a budget");
        assert!(result["parameters"].as_u64().is_some_and(|spent| spent <= budget && 2 * spent > budget));
        assert_eq!(result["policy"]["parameters"], budget);
    }
}

fn words_of(line: &str, paths: &[&Path]) -> Vec<String> {
    words(&format!("{line} --json --quiet"), paths)
}

#[test]
fn plateau_is_the_rule_at_the_scale_of_the_plateau() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("many.txt");
    // Enough distinct texts for scales that make a plateau.
    let vocabulary = fs::read_to_string(fixture("tiny-bert/vocab.txt")).expect("the vocabulary");
    let words: Vec<&str> = vocabulary.lines().filter(|w| w.len() > 2 && w.chars().all(char::is_alphabetic)).collect();
    let mut stream = gelora_kernels::random::Stream::new(5);
    let mut text = String::new();
    for _ in 0..700 {
        let sentence: Vec<&str> = (0..2 + stream.below(5)).map(|_| words[stream.below(words.len())]).collect();
        text.push_str(&format!("{}\n\n", sentence.join(" ")));
    }
    fs::write(&file, text).expect("a file");
    let of =
        |name: &str, options: &str| rank(&file, &dir.path().join(name), &format!("{options} --json --quiet")).json();
    let (plateau, scaled, all) = (of("a", "--policy plateau"), of("b", "--scale plateau"), of("c", ""));
    assert!(plateau["scale"].as_u64() < Some(700), "{}", plateau["scale"]);
    for part in ["scale", "layers", "modules", "parameters"] {
        assert_eq!(plateau[part], scaled[part], "{part}");
    }
    assert_eq!(plateau["policy"]["name"], "plateau");
    assert_eq!(of("d", "--policy plateau --scale plateau")["layers"], plateau["layers"]);
    // Beside it are the policies on growths at all examples.
    let row = |result: &Value, name: &str| {
        let rows = result["policies"].as_array().expect("policies").clone();
        rows.into_iter().find(|row| row["name"] == name).expect("a row")
    };
    assert_eq!(row(&plateau, "gelora"), row(&all, "gelora"));
    assert_eq!(row(&plateau, "plateau")["ranks"], row(&scaled, "gelora")["ranks"]);
    let stable = of("e", "--policy plateau --stability 3");
    assert_eq!((&stable["stability"]["resamples"], &stable["layers"]), (&json!(3), &plateau["layers"]));
}

#[test]
fn training_measures_with_the_same_policies() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path());
    let train = |out: &str, options: &str| {
        let line = format!("train {{}} --data {{}} --out {{}} --steps 2 --json --quiet {options}");
        gelora(words(&line, &[&fixture("tiny-bert"), &data, &dir.path().join(out)]))
    };
    for policy in ["gradient", "signal", "eva", "prune"] {
        let options = format!("--policy {policy} --budget-rank 4");
        let trained = train(policy, &options).json();
        assert_eq!(trained["parameters"], 4 * MODULES * ONE);
        let measured = read(dir.path().join(policy).join("ranks.json"));
        check(&measured, policy);
        // Its ranks are those of `gelora rank` on the same rows.
        let alone =
            rank(&data.join("train.jsonl"), &dir.path().join("rank"), &format!("{options} --json --quiet")).json();
        assert_eq!(alone["modules"], measured["modules"]);
        // The file of either trains the same adapter.
        let file = dir.path().join("rank").display().to_string();
        train("given", &format!("--overwrite --ranks {file}")).json();
        assert_eq!(log_of(&dir.path().join("given")), log_of(&dir.path().join(policy)));
        let tensors = |out: &str| fs::read(dir.path().join(out).join("adapter_model.safetensors")).expect("an adapter");
        assert_eq!(tensors("given"), tensors(policy));
    }
    for (options, words) in [
        ("--policy plateau", &["--policy plateau", "no state has a plateau", "--policy gelora"][..]),
        ("--policy gradient", &["--policy gradient needs --budget PARAMETERS or --budget-rank R"]),
        ("--policy prune --budget 700", &["take 768 parameters", "budget is 700"]),
    ] {
        train("errors", options).fails_with(words);
    }
}

#[test]
fn errors_name_what_is_missing() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path());
    let fails = |data: &Path, options: &str, words: &[&str]| {
        let out = dir.path().join("out");
        rank(data, &out, options).fails_with(words);
        assert!(!out.exists(), "{options}");
    };
    for policy in ["gradient", "signal", "eva", "prune"] {
        fails(&data, &format!("--policy {policy}"), &[policy, "--budget PARAMETERS", "--budget-rank"]);
        let least = MODULES * ONE;
        let too_small = format!("--policy {policy} --budget {}", least - 1);
        fails(&data, &too_small, &[&least.to_string(), &(least - 1).to_string(), "least ranks"]);
        fails(
            &data,
            &format!("--policy {policy} --budget-rank 4 --stability 5"),
            &["--stability 5", policy, "do not follow", "leave it out"],
        );
        fails(&data, &format!("--policy {policy} --budget-rank 2 --rank 3"), &["--rank", "uniform"]);
    }
    fails(&data, "--policy plateau --scale all", &["--policy plateau", "--scale all"]);
    fails(&data, "--policy plateau --budget-rank 3", &["--budget", "gradient, signal, eva and prune"]);
    fails(&data, "--policy plateau", &["--policy plateau: the dimension of no state has a plateau", "--policy gelora"]);
    let texts = dir.path().join("texts.jsonl");
    let rows: Vec<String> = (0..20).map(|i| json!({"text": format!("text {i}"), "topic": i}).to_string()).collect();
    fs::write(&texts, rows.join("\n")).expect("a file");
    fails(
        &texts,
        "--policy signal --budget-rank 2",
        &["--policy signal needs labels", "no label column", "topic", "--label-column"],
    );
    // Inputs need none. A module has at most twice the rank of the budget.
    let unlabeled = rank(&texts, &dir.path().join("unlabeled"), "--policy eva --budget-rank 2 --json --quiet").json();
    let found = ranks(&unlabeled);
    assert!(found.iter().sum::<u64>() == 2 * MODULES && found.iter().all(|rank| *rank <= 4), "{found:?}");
    assert_ne!(found, vec![2; found.len()]);
    let few = dir.path().join("few.jsonl");
    let row = |i: usize| {
        let label = if i.is_multiple_of(2) { "a" } else { "b" };
        json!({"text": format!("text {i} {}", i * i), "label": label}).to_string()
    };
    let rows: Vec<String> = (0..6).map(row).collect();
    fs::write(&few, rows.join("\n")).expect("a file");
    fails(&few, "--policy gradient --budget-rank 2", &["--policy", "6 rows in 8 parts"]);
}
