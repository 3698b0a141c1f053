//! Rows of any number of classes, from the training to the prediction.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fixture, gelora, words};
use serde_json::{Value, json};

/// Writes a folder whose rows are of the classes that their words name: a row has none, one or both of two words.
fn data(dir: &Path, line: impl Fn(&str, &[&str]) -> String, ending: &str, header: &str) -> PathBuf {
    let folder = dir.join("data");
    fs::create_dir_all(&folder).expect("a folder");
    for (name, rows, offset) in [("train", 160, 0), ("validation", 48, 5)] {
        let mut text = header.to_owned();
        for i in 0..rows {
            let fill = ["the film", "a movie", "this story", "the plot", "an actor"][(i + offset) % 5];
            let classes: &[&str] = [&[][..], &["fun"], &["slow"], &["fun", "slow"]][(i / 5) % 4];
            text.push_str(&line(&format!("{fill} is {}", classes.join(" and ")), classes));
        }
        fs::write(folder.join(format!("{name}.{ending}")), text).expect("a data file");
    }
    folder
}

fn json_rows(dir: &Path) -> PathBuf {
    data(dir, |text, classes| format!("{}\n", json!({"text": text, "labels": classes})), "jsonl", "")
}

const TRAIN: &str = "train {} --data {} --rank 4 --steps 150 --batch-size 16 --lr 2e-2 --out {} --quiet";

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

#[test]
fn a_model_learns_any_number_of_classes() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let (model, rows, adapter) = (fixture("tiny-bert"), json_rows(dir), dir.join("adapter"));
    let trained = gelora(words(&format!("{TRAIN} --json"), &[&model, &rows, &adapter])).json();
    assert_eq!(trained["dataset"]["task"], "multi-label classification", "{trained}");
    assert_eq!(trained["dataset"]["classes"], json!({"fun": 80, "slow": 80}));
    assert!(trained["eval"]["micro_f1"].as_f64().expect("a number") > 0.95, "{trained}");
    let info: Value = serde_json::from_slice(&fs::read(adapter.join("gelora.json")).expect("a file")).expect("JSON");
    assert_eq!(
        (&info["labels"], &info["problem_type"]),
        (&json!(["fun", "slow"]), &json!("multi_label_classification"))
    );

    // Evaluation, predictions and the merged model agree.
    let predictions = dir.join("eval.jsonl");
    let line = "eval {} --adapter {} --data {} --predictions {} --json --quiet";
    let eval = gelora(words(line, &[&model, &adapter, &rows, &predictions])).json();
    assert_eq!(eval["micro_f1"], trained["eval"]["micro_f1"]);
    let out = dir.join("predict.jsonl");
    let line = "predict {} --adapter {} --data {} --out {} --quiet";
    gelora(words(line, &[&model, &adapter, &rows, &out])).ok();
    let found = lines(&out);
    assert_eq!(found.len(), 48);
    for (found, eval) in found.iter().zip(lines(&predictions)) {
        assert_eq!(found["predicted"], eval["predicted"]);
        // Labels and predictions are comparable: names in the order of the classes.
        assert_eq!(eval["label"], eval["predicted"], "every row is right");
        for (class, name) in ["fun", "slow"].iter().enumerate() {
            let logit = eval["logits"][class].as_f64().expect("a logit");
            let probability = found["probabilities"][name].as_f64().expect("a probability");
            assert!((probability - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-6, "{found} {eval}");
            let is_predicted = found["predicted"].as_array().expect("a list").contains(&json!(name));
            assert_eq!(is_predicted, probability > 0.5);
        }
    }
    let table = dir.join("predict.csv");
    let line = "predict {} --adapter {} --data {} --format csv --out {} --quiet";
    gelora(words(line, &[&model, &adapter, &rows, &table])).ok();
    let text = fs::read_to_string(&table).expect("a table");
    assert!(text.starts_with("row,predicted,probability_fun,probability_slow\n1,"), "{text}");
    assert!(text.contains(",fun|slow,") && text.lines().count() == 49, "{text}");
    let merged = dir.join("merged");
    gelora(words("merge {} --adapter {} --out {} --quiet", &[&model, &adapter, &merged])).ok();
    let config: Value = serde_json::from_slice(&fs::read(merged.join("config.json")).expect("a file")).expect("JSON");
    assert_eq!(config["problem_type"], "multi_label_classification");
    let again = gelora(words("eval {} --data {} --json --quiet", &[&merged, &rows])).json();
    assert_eq!(again["micro_f1"], eval["micro_f1"]);

    // The pages show the classes.
    let report = fs::read_to_string(adapter.join("report.html")).expect("a report");
    assert!(report.contains("held-out rows are all right after step 150"), "no classes in the report");
    let card = fs::read_to_string(adapter.join("README.md")).expect("a card");
    assert!(
        card.contains("multi-label classification (a text may be of several classes), 2 classes: fun, slow"),
        "{card}"
    );
    assert!(card.contains("if logit > 0]") && card.contains("f1"), "{card}");

    // A training goes on from the adapter.
    let on = dir.join("on");
    let line = "train {} --data {} --init-adapter {} --steps 2 --out {} --quiet --json";
    let run = gelora(words(line, &[&model, &rows, &adapter, &on])).json();
    assert!(run["eval"]["micro_f1"].as_f64().expect("a number") > 0.9, "{run}");
}

