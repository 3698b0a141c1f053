//! Runs of several processes under Open MPI's mpirun leave what one process leaves, and end together.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Run, checkpoints, data, fixture, gelora, log_of, words};
use gelora_kernels::random::Stream;

const TRAIN: &str = "train {} --data {} --rank 2 --batch-size 16 --lora-dropout 0.1 --device cpu \
                     --seed 3 --quiet --out {}";

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

    /// A training whose steps have four parts.
    fn train(&self, out: &str, options: &str) -> Vec<String> {
        self.train_in(4, out, options)
    }

    fn train_in(&self, parts: usize, out: &str, options: &str) -> Vec<String> {
        words(&format!("{TRAIN} --accumulate {parts} {options}"), &[&fixture("tiny-bert"), &self.data, &self.at(out)])
    }

    fn file(&self, out: &str, name: &str) -> Vec<u8> {
        let path = self.at(out).join(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// What a finished training leaves: the adapter's bytes, its config, and the log without times.
    fn result(&self, out: &str) -> (Vec<u8>, Vec<u8>, Vec<serde_json::Value>) {
        let config = self.file(out, "adapter_config.json");
        (self.file(out, "adapter_model.safetensors"), config, log_of(&self.at(out)))
    }
}

/// A command that starts `world` processes.
fn mpirun(world: usize, args: &[String]) -> Command {
    mpirun_of(world, env!("CARGO_BIN_EXE_gelora"), args)
}

fn mpirun_of(world: usize, program: &str, args: &[String]) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["-n", &world.to_string(), "--oversubscribe", "--bind-to", "none", program]).args(args);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    // Containers may forbid that one process reads the memory of another.
    command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    command.env("GELORA_CACHE", std::env::temp_dir().join("gelora-tests")).env("NODEVICE_SELECT", "1");
    command
}

