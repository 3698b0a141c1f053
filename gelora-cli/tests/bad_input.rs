//! Bad input gives one message that names file, row or option, exit code 1 (2 for usage), and no partial output.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Run, fixture, gelora, words};
use serde_json::{Value, json};

/// Returns a copy of the tiny model with one file changed.
fn model(dir: &Path, change: impl FnOnce(&Path)) -> PathBuf {
    let copy = dir.join("model");
    fs::create_dir_all(&copy).expect("a folder");
    for entry in fs::read_dir(fixture("tiny-bert")).expect("the fixture").flatten() {
        fs::copy(entry.path(), copy.join(entry.file_name())).expect("a copy");
    }
    change(&copy);
    copy
}

fn rows(dir: &Path, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join("rows.jsonl");
    fs::write(&path, text).expect("a data file");
    path
}

const GOOD: &str = r#"{"text": "the film was good", "label": 0}
{"text": "the movie is not like the story", "label": 1}
{"text": "a film and a movie", "label": 0}
{"text": "the plot", "label": 1}
"#;

fn rank(model: &Path, data: &Path, dir: &Path) -> Run {
    let out = dir.join("out");
    let run = gelora(words("rank {} --data {} --out {}", &[model, data, &out]));
    assert!(run.code == Some(0) || !out.join("ranks.json").exists(), "half-written output");
    run
}

fn train(model: &Path, data: &Path, dir: &Path, options: &str) -> Run {
    let out = dir.join("out");
    let line = format!("train {{}} --data {{}} --rank 1 --steps 1 --out {{}} {options}");
    let run = gelora(words(&line, &[model, data, &out]));
    assert!(run.code == Some(0) || !out.join("adapter_config.json").exists(), "half-written output");
    run
}

#[test]
fn data_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let model = fixture("tiny-bert");
    rank(&model, &dir.join("none.jsonl"), dir).fails_with(&["none.jsonl"]);
    rank(&model, &rows(dir, ""), dir).fails_with(&["rows.jsonl"]);
    rank(&model, &rows(dir, "{\"text\": \"a\"}\n{\"text\": \n"), dir).fails_with(&["rows.jsonl", "line 2"]);
    rank(&model, &rows(dir, "{\"text\": \"a\"}\n{\"other\": 1}\n"), dir).fails_with(&["rows.jsonl", "row 2"]);
    rank(&model, &rows(dir, b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n"), dir).fails_with(&[
        "rows.jsonl",
        "line 2",
        "UTF-8",
    ]);
    train(&model, &rows(dir, "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\"}\n"), dir, "")
        .fails_with(&["rows.jsonl", "row 2"]);
    train(&model, &rows(dir, "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\", \"label\": 1}\n"), dir, "")
        .fails_with(&["rows.jsonl", "two classes"]);
    let unseen = dir.join("unseen.jsonl");
    fs::write(&unseen, "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\", \"label\": 7}\n").expect("a data file");
    train(&model, &rows(dir, GOOD), dir, &format!("--eval-data {}", unseen.display())).fails_with(&[
        "unseen.jsonl",
        "row 2",
        "7",
    ]);
    let same = "{\"text\": \"the film\"}\n".repeat(5) + "{\"text\": \"the movie\"}\n";
    rank(&model, &rows(dir, same), dir).fails_with(&["distinct"]);
}

