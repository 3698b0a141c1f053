//! `cargo xtask demo`: the main job on a real model and real text.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{built, cargo, root, say, shell, testbed};

pub fn run() -> Result<()> {
    let testbed = testbed::prepare()?;
    cargo(&["build", "--release", "-p", "gelora-cli"])?;
    let began = Instant::now();
    let demo = root().join("target/demo");
    let _ = fs::remove_dir_all(&demo);
    let at = |path: &Path| path.strip_prefix(root()).unwrap_or(path).display().to_string();
    let (model, reviews) = (at(&testbed.join("minilm")), at(&testbed.join("reviews")));
    let (ranks, adapter, merged) = (at(&demo.join("ranks")), at(&demo.join("adapter")), at(&demo.join("merged")));
    let ranks_file = format!("{ranks}/ranks.json");
    let gelora = built("gelora").display().to_string();

    say("\n1. Measure the intrinsic dimension of every hidden state on the reviews, and set the ranks from it.");
    shell(&gelora, &["rank", &model, "--data", &reviews, "--samples", "4000", "--out", &ranks])?;
    say("\n2. Train an adapter with these ranks, for one pass over the reviews.");
    let train =
        ["train", &model, "--data", &reviews, "--ranks", &ranks_file, "--epochs", "1", "--lr", "2e-3", "--overwrite"];
    shell(&gelora, &[&train[..], &["--out", &adapter]].concat())?;
    say("\n3. Evaluate it on reviews of films that it has not seen.");
    shell(&gelora, &["eval", &model, "--data", &reviews, "--adapter", &adapter])?;
    say("\n4. Merge it into the model; the merged model needs no adapter.");
    shell(&gelora, &["merge", &model, "--adapter", &adapter, "--out", &merged])?;
    shell(&gelora, &["eval", &merged, "--data", &reviews])?;

    let majority = majority(&testbed.join("reviews/validation.jsonl"))?;
    say(format!("\nAlways answering with the commoner class would have an accuracy of {majority:.4}."));
    say(format!("The measurement is in {ranks}, the adapter in {adapter}, the merged model in {merged}."));
    say(format!("{:.0} s in all.", began.elapsed().as_secs_f64()));
    Ok(())
}

/// Share of the most common label.
fn majority(path: &Path) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut counts = BTreeMap::<String, usize>::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line)?;
        *counts.entry(row["label"].to_string()).or_default() += 1;
    }
    let most = counts.values().max().copied().unwrap_or(0);
    Ok(most as f64 / counts.values().sum::<usize>().max(1) as f64)
}