fn run(world: usize, args: &[String]) -> Run {
    let output = mpirun(world, args).output().expect("mpirun starts (Debian: openmpi-bin)");
    Run {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Lines of errors that gelora wrote.
fn errors(run: &Run) -> Vec<&str> {
    run.stderr.lines().filter(|line| line.starts_with("error: ")).collect()
}

#[test]
fn trainings_leave_the_bytes_of_one_process() {
    let place = Place::new();
    let options = "--steps 20 --eval-every 5 --keep best --lr 3e-3 --checkpoint-every 4";
    gelora(place.train("1", options)).ok();
    let alone = place.result("1");
    for world in [2, 4] {
        let name = world.to_string();
        run(world, &place.train(&name, options)).ok();
        assert!(place.result(&name) == alone, "{world} processes: {:?}", place.result(&name).2);
    }
    // The first process alone speaks, once.
    let said = run(2, &[place.train("loud", options), vec!["--json".into()]].concat()).json();
    assert_eq!(said["dataset"]["rows"], 96, "{said}");
    // The parts are part of the result.
    gelora(place.train_in(2, "parts", options)).ok();
    assert!(place.result("parts").0 != alone.0);
}

#[test]
fn a_training_goes_on_with_another_number_of_processes() {
    let place = Place::new();
    let options = "--steps 60 --eval-every 5 --keep best --lr 3e-3 --checkpoint-every 2 --keep-checkpoints 2";
    gelora(place.train("whole", options)).ok();
    let mut before = 0;
    for world in [2, 1, 4, 2] {
        // SIGUSR1, which mpirun passes on, stops all after a step.
        let mut child = start(world, &place.train("moved", &format!("{options} --resume auto")));
        let out = place.at("moved");
        assert!(wait_for(&mut child, "a step", |_| lines_in(&out) > before + 3), "it ends before the signal");
        signal("USR1", if world == 1 { members(&child)[0] } else { child.id() });
        let run = ended(child);
        assert_eq!(run.code, Some(138), "{world} processes: {}", run.stderr);
        assert_eq!(run.stderr.matches("SIGUSR1: stopped after step").count(), 1, "{}", run.stderr);
        assert!(!checkpoints(&out).is_empty());
        before = lines_in(&out);
    }
    run(4, &place.train("moved", &format!("{options} --resume auto"))).ok();
    assert!(place.result("moved") == place.result("whole"));
}

/// Kills one of the processes at any moment. mpirun ends the others, and the training goes on as if nothing had
/// happened.
#[test]
fn twenty_kills_of_one_process_change_nothing() {
    let place = Place::new();
    let options = "--steps 400 --eval-every 5 --keep best --lr 3e-3 --checkpoint-every 3 --keep-checkpoints 2 \
                   --resume auto --dist-timeout 60";
    gelora(place.train("whole", options)).ok();
    let (out, mut stream) = (place.at("killed"), Stream::new(8));
    for kill in 0..20 {
        let (before, world) = (lines_in(&out), [2, 4][kill % 2]);
        let mut child = start(world, &place.train("killed", options));
        let lives = match stream.below(4) {
            // Anywhere, also before the first step.
            0 => {
                let lives = wait_for(&mut child, "the processes", |child| members(child).len() == world);
                sleep(Duration::from_micros(stream.below(400_000) as u64));
                lives
            }
            _ => {
                let wanted = before + 1 + stream.below(6);
                wait_for(&mut child, "a step", |_| lines_in(&out) >= wanted)
            }
        };
        assert!(lives, "the training ends before kill {kill}");
        let all = members(&child);
        assert_eq!(all.len(), world, "kill {kill}");
        signal("KILL", all[stream.below(world)]);
        let began = Instant::now();
        while !members(&child).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(30), "kill {kill}: a process is left");
            sleep(Duration::from_millis(5));
        }
        // mpirun of Open MPI 4.1 may not return if a process dies while it starts, though all others are ended.
        while began.elapsed() < Duration::from_secs(10) && child.try_wait().expect("a process").is_none() {
            sleep(Duration::from_millis(5));
        }
        if child.try_wait().expect("a process").is_none() {
            child.kill().expect("it runs");
            assert_eq!(child.wait_with_output().map(|output| output.stdout).expect("output"), b"");
            continue;
        }
        let run = ended(child);
        assert!(run.code != Some(0) && errors(&run).len() <= 1, "kill {kill}: {}", run.stderr);
        // mpirun says which process died.
        assert!(run.stderr.contains("exited on signal 9 (Killed)"), "kill {kill}: {}", run.stderr);
        assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    }
    run(2, &place.train("killed", options)).ok();
    assert!(place.result("killed") == place.result("whole"));
}

/// A process that hangs is stopped, and does not answer. The others give up after --dist-timeout.
#[test]
fn a_process_that_hangs_ends_all_with_one_message() {
    let place = Place::new();
    for (stopped, speaker) in [(1, "error: no answer"), (0, "error: process 1 of 3: no answer")] {
        let name = format!("hangs-{stopped}");
        let options = "--steps 5000 --checkpoint-every 2 --dist-timeout 3";
        let mut child = start(3, &place.train_in(3, &name, options));
        let out = place.at(&name);
        assert!(wait_for(&mut child, "a checkpoint", |_| !checkpoints(&out).is_empty()));
        let began = Instant::now();
        signal("STOP", of_rank(&child, stopped));
        let run = ended(child);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let errors = errors(&run);
        assert_eq!(errors.len(), 1, "{}", run.stderr);
        assert!(errors[0].starts_with(speaker) && errors[0].contains("for 3 s (--dist-timeout)"), "{}", errors[0]);
        // The checkpoint is whole: a training in one process goes on from it.
        let mut child = start(1, &place.train_in(3, &name, "--steps 5000 --checkpoint-every 2 --resume"));
        let before = lines_in(&out);
        assert!(wait_for(&mut child, "a step", |_| lines_in(&out) > before + 4));
        signal("USR1", members(&child)[0]);
        assert_eq!(ended(child).code, Some(138));
    }
}

