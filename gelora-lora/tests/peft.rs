//! Against PEFT itself: folders that it saved, and its answers on unusual patterns.
//!
//! It reads fixtures/ of the repository, so it is not part of the package.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gelora_lora::ranks::{self, Limits, Policy};
use gelora_lora::{Adapter, AdapterConfig, CONFIG_NAME, WEIGHTS_NAME, files};
use serde_json::{Value, json};

type TestResult = Result<(), Box<dyn std::error::Error>>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Reads a folder that PEFT saved, writes it, and finds every tensor and every key of the config again.
fn round_trip(name: &str, layers: usize) -> Result<Adapter, Box<dyn std::error::Error>> {
    let (original, copy) = (fixture(name), tempfile::tempdir()?);
    let adapter = Adapter::read(&original)?;
    assert_eq!(adapter.layers.len(), layers);
    assert!(adapter.saved.keys().eq(["classifier.bias", "classifier.weight"]));
    adapter.write(copy.path())?;

    let tensors = |folder: &Path| files::read_tensors(&folder.join(WEIGHTS_NAME), |_| true);
    let (before, after) = (tensors(&original)?, tensors(copy.path())?);
    assert!(before.keys().eq(after.keys()));
    for (name, tensor) in &before {
        assert_eq!((tensor.shape(), tensor.bytes()?), (after[name].shape(), after[name].bytes()?), "{name}");
    }
    let config = |folder: &Path| -> Result<Value, Box<dyn std::error::Error>> {
        Ok(serde_json::from_slice(&fs::read(folder.join(CONFIG_NAME))?)?)
    };
    let (before, after) = (config(&original)?, config(copy.path())?);
    for (key, value) in before.as_object().ok_or("not an object")? {
        // 0 and 0.0 are one dropout.
        let same = after[key] == *value || key == "lora_dropout" && after[key].as_f64() == value.as_f64();
        // A key that PEFT writes as null may be left out.
        assert!(same || value.is_null() && after.get(key).is_none(), "{key}: {value} became {}", after[key]);
    }
    Ok(adapter)
}

#[test]
fn tiny_bert() -> TestResult {
    let adapter = round_trip("tiny-bert-peft", 12)?;
    let layer = &adapter.layers["bert.encoder.layer.1.attention.self.query"];
    assert_eq!((layer.rank(), layer.scaling), (3, 5.0 / 3.0));
    let layer = &adapter.layers["bert.encoder.layer.0.attention.output.dense"];
    assert_eq!((layer.rank(), layer.scaling), (1, 4.0));
    Ok(())
}

#[test]
fn tiny_bert_with_rslora_on_all_linear_modules() -> TestResult {
    let adapter = round_trip("tiny-bert-peft-rslora", 19)?;
    assert!(adapter.layers.values().all(|layer| (layer.rank(), layer.scaling) == (4, 3.0)));
    assert_eq!(adapter.layers["bert.encoder.layer.0.intermediate.dense"].b.shape(), [64, 4]);
    Ok(())
}

#[test]
fn minilm() -> TestResult {
    let adapter = round_trip("minilm-peft", 24)?;
    let of_layer = |layer| adapter.layers[&format!("bert.encoder.layer.{layer}.attention.self.key")].rank();
    assert_eq!((0..6).map(of_layer).collect::<Vec<_>>(), [1, 3, 2, 1, 1, 4]);
    Ok(())
}

/// tests/data/peft_matching.py asked PEFT.
#[test]
fn modules_match_as_in_peft() -> TestResult {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(data("peft_matching.json"))?)?;
    assert_eq!(cases.len(), 27);
    let text = fs::read_to_string(data("peft_matching.json"))?;
    for line in text.lines().filter(|line| line.starts_with('{')) {
        // Not through `Value`, which would sort the patterns.
        #[derive(serde::Deserialize)]
        struct Case {
            config: AdapterConfig,
            modules: BTreeMap<String, Option<(usize, f64)>>,
        }
        let case: Case = serde_json::from_str(line.trim_end_matches(','))?;
        let matcher = case.config.matcher()?;
        for (name, expected) in &case.modules {
            let got = matcher.module(name)?.map(|m| (m.rank, m.alpha));
            assert_eq!(got, *expected, "{name} with {:?}", case.config);
        }
    }
    Ok(())
}

/// The config in tests/data/twelve_layers is what this crate writes; fixtures/check_ranks.py shows it to PEFT:
///
///     python fixtures/check_ranks.py gelora-lora/tests/data/twelve_layers
///
/// UPDATE_FIXTURES=1 writes the folder anew.
#[test]
fn the_config_that_peft_was_shown() -> TestResult {
    let ids = [4.0, 6.5, 9.9, 9.0, 12.2, 12.0, 11.0, 13.5, 13.6, 17.9, 17.0, 23.0, 21.0];
    let step = |delta| ranks::Step { delta, upper: delta, cost: 64, most: 64 };
    let steps: Vec<_> = ranks::differences(&ids)?.into_iter().map(step).collect();
    let layers = ranks::assign(&steps, &Policy::default(), 1.5, &Limits::default())?;
    let name = |layer: usize, m: &str| format!("bert.encoder.layer.{layer}.{m}");
    let adapted = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"];
    let modules: Vec<_> =
        layers.iter().enumerate().flat_map(|(l, of)| adapted.map(|m| (name(l, m), of.rank, of.alpha))).collect();
    let linear = (0..12).flat_map(|l| ["intermediate.dense", "output.dense"].map(|m| name(l, m)));
    let others: Vec<String> = linear.chain(["bert.pooler.dense".into(), "classifier".into()]).collect();
    let config = AdapterConfig::for_modules(&modules, "bert.", &others)?;
    let expected: serde_json::Map<String, Value> =
        modules.iter().map(|(name, rank, alpha)| (name.clone(), json!({"rank": rank, "alpha": alpha}))).collect();

    let written = tempfile::tempdir()?;
    let folder = data("twelve_layers");
    let ranks_json = serde_json::to_string_pretty(&json!({"modules": expected}))? + "\n";
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        fs::create_dir_all(&folder)?;
        config.write(&folder.join(CONFIG_NAME))?;
        fs::write(folder.join("ranks.json"), &ranks_json)?;
    }
    config.write(&written.path().join(CONFIG_NAME))?;
    assert_eq!(fs::read_to_string(folder.join(CONFIG_NAME))?, fs::read_to_string(written.path().join(CONFIG_NAME))?);
    assert_eq!(fs::read_to_string(folder.join("ranks.json"))?, ranks_json);
    assert_eq!(AdapterConfig::read(&folder.join(CONFIG_NAME))?, config);
    Ok(())
}
