//! Records of a training: metrics.jsonl, event files of TensorBoard, report.html and README.md.

mod common;
#[path = "common/events.rs"]
mod events;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{data, fixture, gelora, words};
use serde_json::{Value, json};

fn lines(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).expect("the log");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

/// Scalars of metrics.jsonl, under the names of the event files.
fn logged(folder: &Path) -> Vec<(u64, String, f32)> {
    let mut all = Vec::new();
    for line in lines(folder) {
        let step = line["step"].as_u64().expect("a step");
        let number = |value: &Value| value.as_f64().expect("a number") as f32;
        for (tag, key) in
            [("loss", "loss"), ("lr", "lr"), ("grad_norm", "grad_norm"), ("tokens_per_second", "tokens_per_s")]
        {
            if let Some(value) = line.get(key) {
                all.push((step, format!("train/{tag}"), number(value)));
            }
        }
        for (name, value) in line["eval"].as_object().into_iter().flatten() {
            all.push((step, format!("eval/{name}"), number(value)));
        }
    }
    all
}

fn sorted(mut scalars: Vec<(u64, String, f32)>) -> Vec<(u64, String, f32)> {
    scalars.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    scalars
}

#[test]
fn every_line_has_its_values_and_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("a");
    let line = "train {} --data {} --rank 2 --steps 12 --batch-size 16 --quiet --out {}";
    gelora(words(line, &[&fixture("tiny-bert"), &data(dir.path()), &out])).ok();
    let lines = lines(&out);
    let steps: Vec<&Value> = lines.iter().filter(|line| line.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 12);
    for step in steps {
        for key in ["lr", "grad_norm", "loss", "tokens_per_s", "ms"] {
            assert!(step[key].as_f64().is_some_and(f64::is_finite), "{key} in {step}");
        }
    }
    let evaluations: Vec<&Value> = lines.iter().filter(|line| line.get("eval").is_some()).collect();
    assert_eq!(evaluations.len(), 2);
    let last = lines.last().expect("a line");
    assert_eq!((&last["step"], &last["run"]["first_step"]), (&json!(12), &json!(1)));
    assert!(last["run"]["seconds"].as_f64() > Some(0.0));
    // The program alone is larger than a megabyte.
    let of_memory = |value: &Value| value["peak_memory_bytes"].as_u64();
    if cfg!(target_os = "linux") {
        let memory: Vec<Option<u64>> =
            evaluations.iter().map(|line| of_memory(line)).chain([of_memory(&last["run"])]).collect();
        assert!(memory.is_sorted() && memory[0] > Some(1 << 20), "{memory:?}");
    } else {
        assert_eq!(of_memory(&last["run"]), None);
    }
}

#[test]
fn event_files_hold_what_the_log_holds() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data, out) = (fixture("tiny-bert"), data(dir.path()), dir.path().join("a"));
    let line = "train {} --data {} --rank 2 --steps 8 --batch-size 16 --tensorboard --quiet --out {}";
    gelora(words(line, &[&model, &data, &out])).ok();
    assert_eq!(events::files(&out).len(), 1);
    let events = events::read(&events::files(&out)[0]);
    assert_eq!(events[0].version.as_deref(), Some("brain.Event:2"));
    assert!(events.iter().all(|event| event.wall_time > 1.7e9 && !event.starts));
    let scalars = events::scalars(&out);
    // 8 steps of 4 values, and 2 evaluations (after the epoch of 6 steps and at the end) of 3 metrics.
    assert_eq!(scalars.len(), 8 * 4 + 2 * 3);
    assert_eq!(sorted(scalars), sorted(logged(&out)));
    // A training anew replaces the files, with or without new ones.
    gelora(words(&format!("{line} --overwrite --seed 5"), &[&model, &data, &out])).ok();
    assert_eq!(events::files(&out).len(), 1);
    assert_eq!(sorted(events::scalars(&out)), sorted(logged(&out)));
    let without = format!("{} --overwrite", line.replace("--tensorboard", ""));
    gelora(words(&without, &[&model, &data, &out])).ok();
    assert!(events::files(&out).is_empty());
}

#[test]
fn a_resumed_training_adds_an_event_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data, out) = (fixture("tiny-bert"), data(dir.path()), dir.path().join("a"));
    let line =
        "train {} --data {} --rank 2 --steps 9 --batch-size 16 --checkpoint-every 5 --tensorboard --quiet --out {}";
    // A folder in the place of the adapter: the training fails after its last step, and its checkpoint is of step 5.
    fs::create_dir_all(out.join("adapter_model.safetensors")).expect("a folder in the way");
    assert_eq!(gelora(words(line, &[&model, &data, &out])).code, Some(1));
    let before = events::scalars(&out);
    assert_eq!(before.iter().map(|(step, ..)| *step).max(), Some(9));
    fs::remove_dir(out.join("adapter_model.safetensors")).expect("it is empty");
    gelora(words(&format!("{line} --resume"), &[&model, &data, &out])).ok();
    let files = events::files(&out);
    assert_eq!(files.len(), 2);
    let second = events::read(&files[1]);
    assert!(second[1].starts && second[1].step == 6, "{:?}", second[1]);
    assert!(second[2..].iter().all(|event| event.step >= 6));
    assert_eq!(sorted(events::scalars(&out)), sorted(logged(&out)));
}

