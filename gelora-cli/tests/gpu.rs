//! The program on a GPU, software or not, gives what it gives on the CPU. Without an adapter there is nothing to compare.
#![cfg(feature = "wgpu")]
#![allow(clippy::print_stdout)] // that nothing was compared must be seen

mod common;

use std::fs;
use std::path::Path;

use common::{assert_close, data, fixture, floats, gelora, logits, words};
use serde_json::Value;

fn there_is_an_adapter() -> bool {
    let devices = gelora(["devices", "--json"]).json();
    let found = devices.as_array().expect("a list").iter().any(|d| d["device"] == "wgpu" && d["available"] == true);
    if !found {
        println!("skipped: no wgpu adapter");
    }
    found
}

/// A number of every step of a log.
fn column(log: &Path, name: &str) -> Vec<f32> {
    let text = fs::read_to_string(log).expect("the log");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON object a line"));
    lines.filter_map(|line| line[name].as_f64()).map(|v| v as f32).collect()
}

#[test]
fn ten_steps_have_the_losses_of_the_cpu() {
    if !there_is_an_adapter() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data) = (fixture("tiny-bert"), data(dir.path()));
    let train = |device: &str| {
        let line = format!(
            "train {{}} --data {{}} --out {{}} --rank 4 --steps 10 --batch-size 16 --accumulate 2 --lora-dropout 0.1 --lr 1e-2 \
             --clip 0.5 --target-modules all-linear --device {device} --quiet"
        );
        gelora(words(&line, &[&model, &data, &dir.path().join(device)])).ok();
    };
    train("cpu");
    train("wgpu");
    let log = |device: &str| dir.path().join(device).join("metrics.jsonl");
    let losses = column(&log("cpu"), "loss");
    assert_eq!(losses.len(), 10);
    assert_close("losses", &column(&log("wgpu"), "loss"), &losses, 1e-4);
    assert_close("norms", &column(&log("wgpu"), "grad_norm"), &column(&log("cpu"), "grad_norm"), 1e-3);
    let adapter = |device: &str| floats(&dir.path().join(device).join("adapter_model.safetensors"));
    let (on_gpu, on_cpu) = (adapter("wgpu"), adapter("cpu"));
    assert_eq!(on_gpu.keys().collect::<Vec<_>>(), on_cpu.keys().collect::<Vec<_>>());
    for (name, want) in &on_cpu {
        assert_close(name, &on_gpu[name], want, 2e-3);
    }
    let predict = |device: &str| {
        let path = dir.path().join(format!("{device}.jsonl"));
        let line = format!("eval {{}} --data {{}} --adapter {{}} --predictions {{}} --device {device} --quiet");
        gelora(words(&line, &[&model, &data, &dir.path().join("cpu"), &path])).ok();
        logits(&path)
    };
    assert_close("logits", &predict("wgpu"), &predict("cpu"), 1e-4);
}

#[test]
fn ranks_are_those_of_the_cpu() {
    if !there_is_an_adapter() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data) = (fixture("tiny-bert"), data(dir.path()));
    let rank = |device: &str, pool: &str| {
        let line = format!("rank {{}} --data {{}} --out {{}} --pool {pool} --device {device} --json --quiet");
        gelora(words(&line, &[&model, &data, &dir.path().join(device)])).json()
    };
    for pool in ["mean", "token"] {
        let (on_gpu, on_cpu) = (rank("wgpu", pool), rank("cpu", pool));
        assert_eq!(on_gpu["modules"], on_cpu["modules"]);
        let ids = |ranks: &Value| {
            let states = ranks["states"].as_array().expect("states");
            states.iter().map(|s| s["id"].as_f64().expect("a number") as f32).collect::<Vec<_>>()
        };
        assert_close("dimensions", &ids(&on_gpu), &ids(&on_cpu), 1e-2);
    }
}
