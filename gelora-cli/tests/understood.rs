//! The account of the data: it is correct, printed before the run, and part of the JSON.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Run, data, fixture, gelora, words};
use serde_json::{Value, json};

/// Returns a tiny language model of 128 positions with a chat template.
fn lm() -> PathBuf {
    fixture("gguf/tiny.gguf")
}

fn write(dir: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).expect("a data file");
    path
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn eval(model: &Path, data: &Path, options: &str) -> Run {
    gelora(words(&format!("eval {{}} --data {{}} {options}"), &[model, data]))
}

fn eval_lm(data: &Path) -> Value {
    eval(&lm(), data, "--task causal-lm --json").json()
}

#[test]
fn questions_and_prompts_give_the_same_rows() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let row = |asked: &str, answer: &str| json!({asked: "there in the lane", answer: " the theatre"});
    let prompt =
        eval_lm(&write(dir, "prompt.jsonl", lines(&[row("prompt", "completion"), row("prompt", "completion")])));
    let alone = eval_lm(&write(dir, "alone.jsonl", lines(&[json!({"text": "there in the lane"})])));
    assert_ne!(prompt["loss"], alone["loss"]);
    for (question, answer) in [("question", "answer"), ("query", "response"), ("input", "output"), ("q", "a")] {
        let path = write(dir, "rows.jsonl", lines(&[row(question, answer), row(question, answer)]));
        let named = if question == "q" { "--text-column q --answer-column a" } else { "" };
        let run = eval(&lm(), &path, &format!("--task causal-lm --json {named}")).json();
        assert_eq!((&run["loss"], &run["tokens"]), (&prompt["loss"], &prompt["tokens"]), "{question} {answer}");
    }
    let pair = write(dir, "pair.jsonl", lines(&[json!({"premise": "there", "hypothesis": "lane", "label": 1})]));
    eval(&lm(), &pair, "--task causal-lm").fails_with(&[
        "pair.jsonl",
        "premise",
        "hypothesis",
        "label",
        "--text-column",
    ]);

    let mut context = row("prompt", "completion");
    context["context"] = json!("a long story");
    let path = write(dir, "context.jsonl", lines(&[context]));
    let stderr = eval(&lm(), &path, "--task causal-lm").ok().stderr;
    assert!(
        stderr.contains("warning: ") && stderr.contains("columns that hold texts are not used: context"),
        "{stderr}"
    );
    assert_eq!(eval_lm(&path)["dataset"]["ignored_columns"], json!(["context"]));
}

#[test]
fn conversations_are_trained_with_any_names_of_roles() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let turns = |system: Option<&str>| {
        let mut turns =
            vec![json!({"role": "user", "content": "lane"}), json!({"role": "assistant", "content": "the theatre"})];
        turns.splice(0..0, system.map(|text| json!({"role": "system", "content": text})));
        eval_lm(&write(dir, "plain.jsonl", lines(&[json!({"messages": turns})])))
    };
    let share = |extra: Value, assistant: &str| {
        let mut row =
            json!({"conversations": [{"from": "human", "value": "lane"}, {"from": assistant, "value": "the theatre"}]});
        extra.as_object().into_iter().flatten().for_each(|(key, value)| row[key] = value.clone());
        write(dir, "share.jsonl", lines(&[row]))
    };
    let of = |run: &Value| (run["loss"].clone(), run["tokens"].clone());
    assert_eq!(of(&eval_lm(&share(json!({"tools": []}), "chatgpt"))), of(&turns(None)));
    let calm = eval_lm(&share(json!({"system": "there"}), "gpt"));
    assert_eq!(of(&calm), of(&turns(Some("there"))));
    assert_ne!(of(&calm), of(&turns(None)));
    eval(&lm(), &share(json!({}), "narrator"), "").fails_with(&["share.jsonl: row 1", "narrator", "assistant"]);
    let asked = write(dir, "asked.jsonl", lines(&[json!({"messages": [{"role": "user", "content": "lane"}]})]));
    eval(&lm(), &asked, "--task causal-lm").fails_with(&["asked.jsonl", "messages", "answer of the assistant"]);
}

