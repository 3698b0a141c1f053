//! Options of a training: evaluations and the best adapter, schedules, losses, an adapter to begin with.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Run, data, fixture, gelora, log_of, words};
use serde_json::Value;

/// A folder with data, and what is run there.
struct Place {
    dir: tempfile::TempDir,
    data: PathBuf,
    model: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        Self { data: data(dir.path()), model: fixture("tiny-bert"), dir }
    }

    /// The same with a model whose dropout is 0, so that a step does not depend on its parts.
    fn without_dropout() -> Self {
        let place = Self::new();
        let model = place.at("model");
        fs::create_dir(&model).expect("a folder");
        for entry in fs::read_dir(fixture("tiny-bert")).expect("a model").flatten() {
            fs::copy(entry.path(), model.join(entry.file_name())).expect("a copy");
        }
        let path = model.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("a config")).expect("JSON");
        for dropout in ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"] {
            config[dropout] = 0.0.into();
        }
        fs::write(path, config.to_string()).expect("a file");
        Self { model, ..place }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, out: &str, options: &str) -> Run {
        let line = format!("train {{}} --data {{}} --batch-size 16 --device cpu --quiet --json --out {{}} {options}");
        gelora(words(&line, &[&self.model, &self.data, &self.at(out)]))
    }

    fn adapter(&self, out: &str) -> Vec<u8> {
        fs::read(self.at(out).join("adapter_model.safetensors")).expect("an adapter")
    }

    /// Step and value of each evaluation.
    fn evaluations(&self, out: &str, metric: &str) -> Vec<(u64, f64)> {
        let log = log_of(&self.at(out));
        let of_line = |line: &Value| Some((line["step"].as_u64()?, line["eval"][metric].as_f64()?));
        log.iter().filter_map(of_line).collect()
    }

    /// The value of a key in every line of a step.
    fn steps(&self, out: &str, key: &str) -> Vec<f64> {
        log_of(&self.at(out)).iter().filter_map(|line| line[key].as_f64()).collect()
    }
}

/// The first best of some evaluations.
fn first_best(evaluations: &[(u64, f64)]) -> (u64, f64) {
    let mut best = evaluations[0];
    for evaluation in &evaluations[1..] {
        if evaluation.1 > best.1 {
            best = *evaluation;
        }
    }
    best
}

#[test]
fn evaluations_come_as_often_as_asked() {
    let place = Place::new();
    for (name, options, expected) in [
        ("default", "", &[6, 12, 15][..]),
        ("steps", "--eval-every 4", &[4, 8, 12, 15]),
        ("share", "--eval-every 0.5", &[3, 6, 9, 12, 15]),
        ("epochs", "--eval-every 2.0", &[12, 15]),
    ] {
        place.run(name, &format!("--rank 2 --steps 15 {options}")).ok();
        let steps: Vec<u64> = place.evaluations(name, "accuracy").into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, expected, "{name}");
        assert_eq!(place.adapter(name), place.adapter("default"), "evaluations change nothing");
        assert!(log_of(&place.at(name)).iter().all(|line| line.get("best").is_none()));
    }
}

