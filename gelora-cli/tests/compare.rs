//! `gelora compare`: killed and resumed, arms that are the same, an arm with a planted gain, bad input.

#![allow(clippy::print_stdout)] // a failure must be repeatable

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use common::{Run, data, fixture, gelora, words};
use gelora_kernels::random::Stream;
use serde_json::{Value, json};

const QUICK: &str =
    "--epochs 1 --batch-size 16 --budget-rank 4 --seeds 3 --choose-seeds 2 --lrs 1e-3,1e-2 --jobs 2 --json --quiet";

fn arguments(data: &Path, out: &Path, options: &str) -> Vec<String> {
    words(&format!("compare {{}} --data {{}} --out {{}} {options}"), &[&fixture("tiny-bert"), data, out])
}

fn compare(data: &Path, out: &Path, options: &str) -> Run {
    gelora(arguments(data, out, options))
}

/// The table without what depends on the clock, and the warnings of the runs that this process made.
fn without_times(mut table: Value) -> Value {
    table.as_object_mut().expect("an object").remove("warnings");
    for row in table["arms"].as_array_mut().expect("arms") {
        let row = row.as_object_mut().expect("an arm");
        row.remove("train_seconds").expect("seconds of the training");
        row.remove("measure_seconds").expect("seconds of the measurement");
    }
    table
}

fn row<'a>(table: &'a Value, arm: &str) -> &'a Value {
    let rows = table["arms"].as_array().expect("arms");
    rows.iter().find(|row| row["arm"] == arm).unwrap_or_else(|| panic!("no {arm} in {table}"))
}

fn lines(out: &Path) -> usize {
    fs::read_to_string(out.join("results.jsonl")).map_or(0, |text| text.matches('\n').count())
}

#[test]
fn a_killed_compare_goes_on_as_if_it_had_not_been_killed() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, whole, killed) = (data(dir.path()), dir.path().join("whole"), dir.path().join("killed"));
    let options = format!(
        "{QUICK} --arms head,uniform-1,uniform,gelora,gelora-upper,plateau,budget,shuffled-budget,random,rslora"
    );
    let table = compare(&data, &whole, &options).json();
    assert_eq!((&table["runs_finished"], &table["runs_planned"]), (&json!(70), &json!(70)));
    assert_eq!(lines(&whole), 70);
    for name in ["results.jsonl", "study.json", "compare.json", "report.html"] {
        assert!(whole.join(name).is_file(), "{name}");
    }

    // Killed at random moments.
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_nanos() as u64;
    println!("moments of seed {seed}");
    let mut stream = Stream::new(seed);
    for _ in 0..5 {
        let wanted = lines(&killed) + 1 + stream.below(8);
        let later = Duration::from_millis(stream.below(40) as u64);
        let mut child = Command::new(env!("CARGO_BIN_EXE_gelora"))
            .args(arguments(&data, &killed, &options))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let started = Instant::now();
        while lines(&killed) < wanted && started.elapsed() < Duration::from_secs(120) {
            sleep(Duration::from_millis(3));
        }
        sleep(later);
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert!((wanted..70).contains(&lines(&killed)), "{} lines", lines(&killed));
    }
    // A line that was cut off in the middle, as a full disk or a loss of power leaves it.
    let path = killed.join("results.jsonl");
    let text = fs::read_to_string(&path).expect("results");
    fs::write(&path, &text[..text.len() - 30]).expect("a torn file");
    let resumed = compare(&data, &killed, &format!("{options} --resume")).json();
    assert_eq!(without_times(resumed), without_times(table.clone()));

    // Nothing is left to do, and the table can be shown alone.
    let shown = compare(&data, &killed, &format!("{options} --table")).json();
    assert_eq!(without_times(shown), without_times(table.clone()));
    // Another machine's runs are taken over, so that nothing is trained again.
    let joined = dir.path().join("joined");
    let run = compare(&data, &joined, &format!("{options} --join {}", whole.join("results.jsonl").display())).json();
    assert_eq!(run["arms"], table["arms"], "times too");

    // Ranks and parameters are those of the arms.
    let ranks = |arm: &str| row(&table, arm)["ranks"]["0"].clone();
    assert_eq!(
        (ranks("head"), ranks("uniform-1"), ranks("uniform")),
        (json!([0.0, 0.0, 0.0]), json!([1.0, 1.0, 1.0]), json!([4.0, 4.0, 4.0]))
    );
    let parameters = |arm: &str| row(&table, arm)["parameters"].as_f64().expect("parameters");
    assert_eq!((parameters("head"), parameters("uniform")), (0.0, 4.0 * 12.0 * 64.0));
    for arm in ["budget", "shuffled-budget", "random", "rslora"] {
        assert_eq!(parameters(arm), parameters("uniform"), "{arm}");
    }
    assert!(row(&table, "gelora")["measure_seconds"].as_f64() > Some(0.0));
    assert_eq!(row(&table, "uniform")["measure_seconds"], 0.0);
    assert_eq!(row(&table, "gelora")["curve"].as_array().map(Vec::len), Some(2));
    let page = fs::read_to_string(whole.join("report.html")).expect("the report");
    for words in ["Score over learning rate", "shuffled-budget", "cannot be seen", "</html>"] {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn measured_and_trained_arms_give_ranks_to_single_modules() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (data(dir.path()), dir.path().join("study"));
    let options = "--epochs 1 --batch-size 16 --budget-rank 3 --seeds 2 --lrs 1e-2 --json --quiet";
    let table = compare(&data, &out, &format!("{options} --arms uniform,gradient,signal,prune,adalora,eva")).json();
    let parameters = |arm: &str| row(&table, arm)["parameters"].as_f64().expect("parameters");
    for arm in ["gradient", "signal", "prune", "adalora", "eva"] {
        // All modules have one size, so the budget is spent to the last rank.
        assert_eq!(parameters(arm), parameters("uniform"), "{arm}");
        let ranks = row(&table, arm)["ranks"]["0"].as_array().expect("ranks");
        let sum: f64 = ranks.iter().filter_map(Value::as_f64).sum();
        assert!((sum - 9.0).abs() < 1e-9 && ranks.len() == 3, "{arm}: {ranks:?}");
    }
    for arm in ["gradient", "eva"] {
        assert!(row(&table, arm)["measure_seconds"].as_f64() > Some(0.0), "{arm}");
    }
    assert_eq!(row(&table, "prune")["measure_seconds"], 0.0);
    assert_ne!(row(&table, "signal")["ranks"], row(&table, "uniform")["ranks"]);
    // A rerun gives the same bits.
    let again = dir.path().join("again");
    let repeated =
        compare(&data, &again, &format!("{options} --arms uniform,gradient,signal,prune,adalora,eva")).json();
    assert_eq!(without_times(repeated), without_times(table));
}