#[test]
fn rows_that_are_cut_or_left_out_are_counted() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let long = " lane".repeat(30);
    let rows = lines(&[
        json!({"prompt": "the lane", "completion": " there"}),
        json!({"prompt": long, "completion": " there"}),
        json!({"prompt": "the", "completion": long}),
        json!({"prompt": "the", "completion": ""}),
    ]);
    let path = write(dir, "rows.jsonl", rows);
    let run = eval(&lm(), &path, "--max-length 20 --json");
    let counts = "2 examples; 1 cut at --max-length 20; 1 of 4 left out: the answer in \"completion\" is empty; \
                  1 of 4 left out: no token of the answer is left at --max-length 20";
    assert!(run.stderr.contains(counts), "{}", run.stderr);
    assert!(run.stderr.contains("66.7 % of the rows are longer than --max-length 20"), "{}", run.stderr);
    let json = run.json();
    assert_eq!((&json["rows"], &json["dataset"]["rows"], &json["dataset"]["kept"]), (&json!(2), &json!(4), &json!(2)));
    assert_eq!(json["dataset"]["left_out"].as_array().map(Vec::len), Some(2));
    let longest = json["dataset"]["cut"]["holds_99_percent"].as_u64().expect("a length");
    assert!(longest > 60, "{json}");
    let whole = eval(&lm(), &path, &format!("--max-length {longest} --json"));
    assert!(!whole.stderr.contains("would hold"), "{}", whole.stderr);
    assert_eq!(whole.json()["dataset"]["cut"]["rows"], 0);
    let run = eval(&lm(), &path, "--quiet");
    assert!(run.stderr.is_empty(), "{}", run.stderr);
    let out = dir.join("out");
    let run =
        gelora(words("train {} --data {} --max-length 20 --rank 1 --steps 1 --json --out {}", &[&lm(), &path, &out]));
    assert!(run.stderr.contains("1 of 4 left out: no token of the answer"), "{}", run.stderr);
    assert_eq!(run.json()["dataset"]["kept"], 2);
}

#[test]
fn the_account_has_task_columns_classes_and_rows() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let model = fixture("tiny-bert");
    let mut text = String::from("id,sentence,label\n");
    for i in 0..20 {
        text.push_str(&format!(
            "{i},the film {},{}\n",
            "good ".repeat(1 + i % 9),
            if i % 4 == 0 { "no" } else { "yes" }
        ));
    }
    let path = write(dir, "rows.csv", text + "9,the film,no\n9,a,b,c\n9,the film,no\n");
    let line = "rank {} --data {} --skip-bad-rows --dedup --json --out {}";
    let run = gelora(words(line, &[&model, &path, &dir.join("ranks")]));
    for part in [
        "task: classification, 2 classes: no 4, yes",
        "text \"sentence\", label \"label\"; ignored: id",
        "left out: the same",
    ] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    let ranks = run.json();
    assert_eq!(ranks["dataset"]["columns"], json!({"text": "sentence", "label": "label"}));
    let line = "train {} --data {} --skip-bad-rows --ranks {} --steps 2 --json --out {}";
    let run = gelora(words(line, &[&model, &path, &dir.join("ranks"), &dir.join("adapter")]));
    assert!(
        run.stderr.contains("1 of 23 left out: bad (--skip-bad-rows, the first: ") && run.stderr.contains("line 23"),
        "{}",
        run.stderr
    );
    let trained = run.json();
    assert_eq!(trained["dataset"]["classes"], json!({"no": 7, "yes": 15}));
    assert_eq!((&trained["dataset"]["rows"], &trained["dataset"]["kept"]), (&json!(23), &json!(22)));

    let line = "--skip-bad-rows --json --adapter";
    let scores = eval(&model, &path, &format!("{line} {}", dir.join("adapter").display())).json();
    assert_eq!((&scores["f1_class"], &scores["dataset"]["task"]), (&json!("yes"), &json!("classification")));
    let run = eval(&model, &path, &format!("--skip-bad-rows --adapter {}", dir.join("adapter").display())).ok();
    assert!(run.stdout.contains("f1 of \"yes\""), "{}", run.stdout);

    // Numbers with a decimal point are scores, and the account says so.
    let floats = write(dir, "floats.csv", "text,label\nthe film,1.0\na film,0.0\nthe plot,1.0\na plot,0.0\n");
    let run = gelora(words("train {} --data {} --rank 1 --steps 1 --out {}", &[&model, &floats, &dir.join("o")])).ok();
    assert!(
        run.stderr.contains("regression, scores from 0 to 1") && run.stderr.contains("--task classification"),
        "{}",
        run.stderr
    );
}