#[test]
fn model_folders() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let data = rows(dir, GOOD);
    let with = |change: &dyn Fn(&Path)| rank(&model(dir, change), &data, dir);
    let config = |change: &dyn Fn(&mut Value)| {
        with(&|m| {
            let path = m.join("config.json");
            let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("config")).expect("JSON");
            change(&mut json);
            fs::write(&path, json.to_string()).expect("config");
        })
    };
    rank(&dir.join("none"), &data, dir).fails_with(&["none", "no such folder"]);
    with(&|m| fs::remove_file(m.join("config.json")).expect("it was there")).fails_with(&["config.json"]);
    with(&|m| fs::write(m.join("config.json"), "{").expect("config")).fails_with(&["config.json", "JSON"]);
    config(&|c| drop(c.as_object_mut().map(|c| c.remove("hidden_size")))).fails_with(&["config.json", "hidden_size"]);
    config(&|c| c["model_type"] = json!("mamba")).fails_with(&["config.json", "mamba", "bert"]);
    config(&|c| c["position_embedding_type"] = json!("relative_key"))
        .fails_with(&["position_embedding_type", "relative_key"]);
    config(&|c| c["hidden_act"] = json!("mish")).fails_with(&["hidden_act", "mish"]);
    config(&|c| c["intermediate_size"] = json!(65)).fails_with(&["intermediate.dense.weight", "[64, 32]", "[65, 32]"]);
    config(&|c| c["num_hidden_layers"] = json!(4)).fails_with(&["encoder.layer.3", "missing"]);
    with(&|m| ["tokenizer.json", "vocab.txt"].iter().for_each(|f| fs::remove_file(m.join(f)).expect("it was there")))
        .fails_with(&["tokenizer.json"]);
    with(&|m| {
        let path = m.join("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("a tokenizer")).expect("JSON");
        let vocabulary = json["model"]["vocab"].as_object_mut().expect("a vocabulary");
        vocabulary.insert("another".into(), vocabulary.len().into());
        fs::write(&path, json.to_string()).expect("a tokenizer");
    })
    .fails_with(&["the tokenizer has 70 tokens", "vocab_size is 69"]);
    with(&|m| fs::remove_file(m.join("model.safetensors")).expect("it was there")).fails_with(&["model.safetensors"]);
    with(&|m| {
        let path = m.join("model.safetensors");
        let bytes = fs::read(&path).expect("weights");
        fs::write(&path, &bytes[..bytes.len() / 2]).expect("weights");
    })
    .fails_with(&["model.safetensors"]);
    rank(&model(dir, |_| ()), &data, dir).ok();
    let image = |m: &Path| {
        let path = m.join("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("a tokenizer")).expect("JSON");
        let added = json["added_tokens"].as_array_mut().expect("added tokens");
        let mut image = added[0].clone();
        (image["id"], image["content"]) = (json!(69), json!("<image>"));
        added.push(image);
        fs::write(&path, json.to_string()).expect("a tokenizer");
    };
    with(&image).ok(); // a special token without an embedding, as Gemma 3 has, until a row has it
    let other = tempfile::tempdir().expect("a folder");
    let with_image = rows(other.path(), format!("{GOOD}{}", r#"{"text": "a <image> of it", "label": 1}"#));
    rank(&model(dir, image), &with_image, other.path()).fails_with(&[
        "rows.jsonl",
        "5",
        "\"<image>\" has the id 69",
        "69",
    ]);
    with(&|m| fs::remove_file(m.join("tokenizer.json")).expect("it was there")).ok(); // it has a vocab.txt
}

#[test]
fn options_and_output_folders() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let (model, data) = (fixture("tiny-bert"), rows(dir, GOOD));
    let run = |line: &str, out: &Path| gelora(words(line, &[&model, &data, out]));
    let out = dir.join("fresh");
    run("train {} --data {} --rank 33 --steps 1 --out {}", &out).fails_with(&["rank", "33", "32"]);
    run("train {} --data {} --rank 2 --target-modules nothing --out {}", &out)
        .fails_with(&["--target-modules", "nothing"]);
    assert_eq!(run("rank {} --data {} --samples many --out {}", &out).code, Some(2));
    assert_eq!(run("rank {} --data {} --no-such-option --out {}", &out).code, Some(2));
    assert_eq!(gelora(["train"]).code, Some(2));
    for option in ["--lr 0", "--warmup 1.5", "--rank 0", "--epochs nan", "--samples 9", "--ranks r.json"] {
        let line = format!("train {{}} --data {{}} --rank 2 --steps 1 --out {{}} {option}");
        assert_eq!(run(&line, &out).code, Some(2), "{option}");
    }
    for option in ["--confidence 1.5", "--alpha-ratio nan", "--samples 2", "--min-rank 0"] {
        assert_eq!(run(&format!("rank {{}} --data {{}} --out {{}} {option}"), &out).code, Some(2), "{option}");
    }
    run("rank {} --data {} --min-rank 5 --max-rank 2 --out {}", &out).fails_with(&["min 5 and max 2"]);
    assert!(!out.exists(), "a command that failed leaves no folder");

    let taken = dir.join("taken");
    fs::create_dir_all(&taken).expect("a folder");
    fs::write(taken.join("thesis.tex"), "precious").expect("a file");
    run("rank {} --data {} --out {}", &taken).fails_with(&["taken", "thesis.tex", "--out"]);
    run("train {} --data {} --rank 1 --steps 1 --out {}", &taken).fails_with(&["taken", "thesis.tex"]);
    assert_eq!(fs::read_dir(&taken).expect("a folder").count(), 1);

    let other = dir.join("ranks.json");
    fs::write(&other, "{\"model\": 3}").expect("a file");
    let line = format!("train {{}} --data {{}} --ranks {} --steps 1 --out {{}}", other.display());
    run(&line, &out).fails_with(&["ranks.json"]);
}

#[test]
fn merges_never_overwrite_their_inputs() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, adapter) = (model(dir.path(), |_| ()), fixture("tiny-bert-peft"));
    let before = fs::read(model.join("model.safetensors")).expect("weights");
    gelora(words("merge {} --adapter {} --out {}", &[&model, &adapter, &model])).fails_with(&["model", "--out"]);
    let data = rows(dir.path(), GOOD);
    let line = "eval {} --data {} --adapter {} --predictions {}";
    gelora(words(line, &[&model, &data, &adapter, &data])).fails_with(&["rows.jsonl", "--predictions"]);
    let line = "rank {} --data {} --points {} --out {}";
    let weights = model.join("model.safetensors");
    gelora(words(line, &[&model, &data, &weights, &dir.path().join("r")]))
        .fails_with(&["model.safetensors", "--points"]);
    assert_eq!(fs::read_to_string(&data).expect("data"), GOOD);
    assert_eq!(fs::read(model.join("model.safetensors")).expect("weights"), before);
}

