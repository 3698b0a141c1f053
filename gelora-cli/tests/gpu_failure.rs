//! Behavior of the program when a GPU fails, and with other files in its folders. Without a GPU adapter the tests check
//! nothing.
#![cfg(feature = "wgpu")]
#![allow(clippy::print_stdout)] // a skipped test must be visible

mod common;

use std::fs;

use common::{checkpoints, data, fixture, floats, gelora, gelora_with, words};
use serde_json::Value;

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

/// A run that loses its device ends with one message and keeps the previous checkpoint. Another run resumes from it as
/// if nothing had happened.
#[test]
fn a_failing_device_ends_the_run_and_keeps_the_checkpoint() {
    if !there_is_an_adapter() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data) = (fixture("tiny-bert"), data(dir.path()));
    let train = |out: &str, inject: &[(&str, &str)], more: &str| {
        let line = format!(
            "train {{}} --data {{}} --out {{}} --rank 4 --steps 12 --batch-size 16 --lora-dropout 0.1 \
             --checkpoint-every 1 --device wgpu --quiet{more}"
        );
        gelora_with(words(&line, &[&model, &data, &dir.path().join(out)]), inject)
    };
    train("whole", &[], "").ok();
    let whole = floats(&dir.path().join("whole/adapter_model.safetensors"));
    // The training has some 130 outputs per step; the failing one is in the middle of it.
    for (name, words) in [
        ("out-of-memory", &["wgpu: out of memory: could not allocate", "in use", "--batch-size", "--accumulate"][..]),
        ("panic", &["wgpu: injected by GELORA_INJECT"][..]),
    ] {
        let out = dir.path().join(name);
        let run = train(name, &[("GELORA_INJECT", &format!("{name}:900"))], "");
        run.fails_with(words);
        if name == "out-of-memory" {
            run.fails_with(&["--checkpoint-activations", "--dtype bf16", "--max-length"]);
        }
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        assert!(!out.join("adapter_model.safetensors").exists(), "an adapter of a run that failed");
        let state: Value =
            serde_json::from_slice(&fs::read(checkpoints(&out)[0].join("state.json")).expect("a checkpoint"))
                .expect("its state");
        assert!((1..12).contains(&state["step"].as_u64().expect("a step")), "{state}");
        train(name, &[], " --resume").ok();
        assert_eq!(floats(&out.join("adapter_model.safetensors")), whole, "after {name}");
    }
    train("usage", &[("GELORA_INJECT", "fire:1")], "").fails_with(&["GELORA_INJECT", "out-of-memory:N", "fire:1"]);
}

/// Files in the working folder belong to the user, whatever their names are.
#[test]
fn settings_of_cubecl_in_the_working_folder_do_not_matter() {
    if !there_is_an_adapter() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["cubecl.toml", "CubeCL.toml", "burn.toml"] {
        fs::write(dir.path().join(name), "this is no TOML [").expect("a file");
    }
    let (model, data) = (fixture("tiny-bert"), data(dir.path()));
    let line = words("rank {} --data {} --out ranks --no-cache --device wgpu --quiet", &[&model, &data]);
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_gelora"))
        .args(line)
        .current_dir(dir.path())
        .env("NODEVICE_SELECT", "1")
        .output()
        .expect("the program starts");
    assert!(run.status.success() && run.stderr.is_empty(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(dir.path().join("ranks/ranks.json").is_file());
}