/// With a constant rate, a training of fewer steps is the beginning of a longer one.
#[test]
fn the_adapter_of_the_best_evaluation_is_kept() {
    let place = Place::new();
    let constant = "--rank 2 --lr 3e-2 --schedule constant --warmup 0 --eval-every 2";
    let json = place.run("best", &format!("{constant} --steps 40 --keep best --metric matthews")).json();
    let evaluations = place.evaluations("best", "matthews");
    assert_eq!(evaluations.len(), 20);
    let (step, value) = first_best(&evaluations);
    assert!(step < 40 && evaluations.iter().any(|(_, other)| *other < value), "{evaluations:?}");
    let best = &json["best"];
    assert_eq!((&best["metric"], best["step"].as_u64()), (&"matthews".into(), Some(step)));
    assert_eq!((best["value"].as_f64(), best["last_step"].as_u64()), (Some(value), Some(40)));
    assert_eq!((&best["kept"], &best["stopped_early"]), (&true.into(), &Value::Null));
    assert_eq!(json["eval"]["matthews"].as_f64(), Some(value));
    assert_eq!(log_of(&place.at("best")).pop().expect("a line")["best"], *best);
    place.run("short", &format!("{constant} --steps {step}")).ok();
    assert_eq!(place.adapter("best"), place.adapter("short"));
    // The last adapter is another, and is kept unless the best one is asked for; --metric alone says which was best.
    let json = place.run("last", &format!("{constant} --steps 40 --metric matthews")).json();
    assert_eq!((&json["best"]["kept"], json["best"]["step"].as_u64()), (&false.into(), Some(step)));
    assert_eq!(json["eval"]["matthews"].as_f64(), evaluations.last().map(|(_, value)| *value));
    assert_ne!(place.adapter("last"), place.adapter("best"));
    // In words.
    let line =
        format!("train {{}} --data {{}} --batch-size 16 --device cpu --out {{}} {constant} --steps 40 --keep best");
    let run = gelora(words(&line, &[&place.model, &place.data, &place.at("words")])).ok();
    assert!(run.stdout.contains("the adapter of step ") && run.stdout.contains("held-out accuracy"), "{}", run.stdout);
    assert!(run.stderr.contains("the best accuracy was "), "{}", run.stderr);
}

#[test]
fn patience_ends_a_training_that_gets_no_better() {
    let place = Place::new();
    let options = "--rank 2 --lr 3e-2 --schedule constant --warmup 0 --eval-every 2 --steps 400";
    let json = place.run("early", &format!("{options} --patience 3")).json();
    let evaluations = place.evaluations("early", "accuracy");
    let (step, value) = first_best(&evaluations);
    let after: Vec<&(u64, f64)> = evaluations.iter().filter(|(other, _)| *other > step).collect();
    assert_eq!(after.len(), 3, "{evaluations:?}");
    let last = evaluations.last().expect("evaluations").0;
    assert!(last < 400 && place.steps("early", "loss").len() as u64 == last);
    let best = &json["best"];
    assert_eq!((best["step"].as_u64(), best["value"].as_f64()), (Some(step), Some(value)));
    assert_eq!((best["last_step"].as_u64(), best["stopped_early"].as_u64()), (Some(last), Some(3)));
    assert_eq!(best["kept"], true);
    // With --keep last it ends there too, with the last adapter.
    let json = place.run("last", &format!("{options} --patience 3 --keep last")).json();
    assert_eq!((json["best"]["last_step"].as_u64(), &json["best"]["kept"]), (Some(last), &false.into()));
    place.run("short", &format!("{} {last}", options.replace(" 400", ""))).ok();
    assert_eq!(place.adapter("last"), place.adapter("short"));
}

#[test]
fn bad_options_of_evaluations() {
    let place = Place::new();
    let file = place.data.join("train.jsonl");
    let alone = |options: &str| {
        let line = format!("train {{}} --data {{}} --rank 2 --steps 2 --quiet --out {{}} {options}");
        gelora(words(&line, &[&place.model, &file, &place.at("out")]))
    };
    for option in ["--eval-every 2", "--metric accuracy", "--keep best", "--patience 2"] {
        let name = option.split(' ').next().expect("a name");
        alone(option).fails_with(&[name, "no rows to evaluate on", "--eval-data"]);
    }
    alone("--keep last").ok();
    place.run("bad", "--rank 2 --metric bleu").fails_with(&["--metric bleu", "accuracy, f1, matthews"]);
    for option in ["--eval-every 0", "--eval-every often", "--patience 0", "--keep none", "--warmup 1.5", "--warmup -1"]
    {
        assert_eq!(place.run("bad", &format!("--rank 2 {option}")).code, Some(2), "{option}");
    }
    place.run("bad", "--rank 2 --steps 5 --warmup 6").fails_with(&["warmup of 6 steps", "the training has 5"]);
    assert!(!place.at("bad").exists());
    // A dry run evaluates nothing.
    place.run("bad", "--rank 2 --steps 9 --keep best --eval-every 2 --dry-run").ok();
    assert!(!place.at("bad").exists());
    // In a file, too, a decimal point makes a share.
    fs::write(place.at("run.toml"), "eval-every = 1.0\nsteps = 13\nrank = 2\n").expect("a file");
    place.run("file", &format!("--config {}", place.at("run.toml").display())).ok();
    let steps: Vec<u64> = place.evaluations("file", "accuracy").into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [6, 12, 13]);
}

