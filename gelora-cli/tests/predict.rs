//! `gelora predict`: the predictions of `gelora eval`, from files and from standard input, as JSON lines and as CSV.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Run, data, fixture, gelora, words};
use serde_json::{Value, json};

/// Runs `gelora` with some bytes on standard input.
fn gelora_reading(input: &[u8], line: &str, paths: &[&Path]) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gelora"))
        .args(words(line, paths))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    // A program that ends early closes the pipe.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("it ends");
    Run {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

/// Trains a classifier. Returns the model, the data folder and the adapter.
fn trained(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let (model, rows, adapter) = (fixture("tiny-bert"), data(dir), dir.join("adapter"));
    let line = "train {} --data {} --rank 2 --steps 30 --batch-size 16 --lr 1e-2 --out {} --quiet";
    gelora(words(line, &[&model, &rows, &adapter])).ok();
    (model, rows, adapter)
}

/// Asserts that predictions are those of `gelora eval --predictions`.
fn assert_agree(found: &[Value], eval: &[Value], labels: &[&str]) {
    assert_eq!(found.len(), eval.len());
    for (found, eval) in found.iter().zip(eval) {
        assert_eq!((&found["row"], &found["predicted"]), (&eval["row"], &eval["predicted"]));
        // Softmax of the logits of eval, in f64.
        let logits: Vec<f64> = eval["logits"].as_array().expect("logits").iter().filter_map(Value::as_f64).collect();
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        for (label, logit) in labels.iter().zip(&logits) {
            let share = found["probabilities"][label].as_f64().expect("a probability");
            assert!((share - logit.exp() / sum).abs() < 1e-5, "{found} {eval}");
        }
        let of_predicted = match &found["predicted"] {
            Value::String(name) => &found["probabilities"][name],
            other => &found["probabilities"][other.to_string()],
        };
        assert_eq!(&found["probability"], of_predicted);
    }
}

#[test]
fn files_and_standard_input_give_the_predictions_of_eval() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (model, rows, adapter) = trained(dir.path());
    let line = "eval {} --data {} --adapter {} --predictions {} --quiet";
    gelora(words(line, &[&model, &rows, &adapter, &at("eval.jsonl")])).ok();
    let eval = json_lines(&fs::read_to_string(at("eval.jsonl")).expect("predictions"));
    assert_eq!(eval.len(), 32);

    let run = gelora(words("predict {} --data {} --adapter {}", &[&model, &rows, &adapter])).ok();
    assert!(run.stderr.contains("the labels in \"label\" are not used"), "{}", run.stderr);
    let from_folder = json_lines(&run.stdout);
    assert_agree(&from_folder, &eval, &["no", "yes"]);
    let distinct: std::collections::HashSet<String> =
        from_folder.iter().map(|row| row["predicted"].to_string()).collect();
    assert_eq!(distinct.len(), 2, "both classes are predicted");

    let validation = fs::read(rows.join("validation.jsonl")).expect("rows");
    for options in ["", "--batch-size 5"] {
        let line = format!("predict {{}} --data - --adapter {{}} {options}");
        let run = gelora_reading(&validation, &line, &[&model, &adapter]).ok();
        assert!(run.stderr.contains("labels in \"label\" are not used"), "{}", run.stderr);
        assert_agree(&json_lines(&run.stdout), &eval, &["no", "yes"]);
    }
    // Lines of text, and a merged model without an adapter.
    let texts: String = json_lines(&String::from_utf8_lossy(&validation))
        .iter()
        .map(|row| format!("{}\n", row["text"].as_str().expect("a text")))
        .collect();
    let merged = at("merged");
    gelora(words("merge {} --adapter {} --out {}", &[&model, &adapter, &merged])).ok();
    let run = gelora_reading(texts.as_bytes(), "predict {} --data - --input text --quiet", &[&merged]).ok();
    let found = json_lines(&run.stdout);
    assert!(found.iter().zip(&eval).all(|(found, eval)| found["predicted"] == eval["predicted"]));
    assert_eq!(found.len(), 32);
    // A file for the predictions, and the summary.
    let line = "predict {} --data {} --adapter {} --out {} --json --quiet";
    let summary = gelora(words(line, &[&model, &rows, &adapter, &at("p.jsonl")])).json();
    assert_eq!((&summary["rows"], &summary["dataset"]["kept"]), (&json!(32), &json!(32)));
    assert_eq!(json_lines(&fs::read_to_string(at("p.jsonl")).expect("predictions")), from_folder);
}

