//! Datasets by their id: layouts, configs, splits, revisions, and the cache.

use std::fs;

use serde_json::json;

use crate::server::{SHA, Server};

/// Replaces the files of the dataset by these, with rows of the initial dataset.
fn set_files(hub: &Server, names: &[(&str, &str)]) {
    hub.set(|state| {
        let files = std::mem::take(&mut state.dataset);
        for (name, rows) in names {
            let bytes = files.get(*rows).cloned().unwrap_or_else(|| rows.as_bytes().to_vec());
            state.dataset.insert((*name).to_owned(), bytes);
        }
    });
}

/// Returns the files that were downloaded.
fn downloaded(hub: &Server) -> Vec<String> {
    let mut names: Vec<String> = hub.file_requests().into_iter().map(|(name, _)| name).collect();
    names.dedup();
    names
}

#[test]
fn datasets_are_read_by_their_id() {
    let hub = Server::start();
    let by_folder = hub.rank_on(&hub.data().display().to_string(), &[], &[]).ok();
    let run = hub.rank_on("tiny/reviews", &[], &[]).ok();
    assert_eq!(run.stdout, by_folder.stdout);
    assert!(run.stderr.contains("tiny/reviews: train (train.jsonl) at 01234567"), "{}", run.stderr);
    assert_eq!(downloaded(&hub), ["train.jsonl"], "what is not read is not downloaded");
    let repo = hub.home().join("hub/datasets--tiny--reviews");
    assert_eq!(fs::read_to_string(repo.join("refs/main")).expect("a revision"), SHA);
    assert!(repo.join("snapshots").join(SHA).join("train.jsonl").exists());

    // The cache serves offline runs, and runs whose hub is unreachable.
    assert_eq!(hub.rank_on("tiny/reviews", &[], &[]).ok().stdout, run.stdout);
    assert_eq!(hub.rank_on("tiny/reviews", &[], &[("HF_HUB_OFFLINE", "1")]).ok().stdout, run.stdout);
    let away = hub.rank_on("tiny/reviews", &[], &[("HF_ENDPOINT", "http://127.0.0.1:9")]).ok();
    assert!(away.stderr.contains("taking tiny/reviews as it was downloaded before"), "{}", away.stderr);
    assert_eq!(downloaded(&hub), [""; 0]);

    // The other split was not downloaded.
    let eval = |environment: &[(&str, &str)]| hub.run(&["eval", "tiny/bert", "--data", "tiny/reviews"], environment);
    hub.rank("tiny/bert", &[], &[]).ok();
    eval(&[("HF_HUB_OFFLINE", "1")]).fails_with(&["validation.jsonl is missing", "Run this once with a connection"]);

    // A cache filled by another program has no description, so its files are all that is known.
    fs::remove_dir_all(hub.home().with_file_name("gelora")).expect("a folder");
    let run = hub.rank_on("tiny/reviews", &[], &[("HF_HUB_OFFLINE", "1")]).ok();
    assert!(run.stderr.contains("what the cache has of it is assumed to be complete"), "{}", run.stderr);
    fs::remove_dir_all(hub.home()).expect("a cache");
    hub.rank_on("tiny/reviews", &[], &[("HF_HUB_OFFLINE", "1")])
        .fails_with(&["the dataset is not in", "HF_HUB_OFFLINE is set"]);
}

