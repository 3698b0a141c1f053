//! Runs the built program and reads what it wrote.
#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::print_stdout)] // failing tests print differences

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;
use serde_json::{Value, json};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
}

/// Writes a folder with train and validation files. The label says whether a sentence ends with a certain word.
pub fn data(dir: &Path) -> PathBuf {
    let folder = dir.join("data");
    std::fs::create_dir_all(&folder).expect("a folder");
    let vocabulary: Vec<String> = std::fs::read_to_string(fixture("tiny-bert/vocab.txt"))
        .expect("the vocabulary")
        .lines()
        .map(Into::into)
        .collect();
    let words: Vec<&String> = vocabulary.iter().filter(|w| w.len() > 2 && w.chars().all(char::is_alphabetic)).collect();
    let (mark, rest) = words.split_first().expect("the vocabulary has words");
    for (name, rows, offset) in [("train.jsonl", 96, 0), ("validation.jsonl", 32, 7)] {
        let mut text = String::new();
        for i in 0..rows {
            let pick = |k: usize| rest[(i * 7 + k * 3 + offset) % rest.len()].as_str();
            let marked = i % 2 == 0;
            let last = if marked { mark.as_str() } else { pick(4) };
            let sentence = format!("{} {} {} {last}", pick(0), pick(1), pick(2));
            text.push_str(&format!("{}\n", json!({"text": sentence, "label": if marked { "yes" } else { "no" }})));
        }
        std::fs::write(folder.join(name), text).expect("a data file");
    }
    folder
}

/// Output of a run of the program.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    pub fn json(self) -> Value {
        let run = self.ok();
        serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}", run.stdout))
    }

    /// Asserts that the run failed with exit code 1 and one line that has all of these words.
    pub fn fails_with(&self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{}{}", self.stdout, self.stderr);
        let errors: Vec<&str> = self.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        for word in words {
            assert!(errors[0].contains(word), "no {word:?} in {:?}", errors[0]);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

/// Runs `gelora` with these arguments.
pub fn gelora<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    gelora_with(args, &[])
}

/// Runs `gelora` with these arguments and environment variables.
pub fn gelora_with<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>, env: &[(&str, &str)]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_gelora"))
        .args(args)
        .envs(env.iter().copied())
        .env("GELORA_CACHE", std::env::temp_dir().join("gelora-tests")) // separate from the user's cache
        .env("NODEVICE_SELECT", "1") // turns off a Vulkan layer of Mesa that writes to stderr without a desktop
        .output()
        .expect("the program starts");
    Run {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Splits a line into arguments, so that a call reads like a command line. `{}` stands for the next path.
pub fn words(line: &str, paths: &[&Path]) -> Vec<String> {
    let mut paths = paths.iter();
    let path = |word: &str, paths: &mut std::slice::Iter<'_, &Path>| match word {
        "{}" => paths.next().expect("a path for every {}").display().to_string(),
        word => word.to_string(),
    };
    line.split_whitespace().map(|word| path(word, &mut paths)).collect()
}

/// Returns the checkpoints in the output folder of a training, the one with the fewest steps first.
pub fn checkpoints(out: &Path) -> Vec<PathBuf> {
    let steps = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<usize>().ok();
    let entries = std::fs::read_dir(out.join("checkpoint")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<(usize, PathBuf)> = entries.filter_map(|path| Some((steps(&path)?, path))).collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Returns the lines of a training's log, without times and memory.
pub fn log_of(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).expect("the log");
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for time in ["ms", "tokens_per_s", "peak_memory_bytes"] {
            line.as_object_mut().expect("an object").remove(time);
        }
        line
    };
    // A run leaves a line with its time.
    text.lines().map(line).filter(|line| line.get("run").is_none()).collect()
}

/// Returns the floats of every tensor of a file.
pub fn floats(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let floats = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    file.tensors().into_iter().map(|(name, t)| (name, floats(t.data()))).collect()
}

/// Returns the logits of a predictions file, row after row.
pub fn logits(path: &Path) -> Vec<f32> {
    let text = std::fs::read_to_string(path).expect("predictions");
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON object a line"));
    let mut all = Vec::new();
    for (i, row) in rows.enumerate() {
        assert_eq!(row["row"], i + 1);
        all.extend(row["logits"].as_array().expect("logits").iter().map(|v| v.as_f64().expect("a number") as f32));
    }
    all
}

pub fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    println!("{what}: largest difference {worst:.1e}");
    assert!(worst <= tolerance, "{what}: largest difference {worst}, at most {tolerance}");
}
