//! Layouts of datasets on the hub, and the configs and splits found in them.

use serde_json::json;

use super::layout::{Config, by_names, canonical, declared};
use super::splits::{Wanted, needed};
use crate::data::Split;

/// Returns configs as lines: `config: split=file,file; split=file`.
fn lines(configs: &[Config]) -> Vec<String> {
    let of_split = |(split, files): &(String, Vec<String>)| format!("{split}={}", files.join(","));
    let line = |config: &Config| {
        let splits: Vec<String> = config.splits.iter().map(of_split).collect();
        let left_out =
            if config.left_out.is_empty() { String::new() } else { format!(" - {}", config.left_out.join(",")) };
        format!("{}: {}{left_out}", config.name, splits.join("; "))
    };
    configs.iter().map(line).collect()
}

#[test]
fn names_give_splits_and_configs() {
    let cases: [(&[&str], &[&str]); 13] = [
        // Shards are sorted, whatever their order in the listing.
        (
            &["data/train-00001-of-00002-bb.parquet", "data/train-00000-of-00002-aa.parquet", "README.md"],
            &["default: train=data/train-00000-of-00002-aa.parquet,data/train-00001-of-00002-bb.parquet"],
        ),
        (&["train.csv", "test.csv", "dev.csv"], &["default: test=test.csv; train=train.csv; validation=dev.csv"]),
        (
            &["cola/train-00000-of-00001.parquet", "sst2/train-00000-of-00001.parquet"],
            &["cola: train=cola/train-00000-of-00001.parquet", "sst2: train=sst2/train-00000-of-00001.parquet"],
        ),
        // The hub's branch refs/convert/parquet.
        (
            &["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"],
            &["default: test=default/test/0000.parquet; train=default/train/0000.parquet,default/train/0001.parquet"],
        ),
        // Without a split in any name, all files are for training.
        (&["alpaca_cleaned.json", "LICENSE.txt"], &["default: train=alpaca_cleaned.json - LICENSE.txt"]),
        (&["a.jsonl", "b.jsonl"], &["default: train=a.jsonl,b.jsonl"]),
        // With a split in some names, the other files are left out.
        (&["train.jsonl", "extra.jsonl"], &["default: train=train.jsonl - extra.jsonl"]),
        // A split in several formats is taken once.
        (&["train.csv", "train.parquet", "train.jsonl"], &["default: train=train.parquet - train.csv,train.jsonl"]),
        (
            &["my-training-set.csv", "Test_2.csv", "latest.csv"],
            &["default: test=Test_2.csv; train=my-training-set.csv - latest.csv"],
        ),
        (
            &["validation_matched.csv", "data/validation_mismatched-00000-of-00001.csv", "train.csv"],
            &["default: train=train.csv; validation_matched=validation_matched.csv; \
               validation_mismatched=data/validation_mismatched-00000-of-00001.csv"],
        ),
        (&["data/train_sft-00000-of-00001.parquet"], &["default: train_sft=data/train_sft-00000-of-00001.parquet"]),
        (&["dataset_infos.json", ".gitattributes", "README.md", ".cache/train.csv"], &[]),
        (&["train.jsonl.gz", "train.arrow"], &[]),
    ];
    for (names, wanted) in cases {
        assert_eq!(lines(&by_names(names)), wanted, "{names:?}");
    }
}

