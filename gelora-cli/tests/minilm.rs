//! The program on MiniLM's real weights and 64 real sentences and pairs, against transformers and PEFT.

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use common::{assert_close, fixture, floats, gelora, logits, words};
use serde_json::{Value, json};

fn testbed(name: &str) -> PathBuf {
    let folder = std::env::var_os("GELORA_TESTBED").map(PathBuf::from);
    let path = folder.unwrap_or_else(|| fixture("../target/testbed")).join(name);
    assert!(path.exists(), "{} is missing; `cargo xtask testbed` fetches it", path.display());
    path
}

#[test]
fn rank_pools_the_hidden_states_of_transformers() {
    let dir = tempfile::tempdir().expect("a folder");
    let points = dir.path().join("points.safetensors");
    let line = "rank {} --data {} --points {} --out {} --quiet";
    let out = dir.path().join("ranks");
    gelora(words(line, &[&testbed("minilm"), &testbed("sentences.jsonl"), &points, &out])).ok();
    let (got, want) = (floats(&points), floats(&fixture("minilm.golden.safetensors")));
    assert_eq!(got.len(), 7);
    for l in 0..7 {
        let name = format!("layer_{l}");
        let every_fourth: Vec<f32> = got[&name].iter().step_by(4).copied().collect();
        assert_close(&name, &every_fourth, &want[&name], 1e-5);
    }
}

#[test]
fn eval_of_a_peft_folder_and_of_its_merged_model_give_its_logits() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (model, data, adapter) = (testbed("minilm"), testbed("sentences.jsonl"), fixture("minilm-peft"));
    let line = "eval {} --data {} --adapter {} --predictions {} --quiet";
    gelora(words(line, &[&model, &data, &adapter, &at("adapter.jsonl")])).ok();
    let want = &floats(&fixture("minilm-peft.golden.safetensors"))["logits"];
    assert_close("adapter", &logits(&at("adapter.jsonl")), want, 1e-5);

    gelora(words("merge {} --adapter {} --out {}", &[&model, &adapter, &at("merged")])).ok();
    let line = "eval {} --data {} --predictions {} --quiet";
    gelora(words(line, &[&at("merged"), &data, &at("merged.jsonl")])).ok();
    assert_close("merged", &logits(&at("merged.jsonl")), want, 1e-5);
}

#[test]
fn training_on_reviews_beats_the_majority_class() {
    let dir = tempfile::tempdir().expect("a folder");
    let line = "train {} --data {} --rank 2 --steps 60 --lr 3e-3 --out {} --json --quiet";
    let result = gelora(words(line, &[&testbed("minilm"), &testbed("reviews"), &dir.path().join("a")])).json();
    let accuracy = result["eval"]["accuracy"].as_f64().expect("an accuracy");
    assert!(accuracy > 0.68, "held-out accuracy {accuracy}");
}

/// Writes `n` pairs of a distinct review of at least 15 words and a short one of at most 6, and `repeats` more pairs of
/// a repeated first text with another second text.
fn pairs(path: &Path, n: usize, repeats: usize) {
    let text = fs::read_to_string(testbed("reviews/train.jsonl")).expect("reviews");
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON object a line"));
    let mut seen = HashSet::new();
    let reviews: Vec<String> = rows.map(|row| row["text"].as_str().expect("a text").to_owned()).collect();
    let distinct: Vec<&String> = reviews.iter().filter(|text| seen.insert(*text)).collect();
    let of_length = |words: std::ops::RangeInclusive<usize>| -> Vec<&&String> {
        distinct.iter().filter(|text| words.contains(&text.split_whitespace().count())).collect()
    };
    let (first, second) = (of_length(15..=usize::MAX), of_length(1..=6));
    assert!(first.len() >= n && second.len() >= n + repeats, "{} and {}", first.len(), second.len());
    let repeated = (0..repeats).map(|i| i * (n / repeats));
    let pair = |(row, second): (usize, &&&String)| json!({"sentence1": first[row], "sentence2": second}).to_string();
    let lines: Vec<String> = (0..n).chain(repeated).zip(&second).map(pair).collect();
    fs::write(path, lines.join("\n")).expect("a file");
}

/// Repeated first texts leave every dimension within the interval that it has without the repeats. With the repeats
/// kept, every dimension is below its interval.
#[test]
fn repeated_first_texts_do_not_change_dimensions() {
    const N: usize = 700;
    let dir = tempfile::tempdir().expect("a folder");
    let states = |repeats: usize| -> Vec<Value> {
        let data = dir.path().join(format!("{repeats}.jsonl"));
        pairs(&data, N, repeats);
        let line = format!("rank {{}} --data {{}} --out {{}} --samples {} --json --quiet --no-cache", N + repeats);
        let result = gelora(words(&line, &[&testbed("minilm"), &data, &dir.path().join("out")])).json();
        result["states"].as_array().expect("states").clone()
    };
    let number = |state: &Value, name: &str| state[name].as_f64().unwrap_or_else(|| panic!("{name}: {state}"));
    let without = states(0);
    assert_eq!(without.len(), 7);
    for repeats in [N / 10, N / 5] {
        for (without, with) in without.iter().zip(states(repeats)) {
            let [low, high] = [0, 1].map(|end| without["interval"][end].as_f64().expect("a number"));
            let (id, copies, kept) =
                (number(&with, "id"), number(&with, "near_copies"), number(&with, "id_with_near_copies"));
            let name = &with["name"];
            assert!(low < id && id < high, "{name}: {id} with {repeats} repeats, {low} to {high} without");
            assert!(copies > 0.9 * repeats as f64 && kept < low, "{name}: {copies} of {repeats}, {kept}");
        }
    }
}