#[test]
fn each_command_downloads_the_splits_it_needs() {
    let hub = Server::start();
    set_files(
        &hub,
        &[
            ("data/train-00000-of-00001-0123456789abcdef.jsonl", "train.jsonl"),
            ("data/validation-00000-of-00001-0123456789abcdef.jsonl", "validation.jsonl"),
            ("data/test-00000-of-00001-0123456789abcdef.jsonl", "validation.jsonl"),
            ("dataset_infos.json", "{}"),
        ],
    );
    let out = hub.out().display().to_string();
    let train = ["train", "tiny/bert", "--data", "tiny/reviews", "--out", &out, "--rank", "2", "--steps", "2"];
    hub.run(&train, &[]).ok();
    let of_data = |hub: &Server| -> Vec<String> {
        let names = downloaded(hub).into_iter().filter(|name| name.starts_with("data/"));
        names.map(|name| name["data/".len()..].split("-0").next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(of_data(&hub), ["train", "validation"]);
    // The pages name the dataset as it was typed, so that their commands run elsewhere.
    for page in ["README.md", "report.html"] {
        let text = fs::read_to_string(hub.out().join(page)).expect("a page");
        assert!(text.contains("tiny/reviews") && !text.contains("tiny--reviews"), "{page}: {text}");
    }
    let eval = ["eval", "tiny/bert", "--adapter", &out, "--data", "tiny/reviews", "--json"];
    let json = hub.run(&eval, &[]).json();
    assert_eq!((json["rows"].as_i64(), of_data(&hub).len()), (Some(32), 0));
    let path = json["data"].as_str().expect("a path").to_owned();
    assert!(path.contains("tiny--reviews") && path.ends_with("validation.jsonl"), "{path}");
    hub.run(&[&eval[..], &["--split", "test"]].concat(), &[]).ok();
    assert_eq!(of_data(&hub), ["test"]);
}

#[test]
fn shards_of_a_split_are_read_together() {
    let hub = Server::start();
    set_files(
        &hub,
        &[
            ("data/train-00001-of-00002-bb.jsonl", "validation.jsonl"),
            ("data/train-00000-of-00002-aa.jsonl", "train.jsonl"),
        ],
    );
    let run = hub.rank_on("tiny/reviews", &[], &[]).ok();
    assert!(run.stdout.contains("measured on 128 examples"), "{}", run.stdout);
    assert_eq!(downloaded(&hub), ["data/train-00000-of-00002-aa.jsonl", "data/train-00001-of-00002-bb.jsonl"]);
    // A missing shard is an error, not a smaller split.
    let blobs = hub.home().join("hub/datasets--tiny--reviews/snapshots").join(SHA).join("data");
    fs::remove_file(blobs.join("train-00001-of-00002-bb.jsonl")).expect("a part");
    hub.rank_on("tiny/reviews", &[], &[("HF_HUB_OFFLINE", "1")])
        .fails_with(&["data/train-00001-of-00002-bb.jsonl is missing"]);
}

#[test]
fn configs_are_selected() {
    let hub = Server::start();
    set_files(&hub, &[("cola/train.jsonl", "train.jsonl"), ("sst2/train.jsonl", "validation.jsonl")]);
    hub.rank_on("tiny/reviews", &[], &[]).fails_with(&["tiny/reviews", "2 configs", "--data-config: cola, sst2"]);
    hub.rank_on("tiny/reviews", &["--data-config", "wnli"], &[]).fails_with(&["no config wnli; it has cola, sst2"]);
    assert_eq!(downloaded(&hub), [""; 0]);
    let run = hub.rank_on("tiny/reviews", &["--data-config", "sst2"], &[]).ok();
    assert!(run.stdout.contains("measured on 32 examples"), "{}", run.stdout);
    assert_eq!(downloaded(&hub), ["sst2/train.jsonl"]);

    // The README's header takes precedence over names, and its default config is taken.
    hub.set(|state| {
        state.card = json!({"license": "mit", "configs": [
            {"config_name": "small", "data_files": [{"split": "train", "path": "sst2/tr*.jsonl"}]},
            {"config_name": "large", "default": true, "data_files": [{"split": "train", "path": ["cola/*"]}]},
        ]});
    });
    let run = hub.rank_on("tiny/reviews", &[], &[]).ok();
    assert!(run.stderr.contains("its default config, large, of small, large"), "{}", run.stderr);
    assert!(run.stdout.contains("measured on 96 examples"), "{}", run.stdout);
    assert_eq!(downloaded(&hub), ["cola/train.jsonl"]);
    let small = hub.rank_on("tiny/reviews", &["--data-config", "small"], &[("HF_HUB_OFFLINE", "1")]).ok();
    assert!(small.stdout.contains("measured on 32 examples"), "{}", small.stdout);
    hub.set(|state| state.card = json!({"configs": [{"config_name": "a", "data_files": {"train": "a.csv"}}]}));
    hub.rank_on("tiny/reviews", &[], &[]).fails_with(&["the config a", "no form that is known"]);
}

#[test]
fn unreadable_datasets_are_errors() {
    let hub = Server::start();
    hub.rank_on("tiny/other", &[], &[]).fails_with(&["tiny/other", "no such dataset", "without a token"]);
    hub.rank_on("tiny/reviews", &["--data-revision", "v9"], &[]).fails_with(&["the dataset has no revision v9"]);
    hub.rank_on("tiny/reviews", &["--data-revision", "refs/pr/1"], &[]).ok();
    hub.rank_on("tiny/reviews", &["--data-config", "x"], &[]).fails_with(&["the dataset has no configs", "x"]);
    let here = hub.data().display().to_string();
    hub.rank_on(&here, &["--data-config", "x"], &[]).fails_with(&["--data-config x is for datasets on the hub", &here]);
    hub.rank_on(&here, &["--data-revision", "x"], &[]).fails_with(&["--data-revision x is for datasets on the hub"]);
    // Paths that are no ids are not requested from the hub.
    hub.requests();
    for path in ["nowhere", "nowhere/train.csv", "./tiny/reviews", "/tiny/reviews"] {
        hub.rank_on(path, &[], &[]).fails_with(&[path, "no such file or folder"]);
    }
    assert_eq!(hub.requests().len(), 0);

    // One file of a dataset by its name.
    hub.rank_on("tiny/reviews/validation.jsonl", &[], &[]).ok();
    assert_eq!(downloaded(&hub), ["validation.jsonl"]);
    hub.rank_on("tiny/reviews/dev.jsonl", &[], &[])
        .fails_with(&["has no dev.jsonl; it has train.jsonl, validation.jsonl"]);
    let config = ["--data-config", "x"];
    hub.rank_on("tiny/reviews/train.jsonl", &config, &[]).fails_with(&["--data-config x", "train.jsonl is one file"]);

    fs::remove_dir_all(hub.home()).expect("a cache");
    hub.set(|state| state.gated = true);
    hub.set(|state| state.token = Some("secret".into()));
    let page = format!("{}/datasets/tiny/reviews", hub.address);
    hub.rank_on("tiny/reviews", &[], &[]).fails_with(&["needs a token", &page]);
    hub.rank_on("tiny/reviews", &[], &[("HF_TOKEN", "secret")]).ok();

    let hub = Server::start();
    let names = |names: &[&str]| {
        let names: Vec<(&str, &str)> = names.iter().map(|name| (*name, "x")).collect();
        hub.set(|state| state.card = json!(null));
        set_files(&hub, &names);
    };
    names(&["reviews.py", "README.md"]);
    hub.rank_on("tiny/reviews", &[], &[])
        .fails_with(&["a program, reviews.py", "--data-revision refs/convert/parquet"]);
    names(&["train.jsonl.gz", "README.md"]);
    hub.rank_on("tiny/reviews", &[], &[]).fails_with(&[
        "no file that ends in",
        ".parquet",
        "it has README.md, train.jsonl.gz",
    ]);
    names(&["test.csv", "dev.csv"]);
    hub.rank_on("tiny/reviews", &[], &[]).fails_with(&["no train split; it has test, validation"]);
    // A file name cannot lead out of the cache.
    names(&["data/../../../../train.csv"]);
    hub.set(|state| state.card = json!({"configs": [{"config_name": "a", "data_files": "**/*.csv"}]}));
    hub.rank_on("tiny/reviews", &[], &[]).fails_with(&["would not lie in the cache's folder"]);
}
