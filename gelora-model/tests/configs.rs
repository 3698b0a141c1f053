//! config.json of well-known models, as published on the hub.

use gelora_model::Config;
use serde_json::{Map, Value};

/// All options in the files are known, and the sizes are those of the published models. Heads split the channels unless
/// the config sets their size.
#[test]
fn configs_of_well_known_models_are_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/configs.json");
    let all: Map<String, Value> = serde_json::from_slice(&std::fs::read(path).expect("configs")).expect("JSON");
    assert!(all.len() > 20);
    for (id, json) in all {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("config.json"), json.to_string()).expect("a config");
        let config = Config::load(folder.path()).unwrap_or_else(|problem| panic!("{id}: {problem}"));
        let size = |keys: [&str; 3]| keys.iter().find_map(|key| json[key].as_u64()).map(|n| n as usize);
        assert_eq!(Some(config.hidden), size(["hidden_size", "dim", "n_embd"]), "{id}");
        assert_eq!(Some(config.layers), size(["num_hidden_layers", "n_layers", "n_layer"]), "{id}");
        assert_eq!(config.head_size, size(["head_dim"; 3]).unwrap_or(config.hidden / config.heads), "{id}");
        assert_eq!(config.causal, json["architectures"][0].as_str().is_some_and(is_decoder), "{id}");
    }
}

/// Training appends the end token of config.json. generation_config.json replaces it in generation, as in transformers.
#[test]
fn generation_config_sets_the_stop_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/families/llama/config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(config).expect("a config")).expect("JSON");
    json["eos_token_id"] = 5.into();
    std::fs::write(folder.path().join("config.json"), json.to_string()).expect("a config");
    let ends = || Config::load(folder.path()).map(|config| (config.eos, config.stop));
    assert_eq!(ends().expect("a config"), (vec![5], vec![5]));
    let write = |text: &str| std::fs::write(folder.path().join("generation_config.json"), text).expect("a config");
    write(r#"{"eos_token_id": [7, 6], "do_sample": true}"#);
    assert_eq!(ends().expect("a config"), (vec![5], vec![7, 6]));
    write(r#"{"do_sample": true}"#);
    assert_eq!(ends().expect("a config"), (vec![5], vec![5]));
    write(r#"{"eos_token_id": [7, -1]}"#);
    let problem = ends().expect_err("an error").to_string();
    assert!(problem.contains("generation_config.json: eos_token_id must be"), "{problem}");
    write("{");
    assert!(ends().expect_err("an error").to_string().contains("generation_config.json: not valid JSON"));
}

/// A config.json may come from anyone: sizes that no model has are errors before memory is asked for.
#[test]
fn sizes_beyond_any_model_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/families/llama/config.json");
    let json: Value = serde_json::from_slice(&std::fs::read(config).expect("a config")).expect("JSON");
    let problem = |key: &str, value: u64| {
        let mut json = json.clone();
        json[key] = value.into();
        std::fs::write(folder.path().join("config.json"), json.to_string()).expect("a config");
        Config::load(folder.path()).expect_err("an error").to_string()
    };
    let layers = problem("num_hidden_layers", 10_001);
    assert!(layers.contains("config.json: num_hidden_layers is 10001; expected at most 10000"), "{layers}");
    let vocabulary = problem("vocab_size", u64::from(u32::MAX) + 1);
    assert!(vocabulary.contains("vocab_size is 4294967296; expected at most 4294967295"), "{vocabulary}");
}

fn is_decoder(class: &str) -> bool {
    class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel")
}