#[test]
fn identical_texts_are_reported_and_too_few_distinct_texts_are_an_error() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let model = fixture("tiny-bert");
    let rows = |distinct: usize| {
        let row = |i: usize| json!({"text": format!("the film {}", "good ".repeat(i % distinct)), "label": i % 2});
        write(dir, "rows.jsonl", lines(&(0..48).map(row).collect::<Vec<_>>()))
    };
    let run = gelora(words("rank {} --data {} --out {}", &[&model, &rows(6), &dir.join("ranks")])).ok();
    assert!(run.stderr.contains("48 examples, 6 distinct"), "{}", run.stderr);
    let out = dir.join("none");
    let run = gelora(words("rank {} --data {} --out {}", &[&model, &rows(2), &out]));
    run.fails_with(&["rows.jsonl: 48 examples, 2 distinct; a measurement needs"]);
    let run = gelora(words("train {} --data {} --out {}", &[&model, &rows(2), &out]));
    run.fails_with(&["rows.jsonl: 48 examples, 2 distinct"]);
    assert!(!out.exists());
}

#[test]
fn test_splits_without_labels_give_predictions() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let (model, folder) = (fixture("tiny-bert"), data(dir));
    fs::remove_file(folder.join("validation.jsonl")).expect("it was there");
    let rows = [json!({"text": "the film", "label": -1}), json!({"text": "a plot", "label": -1})];
    write(&folder, "test-00001-of-00002.jsonl", lines(&rows[1..]));
    write(&folder, "test-00000-of-00002.jsonl", lines(&rows[..1]));
    let adapter = dir.join("adapter");
    gelora(words("train {} --data {} --rank 1 --steps 1 --out {} -q", &[&model, &folder, &adapter])).ok();
    let predictions = dir.join("p.jsonl");
    let line = "eval {} --data {} --split test --adapter {} --predictions {}";
    let run = gelora(words(line, &[&model, &folder, &adapter, &predictions])).ok();
    assert!(run.stderr.contains("every \"label\" is -1, which stands for no label"), "{}", run.stderr);
    let written = fs::read_to_string(&predictions).expect("predictions");
    let rows: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |row: &Value| (row["row"].clone(), row["label"].clone());
    assert_eq!(rows.iter().map(of).collect::<Vec<_>>(), [(json!(1), Value::Null), (json!(2), Value::Null)]);
    let run = gelora(words("eval {} --data {} --split test --adapter {}", &[&model, &folder, &adapter]));
    run.fails_with(&["data: no row has a label in \"label\"", "--predictions"]);
}

#[test]
fn options_that_contradict_model_adapter_or_file_are_errors() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let (model, folder, adapter) = (fixture("tiny-bert"), data(dir), dir.join("adapter"));
    gelora(words("train {} --data {} --rank 1 --steps 1 --out {} -q", &[&model, &folder, &adapter])).ok();
    let file = folder.join("train.jsonl");
    for command in
        ["rank {} --data {} --out {}", "train {} --data {} --rank 1 --out {}", "eval {} --data {} --adapter {}"]
    {
        let last = if command.starts_with("eval") { adapter.clone() } else { dir.join("o") };
        let run = gelora(words(&format!("{command} --max-length 100000"), &[&model, &file, &last]));
        run.fails_with(&["--max-length 100000: the model has", "positions"]);
    }
    let with = |options: &str| eval(&model, &file, &format!("--adapter {} {options}", adapter.display()));
    with("--split train").fails_with(&["--split", "train.jsonl is a file"]);
    with("--task causal-lm").fails_with(&["--task causal-lm", "adapter", "SEQ_CLS"]);
    with("--task regression").fails_with(&["--task regression", "adapter", "classification"]);
    with("--task classification").ok();
    let list = write(dir, "list.jsonl", lines(&[json!({"text": "the film", "label": ["yes", "no"]})]));
    let train = "train {} --data {} --rank 1 --steps 1 --task classification --out {}";
    let run = gelora(words(train, &[&model, &list, &dir.join("o")]));
    run.fails_with(&["list.jsonl: row 1", "2 labels", "--task multi-label"]);
    let chat = write(dir, "chat.jsonl", lines(&[json!({"prompt": "the lane", "completion": " there"})]));
    let of_lm = dir.join("lm");
    gelora(words("train {} --data {} --rank 1 --steps 1 --out {} -q", &[&lm(), &chat, &of_lm])).ok();
    let run = eval(&lm(), &chat, &format!("--task classification --adapter {}", of_lm.display()));
    run.fails_with(&["--task classification", "CAUSAL_LM"]);
}
