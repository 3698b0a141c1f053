//! config.json of well-known models, as the hub has them.

use gelora_model::Config;
use serde_json::{Map, Value};

/// Every option in them is known, and the sizes are those of a published model: heads fill the channels, but where the config
/// says how large they are.
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

fn is_decoder(class: &str) -> bool {
    class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel")
}
