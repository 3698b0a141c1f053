//! Tests which files of a model are downloaded, and the errors when they cannot be.

use serde_json::{Value, json};

use crate::common::fixture;
use crate::server::Server;

#[test]
fn models_are_downloaded_once_and_only_needed_files() {
    let hub = Server::start();
    let run = hub.rank("tiny/bert", &[], &[]).ok();
    assert!(run.stderr.contains("tiny/bert model.safetensors"), "it says what it downloads: {}", run.stderr);
    let mut names: Vec<String> = hub.file_requests().into_iter().map(|(name, _)| name).collect();
    names.dedup();
    assert_eq!(names, ["config.json", "tokenizer.json", "model.safetensors"]);
    let snapshot = hub.snapshot();
    assert_eq!(
        std::fs::read(snapshot.join("model.safetensors")).expect("it is there"),
        std::fs::read(fixture("tiny-bert/model.safetensors")).expect("the fixture")
    );
    let by_id = std::fs::read_to_string(hub.out().join("adapter_config.json")).expect("a config");
    assert!(by_id.contains("\"base_model_name_or_path\": \"tiny/bert\""), "{by_id}");
    let ranks = std::fs::read_to_string(hub.out().join("ranks.json")).expect("ranks");

    let folder = fixture("tiny-bert").display().to_string();
    let by_folder = hub.rank(&folder, &[], &[]).ok();
    assert_eq!(hub.file_requests(), []);
    // Warnings name the model as it was typed.
    assert_eq!(by_folder.stdout.replace(&folder, "tiny/bert"), run.stdout);
    assert!(ranks.contains("\"model\": \"tiny/bert\""), "{ranks}");

    // The second run downloads nothing, whether the hub is reachable, unreachable or turned off.
    hub.rank("tiny/bert", &[], &[]).ok();
    assert_eq!(hub.file_requests(), []);
    assert_eq!(hub.rank("tiny/bert", &[], &[("HF_HUB_OFFLINE", "1")]).ok().stdout, run.stdout);
    let gone = hub.rank("tiny/bert", &[], &[("HF_ENDPOINT", "http://127.0.0.1:9")]).ok();
    assert_eq!(gone.stdout, run.stdout);
    assert!(gone.stderr.contains("http://127.0.0.1:9 cannot be reached"), "{}", gone.stderr);
}

#[test]
fn files_missing_in_the_cache_need_the_hub() {
    let hub = Server::start();
    let cache = hub.home().join("hub").display().to_string();
    let way_on = "Run this once with a connection, or give the folder of a copy";
    hub.rank("tiny/bert", &[], &[("HF_HUB_OFFLINE", "1")]).fails_with(&["tiny/bert", &cache, "HF_HUB_OFFLINE", way_on]);
    hub.rank("tiny/bert", &[], &[("HF_ENDPOINT", "http://127.0.0.1:9")]).fails_with(&[
        "tiny/bert",
        &cache,
        "http://127.0.0.1:9 cannot be reached",
        way_on,
    ]);
    // An incomplete model in the cache is not used.
    hub.set(|state| state.breaks = 9);
    hub.rank("tiny/bert", &[], &[]).fails_with(&["downloading model.safetensors broke"]);
    hub.rank("tiny/bert", &[], &[("HF_HUB_OFFLINE", "1")]).fails_with(&["not all of it", way_on]);
}

#[test]
fn shards_are_those_of_the_index() {
    let hub = Server::start();
    hub.set(|state| {
        let whole = state.files.remove("model.safetensors").expect("weights");
        let header = u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
        let json: Value = serde_json::from_slice(&whole[8..8 + header]).expect("a header");
        let names = json.as_object().expect("tensors").keys().filter(|name| *name != "__metadata__");
        let map: serde_json::Map<String, Value> =
            names.map(|name| (name.clone(), "model-00001-of-00001.safetensors".into())).collect();
        let index = json!({"weight_map": map}).to_string();
        state.files.insert("model.safetensors.index.json".into(), index.into_bytes());
        state.files.insert("model-00001-of-00001.safetensors".into(), whole.clone());
        state.files.insert("consolidated.safetensors".into(), whole);
    });
    hub.rank("tiny/bert", &[], &[]).ok();
    let requests = hub.file_requests();
    assert!(requests.iter().any(|(name, _)| name == "model-00001-of-00001.safetensors"), "{requests:?}");
    assert!(requests.iter().all(|(name, _)| name != "consolidated.safetensors"), "{requests:?}");
}

