//! Trainings that are killed, run out of disk, lose their folder, diverge, or find their checkpoint damaged.
#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Run, checkpoints, data, fixture, gelora, log_of, words};
use gelora_kernels::random::Stream;

const LINE: &str =
    "train {} --data {} --rank 2 --batch-size 16 --lora-dropout 0.1 --device cpu --seed 3 --quiet --out {}";

/// A folder with data, and what is run there.
struct Place {
    dir: tempfile::TempDir,
    data: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        Self { data: data(dir.path()), dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn line(&self, out: &str, options: &str) -> Vec<String> {
        words(&format!("{LINE} {options}"), &[&fixture("tiny-bert"), &self.data, &self.at(out)])
    }

    fn run(&self, out: &str, options: &str) -> Run {
        gelora(self.line(out, options))
    }

    fn start(&self, out: &str, options: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gelora"));
        command.args(self.line(out, options)).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    }

    /// Runs a training up to its last checkpoint: a folder in the place of the adapter makes the end of it fail.
    fn run_to_the_last_checkpoint(&self, out: &str, options: &str) {
        let in_the_way = self.at(out).join("adapter_model.safetensors");
        fs::create_dir_all(&in_the_way).expect("a folder");
        self.run(out, options).fails_with(&["adapter_model.safetensors"]);
        fs::remove_dir(in_the_way).expect("it is empty");
    }

    /// What a finished training leaves: the adapter's bytes, and the log without times.
    fn result(&self, out: &str) -> (Vec<u8>, Vec<serde_json::Value>) {
        (self.adapter(out), log_of(&self.at(out)))
    }

    fn adapter(&self, out: &str) -> Vec<u8> {
        fs::read(self.at(out).join("adapter_model.safetensors")).expect("an adapter")
    }
}

/// Waits until `is_there`; false if the process ends before.
fn wait_for(child: &mut Child, what: &str, mut is_there: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !is_there() {
        if child.try_wait().expect("a process").is_some() {
            return false;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "{what} does not come");
        sleep(Duration::from_micros(200));
    }
    true
}

fn lines_in(out: &Path) -> usize {
    fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count()
}

/// All files below a folder with their bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), fs::read(&path).expect("a file"));
        }
    }
    all
}

#[test]
fn fifty_kills_change_nothing() {
    let place = Place::new();
    let options = "--steps 600 --checkpoint-every 3 --keep-checkpoints 2 --eval-every 5 --keep best --lr 3e-3 \
                   --resume auto";
    place.run("whole", options).ok();
    let (out, mut stream) = (place.at("killed"), Stream::new(8));
    for kill in 0..50 {
        let before = lines_in(&out);
        let mut child = place.start("killed", options);
        let lives = match stream.below(4) {
            // Anywhere, also before the first step.
            0 => {
                sleep(Duration::from_micros(stream.below(60_000) as u64));
                child.try_wait().expect("a process").is_none()
            }
            // After some steps, which end in the middle of one, of an evaluation, or of a checkpoint.
            _ => {
                let wanted = before + 1 + stream.below(6);
                wait_for(&mut child, "a step", || lines_in(&out) >= wanted)
            }
        };
        assert!(lives, "the training ends before kill {kill}");
        sleep(Duration::from_micros(stream.below(2000) as u64));
        child.kill().expect("it runs");
        assert_eq!(child.wait().expect("it ends").signal(), Some(9));
    }
    place.run("killed", options).ok();
    assert_eq!(place.result("killed"), place.result("whole"));
    let last = log_of(&out).pop().expect("a line");
    assert!(last["best"]["step"].as_u64().is_some_and(|step| step < 600), "{last}");
}