#[test]
fn errors_are_said_once() {
    let place = Place::new();
    // Of the command line, of a file, and of one process alone.
    let odd = place.train_in(3, "x", "");
    let missing =
        words("train {} --data nowhere.jsonl --accumulate 2 --out {}", &[&fixture("tiny-bert"), &place.at("x")]);
    let generate = words("generate {} --prompt x", &[&fixture("families/llama")]);
    for (args, wanted) in [
        (odd, &["--accumulate 3", "2 processes cannot share", "fits 1 or 3 processes"][..]),
        (missing, &["nowhere.jsonl"]),
        (generate, &["mpirun (Open MPI) started 2 processes", "gelora generate runs in one"]),
    ] {
        let run = run(2, &args);
        let errors = errors(&run);
        assert!(run.code != Some(0) && errors.len() == 1, "{}", run.stderr);
        wanted.iter().for_each(|word| assert!(errors[0].contains(word), "no {word:?} in {}", errors[0]));
    }
    assert!(!place.at("x").exists());
}

#[test]
fn rows_that_differ_between_machines_are_found_out() {
    let place = Place::new();
    let other = place.at("other");
    fs::create_dir(&other).expect("a folder");
    for name in ["train.jsonl", "validation.jsonl"] {
        let text = String::from_utf8(fs::read(place.data.join(name)).expect("a file")).expect("text");
        let text = if name == "train.jsonl" { text.replacen("yes", "no", 1) } else { text };
        fs::write(other.join(name), text.replacen(' ', "  ", 1)).expect("a file");
    }
    // Each process has a folder of its own as the data, as if they were on two machines.
    let line = place.train("out", "");
    let line: Vec<String> = line
        .iter()
        .map(|word| match Path::new(word) == place.data {
            true => "$DATA".into(),
            false => format!("'{word}'"),
        })
        .collect();
    let script = format!(
        "if [ $OMPI_COMM_WORLD_RANK = 1 ]; then DATA={}; else DATA={}; fi; exec {} {}",
        other.display(),
        place.data.display(),
        env!("CARGO_BIN_EXE_gelora"),
        line.join(" ")
    );
    let output = mpirun_of(2, "sh", &["-c".into(), script]).output().expect("mpirun starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let run = Run { code: output.status.code(), stdout: String::new(), stderr };
    let errors = errors(&run);
    assert_eq!(errors.len(), 1, "{}", run.stderr);
    assert!(errors[0].contains("differs between the processes (in process 1"), "{}", errors[0]);
}

#[test]
fn other_commands_share_their_rows() {
    let place = Place::new();
    let bert = fixture("tiny-bert");
    gelora(place.train("adapter", "--steps 5")).ok();
    let (adapter, data) = (place.at("adapter"), place.data.clone());
    let rank = |out: &str| {
        words(
            "rank {} --data {} --no-cache --device cpu --batch-size 4 --json --out {}",
            &[&bert, &data, &place.at(out)],
        )
    };
    let eval = |out: &str| {
        let predictions = place.at(out);
        words(
            "eval {} --data {} --adapter {} --device cpu --batch-size 3 --json --predictions {}",
            &[&bert, &data, &adapter, &predictions],
        )
    };
    let predict = |out: &str| {
        let paths: [&Path; 4] = [&bert, &data, &adapter, &place.at(out)];
        words("predict {} --data {} --adapter {} --device cpu --batch-size 3 --quiet --with-input --out {}", &paths)
    };
    let measured = gelora(rank("ranks-1")).ok().stdout;
    let scores = gelora(eval("scores-1")).ok().stdout;
    gelora(predict("rows-1")).ok();
    for world in [2, 4] {
        assert_eq!(run(world, &rank(&format!("ranks-{world}"))).ok().stdout, measured);
        assert_eq!(place.file(&format!("ranks-{world}"), "ranks.json"), place.file("ranks-1", "ranks.json"));
        assert_eq!(run(world, &eval(&format!("scores-{world}"))).ok().stdout, scores);
        run(world, &predict(&format!("rows-{world}"))).ok();
        for name in ["scores", "rows"] {
            let read = |world: usize| fs::read(place.at(&format!("{name}-{world}"))).expect("predictions");
            assert!(!read(1).is_empty() && read(world) == read(1), "{name} of {world} processes");
        }
    }
    // A training that measures its ranks first.
    let measuring = |out: &str| {
        words(
            "train {} --data {} --accumulate 2 --steps 3 --device cpu --quiet --out {}",
            &[&bert, &data, &place.at(out)],
        )
    };
    gelora(measuring("m1")).ok();
    run(2, &measuring("m2")).ok();
    assert!(place.result("m1") == place.result("m2"));
    assert_eq!(place.file("m1", "ranks.json"), place.file("m2", "ranks.json"));
}

/// The runs of a study are dealt out, and what a killed process had finished is not made again.
#[test]
fn runs_of_a_study_are_dealt_out() {
    let place = Place::new();
    let line = |out: &str| {
        words(
            "compare {} --data {} --arms uniform,gelora --lrs 1e-3,1e-2 --seeds 3 --choose-seeds 2 --steps 2 \
             --device cpu --jobs 1 --quiet --out {}",
            &[&fixture("tiny-bert"), &place.data, &place.at(out)],
        )
    };
    // Every run without its times, in the order of their keys.
    let runs = |out: &str| {
        let text = String::from_utf8(place.file(out, "results.jsonl")).expect("text");
        let run = |line: &str| {
            let mut run: serde_json::Value = serde_json::from_str(line).expect("JSON");
            for time in ["train_seconds", "measure_seconds"] {
                run.as_object_mut().expect("an object").remove(time);
            }
            run.to_string()
        };
        let mut runs: Vec<String> = text.lines().map(run).collect();
        runs.sort();
        runs
    };
    gelora(line("1")).ok();
    assert_eq!(runs("1").len(), 14);
    run(3, &line("3")).ok();
    assert_eq!(runs("3"), runs("1"));
    assert!(!place.at("3").join("results-1.jsonl").exists());
    // A run that only process 1 had finished when all were killed.
    let lines = String::from_utf8(place.file("3", "results.jsonl")).expect("text");
    let (first, rest) = lines.split_once('\n').expect("lines");
    let marked = first.replacen("\"train_seconds\":", "\"train_seconds\":1234567.0,\"was\":", 1);
    fs::write(place.at("3").join("results.jsonl"), rest).expect("a file");
    fs::write(place.at("3").join("results-1.jsonl"), marked + "\n{\"study").expect("a file");
    run(2, &line("3")).ok();
    assert_eq!(runs("3").len(), 14);
    assert!(String::from_utf8(place.file("3", "results.jsonl")).expect("text").contains("1234567"), "it is made again");
}

/// Starts `world` processes, whose output is kept.
fn start(world: usize, args: &[String]) -> Child {
    mpirun(world, args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("mpirun starts")
}

/// Waits for the end of a started run, for a minute at most.
fn ended(mut child: Child) -> Run {
    let began = Instant::now();
    while child.try_wait().expect("a process").is_none() {
        if began.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            panic!("the run does not end");
        }
        sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("output");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Run { code: output.status.code(), stdout: String::new(), stderr }
}

/// Waits until `is_there`; false if the run ends before.
fn wait_for(child: &mut Child, what: &str, mut is_there: impl FnMut(&Child) -> bool) -> bool {
    let began = Instant::now();
    while !is_there(child) {
        if child.try_wait().expect("a process").is_some() {
            return false;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{what} does not come");
        sleep(Duration::from_micros(200));
    }
    true
}

/// The processes of gelora that mpirun started.
fn members(child: &Child) -> Vec<u32> {
    let path = format!("/proc/{0}/task/{0}/children", child.id());
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| environment(*pid).contains("OMPI_COMM_WORLD_RANK="))
        .collect()
}

fn of_rank(child: &Child, rank: usize) -> u32 {
    let wanted = format!("OMPI_COMM_WORLD_RANK={rank}\0");
    members(child).into_iter().find(|pid| environment(*pid).contains(&wanted)).expect("a process of that rank")
}

fn environment(pid: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/environ")).unwrap_or_default()).into_owned()
}

fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().expect("kill runs");
    assert!(sent.success(), "kill -{name} {pid}");
}

fn lines_in(out: &Path) -> usize {
    fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count()
}