/// Runs the commands of a card's shell block, each with a shell. Returns what they wrote.
fn run_commands(card: &Path, cwd: &Path) -> Vec<String> {
    let text = fs::read_to_string(card).expect("the card");
    let block =
        text.split("With gelora:\n\n```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    let program = Path::new(env!("CARGO_BIN_EXE_gelora"));
    let path = format!("{}:{}", program.parent().expect("a folder").display(), std::env::var("PATH").expect("a PATH"));
    let run = |line: &str| {
        let output = Command::new("sh").arg("-c").arg(line).current_dir(cwd).env("PATH", &path).output().expect("sh");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    block.lines().map(run).collect()
}

/// Runs `gelora` in a folder, so that paths are as a user types them.
fn gelora_in(cwd: &Path, arguments: &[&str]) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_gelora")).args(arguments).current_dir(cwd).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(unix)]
#[test]
fn the_commands_of_a_card_run_as_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let cwd = dir.path();
    data(cwd);
    // Names with spaces, quotes and Markdown.
    fs::rename(cwd.join("data"), cwd.join("it's *data*")).expect("a rename");
    let model = fixture("tiny-bert").canonicalize().expect("the fixture").display().to_string();
    let train = ["train", &model, "--data", "it's *data*", "--steps", "8", "--out", "runs/my adapter", "--quiet"];
    gelora_in(cwd, &[&train[..], &["--samples", "60", "--lr", "0.01"]].concat());
    let card = cwd.join("runs/my adapter/README.md");
    let text = fs::read_to_string(&card).expect("the card");
    let ranks: Value =
        serde_json::from_slice(&fs::read(cwd.join("runs/my adapter/ranks.json")).expect("ranks")).expect("JSON");
    let [low, high] = [0, 1].map(|end| ranks["states"][1]["interval"][end].as_f64().expect("a number"));
    let (id, rank) = (ranks["states"][1]["id"].as_f64().expect("a number"), &ranks["layers"][0]["rank"]);
    let row = format!("| layer 0 | {id:.2} | {low:.2} to {high:.2} |");
    assert!(text.lines().any(|line| line.starts_with(&row) && line.ends_with(&format!("| {rank} |"))), "{row}: {text}");
    for part in ["classification, 2 classes: no, yes", "on 96 rows", "it's \\*data\\*", "after step 8 of 8"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let written = run_commands(&card, cwd);
    assert_eq!(written.len(), 3);
    assert!(written[0].contains("accuracy"), "{}", written[0]);
    assert_eq!(written[1].lines().count(), 32);
    assert!(cwd.join("runs/my adapter-merged/model.safetensors").is_file());
    // The metrics of the card are those that `gelora eval` finds.
    let accuracy = written[0].lines().find(|line| line.contains("accuracy")).and_then(|line| line.split('|').nth(1));
    let accuracy = accuracy.expect("a value").trim();
    assert!(text.contains(&format!("| accuracy | {accuracy} |")), "{accuracy} in {text}");
}

#[cfg(unix)]
#[test]
fn the_commands_of_a_language_model_s_card_run_as_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let cwd = dir.path();
    let row = |i: usize| json!({"instruction": format!("Say {i}"), "output": format!("the <b> {} lane", i * i)});
    fs::write(cwd.join("rows.jsonl"), (0..24).map(|i| format!("{}\n", row(i))).collect::<String>()).expect("rows");
    let model = fixture("gguf/tiny.gguf").canonicalize().expect("the fixture").display().to_string();
    let data = ["--data", "rows.jsonl", "--eval-data", "rows.jsonl"];
    let train = ["train", &model, "--rank", "2", "--steps", "4", "--batch-size", "4", "--out", "lm", "--quiet"];
    gelora_in(cwd, &[&train[..], &data].concat());
    let written = run_commands(&cwd.join("lm/README.md"), cwd);
    assert!(written[0].contains("perplexity"), "{}", written[0]);
    assert!(cwd.join("lm-merged/config.json").is_file());
    let page = fs::read_to_string(cwd.join("lm/report.html")).expect("the report");
    assert!(page.contains("Highest losses") && page.contains("among 8 of 24 held-out rows"), "{page}");
    assert!(page.contains("### Instruction: Say") && page.contains("the &lt;b&gt;"), "{page}");
}

#[test]
fn the_report_has_the_errors_and_runs_into_the_same_folder_are_accepted() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data, out) = (fixture("tiny-bert"), data(dir.path()), dir.path().join("a"));
    let line = "train {} --data {} --rank 2 --steps 3 --batch-size 16 --json --quiet --out {}";
    let trained = gelora(words(line, &[&model, &data, &out])).json();
    let accuracy = trained["eval"]["accuracy"].as_f64().expect("an accuracy");
    let page = fs::read_to_string(out.join("report.html")).expect("the report");
    let right = (accuracy * 32.0).round() as usize;
    assert!(page.contains(&format!("{right} of 32 held-out rows are right after step 3")), "{page}");
    assert!(page.contains(&format!("Held-out accuracy {accuracy:.4} after step 3")), "{page}");
    assert!(!page.contains("<script") && !page.contains("http"), "{page}");
    gelora(words(&format!("{line} --overwrite"), &[&model, &data, &out])).ok();

    // A card of someone else is not replaced.
    let other = dir.path().join("other");
    fs::create_dir(&other).expect("a folder");
    fs::write(other.join("README.md"), "mine").expect("a file");
    gelora(words(line, &[&model, &data, &other])).fails_with(&["holds a README.md", "--out"]);
    assert_eq!(fs::read_to_string(other.join("README.md")).expect("the file"), "mine");
}
