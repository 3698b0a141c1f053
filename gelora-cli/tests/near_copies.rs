//! `gelora id` and `gelora rank` leave out, count and report near copies, and keep them on request.

mod common;

use std::fs;
use std::path::Path;

use common::{Run, fixture, gelora, words};
use gelora_id::manifolds;
use gelora_kernels::random::Stream;
use serde_json::{Value, json};

/// Returns a .csv file of 300 points with `dim` columns. The last 30 points are near copies.
fn points(dir: &Path, dim: usize) -> std::path::PathBuf {
    let cube = manifolds::cube(300, dim, 1).expect("a cloud");
    let (points, copies) = manifolds::with_near_copies(&cube, 0.1, 2, 1e-5, 2).expect("copies");
    assert_eq!(copies, 30);
    let values = points.to_vec_f64().expect("values");
    let row = |row: &[f64]| row.iter().map(f64::to_string).collect::<Vec<_>>().join(",") + "\n";
    let path = dir.join("points.csv");
    let header = ["a", "b", "c", "d"][..dim].join(",") + "\n";
    fs::write(&path, header + &values.chunks_exact(dim).map(row).collect::<String>()).expect("a file");
    path
}

#[test]
fn copies_left_out_of_a_plane_are_uncertain() {
    let dir = tempfile::tempdir().expect("a folder");
    let run =
        |dim: usize, options: &str| gelora(words(&format!("id {{}} {options}"), &[&points(dir.path(), dim)])).ok();
    let said = "near copies were left out at a dimension below 3";
    let plane = run(2, "--json --estimator two-nn-fit,mle");
    assert!(plane.stderr.matches(said).count() == 1 && plane.stderr.contains("--near-copies keep"), "{}", plane.stderr);
    for estimate in plane.json().as_array().expect("a list") {
        let warning = estimate["warnings"][0].as_str().expect("a warning");
        assert!(warning.contains(said) && warning.contains("--near-copies keep"), "{warning}");
    }
    for (dim, options) in [(2, "--json --near-copies keep"), (4, "--json")] {
        let other = run(dim, options);
        assert!(!other.stderr.contains("near copies"), "{}", other.stderr);
        assert_eq!(other.json().get("warnings"), None, "{dim} {options}");
    }
}

#[test]
fn points_are_counted_once_unless_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = points(dir.path(), 4);
    let run = |options: &str| gelora(words(&format!("id {{}} --estimator two-nn-fit,mle {options}"), &[&path]));
    let dropped = run("--json").json();
    let kept = run("--json --near-copies keep").json();
    for (dropped, kept) in dropped.as_array().expect("a list").iter().zip(kept.as_array().expect("a list")) {
        assert_eq!((&dropped["n"], &dropped["near_copies"]), (&json!(270), &json!(30)));
        assert_eq!((&kept["n"], &kept["near_copies"], kept.get("id_with_near_copies")), (&json!(300), &json!(0), None));
        assert_eq!(dropped["id_with_near_copies"], kept["id"]);
        let [id, with] = [dropped, kept].map(|e| e["id"].as_f64().expect("a number"));
        assert!((3.0..4.5).contains(&id) && with < 0.8 * id, "{id} {with}");
    }
    let stdout = run("").ok().stdout;
    assert!(stdout.contains("near copies") && stdout.contains("id with them") && stdout.contains("30"), "{stdout}");
    let stdout = run("--near-copies keep").ok().stdout;
    assert!(stdout.contains("near copies") && !stdout.contains("id with them"), "{stdout}");
    let wrong = run("--near-copies merge");
    assert!(wrong.code == Some(2) && wrong.stderr.contains("drop or keep, got \"merge\""), "{}", wrong.stderr);
}

/// Writes sentences of ten words, and `repeats` copies with the last word replaced.
fn sentences(path: &Path, repeats: usize) {
    let vocabulary = fs::read_to_string(fixture("tiny-bert/vocab.txt")).expect("the vocabulary");
    let words: Vec<&str> = vocabulary.lines().filter(|w| w.len() > 2 && w.chars().all(char::is_alphabetic)).collect();
    let mut random = Stream::new(5);
    let mut sentence = || -> Vec<&str> { (0..10).map(|_| words[random.below(words.len())]).collect() };
    let mut rows: Vec<Vec<&str>> = (0..150).map(|_| sentence()).collect();
    for i in 0..repeats {
        let mut other = rows[3 * i].clone();
        other[9] = sentence()[0];
        rows.push(other);
    }
    let line = |row: &Vec<&str>| format!("{}\n", json!({"text": row.join(" ")}));
    fs::write(path, rows.iter().map(line).collect::<String>()).expect("a file");
}

fn rank(dir: &Path, data: &str, options: &str) -> Run {
    let line = format!("rank {{}} --data {{}} --out {{}} --no-cache {options}");
    gelora(words(&line, &[&fixture("tiny-bert"), &dir.join(data), &dir.join("out")]))
}

#[test]
fn near_identical_sentences_do_not_change_dimensions() {
    let dir = tempfile::tempdir().expect("a folder");
    sentences(&dir.path().join("once.jsonl"), 0);
    sentences(&dir.path().join("twice.jsonl"), 20);
    let once = rank(dir.path(), "once.jsonl", "--json --quiet").json();
    let twice = rank(dir.path(), "twice.jsonl", "--json --quiet").json();
    let kept = rank(dir.path(), "twice.jsonl", "--json --quiet --near-copies keep").json();
    let states = |result: &Value| result["states"].as_array().expect("states").clone();
    // Deeper states of this model separate the changed word, so the repeats there are no near copies and none is left
    // out.
    for ((once, twice), kept) in states(&once).iter().zip(states(&twice)).zip(states(&kept)).take(2) {
        let number = |state: &Value, name: &str| state[name].as_f64().expect("a number");
        assert_eq!(once["near_copies"], 0, "{once}");
        assert!((15.0..=22.0).contains(&number(&twice, "near_copies")), "{twice}");
        assert_eq!((&twice["id_with_near_copies"], &kept["near_copies"]), (&kept["id"], &json!(0)));
        let interval = once["interval"].as_array().expect("an interval");
        let [low, high] = [0, 1].map(|end| interval[end].as_f64().expect("a number"));
        assert!(low < number(&twice, "id") && number(&twice, "id") < high, "{once} {twice}");
        assert!(number(&kept, "id") < low, "{once} {kept}");
    }
    assert_eq!((&twice["near_copies"], &kept["near_copies"]), (&json!("drop"), &json!("keep")));
    let warned = |result: &Value, words: &str| result["warnings"].to_string().contains(words);
    assert!(warned(&twice, "Near copies of other examples were left out in 2 of 4 states"), "{twice}");
    assert!(!warned(&once, "Near copies") && warned(&kept, "not looked for"));
    let run = rank(dir.path(), "twice.jsonl", "--stability 2").ok();
    assert!(run.stdout.contains("warning: Near copies") && run.stdout.contains("were not enough"), "{}", run.stdout);
}
