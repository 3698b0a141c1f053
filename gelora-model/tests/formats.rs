//! The same weights in different files: half precision, shards, PyTorch checkpoints.

mod golden;

use std::collections::BTreeMap;
use std::path::Path;

use gelora_kernels::{DType, Tensor};
use gelora_lora::Adapter;
use gelora_lora::files::{read_tensors, write_tensors};
use gelora_model::{Batch, CausalLm, Classifier, Granularity, Transformer};
use golden::fixture;
use serde_json::{Map, Value, json};

const FAMILIES: [&str; 4] = ["llama", "llama-tied", "gpt2", "deberta-conv"];

fn weights(family: &str) -> BTreeMap<String, Tensor> {
    read_tensors(&fixture("families").join(family).join("model.safetensors"), |_| true).expect("the fixture")
}

/// Makes a folder of a family with these tensors in one file.
fn folder(family: &str, tensors: &BTreeMap<String, Tensor>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy(fixture("families").join(family).join("config.json"), folder.path().join("config.json"))
        .expect("a copy");
    write(&folder.path().join("model.safetensors"), tensors);
    folder
}

fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    write_tensors(path, tensors.iter().map(|(name, t)| (name.clone(), t))).expect("a file");
}

/// Bits of all values that a model computes from a batch.
fn values(model: &Path, decoder: bool) -> Vec<u32> {
    let batch = Batch::of_ids(&[vec![5, 9, 33, 12, 60], vec![7], vec![8, 8, 41]]).expect("a batch");
    let mut all = Vec::new();
    let transformer = Transformer::load(model).expect("it loads");
    let keep = |_: usize, state: &Tensor| {
        all.extend(state.to_vec()?.into_iter().map(f32::to_bits));
        Ok(())
    };
    transformer.hidden_states(&batch, Granularity::Block, keep).expect("it runs");
    if decoder {
        let rows: Vec<usize> = (0..9).collect();
        let logits = CausalLm::load(model).and_then(|lm| Ok(lm.logits(&batch, &rows)?.to_vec()?)).expect("logits");
        all.extend(logits.into_iter().map(f32::to_bits));
    }
    all
}

/// Weights in half precision give the same values as the rounded weights in f32.
#[test]
fn half_precision_is_read_without_loss() {
    for family in FAMILIES {
        let decoder = !family.starts_with("deberta");
        for dtype in [DType::F16, DType::Bf16] {
            let map = |f: &dyn Fn(&Tensor) -> Tensor| weights(family).iter().map(|(n, t)| (n.clone(), f(t))).collect();
            let half = |t: &Tensor| t.to_dtype(dtype).expect("f32 becomes half");
            let stored = folder(family, &map(&half));
            let rounded = folder(family, &map(&|t| half(t).to_dtype(DType::F32).expect("half becomes f32")));
            let (stored, rounded) = (values(stored.path(), decoder), values(rounded.path(), decoder));
            assert_eq!(stored.len(), rounded.len());
            assert!(stored == rounded, "{family} in {dtype}");
            let exact = values(&fixture("families").join(family), decoder);
            assert!(stored != exact, "{family} in {dtype} has lost digits");
        }
    }
}

#[test]
fn shards_form_one_model() {
    for family in FAMILIES {
        let (mut first, mut second, mut map) = (BTreeMap::new(), BTreeMap::new(), Map::new());
        for (i, (name, tensor)) in weights(family).into_iter().enumerate() {
            let (shard, file) = if i % 3 == 0 { (&mut first, "a.safetensors") } else { (&mut second, "b.safetensors") };
            map.insert(name.clone(), Value::from(file));
            shard.insert(name, tensor);
        }
        let folder = folder(family, &first);
        let path = |name: &str| folder.path().join(name);
        std::fs::rename(path("model.safetensors"), path("a.safetensors")).expect("a file");
        write(&path("b.safetensors"), &second);
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(path("model.safetensors.index.json"), index).expect("a file");
        let decoder = !family.starts_with("deberta");
        assert!(values(folder.path(), decoder) == values(&fixture("families").join(family), decoder), "{family}");
    }
}

/// Makes a folder of DeBERTa with PyTorch files, which hold its weights in f16.
fn torch_folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let config = fixture("families/deberta/config.json");
    std::fs::copy(config, folder.path().join("config.json")).expect("a copy");
    for (from, to) in files {
        std::fs::copy(fixture("torch").join(from), folder.path().join(to)).expect("a copy");
    }
    folder
}

const TORCH_SHARDS: [(&str, &str); 3] = [
    ("pytorch_model.bin.index.json", "pytorch_model.bin.index.json"),
    ("pytorch_model-00001-of-00002.bin", "pytorch_model-00001-of-00002.bin"),
    ("pytorch_model-00002-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
];

#[test]
fn torch_files_give_the_same_model() {
    let half = weights("deberta").into_iter().map(|(name, t)| (name, t.to_dtype(DType::F16).expect("half"))).collect();
    let want = folder("deberta", &half);
    let wanted = values(want.path(), false);
    for files in [&[("zip.bin", "pytorch_model.bin")][..], &[("legacy.bin", "pytorch_model.bin")], &TORCH_SHARDS] {
        let folder = torch_folder(files);
        assert!(values(folder.path(), false) == wanted, "{files:?}");
        // A safetensors file takes precedence.
        write(&folder.path().join("model.safetensors"), &weights("deberta"));
        assert!(values(folder.path(), false) != wanted, "{files:?}");
    }
}

#[test]
fn torch_files_are_merged_like_others() {
    let half = weights("deberta").into_iter().map(|(name, t)| (name, t.to_dtype(DType::F16).expect("half"))).collect();
    let merged = |model: &Path| {
        let adapter = Adapter::read(&fixture("families/deberta/adapter")).expect("an adapter");
        let classifier = Classifier::with_adapter(model, adapter, None).expect("it loads");
        let out = tempfile::tempdir().expect("a folder");
        classifier.write_merged(model, out.path()).expect("it is written");
        std::fs::read(out.path().join("model.safetensors")).expect("weights")
    };
    let want = merged(folder("deberta", &half).path());
    assert!(merged(torch_folder(&TORCH_SHARDS).path()) == want);
    assert!(merged(torch_folder(&[("legacy.bin", "pytorch_model.bin")]).path()) == want);
}

#[test]
fn torch_indexes_are_checked() {
    let refused = |folder: &Path, words: &[&str]| {
        let problem = Transformer::load(folder).expect_err("an error").to_string();
        assert!(words.iter().all(|word| problem.contains(word)), "{words:?} {problem}");
    };
    let folder = torch_folder(&TORCH_SHARDS[..2]);
    refused(folder.path(), &["pytorch_model.bin.index.json", "names the shard pytorch_model-00002-of-00002.bin"]);
    let folder = torch_folder(&[TORCH_SHARDS[0], TORCH_SHARDS[1], (TORCH_SHARDS[1].0, TORCH_SHARDS[2].1)]);
    refused(folder.path(), &["pytorch_model.bin.index.json", "is in none of the files"]);
    let index = folder.path().join("pytorch_model.bin.index.json");
    std::fs::write(index, r#"{"weight_map": {"a": "../a.bin"}}"#).expect("a file");
    refused(folder.path(), &["tensor a is in \"../a.bin\"; expected a file of this folder"]);
    refused(torch_folder(&[]).path(), &["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"]);
}