#[test]
fn csv_and_json_repeat_the_texts_as_they_are() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (model, _, adapter) = trained(dir.path());
    let texts = ["a, \"quoted\" film", "two\nlines", "=1+1; ä \u{1f600}", "plain"];
    let rows: String =
        texts.iter().enumerate().map(|(i, text)| format!("{}\n", json!({"id": i, "text": text}))).collect();
    fs::write(at("rows.jsonl"), rows).expect("rows");
    let line = "predict {} --data {} --adapter {} --with-input --quiet";
    let lines = json_lines(&gelora(words(line, &[&model, &at("rows.jsonl"), &adapter])).ok().stdout);
    let repeated: Vec<&str> = lines.iter().filter_map(|row| row["input"]["text"].as_str()).collect();
    assert_eq!(repeated, texts);

    let line = format!("{line} --format csv --out {{}}");
    gelora(words(&line, &[&model, &at("rows.jsonl"), &adapter, &at("p.csv")])).ok();
    let mut table = csv::Reader::from_path(at("p.csv")).expect("a table");
    let header: Vec<String> = table.headers().expect("a header").iter().map(str::to_owned).collect();
    assert_eq!(header, ["row", "input_text", "predicted", "probability", "probability_no", "probability_yes"]);
    let records: Vec<csv::StringRecord> = table.records().collect::<Result<_, _>>().expect("records");
    assert_eq!(records.len(), texts.len());
    for ((record, line), text) in records.iter().zip(&lines).zip(texts) {
        assert_eq!(&record[0], line["row"].to_string());
        assert_eq!((&record[1], &record[2]), (text, line["predicted"].as_str().expect("a class")));
        assert_eq!(
            record[4].parse::<f32>().expect("a number"),
            line["probabilities"]["no"].as_f64().expect("one") as f32
        );
    }
    // The table is read again as data, and gives the same.
    let line = "predict {} --data {} --adapter {} --text-column input_text --quiet";
    let again = json_lines(&gelora(words(line, &[&model, &at("p.csv"), &adapter])).ok().stdout);
    assert!(again.iter().zip(&lines).all(|(again, line)| again["probability"] == line["probability"]));
}

#[test]
fn regression_gives_scores_of_pairs() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let row = |i: usize| format!("the film {}\tthe plot\t{}\n", "good ".repeat(i % 5), i % 5);
    fs::write(at("train.tsv"), format!("sentence1\tsentence2\tscore\n{}", (0..40).map(row).collect::<String>()))
        .expect("rows");
    let line = "train {} --data {} --rank 2 --steps 10 --lr 1e-2 --out {} --quiet";
    gelora(words(line, &[&fixture("tiny-bert"), &at("train.tsv"), &at("a")])).ok();
    let paths = [fixture("tiny-bert"), at("train.tsv"), at("a")];
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let eval = at("eval.jsonl");
    let line = format!("eval {{}} --data {{}} --adapter {{}} --predictions {} --quiet", eval.display());
    gelora(words(&line, &paths)).ok();
    let eval = json_lines(&fs::read_to_string(eval).expect("predictions"));
    let found =
        json_lines(&gelora(words("predict {} --data {} --adapter {} --quiet --with-input", &paths)).ok().stdout);
    assert_eq!(found.len(), 40);
    for (found, eval) in found.iter().zip(&eval) {
        assert_eq!(found["score"].as_f64().expect("a score") as f32, eval["score"].as_f64().expect("a score") as f32);
        assert_eq!(found["input"]["sentence2"], "the plot");
    }
    let table = gelora(words("predict {} --data {} --adapter {} --quiet --format csv", &paths)).ok().stdout;
    assert!(table.starts_with("row,score\n1,"), "{table}");
}

#[test]
fn classes_without_names_are_numbers() {
    let dir = tempfile::tempdir().expect("a folder");
    let rows = dir.path().join("rows.jsonl");
    fs::write(&rows, "{\"text\": \"the film\"}\n").expect("rows");
    let line = "predict {} --data {} --adapter {} --quiet";
    let found = gelora(words(line, &[&fixture("tiny-bert"), &rows, &fixture("tiny-bert-peft")])).json();
    assert!(found["predicted"].as_i64().is_some_and(|class| (0..3).contains(&class)), "{found}");
    let names: Vec<&String> = found["probabilities"].as_object().expect("an object").keys().collect();
    assert_eq!(names, ["0", "1", "2"]);
}

