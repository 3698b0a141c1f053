//! Writes adapters and models of the tiny families and reads them back. fixtures/check_llama_cpp.py checks what
//! llama.cpp itself computes with such files.

use std::path::PathBuf;

use gelora_kernels::random::Stream;
use gelora_lora::CONFIG_NAME;

use super::super::GgufOptions;
use super::*;
use crate::{Batch, CausalLm};

/// Folders of models, at least one for each architecture, and the number of tokens that their GGUF file supports.
const FAMILIES: [(&str, usize); 8] = [
    ("llama", 20),
    ("llama-tied", 20),
    ("llama-linear", 20),
    ("mistral", 5),
    ("qwen2", 6),
    ("qwen3", 20),
    ("gemma3", 20),
    ("gpt2", 20),
];

/// Copies the folder of a family. Gemma's fixture has a scale of scores that GGUF cannot represent, which is changed.
fn family(name: &str) -> tempfile::TempDir {
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/families").join(name);
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(file), folder.path().join(file)).expect("a fixture");
    }
    let path = folder.path().join("config.json");
    let config = std::fs::read_to_string(&path).expect("a config");
    std::fs::write(&path, config.replace(r#""query_pre_attn_scalar": 20"#, r#""query_pre_attn_scalar": 12"#))
        .expect("a file");
    folder
}

fn random(shape: [usize; 2], stream: &mut Stream) -> Tensor {
    let values = (0..shape[0] * shape[1]).map(|_| 0.3 * stream.normal() as f32).collect();
    Tensor::from_vec(values, shape).expect("it fits")
}

/// Makes an adapter of every linear module with different ranks and alphas.
fn mixed(model: &CausalLm, rslora: bool) -> Adapter {
    let infos = model.transformer().linear_infos();
    let rank_of_module = |i: usize| (infos[i].name.clone(), 1 + i % 4, 1.0 + (i * i % 7) as f64);
    let ranks: Vec<_> = (0..infos.len()).map(rank_of_module).collect();
    let config = AdapterConfig::for_modules(&ranks, model.transformer().prefix(), &[""]).expect("a config");
    let config = AdapterConfig { use_rslora: rslora, task_type: Some(CAUSAL_LM.into()), ..config };
    let mut stream = Stream::new(3);
    let mut layers = BTreeMap::new();
    for info in &infos {
        let module = config.module(&info.name).expect("patterns").expect("it is targeted");
        let (a, b) = (random([module.rank, info.c_in], &mut stream), random([info.c_out, module.rank], &mut stream));
        layers.insert(
            info.name.clone(),
            LoraLayer { a, b, scaling: module.scaling, dropout: 0.0, magnitude: None, initial: None, singular: None },
        );
    }
    Adapter { config, layers, saved: BTreeMap::new() }
}

fn logits(model: &CausalLm, tokens: usize) -> Vec<f32> {
    let ids: Vec<u32> = (0..tokens as u32).map(|i| 4 + i * 7 % 60).collect();
    let rows: Vec<usize> = (0..tokens).collect();
    let logits = model.logits(&Batch::of_ids(&[ids]).expect("a row"), &rows).expect("logits");
    logits.to_vec().expect("on the CPU")
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_gguf_adapter_computes_the_same_as_its_peft_folder() {
    for (name, tokens) in FAMILIES {
        let (folder, out) = (family(name), tempfile::tempdir().expect("a folder"));
        let (model, path) = (folder.path(), out.path().join("adapter.gguf"));
        let base = CausalLm::load(model).expect("it loads");
        for rslora in [false, true] {
            let adapter = mixed(&base, rslora);
            adapter.write(&out.path().join("peft")).expect("it is written");
            let config = base.transformer().config();
            let modules = write_adapter(&path, &adapter, config).expect("it is written");
            assert_eq!(modules, adapter.layers.len());
            let read = read_adapter(&path, config).expect("it is read");
            // Compare the file with the PEFT folder. The file holds the ranks, but neither alphas nor rsLoRA.
            let peft = Adapter::read(&out.path().join("peft")).expect("a PEFT folder");
            let want = logits(&CausalLm::with_adapter(model, peft).expect("it fits"), tokens);
            assert!(largest_difference(&want, &logits(&base, tokens)) > 0.1, "{name}: the adapter does nothing");
            // Names without the prefix denote the same modules.
            let strip = |(name, layer): (&String, &LoraLayer)| {
                let prefix = base.transformer().prefix();
                (name.strip_prefix(prefix).expect("a task model's name").to_owned(), layer.clone())
            };
            let bare = Adapter { layers: adapter.layers.iter().map(strip).collect(), ..adapter.clone() };
            let other = out.path().join("bare.gguf");
            write_adapter(&other, &bare, config).expect("it is written");
            assert_eq!(std::fs::read(&other).expect("a file"), std::fs::read(&path).expect("a file"), "{name}");
            let got = logits(&CausalLm::with_adapter(model, read).expect("it fits"), tokens);
            let worst = largest_difference(&got, &want);
            assert!(worst < 2e-5, "{name}, rsLoRA {rslora}: {worst}");
        }
    }
}

#[test]
fn a_merged_model_computes_the_same_as_the_adapter() {
    for (name, tokens) in FAMILIES {
        let (folder, out) = (family(name), tempfile::tempdir().expect("a folder"));
        let base = CausalLm::load(folder.path()).expect("it loads");
        let adapted = CausalLm::with_adapter(folder.path(), mixed(&base, false)).expect("it fits");
        let want = logits(&adapted, tokens);
        for (stored, tolerance) in
            [(StoredType::F32, 2e-5), (StoredType::F16, 0.02), (StoredType::Bf16, 0.2), (StoredType::Q8_0, 0.5)]
        {
            let path = out.path().join("merged.gguf");
            let options = GgufOptions { stored, ..Default::default() };
            let remarks = adapted.write_gguf(folder.path(), &path, &options).expect("it is written");
            assert_eq!(remarks.len(), usize::from(["mistral", "qwen2"].contains(&name)), "{name}: {remarks:?}");
            let merged = CausalLm::load(&path).expect("it is read");
            let worst = largest_difference(&logits(&merged, tokens), &want);
            assert!(worst < tolerance, "{name} in {stored:?}: {worst}");
            // Convert the file once more: it keeps the keys, and f32 represents every value.
            let again = out.path().join("again.gguf");
            merged
                .write_gguf(&path, &again, &GgufOptions { stored: StoredType::F32, ..options })
                .expect("it is written");
            let again = CausalLm::load(&again).expect("it is read");
            let worst = largest_difference(&logits(&again, tokens), &logits(&merged, tokens));
            assert!(worst < 1e-4, "{name} from {stored:?} to f32: {worst}");
        }
    }
}

/// The rows of B are in the order of the base file's weight, which the golden of tiny.gguf checks against transformers.
/// alpha is 0, and B contains the scale.
#[test]
fn rows_have_the_order_of_the_base_file_and_alpha_is_0() {
    for (name, _) in FAMILIES {
        let (folder, out) = (family(name), tempfile::tempdir().expect("a folder"));
        let base = CausalLm::load(folder.path()).expect("it loads");
        let (whole, path) = (out.path().join("base.gguf"), out.path().join("adapter.gguf"));
        let options = GgufOptions { stored: StoredType::F32, ..Default::default() };
        base.write_gguf(folder.path(), &whole, &options).expect("it is written");
        let mut adapter = mixed(&base, true);
        // B is made of the first columns of the weight.
        for linear in base.transformer().linears() {
            let layer = adapter.layers.get_mut(&linear.name).expect("every module");
            let (weight, rank) = (linear.weight.tensor(), layer.rank());
            let values = weight.to_vec().expect("f32");
            let columns = values.chunks(weight.cols()).flat_map(|row| row[..rank].to_vec()).collect();
            layer.b = Tensor::from_vec(columns, [weight.rows(), rank]).expect("it fits");
        }
        write_adapter(&path, &adapter, base.transformer().config()).expect("it is written");
        let (whole, file) = (Gguf::open(&whole).expect("a file"), Gguf::open(&path).expect("a file"));
        assert_eq!(file.metadata()[ALPHA], 0.0);
        let architecture = Architecture::of_family(&base.transformer().config().family).expect("it is known");
        for linear in architecture.linears(base.transformer().config()) {
            let values = |gguf: &Gguf, suffix: &str| {
                let wanted = format!("{}{suffix}", linear.stored);
                let info = gguf.tensors.iter().find(|info| info.name == wanted).expect("it is there");
                gguf.tensor(info).expect("its values")
            };
            let (weight, b) = (values(&whole, ".weight"), values(&file, ".weight.lora_b"));
            let (rank, scaling) = (b.cols(), adapter.layers[&linear.name].scaling);
            let weight_values = weight.to_vec().expect("f32");
            let rows = weight_values.chunks(weight.cols());
            let want: Vec<f32> = rows.flat_map(|row| row[..rank].iter().map(|v| v * scaling)).collect();
            assert_eq!(b.to_vec().expect("f32"), want, "{name}: {}", linear.stored);
        }
    }
}

#[test]
fn a_common_alpha_is_divided_by_each_rank() {
    let folder = family("llama");
    let base = CausalLm::load(folder.path()).expect("it loads");
    let config = base.transformer().config();
    let path = folder.path().join("adapter.gguf");
    write_adapter(&path, &mixed(&base, false), config).expect("it is written");
    let mut bytes = std::fs::read(&path).expect("a file");
    let at = bytes.windows(ALPHA.len()).position(|part| part == ALPHA.as_bytes()).expect("the key") + ALPHA.len() + 4;
    bytes[at..at + 4].copy_from_slice(&6.0f32.to_le_bytes());
    std::fs::write(&path, bytes).expect("a file");
    let adapter = read_adapter(&path, config).expect("it is read");
    let matcher = adapter.config.matcher().expect("patterns");
    for (name, layer) in &adapter.layers {
        assert_eq!(layer.scaling, 6.0 / layer.rank() as f32, "{name}");
        assert_eq!(matcher.module(name).expect("patterns").expect("a target").scaling, layer.scaling);
    }
}

#[test]
fn errors_name_what_gguf_cannot_represent() {
    let folder = family("llama");
    let base = CausalLm::load(folder.path()).expect("it loads");
    let (config, path) = (base.transformer().config(), folder.path().join("adapter.gguf"));
    let adapter = mixed(&base, false);
    let layer = adapter.layers.values().next().expect("a module").clone();
    let problem = |adapter: &Adapter| write_adapter(&path, adapter, config).expect_err("a problem").to_string();

    let mut other = adapter.clone();
    other.layers.insert("lm_head".into(), layer.clone());
    assert!(
        problem(&other).contains("the adapter's module lm_head has no name in a GGUF file of the architecture llama")
    );
    other.layers.remove("lm_head");
    other.layers.insert("model.layers.7.mlp.up_proj".into(), layer);
    assert!(problem(&other).contains("model.layers.7.mlp.up_proj has no name in a GGUF file"));
    let mut other = adapter.clone();
    let narrow = Tensor::from_vec(vec![0.0; 5], [1, 5]).expect("it fits");
    other.layers.get_mut("model.layers.0.self_attn.q_proj").expect("a module").a = narrow;
    assert!(problem(&other).contains("model.layers.0.self_attn.q_proj is 32 -> 32; the adapter has A [1, 5]"));
    let mut other = adapter.clone();
    other.saved.insert("score.weight".into(), Tensor::from_vec(vec![0.0], [1]).expect("it fits"));
    assert!(problem(&other).contains("the adapter has score.weight, which is trained whole"));
    assert!(!path.exists() && !folder.path().join(CONFIG_NAME).exists());

    // Files that are not adapters of this model.
    let read = |path: &Path, config: &Config| read_adapter(path, config).expect_err("a problem").to_string();
    write_adapter(&path, &adapter, config).expect("it is written");
    let qwen = Config::load(family("qwen2").path()).expect("a config");
    assert!(read(&path, &qwen).contains("is an adapter for the architecture \"llama\"; the model has \"qwen2\""));
    let narrow = Config { head_size: 4, ..config.clone() };
    assert!(read(&path, &narrow).contains("self_attn.q_proj is 32 -> 16; the adapter has A [1, 32] and B [32, 1]"));
    let whole = folder.path().join("model.gguf");
    base.write_gguf(folder.path(), &whole, &GgufOptions::default()).expect("it is written");
    assert!(read(&whole, config).contains("general.type is \"model\"; expected an adapter"));
    let changed = |from: &str, to: &str| {
        let mut bytes = std::fs::read(&path).expect("a file");
        let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).expect("it is there");
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        let changed = folder.path().join("changed.gguf");
        std::fs::write(&changed, bytes).expect("a file");
        read(&changed, config)
    };
    let name = "blk.0.attn_q.weight.lora_a";
    assert!(changed(name, "blk.0.attn_x.weight.lora_a").contains("tensor blk.0.attn_x.weight.lora_a: expected lora_a"));
    assert!(changed("blk.0.attn_v.weight.lora_a", "blk.0.attn_v.weight.lora_b").contains("lora_b occurs twice"));
    assert!(changed(name, "blk.0.attn_norm.weight.lor").contains("tensor blk.0.attn_norm.weight.lor: expected"));
    let mut other = adapter.clone();
    other.layers.remove("model.layers.1.self_attn.v_proj");
    write_adapter(&path, &other, config).expect("it is written");
    let message = changed("blk.0.attn_v.weight.lora_a", "blk.1.attn_v.weight.lora_a");
    assert!(message.contains("tensor blk.0.attn_v.weight.lora_a is missing"), "{message}");
}

#[test]
fn errors_name_options_that_llama_cpp_lacks() {
    let problem = |name: &str, from: &str, to: &str| {
        let folder = family(name);
        let path = folder.path().join("config.json");
        let config = std::fs::read_to_string(&path).expect("a config");
        assert!(config.contains(from), "{config}");
        std::fs::write(&path, config.replace(from, to)).expect("a file");
        let model = CausalLm::load(folder.path()).expect("it loads");
        let out = folder.path().join("model.gguf");
        let error = model.write_gguf(folder.path(), &out, &GgufOptions::default()).expect_err("a problem");
        assert!(!out.exists());
        error.to_string()
    };
    let scalar = problem("gemma3", r#""query_pre_attn_scalar": 12"#, r#""query_pre_attn_scalar": 20"#);
    assert!(
        scalar.contains("query_pre_attn_scalar = 20 cannot be represented in a GGUF file; expected 12"),
        "{scalar}"
    );
    let kinds = "\"sliding_attention\",\n    \"full_attention\",\n    \"sliding_attention\"";
    let other = kinds.replacen("sliding", "full", 1);
    assert!(problem("gemma3", kinds, &other).contains("layer_types has no period P"));
    assert!(problem("llama", r#""hidden_act": "silu""#, r#""hidden_act": "gelu""#).contains("has the activation Gelu"));
    let yarn = r#""rope_type": "yarn""#;
    assert!(
        problem("qwen3", yarn, &format!("\"beta_fast\": 16, {yarn}")).contains("the rope option beta_fast = 16 cannot")
    );
    assert!(
        problem("qwen3", yarn, r#""rope_type": "llama3", "low_freq_factor": 1, "high_freq_factor": 4"#)
            .contains("rope_type = \"llama3\" cannot be represented in a GGUF file of a qwen3")
    );
}