#[test]
fn trained_updates_are_related_to_what_was_known_before() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (data(dir.path()), dir.path().join("study"));
    let options = "--epochs 1 --batch-size 16 --budget-rank 2 --seeds 2 --choose-seeds 2 --lrs 1e-2 --json --quiet \
                   --arms head,uniform --mechanism 8";
    let table = compare(&data, &out, options).json();
    let correlations = table["correlations"].as_array().expect("correlations");
    assert_eq!(correlations.len(), 9, "12 modules of four kinds, none of which has four: {correlations:?}");
    for correlation in correlations {
        assert_eq!(correlation["modules"], 12);
        let value = correlation["spearman"].as_f64();
        assert!(value.is_none_or(|value| (-1.0..=1.0).contains(&value)), "{correlation}");
        assert_eq!(correlation["range"].is_array(), value.is_some(), "{correlation}");
    }
    let path = out.join("mechanism.jsonl");
    let text = fs::read_to_string(&path).expect("the updates");
    assert_eq!(text.lines().count(), 2);
    let first: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    for module in first["modules"].as_array().expect("modules") {
        let effective = module["effective"].as_f64().expect("a number");
        assert!((1.0 - 1e-9..=8.0 + 1e-9).contains(&effective), "{module}");
    }
    // Nothing is trained twice, what a killed run left of a line is no line, and the report shows it.
    fs::write(&path, format!("{text}{{\"study\": ")).expect("a torn file");
    let again = compare(&data, &out, options).json();
    assert_eq!(
        (&again["correlations"], fs::read_to_string(&path).expect("the updates")),
        (&table["correlations"], text)
    );
    let page = fs::read_to_string(out.join("report.html")).expect("the report");
    let without = options.replace("uniform", "rslora") + " --reference rslora";
    compare(&data, &dir.path().join("other"), &without).fails_with(&["--mechanism", "the arm uniform"]);
    assert!(page.contains("What trained updates need") && page.contains("directions of the gradient"));
}

/// Random sentences whose labels have nothing to do with them, so that only who has seen a label knows it.
fn noise(dir: &Path) -> PathBuf {
    let vocabulary = fs::read_to_string(fixture("tiny-bert/vocab.txt")).expect("the vocabulary");
    let words: Vec<&str> = vocabulary.lines().filter(|w| w.len() > 2 && w.chars().all(char::is_alphabetic)).collect();
    let folder = dir.join("noise");
    fs::create_dir(&folder).expect("a folder");
    let mut state = 1_u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for (name, rows) in [("train.jsonl", 96), ("validation.jsonl", 32)] {
        let mut row = |_| {
            let text: Vec<&str> = (0..6).map(|_| words[below(words.len())]).collect();
            let label = if below(2) == 0 { "no" } else { "yes" };
            json!({"text": text.join(" "), "label": label}).to_string() + "\n"
        };
        fs::write(folder.join(name), (0..rows).map(&mut row).collect::<String>()).expect("a data file");
    }
    folder
}

