//! Trainings that are stopped: by signals, by a second run into the same folder, and by a finished adapter.
#![cfg(unix)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{checkpoints, data, fixture, floats, gelora, words};

/// Far more steps than a test waits for.
const LINE: &str = "train {} --data {} --rank 2 --batch-size 16 --lora-dropout 0.1 --checkpoint-every 7 --device cpu \
                    --seed 3 --out {}";

fn start(data: &Path, out: &Path, options: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_gelora"))
        .args(words(&format!("{LINE} {options}"), &[&fixture("tiny-bert"), data, out]))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// Number of steps in the log.
fn steps_in(out: &Path) -> usize {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter(|line| line.contains("\"grad_norm\"")).count()
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_there() {
        assert!(started.elapsed() < Duration::from_secs(120), "{what} does not come");
        sleep(Duration::from_millis(2));
    }
}

fn send(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
    assert!(sent.success());
}

/// Exit code and stderr.
fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_signal_finishes_the_step_and_the_resumed_run_is_the_same() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (rows, whole, out) = (data(dir.path()), at("whole"), at("stopped"));
    let steps = "--steps 3000 --quiet";
    gelora(words(&format!("{LINE} {steps}"), &[&fixture("tiny-bert"), &rows, &whole])).ok();
    let mut stopped = 0;
    for (signal, name, code) in [("-INT", "SIGINT", 130), ("-TERM", "SIGTERM", 143), ("-USR1", "SIGUSR1", 138)] {
        let before = steps_in(&out);
        let child = start(&rows, &out, &format!("{steps} --resume auto"));
        wait_for("a step", || steps_in(&out) > before + 20);
        send(&child, signal);
        let (ended_with, stderr) = ended(child);
        assert_eq!(ended_with, Some(code), "{stderr}");
        for word in [name, "stopped after step", "of 3000", "--resume"] {
            assert!(stderr.contains(word), "{word} in {stderr}");
        }
        assert_eq!(checkpoints(&out).len(), 1);
        assert!(!out.join(".gelora.lock").exists());
        // The checkpoint is that of the last step in the log.
        let step: usize =
            stderr.split("after step ").nth(1).and_then(|t| t.split(' ').next()?.parse().ok()).expect("a step");
        assert!(step > stopped && step == steps_in(&out), "{step} after {stopped}, {} in the log", steps_in(&out));
        stopped = step;
    }
    gelora(words(&format!("{LINE} {steps} --resume"), &[&fixture("tiny-bert"), &rows, &out])).ok();
    let weights = |folder: &Path| floats(&folder.join("adapter_model.safetensors"));
    assert_eq!(weights(&out), weights(&whole));
    assert_eq!(steps_in(&out), steps_in(&whole));
}

#[test]
fn a_second_run_into_the_same_folder_is_refused_while_the_first_lives() {
    let dir = tempfile::tempdir().expect("a folder");
    let (rows, out) = (data(dir.path()), dir.path().join("out"));
    let mut first = start(&rows, &out, "--steps 100000 --quiet");
    wait_for("a step", || steps_in(&out) > 3);
    let again = format!("{LINE} --steps 3 --quiet");
    let paths = [&*fixture("tiny-bert"), &*rows, &*out];
    gelora(words(&again, &paths)).fails_with(&["another gelora is writing", "--out"]);
    // A killed process holds no lock, and its checkpoint stays until the next run has its own.
    wait_for("a checkpoint", || !checkpoints(&out).is_empty());
    first.kill().expect("it runs");
    first.wait().expect("it ends");
    gelora(words(&again, &paths)).ok();
}

#[test]
fn a_finished_adapter_is_replaced_only_on_request() {
    let dir = tempfile::tempdir().expect("a folder");
    let (rows, out) = (data(dir.path()), dir.path().join("out"));
    let paths = [&*fixture("tiny-bert"), &*rows, &*out];
    let run = |options: &str| gelora(words(&format!("{LINE} --quiet {options}"), &paths));
    run("--steps 3").ok();
    let first = fs::read(out.join("adapter_model.safetensors")).expect("an adapter");
    run("--steps 4").fails_with(&["holds a finished adapter", "--overwrite", "--out"]);
    run("--steps 4 --resume auto").fails_with(&["holds a finished adapter"]);
    assert_eq!(fs::read(out.join("adapter_model.safetensors")).expect("an adapter"), first);
    run("--steps 4 --overwrite").ok();
    assert_ne!(fs::read(out.join("adapter_model.safetensors")).expect("an adapter"), first);
}
