//! Reads the seeds of the fuzz targets, and files that once broke a reader (`find-*`). See fuzz/README.md.

mod common;

use std::fs;
use std::path::Path;

use gelora_cli::untrusted;
use serde_json::{Value, json};

#[test]
fn seeds_are_valid_and_finds_are_errors() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let folder = tempfile::tempdir().unwrap();
    for target in untrusted::targets() {
        let (mut read, mut refused) = (0, 0);
        for entry in fs::read_dir(seeds.join(target)).unwrap() {
            let path = entry.unwrap().path();
            let (name, bytes) = (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
            match untrusted::read(target, &bytes, &folder.path().join(target)) {
                Ok(()) => read += 1,
                // `untrusted::read` checks for panics and errors of several lines.
                Err(_) if name.starts_with("find-") => refused += 1,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        assert!(read > 0, "{target}: no seed, and {refused} finds");
    }
}

/// Truncated seeds and changed bytes must not cause a panic. The fuzz targets search for more such inputs.
#[test]
fn truncated_and_changed_seeds_do_not_panic() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let folder = tempfile::tempdir().unwrap();
    for target in untrusted::targets() {
        for entry in fs::read_dir(seeds.join(target)).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            let step = bytes.len().div_ceil(48).max(1);
            for at in (0..bytes.len()).step_by(step) {
                let _ = untrusted::read(target, &bytes[..at], &folder.path().join(target));
                let mut changed = bytes.clone();
                changed[at] = changed[at].wrapping_add(0x7f);
                let _ = untrusted::read(target, &changed, &folder.path().join(target));
            }
        }
    }
}

/// The tokenizers crate reads these files and panics on them later. Every use of them gives one line that names the
/// file.
#[test]
fn panics_of_the_tokenizers_crate_are_one_error() {
    let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/tokenizer/unigram");
    let good: Value = serde_json::from_slice(&fs::read(seed).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut broken = good.clone();
        change(&mut broken);
        let error = untrusted::read("tokenizer", broken.to_string().as_bytes(), folder.path()).unwrap_err();
        assert!(error.contains("tokenizer.json: "), "{error}");
        error
    };
    const DAMAGED: &str = "tokenizer.json: damaged, or of a kind that cannot be read: ";
    let template = refused(&|file| file["post_processor"]["special_tokens"] = json!({}));
    assert!(template.contains(DAMAGED), "{template}");
    let decoder = refused(&|file| file["decoder"] = json!({"type": "Strip", "content": "e", "start": 0, "stop": 9}));
    assert!(decoder.contains(DAMAGED), "{decoder}");
    let long = refused(&|file| file["model"]["vocab"][5] = json!(["y".repeat(100_000), -5.0]));
    assert!(long.contains("not a readable tokenizer: a piece of 100000 bytes; expected 1024 at most"), "{long}");
}

/// Runs the program, which would report a panic on stderr.
#[test]
fn a_broken_special_token_template_is_one_line_of_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(common::fixture("tiny-bert")).unwrap().flatten() {
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let path = model.join("tokenizer.json");
    let mut broken: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    broken["post_processor"]["special_tokens"] = json!({});
    fs::write(&path, broken.to_string()).unwrap();
    let (data, out) = (common::fixture("tiny-bert.jsonl"), folder.path().join("out"));
    for line in ["rank {} --data {} --out {}", "train {} --data {} --rank 1 --steps 1 --out {}"] {
        let run = common::gelora(common::words(line, &[&model, &data, &out]));
        run.fails_with(&["tokenizer.json: damaged, or of a kind that cannot be read: "]);
    }
}