/// SIGTERM in an evaluation, in a checkpoint and in the first step: the training stops with a checkpoint, and the
/// resumed one is as if nothing had happened.
#[test]
fn signals_during_evaluations_checkpoints_and_the_first_step() {
    let place = Place::new();
    // Long evaluations: 3,200 rows.
    let rows = fs::read_to_string(place.data.join("validation.jsonl")).expect("rows").repeat(100);
    fs::write(place.data.join("validation.jsonl"), rows).expect("a file");
    let options = "--steps 12 --eval-every 4 --keep best --checkpoint-every 1 --resume auto";
    place.run("whole", options).ok();
    let (out, partial) = (place.at("stopped"), |step: usize| format!("checkpoint/.gelora-step-{step}.partial"));
    let terminate = |what: &str, is_there: &dyn Fn() -> bool| {
        let mut child = place.start("stopped", options);
        assert!(wait_for(&mut child, what, is_there), "no {what}");
        let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill");
        assert!(sent.success());
        let output = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(143), "{what}: {stderr}");
        assert!(stderr.contains("SIGTERM: stopped after step"), "{what}: {stderr}");
        assert_eq!(checkpoints(&out).len(), 1, "{what}");
        let name = checkpoints(&out)[0].display().to_string();
        name.rsplit_once('-').and_then(|(_, step)| step.parse::<usize>().ok()).expect("a step")
    };
    let stopped = terminate("first step", &|| out.join("metrics.jsonl").is_file());
    assert!((1..4).contains(&stopped), "{stopped}");
    // The line of step 4 comes before its evaluation, which ends before the training stops.
    let has_step_4 = || fs::read_to_string(out.join("metrics.jsonl")).is_ok_and(|log| log.contains("\"step\":4,"));
    assert_eq!(terminate("evaluation", &has_step_4), 4);
    assert!(log_of(&out).iter().any(|line| line["step"] == 4 && line.get("eval").is_some()));
    let stopped = terminate("checkpoint", &|| (5..8).any(|step| out.join(partial(step)).is_dir()));
    assert!((5..12).contains(&stopped), "{stopped}");
    place.run("stopped", options).ok();
    assert_eq!(place.result("stopped"), place.result("whole"));
}

/// A limit on the size of files stands for a full disk: writes fail in the middle.
#[test]
fn a_full_disk_is_one_message_and_the_old_files_stay() {
    let place = Place::new();
    let limited = |kilobytes: usize, trap: &str, out: &str, options: &str| {
        // The unit is 512 bytes in POSIX shells, and 1024 in others: bash is asked to be one.
        let script = format!("{trap} ulimit -f {}; exec \"$0\" \"$@\"", 2 * kilobytes);
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_gelora")])
            .args(place.line(out, options))
            .env("POSIXLY_CORRECT", "1")
            .output()
            .expect("a shell");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let run = Run { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) };
        run.fails_with(&[]);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        run
    };
    let options = "--steps 12 --checkpoint-every 5";
    place.run("whole", options).ok();
    let size = place.adapter("whole").len();
    place.run_to_the_last_checkpoint("full", options);
    place.run_to_the_last_checkpoint("started", "--steps 12 --checkpoint-every 7");
    for trap in ["", "trap '' XFSZ;"] {
        // The adapter fits, the moments of the optimizer do not.
        let before = files(&place.at("started/checkpoint"));
        let run = limited(size / 1024 + 2, trap, "started", "--steps 12 --checkpoint-every 10 --resume");
        run.fails_with(&["optimizer.safetensors", "cannot be written"]);
        assert_eq!(files(&place.at("started/checkpoint")), before);
        // The adapter does not fit.
        let run = limited(4, trap, "full", "--steps 12 --checkpoint-every 5 --resume");
        run.fails_with(&["adapter_model.safetensors", "cannot be written"]);
        assert!(!place.at("full/adapter_model.safetensors").exists());
        // A finished adapter stays as it is.
        let before = place.adapter("whole");
        limited(4, trap, "whole", "--steps 12 --lr 1e-2 --overwrite").fails_with(&["adapter_model.safetensors"]);
        assert_eq!(place.adapter("whole"), before);
    }
    place.run("full", "--steps 12 --checkpoint-every 5 --resume").ok();
    place.run("started", "--steps 12 --checkpoint-every 10 --resume").ok();
    assert_eq!(place.adapter("full"), place.adapter("whole"));
    assert_eq!(place.adapter("started"), place.adapter("whole"));
}

#[test]
fn a_folder_that_vanishes_is_one_message() {
    let place = Place::new();
    for (every, steps) in [(50, 3000), (100_000, 300)] {
        let (out, gone) = (place.at(&format!("out{every}")), place.at(&format!("gone{every}")));
        let name = format!("out{every}");
        let mut child = place.start(&name, &format!("--steps {steps} --checkpoint-every {every}"));
        assert!(wait_for(&mut child, "a step", || lines_in(&out) > 2));
        fs::rename(&out, &gone).expect("a new name");
        let output = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(&name), "{stderr}");
        // A training that was at its end keeps what it has.
        assert_eq!(out.join("adapter_model.safetensors").is_file(), steps == 300, "{stderr}");
        assert_eq!(stderr.contains("the adapter is written there again"), steps == 300, "{stderr}");
    }
}

