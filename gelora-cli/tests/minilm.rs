//! The program on MiniLM's real weights and 64 real sentences and pairs, against transformers and PEFT.

mod common;

use std::path::PathBuf;

use common::{assert_close, fixture, floats, gelora, logits, words};

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