/// Files of PEFT say neither the names of the classes nor whether they exclude each other.
#[test]
fn an_adapter_of_peft_is_read_as_the_task_says() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let (model, rows, adapter) = (fixture("tiny-bert"), json_rows(dir), dir.join("adapter"));
    gelora(words(TRAIN, &[&model, &rows, &adapter])).ok();
    fs::remove_file(adapter.join("gelora.json")).expect("it is there");
    let out = dir.join("out.jsonl");
    let predict = |task: &str| {
        let line = format!("predict {{}} --adapter {{}} --data {{}} --out {{}} --quiet --task {task}");
        gelora(words(&line, &[&model, &adapter, &rows, &out]))
    };
    predict("multi-label").ok();
    assert!(lines(&out).iter().any(|row| row["predicted"].as_array().is_some_and(Vec::is_empty)));
    predict("auto").ok();
    assert!(lines(&out).iter().all(|row| !row["predicted"].is_array()));
    let merged = dir.join("merged");
    gelora(words("merge {} --adapter {} --out {} --task multi-label --quiet", &[&model, &adapter, &merged])).ok();
    let config: Value = serde_json::from_slice(&fs::read(merged.join("config.json")).expect("a file")).expect("JSON");
    assert_eq!(config["problem_type"], "multi_label_classification");
    predict("regression").fails_with(&["--task regression: the head of", "adapter is one of classification"]);
}

#[test]
fn a_column_for_each_class_and_a_separator_train_alike() {
    let dir = tempfile::tempdir().expect("a folder");
    let (lists, columns, cells) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
    let has = |classes: &[&str], name: &str| u8::from(classes.contains(&name));
    let rows = [
        (json_rows(&lists), ""),
        (
            data(
                &columns,
                |text, classes| format!("{text},{},{}\n", has(classes, "fun"), has(classes, "slow")),
                "csv",
                "text,fun,slow\n",
            ),
            "--label-columns fun,slow",
        ),
        (
            data(&cells, |text, classes| format!("{text},{}\n", classes.join("/")), "csv", "text,label\n"),
            "--label-separator /",
        ),
    ];
    let fits_nowhere = "train {} --data {} --rank 1 --steps 1 --out {} --label-separator ;";
    let run = gelora(words(fits_nowhere, &[&fixture("tiny-bert"), &rows[2].0, &dir.path().join("out")])).ok();
    assert!(run.stderr.contains("no label has the separator \";\" (--label-separator)"), "{}", run.stderr);
    let adapters: Vec<Vec<u8>> = rows
        .iter()
        .map(|(rows, options)| {
            let out = rows.join("out");
            let line = format!("train {{}} --data {{}} --rank 1 --steps 3 --out {{}} --quiet {options}");
            gelora(words(&line, &[&fixture("tiny-bert"), rows, &out])).ok();
            fs::read(out.join("adapter_model.safetensors")).expect("an adapter")
        })
        .collect();
    assert!(adapters[0] == adapters[1] && adapters[0] == adapters[2], "the same rows train the same adapter");
}

#[test]
fn options_of_other_tasks_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let (model, rows) = (fixture("tiny-bert"), json_rows(dir));
    let train = |options: &str| {
        let line = format!("train {{}} --data {{}} --rank 1 --steps 1 --out {{}} --quiet {options}");
        gelora(words(&line, &[&model, &rows, &dir.join("out")]))
    };
    train("--class-weights balanced").fails_with(&["--class-weights", "multi-label classification"]);
    train("--label-smoothing 0.1").fails_with(&["--label-smoothing", "multi-label classification"]);
    train("--metric accuracy").fails_with(&["--metric accuracy", "micro_f1, macro_f1, subset_accuracy"]);
    train("--task regression").fails_with(&["train.jsonl: row", "expected one label"]);
    assert!(!dir.join("out/adapter_model.safetensors").exists());
}

/// Compares two arms on rows of several classes.
#[test]
fn compare_takes_rows_of_several_classes() {
    let dir = tempfile::tempdir().expect("a folder");
    let rows = json_rows(dir.path());
    let line = "compare {} --data {} --arms head,uniform --reference uniform --lrs 1e-2 --seeds 2 --budget-rank 1 \
                --steps 3 --out {} --json --quiet --metric macro_f1";
    let run = gelora(words(line, &[&fixture("tiny-bert"), &rows, &dir.path().join("study")])).json();
    assert_eq!(run["metric"], "macro_f1", "{run}");
}