#[test]
fn schedules_and_warmups() {
    let place = Place::new();
    let rates = |name: &str, options: &str| {
        place.run(name, &format!("--rank 2 --steps 8 --lr 1 {options}")).ok();
        place.steps(name, "lr")
    };
    let cosine = |k: i32| 0.5 * (1.0 + (std::f64::consts::PI * f64::from(k) / 6.0).cos());
    for (name, options, expected) in [
        ("linear", "--warmup 0.25", vec![0.5, 1.0, 1.0, 5.0 / 6.0, 4.0 / 6.0, 0.5, 2.0 / 6.0, 1.0 / 6.0]),
        ("steps", "--warmup 2", vec![0.5, 1.0, 1.0, 5.0 / 6.0, 4.0 / 6.0, 0.5, 2.0 / 6.0, 1.0 / 6.0]),
        ("constant", "--warmup 4 --schedule constant", vec![0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (
            "cosine",
            "--warmup 2 --schedule cosine",
            [0.5].into_iter().chain([0, 0, 1, 2, 3, 4, 5].map(cosine)).collect(),
        ),
    ] {
        let got = rates(name, options);
        let close = got.len() == 8 && got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close, "{name}: {got:?}, expected {expected:?}");
    }
}

/// The loss of the first step is that of equal logits up to the fresh head, so its parts can be told apart; with
/// accumulation all of it is that of one part.
#[test]
fn weights_and_smoothing_with_and_without_parts() {
    let place = Place::without_dropout();
    let rows = fs::read_to_string(place.data.join("train.jsonl")).expect("rows");
    // 48 rows of "yes", 12 of "no".
    let unbalanced: Vec<&str> =
        rows.lines().enumerate().filter(|(i, _)| i % 2 == 0 || i % 8 == 1).map(|(_, row)| row).collect();
    fs::write(place.data.join("train.jsonl"), unbalanced.join("\n")).expect("a file");
    let options = "--rank 2 --steps 3 --lr 1e-3";
    let mut losses = Vec::new();
    for (name, loss) in [
        ("plain", ""),
        ("balanced", "--class-weights balanced"),
        ("given", "--class-weights no=2.5,yes=0.625"),
        ("scaled", "--class-weights no=4"),
        ("smoothed", "--label-smoothing 0.2"),
        ("both", "--class-weights balanced --label-smoothing 0.2"),
    ] {
        place.run(name, &format!("{options} {loss}")).ok();
        for parts in [3, 16] {
            let accumulated = format!("{name}-{parts}");
            place.run(&accumulated, &format!("{options} {loss} --accumulate {parts}")).ok();
            for key in ["loss", "grad_norm"] {
                for (a, b) in place.steps(name, key).iter().zip(place.steps(&accumulated, key)) {
                    assert!((a - b).abs() < 2e-4 * a.abs(), "{accumulated}: {key} {b}, in one part {a}");
                }
            }
        }
        losses.push(place.steps(name, "loss"));
    }
    // n / (k n_c) = 60 / (2 x 12) and 60 / (2 x 48); a common factor changes nothing.
    assert_eq!(losses[1], losses[2]);
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5 * a.abs());
    assert!(close(&losses[1], &losses[3]), "{losses:?}");
    for (i, a) in losses.iter().enumerate() {
        assert!([1, 3].contains(&i) || losses[i + 1..].iter().all(|b| i == 1 || !close(a, b)) || i == 2, "{losses:?}");
    }
    place
        .run("bad", &format!("{options} --class-weights maybe=2"))
        .fails_with(&["\"maybe\" is not a class", "no, yes"]);
    for option in ["--class-weights yes", "--class-weights yes=0", "--label-smoothing 1"] {
        assert_eq!(place.run("bad", &format!("{options} {option}")).code, Some(2), "{option}");
    }
}

