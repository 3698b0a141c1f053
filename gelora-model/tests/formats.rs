//! The same weights in other files: half precision, shards.

mod golden;

use std::collections::BTreeMap;
use std::path::Path;

use gelora_kernels::{DType, Tensor};
use gelora_lora::files::{read_tensors, write_tensors};
use gelora_model::{Batch, CausalLm, Granularity, Transformer};
use golden::fixture;
use serde_json::{Map, Value, json};

const FAMILIES: [&str; 4] = ["llama", "llama-tied", "gpt2", "deberta-conv"];

fn weights(family: &str) -> BTreeMap<String, Tensor> {
    read_tensors(&fixture("families").join(family).join("model.safetensors"), |_| true).expect("the fixture")
}

/// A folder of a family with these tensors in one file.
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

/// Every value that a model makes of a batch.
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

/// Weights in half precision are what they are in f32 after rounding.
#[test]
fn half_precision_is_read_as_it_is() {
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
fn shards_are_one_model() {
    for family in FAMILIES {
        let (mut first, mut second, mut map) = (BTreeMap::new(), BTreeMap::new(), Map::new());
        for (i, (name, tensor)) in weights(family).into_iter().enumerate() {
            let (shard, file) = if i % 3 == 0 { (&mut first, "a.safetensors") } else { (&mut second, "b.safetensors") };
            map.insert(name.clone(), Value::from(file));
            shard.insert(name, tensor);
        }
        let folder = folder(family, &first);
        let at = |name: &str| folder.path().join(name);
        std::fs::rename(at("model.safetensors"), at("a.safetensors")).expect("a file");
        write(&at("b.safetensors"), &second);
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(at("model.safetensors.index.json"), index).expect("a file");
        let decoder = !family.starts_with("deberta");
        assert!(values(folder.path(), decoder) == values(&fixture("families").join(family), decoder), "{family}");
    }
}