#[test]
fn bad_rows_are_named_and_earlier_answers_stay() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (model, _, adapter) = trained(dir.path());
    let good = |i: usize| format!("{{\"text\": \"the film {i}\"}}\n");
    let rows = format!("{}{}{}{{\"text\": \n{}", good(1), good(2), good(3), good(5));
    let line = "predict {} --data - --adapter {} --batch-size 2";
    let run = gelora_reading(rows.as_bytes(), line, &[&model, &adapter]);
    run.fails_with(&["standard input", "line 4", "not valid JSON"]);
    assert_eq!(json_lines(&run.stdout).len(), 3);
    let run = gelora_reading(rows.as_bytes(), &format!("{line} --skip-bad-rows"), &[&model, &adapter]).ok();
    let numbers: Vec<Value> = json_lines(&run.stdout).iter().map(|row| row["row"].clone()).collect();
    assert_eq!(numbers, [json!(1), json!(2), json!(3), json!(5)]);
    assert!(run.stderr.contains("1 rows left out: bad (--skip-bad-rows, the first: standard input"), "{}", run.stderr);
    // A file is read before the model runs.
    fs::write(at("rows.jsonl"), &rows).expect("rows");
    let line = "predict {} --data {} --adapter {}";
    let run = gelora(words(line, &[&model, &at("rows.jsonl"), &adapter]));
    run.fails_with(&["rows.jsonl", "line 4"]);
    assert_eq!(run.stdout, "");
    let run = gelora(words(&format!("{line} --skip-bad-rows"), &[&model, &at("rows.jsonl"), &adapter])).ok();
    assert!(run.stderr.contains("1 of 5 left out"), "{}", run.stderr);
    assert_eq!(json_lines(&run.stdout).last().map(|row| row["row"].clone()), Some(json!(5)));
}

#[test]
fn no_rows_give_no_predictions() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, _, adapter) = trained(dir.path());
    let run = gelora_reading(b"", "predict {} --data - --adapter {}", &[&model, &adapter]).ok();
    assert_eq!(run.stdout, "");
    assert!(run.stderr.contains("0 rows"), "{}", run.stderr);
    let run = gelora_reading(b"\n", "predict {} --data - --adapter {} --format csv --quiet", &[&model, &adapter]).ok();
    assert_eq!(run.stdout, "row,predicted,probability,probability_no,probability_yes\n");
    let empty = dir.path().join("empty.jsonl");
    fs::write(&empty, "").expect("a file");
    gelora(words("predict {} --data {} --adapter {}", &[&model, &empty, &adapter])).fails_with(&["empty.jsonl"]);
}

/// A batch is answered as soon as it is full, and a reader that leaves ends the run quietly.
#[test]
fn batches_are_answered_as_they_come_and_a_closed_pipe_is_quiet() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, _, adapter) = trained(dir.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_gelora"))
        .args(words("predict {} --data - --input text --adapter {} --batch-size 2 --quiet", &[&model, &adapter]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    for row in [2, 4] {
        stdin.write_all(b"the film\nthe plot\n").expect("a pipe");
        stdin.flush().expect("a pipe");
        // This returns only because the batch is answered while standard input is open.
        for _ in 0..2 {
            line.clear();
            stdout.read_line(&mut line).expect("a line");
        }
        assert!(line.starts_with(&format!("{{\"row\":{row},")), "{line}");
    }
    drop(stdout);
    let endless = "the film\n".repeat(100_000);
    let _ = stdin.write_all(endless.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn options_and_models_that_do_not_fit_are_errors() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, rows, adapter) = trained(dir.path());
    let fails = |options: &str, said: &[&str]| {
        let line = format!("predict {{}} --data {{}} --adapter {{}} {options}");
        gelora(words(&line, &[&model, &rows, &adapter])).fails_with(said);
    };
    fails("--json", &["--json", "--out"]);
    fails("--input text", &["--input", "standard input"]);
    let stdin_fails = |options: &str, said: &[&str]| {
        let line = format!("predict {{}} --data - --adapter {{}} {options}");
        gelora_reading(b"{\"text\": \"a\"}\n", &line, &[&model, &adapter]).fails_with(said);
    };
    stdin_fails("--split test", &["--split"]);
    stdin_fails("--delimiter ;", &["--delimiter"]);
    stdin_fails("--input text --text-column a", &["--text-column"]);
    stdin_fails("--text-column other", &["standard input", "no column \"other\"", "text"]);
    let over = format!("--out {}", rows.join("validation.jsonl").display());
    fails(&over, &["--out would overwrite"]);

    let lm = fixture("gguf/tiny.gguf");
    let line = "predict {} --data {}";
    gelora(words(line, &[&lm, &rows])).fails_with(&["tiny.gguf", "language model", "gelora generate"]);
    let out = dir.path().join("lm");
    let answers = dir.path().join("answers.jsonl");
    let row = |i: usize| format!("{}\n", json!({"prompt": format!("Say {i}"), "completion": "the lane"}));
    fs::write(&answers, (0..8).map(row).collect::<String>()).expect("rows");
    let train = "train {} --data {} --rank 1 --steps 1 --out {} --quiet";
    gelora(words(train, &[&lm, &answers, &out])).ok();
    let line = "predict {} --data {} --adapter {}";
    gelora(words(line, &[&lm, &rows, &out])).fails_with(&["language model", "gelora generate"]);
}