#[test]
fn another_loss_or_schedule_is_another_training() {
    let place = Place::new();
    let options = "--rank 2 --steps 12 --checkpoint-every 5";
    fs::create_dir_all(place.at("out/adapter_model.safetensors")).expect("a folder in the way");
    assert_eq!(place.run("out", options).code, Some(1));
    fs::remove_dir(place.at("out/adapter_model.safetensors")).expect("it is empty");
    for (option, name) in [
        ("--schedule cosine", "schedule"),
        ("--warmup 2", "warmup"),
        ("--class-weights yes=2", "class-weights"),
        ("--label-smoothing 0.1", "label-smoothing"),
        ("--keep best", "choice among evaluations"),
        ("--patience 9", "choice among evaluations"),
    ] {
        let run = place.run("out", &format!("{options} --resume {option}"));
        run.fails_with(&["--resume", &format!("another {name} (")]);
    }
    // How often is evaluated changes nothing unless evaluations are compared.
    place.run("out", &format!("{options} --resume --eval-every 3")).ok();
    place.run("whole", options).ok();
    assert_eq!(place.adapter("out"), place.adapter("whole"));
}

#[test]
fn a_training_begins_with_an_adapter() {
    let place = Place::new();
    place.run("first", "--rank 3 --alpha-ratio 4 --steps 30 --lr 1e-2 --lora-dropout 0.25").ok();
    let first = place.at("first").display().to_string();
    let evaluate = |adapter: &Path| {
        gelora(words("eval {} --data {} --adapter {} --json --quiet", &[&place.model, &place.data, adapter])).json()
    };
    let config = |out: &str| -> Value {
        serde_json::from_slice(&fs::read(place.at(out).join("adapter_config.json")).expect("a config")).expect("JSON")
    };
    // The first step has the loss of the adapter that it begins with: a rate near 0 leaves it as it is.
    let json = place.run("same", &format!("--init-adapter {first} --steps 1 --lr 1e-12 --weight-decay 0")).json();
    assert_eq!(json["eval"], evaluate_of(&evaluate(&place.at("first")), &json["eval"]));
    for key in ["r", "lora_alpha", "target_modules", "lora_dropout", "modules_to_save"] {
        assert_eq!(config("same")[key], config("first")[key], "{key}");
    }
    assert_eq!(config("same")["lora_dropout"], 0.25);
    // Other data, another schedule, killed and resumed.
    let options = format!("--init-adapter {first} --steps 12 --lr 1e-3 --schedule cosine --lora-dropout 0 --seed 4");
    place.run("whole", &options).ok();
    assert_eq!(config("whole")["lora_dropout"], 0.0);
    let options = format!("{options} --checkpoint-every 5");
    fs::create_dir_all(place.at("out/adapter_model.safetensors")).expect("a folder in the way");
    assert_eq!(place.run("out", &options).code, Some(1));
    fs::remove_dir(place.at("out/adapter_model.safetensors")).expect("it is empty");
    let same = place.at("same").display().to_string();
    place.run("out", &format!("{} --resume", options.replace(&first, &same))).fails_with(&["another init-adapter"]);
    place.run("out", &format!("{options} --resume")).ok();
    assert_eq!(place.adapter("out"), place.adapter("whole"));
    assert_ne!(place.adapter("whole"), place.adapter("first"));

    let bad = |options: &str| place.run("bad", &format!("--steps 1 {options}"));
    for option in [
        "--rank 2",
        "--policy gelora-upper",
        "--lora-alpha 3",
        "--ranks r.json",
        "--target-modules query",
        "--alpha-ratio 1",
        "--samples 9",
        "--init pissa",
        "--dora",
        "--adalora",
        "--rslora",
    ] {
        let run = bad(&format!("--init-adapter {first} {option}"));
        assert_eq!(run.code, Some(2), "{option}");
        assert!(run.stderr.contains("--init-adapter"), "{}", run.stderr);
    }
    bad("--init-adapter nowhere").fails_with(&["nowhere", "--init-adapter"]);
    let line = format!("train {{}} --data {{}} --steps 1 --overwrite --init-adapter {first} --out {{}}");
    gelora(words(&line, &[&place.model, &place.data, &place.at("first")])).fails_with(&["--out would overwrite"]);
    bad(&format!("--init-adapter {first} --task causal-lm")).fails_with(&["first", "SEQ_CLS"]);
    // Other classes, or scores.
    let rows = fs::read_to_string(place.data.join("train.jsonl")).expect("rows");
    for split in ["train.jsonl", "validation.jsonl"] {
        fs::write(place.data.join(split), rows.replace("\"yes\"", "\"maybe\"")).expect("a file");
    }
    bad(&format!("--init-adapter {first}")).fails_with(&["first", "classes no, yes", "classes maybe, no"]);
    for split in ["train.jsonl", "validation.jsonl"] {
        fs::write(place.data.join(split), rows.replace("\"yes\"", "0.5").replace("\"no\"", "0.25")).expect("a file");
    }
    bad(&format!("--init-adapter {first}")).fails_with(&["classes no, yes", "the data has scores"]);
    assert!(!place.at("bad").exists());
}