#[test]
fn points() {
    let dir = tempfile::tempdir().expect("a folder");
    let csv = |text: &str| {
        let path = dir.path().join("points.csv");
        fs::write(&path, text).expect("points");
        gelora(words("id {}", &[&path]))
    };
    csv("1,2\n3,4\n").fails_with(&["points.csv", "3"]);
    csv("1,2\n1,2\n1,2\n1,2\n").fails_with(&["points.csv", "identical"]);
    csv("1,2\n3,4\nNaN,1\n0,1\n").fails_with(&["points.csv"]);
    csv("1,2\n3,x\n5,6\n").fails_with(&["points.csv", "x"]);
    gelora(words("id {}", &[&dir.path().join("none.npy")])).fails_with(&["none.npy"]);
    assert_eq!(csv("0,1\n2,3\n5,5\n9,1\n4,4\n").code, Some(0));
}

#[test]
fn unknown_vector_instructions() {
    let run =
        std::process::Command::new(env!("CARGO_BIN_EXE_gelora")).arg("devices").env("GELORA_CPU", "sse9").output();
    let run = run.expect("the program starts");
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.code() == Some(2) && stderr.contains("GELORA_CPU = sse9: expected portable"), "{stderr}");
}

#[test]
fn missing_devices() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("points.csv");
    fs::write(&path, "0,1\n2,3\n5,5\n9,1\n4,4\n").expect("points");
    let run = gelora(words("id {} --device cuda", &[&path]));
    if run.code != Some(0) {
        run.fails_with(&["cuda"]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_previous_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data) = (fixture("tiny-bert"), rows(dir.path(), GOOD));
    let out = dir.path().join("out");
    let line = "rank {} --data {} --out {} --quiet";
    gelora(words(line, &[&model, &data, &out])).ok();
    let before = fs::read(out.join("ranks.json")).expect("ranks.json");
    // A limit on the size of files comes closest to a full disk without mounting one.
    let limited = std::process::Command::new("bash")
        .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "limited", env!("CARGO_BIN_EXE_gelora")])
        .args(words(line, &[&model, &data, &out]))
        .env("GELORA_CACHE", dir.path().join("cache"))
        .output()
        .expect("bash starts");
    assert_eq!(limited.status.code(), Some(1), "{}", String::from_utf8_lossy(&limited.stderr));
    assert_eq!(fs::read(out.join("ranks.json")).expect("ranks.json"), before);
    assert_eq!(fs::read_dir(&out).expect("a folder").count(), 4, "no temporary file stays");
}
