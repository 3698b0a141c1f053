//! The program on a GPU (hardware or software) gives the results of the CPU. Without a GPU adapter the tests compare
//! nothing.
#![cfg(feature = "wgpu")]
#![allow(clippy::print_stdout)] // a skipped comparison must be visible

mod common;

use std::fs;
use std::path::Path;

use common::{assert_close, data, fixture, floats, gelora, logits, words};
use gelora_kernels::{Device, DeviceKind};
use gelora_lora::Adapter;
use gelora_model::{Batch, CausalLm, Grads, Mode};
use serde_json::{Value, json};

fn there_is_an_adapter() -> bool {
    let devices = gelora(["devices", "--json"]).json();
    let found = devices.as_array().expect("a list").iter().any(|d| d["device"] == "wgpu" && d["available"] == true);
    if !found {
        assert!(
            std::env::var_os("GELORA_REQUIRE_WGPU").is_none(),
            "GELORA_REQUIRE_WGPU is set, but no adapter is found"
        );
        println!("skipped: no wgpu adapter");
    }
    found
}

/// Returns a number of every step of a log.
fn column(log: &Path, name: &str) -> Vec<f32> {
    let text = fs::read_to_string(log).expect("the log");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON object a line"));
    lines.filter_map(|line| line[name].as_f64()).map(|v| v as f32).collect()
}

#[test]
fn methods_have_the_losses_of_the_cpu() {
    if !there_is_an_adapter() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data) = (fixture("tiny-bert"), data(dir.path()));
    for (name, method) in [("adalora", "--adalora"), ("eva", "--init eva")] {
        let log = |device: &str| {
            let out = dir.path().join(format!("{name}-{device}"));
            let line = format!(
                "train {{}} --data {{}} --out {{}} --rank 3 --steps 6 --batch-size 16 --lr 1e-2 {method} --device \
                 {device} --quiet"
            );
            gelora(words(&line, &[&model, &data, &out])).ok();
            out.join("metrics.jsonl")
        };
        let (on_gpu, on_cpu) = (log("wgpu"), log("cpu"));
        let losses = column(&on_cpu, "loss");
        assert_eq!(losses.len(), 6);
        assert_close(name, &column(&on_gpu, "loss"), &losses, 1e-4);
        assert_close(name, &column(&on_gpu, "penalty"), &column(&on_cpu, "penalty"), 1e-4);
    }
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
            "train {{}} --data {{}} --out {{}} --rank 4 --steps 10 --batch-size 16 --accumulate 2 --lora-dropout 0.1 \
             --lr 1e-2 --clip 0.5 --target-modules all-linear --device {device} --quiet"
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

#[test]
fn gradients_have_the_directions_of_the_cpu() {
    if !there_is_an_adapter() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data) = (fixture("tiny-bert"), data(dir.path()));
    let numbers = |device: &str| {
        let line = format!(
            "rank {{}} --data {{}} --out {{}} --policy gradient --budget-rank 4 --target-modules all-linear --device \
             {device} --json --quiet"
        );
        let ranks = gelora(words(&line, &[&model, &data, &dir.path().join(device)])).json();
        let modules = ranks["modules"].as_object().expect("modules");
        let number = |module: &Value| module["directions"]["number"].as_f64().expect("a number") as f32;
        modules.values().map(number).collect::<Vec<_>>()
    };
    let on_cpu = numbers("cpu");
    assert!(on_cpu.iter().any(|number| *number > 1.0), "{on_cpu:?}");
    assert_close("directions", &numbers("wgpu"), &on_cpu, 1e-2);
}

#[test]
fn gguf_files_are_trained_and_measured_as_on_the_cpu() {
    if !there_is_an_adapter() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data) = (fixture("gguf/tiny.gguf"), dir.path().join("rows.jsonl"));
    let row =
        |i: usize| json!({"instruction": format!("Say {i}"), "output": format!("the {} lane", i * i)}).to_string();
    fs::write(&data, (0..12).map(row).collect::<Vec<_>>().join("\n")).expect("a data file");
    let train = |device: &str| {
        let line = format!(
            "train {{}} --data {{}} --out {{}} --rank 3 --steps 4 --batch-size 3 --lr 1e-2 --target-modules all-linear \
             --device {device} --quiet"
        );
        gelora(words(&line, &[&model, &data, &dir.path().join(device)])).ok();
        column(&dir.path().join(device).join("metrics.jsonl"), "loss")
    };
    let losses = train("cpu");
    assert_eq!(losses.len(), 4);
    assert_close("losses", &train("wgpu"), &losses, 1e-4);
    let eval = |device: &str| {
        let line = format!("eval {{}} --data {{}} --adapter {{}} --device {device} --json --quiet");
        let result = gelora(words(&line, &[&model, &data, &dir.path().join("cpu")])).json();
        result["loss"].as_f64().expect("a loss") as f32
    };
    assert_close("loss", &[eval("wgpu")], &[eval("cpu")], 1e-4);
}

/// The weights stay in their quantized blocks on both devices.
#[test]
fn models_of_bitsandbytes_have_the_gradients_of_the_cpu() {
    if !there_is_an_adapter() {
        return;
    }
    let device = Device::open(DeviceKind::Wgpu).expect("there is an adapter");
    for name in ["llama-nf4", "qwen2-fp4"] {
        let folder = fixture("families").join(name);
        let mut adapter = Adapter::read(&folder.join("adapter")).expect("a PEFT folder");
        adapter.saved.clear(); // the head of a classifier
        let mut lm = CausalLm::with_adapter(&folder, adapter).expect("it fits");
        let rows: Vec<Vec<u32>> = vec![(4..30).collect(), (9..20).rev().collect()];
        let batch = Batch::of_ids(&rows).expect("rows are not empty");
        let targets = vec![true; batch.ids().len()];
        let run = |lm: &CausalLm| {
            let mut grads = Grads::new();
            let loss = lm.backward(&batch, &targets, &Mode::inference(), 1.0, &mut grads).expect("backward");
            let values = |t: &gelora_kernels::Tensor| t.to_vec().expect("values");
            (values(&loss), grads.iter().map(|(name, t)| (name.clone(), values(t))).collect::<Vec<_>>())
        };
        let types = |lm: &CausalLm| {
            let linears = lm.transformer().linears();
            linears
                .map(|linear| linear.weight.tensor().dtype())
                .filter(|dtype| dtype.is_quantized())
                .collect::<Vec<_>>()
        };
        let ((loss, gradients), of_cpu) = (run(&lm), types(&lm));
        lm.move_to(&device).expect("it fits");
        assert_eq!((types(&lm), of_cpu.len()), (of_cpu, 12));
        let (got, on_gpu) = run(&lm);
        assert_close(&format!("{name} loss"), &got, &loss, 1e-4);
        for ((key, got), (_, want)) in on_gpu.iter().zip(&gradients) {
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
            let error = norm(&mut got.iter().zip(want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
            assert!(error < 1e-4, "{name} {key}: relative error {error:.1e}");
        }
        assert_eq!(on_gpu.len(), gradients.len());
    }
}