/// The metrics of `eval` that a training reports too.
fn evaluate_of(evaluation: &Value, trained: &Value) -> Value {
    let names = trained.as_object().expect("metrics").keys();
    names.map(|name| (name.clone(), evaluation[name].clone())).collect::<serde_json::Map<_, _>>().into()
}

/// Adapters of all methods, and one that PEFT wrote, can be trained on.
#[test]
fn adapters_of_other_methods_and_of_peft() {
    let place = Place::new();
    for (name, method) in [
        ("pissa", "--init pissa"),
        ("dora", "--dora"),
        ("adalora", "--adalora"),
        ("eva", "--init eva"),
        ("rslora", "--rslora"),
    ] {
        place.run(name, &format!("--rank 2 --steps 12 --lr 1e-2 {method}")).ok();
        let on = format!("{name}-on");
        let init = format!("--init-adapter {} --lr 1e-12 --weight-decay 0 --steps 1", place.at(name).display());
        let json = place.run(&on, &init).json();
        let line =
            words("eval {} --data {} --adapter {} --json --quiet", &[&place.model, &place.data, &place.at(name)]);
        assert_eq!(json["eval"], evaluate_of(&gelora(line).json(), &json["eval"]), "{name}");
        place.run(&format!("{on}-2"), &init.replace("1e-12", "1e-2")).ok();
        assert_ne!(place.adapter(&format!("{on}-2")), place.adapter(&on), "{name}");
    }
    // PEFT folder has three classes without names: 0, 1, 2.
    let file = place.at("three.jsonl");
    let row = |i: usize| format!("{{\"text\": \"the film is {}\", \"label\": {}}}\n", "good ".repeat(i % 5 + 1), i % 3);
    fs::write(&file, (0..30).map(row).collect::<String>()).expect("a file");
    let line = "train {} --data {} --init-adapter {} --steps 3 --out {} --quiet --json";
    for name in ["tiny-bert-peft", "tiny-bert-peft-rslora"] {
        let out = place.at(name);
        gelora(words(line, &[&place.model, &file, &fixture(name), &out])).ok();
        let evaluate = "eval {} --data {} --adapter {} --json --quiet";
        gelora(words(evaluate, &[&place.model, &file, &out])).ok();
    }
}