/// The repository is like microsoft/deberta-v3-base: shards of PyTorch files, and a SentencePiece model.
#[test]
fn older_repositories_provide_older_files() {
    let hub = Server::start();
    let file = |name: &str| std::fs::read(fixture(name)).expect("a file of the fixtures");
    let older =
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"];
    hub.set(|state| {
        state.files.clear();
        state.files.insert("config.json".into(), file("families/deberta/config.json"));
        state.files.insert("tokenizer_config.json".into(), br#"{"do_lower_case": false}"#.to_vec());
        for name in older.iter().chain(&["spm.model"]) {
            state.files.insert((*name).into(), file(&format!("torch/{name}")));
        }
        state.files.insert("rust_model.ot".into(), vec![0; 1000]);
    });
    let run = hub.rank("tiny/bert", &[], &[]).ok();
    let names = |hub: &Server| {
        let mut names: Vec<String> = hub.file_requests().into_iter().map(|(name, _)| name).collect();
        names.dedup();
        names
    };
    let wanted =
        ["config.json", "spm.model", "tokenizer_config.json", "pytorch_model.bin.index.json", older[0], older[1]];
    assert_eq!(names(&hub), wanted);

    // Without the hub, the cache must be complete.
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(hub.rank("tiny/bert", &[], &offline).ok().stdout, run.stdout);
    let snapshot = hub.snapshot();
    for name in [older[1], "spm.model"] {
        std::fs::remove_file(snapshot.join(name)).expect("it was there");
        hub.rank("tiny/bert", &[], &offline).fails_with(&["not all of it"]);
        hub.rank("tiny/bert", &[], &[]).ok();
    }

    // Newer files are preferred, each separately.
    std::fs::remove_dir_all(hub.home()).expect("a cache");
    names(&hub);
    hub.set(|state| {
        state.files.insert("model.safetensors".into(), file("families/deberta/model.safetensors"));
        state.files.insert("vocab.txt".into(), b"[PAD]\n".to_vec());
    });
    hub.rank("tiny/bert", &[], &[]).ok();
    assert_eq!(names(&hub), ["config.json", "spm.model", "vocab.txt", "tokenizer_config.json", "model.safetensors"]);

    // An index cannot lead to files outside of the model's folder.
    hub.set(|state| {
        state.files.remove("model.safetensors");
        let index = br#"{"weight_map": {"a": "../../a.bin"}}"#;
        state.files.insert("pytorch_model.bin.index.json".into(), index.to_vec());
    });
    std::fs::remove_dir_all(hub.home()).expect("a cache");
    hub.rank("tiny/bert", &[], &[]).fails_with(&["pytorch_model.bin.index.json", "expected a file of this folder"]);

    hub.set(|state| {
        state.files.remove("spm.model");
        state.files.remove("vocab.txt");
    });
    hub.rank("tiny/bert", &[], &[])
        .fails_with(&["none of tokenizer.json, spm.model, vocab.txt, vocab.json with merges.txt"]);
}

#[test]
fn unreadable_ids_are_errors() {
    let hub = Server::start();
    hub.rank("tiny/other", &[], &[]).fails_with(&[
        "tiny/other",
        "no such model",
        "without a token; HF_TOKEN takes one",
    ]);
    hub.rank("tiny/other", &[], &[("HF_TOKEN", "mine")]).fails_with(&["tiny/other", "to the owner of this token"]);
    hub.rank("tiny/bert", &["--revision", "v9"], &[]).fails_with(&["tiny/bert", "no revision v9"]);

    let here = fixture("tiny-bert").display().to_string();
    hub.rank(&here, &["--revision", "main"], &[]).fails_with(&["--revision main is for models on the hub", &here]);

    // A private model is hidden without its token. The token may come from a file.
    hub.set(|state| state.token = Some("secret".into()));
    hub.rank("tiny/bert", &[], &[]).fails_with(&["tiny/bert", "no such model, or does not show it without a token"]);
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "wrong")]).fails_with(&["to the owner of this token"]);
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "secret")]).ok();
    std::fs::remove_dir_all(hub.home()).expect("a cache");
    std::fs::create_dir_all(hub.home()).expect("a folder");
    std::fs::write(hub.home().join("token"), "secret\n").expect("a file");
    hub.rank("tiny/bert", &[], &[]).ok();

    // A gated model is visible, but its files are refused.
    std::fs::remove_dir_all(hub.home()).expect("a cache");
    hub.set(|state| state.gated = true);
    let page = format!("{}/tiny/bert", hub.address);
    hub.rank("tiny/bert", &[], &[]).fails_with(&["tiny/bert", "needs a token", "terms", &page]);
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "wrong")]).fails_with(&["this token may not read it", &page]);

    let hub = Server::start();
    hub.set(|state| {
        state.files.remove("model.safetensors");
        state.files.remove("pytorch_model.bin");
        state.files.insert("tf_model.h5".into(), vec![0; 8]);
    });
    hub.rank("tiny/bert", &[], &[]).fails_with(&[
        "none of model.safetensors, model.safetensors.index.json, pytorch_model.bin",
        "it has tf_model.h5",
        "save_pretrained",
    ]);
    hub.set(|state| {
        state.files.insert("tiny.gguf".into(), vec![0; 8]);
    });
    hub.rank("tiny/bert", &[], &[]).fails_with(&["it has tf_model.h5, tiny.gguf", "tiny/bert/FILE.gguf"]);
    hub.rank("tiny/bert/other.gguf", &[], &[]).fails_with(&["tiny/bert has no other.gguf; it has", "tiny.gguf"]);
    hub.rank("tiny/bert/tiny.gguf", &[], &[]).fails_with(&["tiny.gguf", "not"]);
    assert!(hub.snapshot().join("tiny.gguf").exists());
}