#[test]
fn the_same_arm_again_is_no_difference_and_a_leak_is_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = "--arms uniform,repeat,leaked --lrs 1e-2 --epochs 30 --batch-size 16 --train-rows 64 --json --quiet";
    let table = compare(&noise(dir.path()), &dir.path().join("out"), options).json();
    let verdict = |arm: &str| row(&table, arm)["difference"]["verdict"].clone();
    assert_eq!(verdict("repeat"), "no-difference", "{table}");
    assert_eq!(verdict("leaked"), "better", "{table}");
    let leaked = &row(&table, "leaked")["difference"];
    assert!(leaked["interval"][0].as_f64() > Some(0.0) && leaked["p_holm"].as_f64() < Some(0.05), "{leaked}");
}

#[test]
fn scores_and_language_models_are_compared_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut text = String::from("sentence1\tsentence2\tscore\n");
    (0..40).for_each(|i| text.push_str(&format!("the film {}\tthe plot\t{}\n", "good ".repeat(i % 5), i % 5)));
    let rows = dir.path().join("rows.tsv");
    fs::write(&rows, text).expect("a data file");
    let options = format!("{QUICK} --arms uniform,random --eval-data {} --train-rows 30", rows.display());
    let table = compare(&rows, &dir.path().join("scores"), &options).json();
    assert_eq!((&table["metric"], &table["lower_is_better"]), (&json!("pearson"), &json!(false)));

    // Instructions whose answer is always the same: the better rate is the higher one, by a lower loss.
    let row =
        |i: usize| json!({"instruction": format!("Say {i}"), "input": "", "output": "the lane"}).to_string() + "\n";
    let rows = dir.path().join("rows.jsonl");
    fs::write(&rows, (0..24).map(row).collect::<String>()).expect("a data file");
    let lm = |out: &str, options: &str| {
        let line = format!("compare {{}} --data {{}} --eval-data {{}} --out {{}} {QUICK} {options}");
        gelora(words(&line, &[&fixture("gguf/tiny.gguf"), &rows, &rows, &dir.path().join(out)]))
    };
    let table = lm("lm", "--arms uniform,gelora").json();
    assert_eq!((&table["metric"], &table["lower_is_better"]), (&json!("loss"), &json!(true)));
    assert_eq!(self::row(&table, "uniform")["lr"], 1e-2);
    lm("head", "--arms uniform,head").fails_with(&["--arms", "arm head", "language model"]);
}

#[test]
fn bad_input_is_one_clear_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (data(dir.path()), dir.path().join("out"));
    let fails = |options: &str, words: &[&str]| compare(&data, &out, options).fails_with(words);
    fails("--arms uniform,lora", &["--arms", "\"lora\" is not an arm", "shuffled-budget"]);
    fails("--arms uniform", &["--arms", "at least two arms"]);
    fails("--arms uniform,uniform", &["--arms", "twice"]);
    fails("--arms head,gelora", &["--reference uniform", "head, gelora"]);
    fails("--seeds 1", &["--seeds 1", "at least 2"]);
    fails("--lrs 1e-4..1e-2", &["--lrs", "1e-4..3e-2:6"]);
    fails("--choose-seeds 0", &["--choose-seeds 0"]);
    fails("--metric pearson", &["--metric pearson", "accuracy, f1, matthews"]);
    fails("--budget-rank 99", &["--budget-rank 99", "arm uniform", "32"]);
    fails("--train-rows 97", &["train.jsonl", "96 training rows", "97"]);
    fails("--train-rows 9", &["at least 10"]);
    fails("--resume", &["--resume", "results.jsonl"]);
    fails("--target-modules nothing", &["--target-modules", "nothing"]);
    // gelora-upper asks for more than rank 1 somewhere, and min-rank is above the budget.
    fails(
        "--arms uniform,random --budget-rank 1 --min-rank 2 --jobs 1",
        &["--budget-rank 1", "arm random", "budget is"],
    );
    assert_eq!(lines(&out), 0);
    compare(&data.join("train.jsonl"), &out, "").fails_with(&["train.jsonl", "--eval-data"]);

    let quick = QUICK.replace("1e-3,1e-2", "1e-3 --steps 1 --arms uniform,random");
    compare(&data, &out, &quick).ok();
    fails(
        &format!("{quick} --alpha-ratio 4"),
        &["results.jsonl: line 1", "another study", "alpha-ratio is 2.0 there and 4.0 here"],
    );
    let other = dir.path().join("other");
    let join = format!("{quick} --batch-size 8 --join {}", out.join("results.jsonl").display());
    let join = join.replacen("--batch-size 16 ", "", 1);
    compare(&data, &other, &join).fails_with(&["--join", "another study", "batch-size is 16 there and 8 here"]);
}