#[test]
fn readme_headers_declare_configs() {
    let names = [
        "cola/train-0.parquet",
        "cola/dev.parquet",
        "sst2/a.csv",
        "sst2/b.csv",
        "sst2/c.zip",
        "train.csv",
        "x/train.csv",
    ];
    let of = |configs: serde_json::Value| {
        declared(&names, Some(&json!({"configs": configs}))).map(|configs| lines(&configs.unwrap_or_default()))
    };
    let split = |split: &str, path: serde_json::Value| json!({"split": split, "path": path});
    assert_eq!(
        of(json!([
            {"config_name": "cola", "data_files": [
                split("train", json!("cola/train-*")), split("validation", json!("cola/dev.parquet")),
                split("test", json!("cola/test-*")),
            ]},
            {"config_name": "sst2", "data_files": [split("train", json!(["sst2/b.csv", "sst2/*"]))]},
            {"config_name": "all", "data_files": "**/*.csv"},
            {"config_name": "folder", "data_dir": "x"},
            {"config_name": "inside", "data_dir": "cola", "data_files": "*"},
        ])),
        Ok(vec![
            "cola: train=cola/train-0.parquet; validation=cola/dev.parquet".into(),
            "sst2: train=sst2/b.csv,sst2/a.csv - sst2/c.zip".into(),
            "all: train=sst2/a.csv,sst2/b.csv,train.csv,x/train.csv".into(),
            "folder: train=x/train.csv".into(),
            "inside: train=cola/dev.parquet,cola/train-0.parquet".into(),
        ])
    );
    assert_eq!(declared(&names, None), Ok(None));
    assert_eq!(declared(&names, Some(&json!({"license": "mit"}))), Ok(None));
    for broken in [
        json!([{"config_name": "a", "data_files": {"train": "train.csv"}}]),
        json!([{"config_name": "a", "data_files": [split("../../train", json!("train.csv"))]}]),
        json!([{"config_name": "a", "data_files": [split("train", json!(7))]}]),
        json!([{"config_name": "a", "data_files": [split("train", json!("sst2/c.zip"))]}]),
    ] {
        let problem = of(broken.clone()).unwrap_err();
        assert!(problem.starts_with("the config a: "), "{broken}: {problem}");
    }
}

#[test]
fn commands_take_the_splits_they_need() {
    let splits = |names: &[&str]| -> Vec<(String, Vec<String>)> {
        names.iter().map(|name| ((*name).to_owned(), vec![format!("{name}.csv")])).collect()
    };
    let of = |names: &[&str], wanted| {
        let found = needed(&splits(names), wanted)?;
        let lines: Vec<String> = found.iter().map(|(split, files)| format!("{split}={}", files.join(","))).collect();
        Ok::<_, String>(lines.join(" "))
    };
    let train = Wanted::Trained { validates: true };
    let usual = ["test", "train", "validation"];
    assert_eq!(of(&usual, Wanted::Measured).unwrap(), "train=train.csv");
    assert_eq!(of(&usual, train).unwrap(), "train=train.csv validation=validation.csv");
    assert_eq!(of(&usual, Wanted::Trained { validates: false }).unwrap(), "train=train.csv");
    assert_eq!(of(&usual, Wanted::Evaluated(None)).unwrap(), "validation=validation.csv");
    assert_eq!(of(&usual, Wanted::Evaluated(Some(Split::Test))).unwrap(), "test=test.csv");
    assert_eq!(of(&["train", "test"], Wanted::Evaluated(None)).unwrap(), "test=test.csv");
    assert_eq!(of(&["train", "test"], train).unwrap(), "train=train.csv");
    // Other words for a split, and names that contain such a word.
    assert_eq!(of(&["train", "dev"], Wanted::Evaluated(Some(Split::Validation))).unwrap(), "validation=dev.csv");
    assert_eq!(of(&["train_sft", "test_sft"], Wanted::Measured).unwrap(), "train=train_sft.csv");
    assert_eq!(of(&["train", "train_extra"], Wanted::Measured).unwrap(), "train=train.csv");
    assert_eq!(of(&["unsupervised"], Wanted::Measured).unwrap(), "train=unsupervised.csv");
    assert_eq!(of(&["test"], Wanted::Measured).unwrap(), "test=test.csv");
    let halves = ["train", "validation_matched", "validation_mismatched"];
    assert_eq!(
        of(&halves, Wanted::Evaluated(None)).unwrap(),
        "validation_matched=validation_matched.csv validation_mismatched=validation_mismatched.csv"
    );
    for (names, wanted, words) in [
        (&["train_sft", "train_gen"][..], Wanted::Measured, "each of train_sft, train_gen could be the train split"),
        (&["test", "validation"], train, "no train split; it has test, validation"),
        (&["train"], Wanted::Evaluated(None), "train alone; say which with --split"),
        (&["train"], Wanted::Evaluated(Some(Split::Test)), "no test split; it has train"),
    ] {
        let problem = of(names, wanted).unwrap_err();
        assert!(problem.contains(words), "{problem}");
    }
}

#[test]
fn links_have_the_split_names_of_data_folders() {
    assert_eq!(canonical("train", 0, 1, "data/train-00000-of-00001-aa.parquet"), "train.parquet");
    assert_eq!(canonical("train", 1, 12, "a/b.JSONL"), "train-00001-of-00012.jsonl");
}