#[test]
fn a_training_that_diverges_names_the_step_and_keeps_the_checkpoint_before_it() {
    let place = Place::new();
    let options = "--steps 40 --checkpoint-every 1 --lr 1e30";
    let run = place.run("out", options);
    run.fails_with(&["step ", "the gradient is not finite", "lower learning rate"]);
    let step = |run: &Run| run.stderr.split("step ").nth(1)?.split(':').next()?.parse::<usize>().ok();
    let failed = step(&run).expect("a step");
    assert!(failed > 1, "{}", run.stderr);
    assert_eq!(checkpoints(&place.at("out")), [place.at(&format!("out/checkpoint/step-{}", failed - 1))]);
    assert!(!place.at("out/adapter_model.safetensors").exists());
    let again = place.run("out", &format!("{options} --resume"));
    again.fails_with(&["the gradient is not finite"]);
    assert_eq!(step(&again), Some(failed));
}

#[test]
fn a_flipped_byte_of_any_file_is_found_and_an_older_checkpoint_serves() {
    let place = Place::new();
    let options =
        |keep: usize| format!("--steps 12 --checkpoint-every 5 --eval-every 4 --keep best --keep-checkpoints {keep}");
    place.run("whole", &options(1)).ok();
    let mut stream = Stream::new(5);
    for keep in [1, 2] {
        let (out, resumed) = (format!("kept{keep}"), format!("{} --resume auto", options(keep)));
        place.run_to_the_last_checkpoint(&out, &options(keep));
        let saved = place.at(&format!("saved{keep}"));
        fs::rename(place.at(&out), &saved).expect("a new name");
        let newest = checkpoints(&saved).pop().expect("a checkpoint");
        let names: Vec<PathBuf> =
            files(&newest).keys().map(|path| path.strip_prefix(&saved).expect("inside").to_owned()).collect();
        assert_eq!(names.len(), 6, "{names:?}");
        for name in names {
            let out_path = place.at(&out);
            copy(&saved, &out_path);
            let path = out_path.join(&name);
            let mut bytes = fs::read(&path).expect("a file");
            let at = stream.below(bytes.len());
            bytes[at] ^= 1 << stream.below(8);
            fs::write(&path, bytes).expect("a file");
            // Without --quiet the warning is on stderr; in JSON it is in any case.
            let run = place.run(&out, &format!("{resumed} --json"));
            let damaged = format!("{}: is damaged", path.display());
            if keep == 1 {
                run.fails_with(&["--resume", &damaged, "no older checkpoint of this training is whole"]);
                assert!(!out_path.join("adapter_model.safetensors").exists());
            } else {
                let result = run.json();
                let warning = result["warnings"][0].as_str().expect("a warning");
                assert!(warning.contains(&damaged), "{warning}");
                assert!(warning.contains("goes on from") && warning.contains("step-5, which is whole"), "{warning}");
                assert_eq!(place.result(&out), place.result("whole"), "{}", name.display());
            }
            fs::remove_dir_all(out_path).expect("a folder");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in files(from) {
        let path = to.join(path.strip_prefix(from).expect("inside"));
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }
}

#[test]
fn a_rerun_keeps_the_old_checkpoint_until_it_has_its_own() {
    let place = Place::new();
    let (first, second) = ("--steps 12 --checkpoint-every 10", "--steps 12 --checkpoint-every 10 --lr 5e-3");
    place.run("first", first).ok();
    place.run("second", second).ok();
    place.run_to_the_last_checkpoint("out", first);
    let before = files(&place.at("out/checkpoint"));
    // A run that ends before its first checkpoint.
    let mut child = place.start("out", "--steps 100000 --checkpoint-every 100000 --lr 5e-3");
    let aside = place.at("out/checkpoint/earlier");
    let old_log = aside.join("metrics.jsonl");
    assert!(wait_for(&mut child, "a step", || old_log.is_file() && lines_in(&place.at("out")) > 2));
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let mut after = files(&place.at("out/checkpoint"));
    assert!(after.contains_key(&old_log), "the log of the checkpoint's training");
    assert!(after.contains_key(&aside.join("run.toml")), "the options of the checkpoint's training");
    after.retain(|path, _| !path.starts_with(&aside));
    assert_eq!(after, before);
    place.run("out", &format!("{first} --resume")).ok();
    assert_eq!(place.result("out"), place.result("first"));
    // Without the log the training goes on, and says what is missing.
    place.run_to_the_last_checkpoint("no-log", first);
    fs::remove_file(place.at("no-log/metrics.jsonl")).expect("a log");
    let json = place.run("no-log", &format!("{first} --resume --json")).json();
    let warning = json["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("metrics.jsonl: lacks 10 of the 10 steps before the checkpoint"), "{warning}");
    assert_eq!(place.adapter("no-log"), place.adapter("first"));
    // The first checkpoint of another run replaces the old one, also under the same name.
    place.run_to_the_last_checkpoint("other", first);
    place.run_to_the_last_checkpoint("other", second);
    assert_eq!(checkpoints(&place.at("other")), [place.at("other/checkpoint/step-10")]);
    assert_eq!(fs::read_dir(place.at("other/checkpoint")).expect("a folder").count(), 1);
    place.run("other", &format!("{first} --resume")).fails_with(&["--resume", "another lr"]);
    place.run("other", &format!("{second} --resume")).ok();
    assert_eq!(place.result("other"), place.result("second"));
}

#[test]
fn several_checkpoints_stay_after_the_end() {
    let place = Place::new();
    let options = "--steps 11 --checkpoint-every 2 --keep-checkpoints 3";
    place.run("out", options).ok();
    let steps = [6, 8, 10].map(|step| place.at(&format!("out/checkpoint/step-{step}")));
    assert_eq!(checkpoints(&place.at("out")), steps);
    // Each is an adapter folder.
    let merged = place.at("merged");
    gelora(words("merge {} --adapter {} --out {}", &[&fixture("tiny-bert"), &steps[0], &merged])).ok();
    // The training is over.
    place.run("out", &format!("{options} --resume auto")).fails_with(&["holds a finished adapter"]);
    place.run("out", &format!("{options} --resume")).fails_with(&["--resume", "is over"]);
    // A new one starts anew, and drops them when it has its own.
    place.run("out", "--steps 11 --checkpoint-every 3 --keep-checkpoints 2 --resume auto --overwrite").ok();
    assert_eq!(checkpoints(&place.at("out")), [6, 9].map(|step| place.at(&format!("out/checkpoint/step-{step}"))));
}

#[test]
fn a_rerun_keeps_the_measured_ranks_of_the_old_checkpoint() {
    let place = Place::new();
    let line = |out: &str, options: &str| {
        let line =
            "train {} --data {} --samples 60 --batch-size 16 --device cpu --quiet --checkpoint-every 10 --out {}";
        words(&format!("{line} {options}"), &[&fixture("tiny-bert"), &place.data, &place.at(out)])
    };
    let (first, second) = ("--steps 12 --budget-rank 8", "--steps 12 --budget-rank 12");
    gelora(line("first", first)).ok();
    let in_the_way = place.at("out/adapter_model.safetensors");
    fs::create_dir_all(&in_the_way).expect("a folder");
    gelora(line("out", first)).fails_with(&["adapter_model.safetensors"]);
    fs::remove_dir(in_the_way).expect("it is empty");
    // Another run writes its ranks and fails before its first checkpoint.
    gelora(line("out", &format!("{second} --lr 1e30"))).fails_with(&["step"]);
    gelora(line("out", &format!("{second} --resume"))).fails_with(&["--resume", "another measurement of ranks"]);
    gelora(line("out", &format!("{first} --resume"))).ok();
    assert_eq!(place.adapter("out"), place.adapter("first"));
    for name in ["ranks.json", "run.toml"] {
        let of = |out: &str| fs::read_to_string(place.at(out).join(name)).expect("a file").replace("/first", "/out");
        assert_eq!(of("out"), of("first"), "{name}");
    }
}

#[test]
fn a_training_that_wrote_no_checkpoint_ends_well() {
    let place = Place::new();
    place.run("out", "--steps 3 --keep-checkpoints 3").ok();
    assert!(!place.at("out/checkpoint").exists());
}
