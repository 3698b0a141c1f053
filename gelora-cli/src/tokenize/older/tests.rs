//! Comparison with transformers; `fixtures/torch_files.py` describes golden.json.

use serde_json::json;

use crate::data::Example;
use gelora_model::Tokens;

use crate::tokenize::Tokenizer;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tokenizers").join(name)
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("golden.json")).unwrap()).unwrap()
}

/// Returns a folder with these vocabulary files, a model type and files of options.
fn folder(files: &str, model_type: &str, options: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(files)).unwrap().flatten() {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let write = |name: &str, content: &Value| std::fs::write(folder.path().join(name), content.to_string()).unwrap();
    write("config.json", &json!({"model_type": model_type}));
    for (name, content) in options.as_object().unwrap() {
        write(name, content);
    }
    folder
}

fn example(text: &str, pair: Option<&str>) -> Example {
    Example { text: text.into(), pair: pair.map(str::to_owned), ..Example::default() }
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
}

#[test]
fn older_tokenizers_are_those_of_transformers() {
    let golden = golden();
    let all = |value: &Value, key: &str| value[key].as_array().unwrap().clone();
    let cases = all(&golden, "cases");
    assert_eq!(cases.len(), 17);
    for case in cases {
        let what = format!("{} {}", case["class"], case["options"]);
        let folder = folder(case["files"].as_str().unwrap(), case["model_type"].as_str().unwrap(), &case["options"]);
        let tokenizer = Tokenizer::open(folder.path()).unwrap().with_max_length(500).unwrap();
        assert_eq!(tokenizer.vocab_size() as u64, case["size"], "{what}");
        for (text, want) in all(&golden, "texts").iter().zip(all(&case, "ids")) {
            let Tokens { ids, .. } = tokenizer.encode(&example(text.as_str().unwrap(), None)).unwrap();
            assert_eq!(ids, numbers(&want), "{what}: {text}");
        }
        for (i, pair) in all(&golden, "pairs").iter().enumerate() {
            let got = tokenizer.encode(&example(pair[0].as_str().unwrap(), pair[1].as_str())).unwrap();
            assert_eq!(got.ids, numbers(&case["pairs"][i]), "{what}: {pair}");
            assert_eq!(got.type_ids, numbers(&case["type_ids"][i]), "{what}: {pair}");
        }
    }
}

#[test]
fn older_tokenizers_have_fingerprints_of_their_files() {
    let options = json!({"tokenizer_config.json": {"do_lower_case": true}, "added_tokens.json": {"[NEW]": 300}});
    let folder = folder("wordpiece", "bert", &options);
    let print = || Tokenizer::open(folder.path()).unwrap().fingerprint();
    let first = print();
    assert_eq!(print(), first);
    for (name, content) in [
        ("tokenizer_config.json", r#"{"do_lower_case": false}"#),
        ("added_tokens.json", r#"{"[NEWER]": 300}"#),
        ("special_tokens_map.json", "{}"),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n"),
    ] {
        let path = folder.path().join(name);
        let before = std::fs::read(&path).ok();
        std::fs::write(&path, content).unwrap();
        assert_ne!(print(), first, "{name}");
        match before {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
    }
    assert_eq!(print(), first);
}

#[test]
fn errors_of_older_tokenizers_name_what_is_missing() {
    let refused = |files: &str, model_type: &str, options: Value, change: &dyn Fn(&Path), words: &[&str]| {
        let folder = folder(files, model_type, &options);
        change(folder.path());
        let problem = format!("{:#}", Tokenizer::open(folder.path()).unwrap_err());
        assert!(words.iter().all(|word| problem.contains(word)), "{words:?} {problem}");
    };
    let nothing = |_: &Path| {};
    let remove = |name: &'static str| move |path: &Path| std::fs::remove_file(path.join(name)).unwrap();
    let write =
        |name: &'static str, text: &'static str| move |path: &Path| std::fs::write(path.join(name), text).unwrap();
    refused("bpe", "bert", json!({}), &nothing, &["tokenizer.json: no such file, nor vocab.txt"]);
    refused("bpe", "roberta", json!({}), &remove("merges.txt"), &["no such file, nor vocab.json with merges.txt"]);
    refused(
        "spm",
        "deberta-v2",
        json!({}),
        &remove("spm.model"),
        &["no such file, nor spm.model, vocab.txt, vocab.json with"],
    );
    refused("spm", "xlm-roberta", json!({}), &nothing, &["tokenizer.json: no such file", "model type \"xlm-roberta\""]);
    let japanese = json!({"tokenizer_config.json": {"tokenizer_class": "BertJapaneseTokenizer"}});
    refused("wordpiece", "bert", japanese, &nothing, &["\"bert\" with the class BertJapaneseTokenizer"]);
    let without = json!({"tokenizer_config.json": {"cls_token": null}});
    refused("wordpiece", "bert", without, &nothing, &["vocab.txt: there is no cls_token"]);
    let list = json!({"special_tokens_map.json": {"cls_token": ["a"]}});
    refused("wordpiece", "bert", list, &nothing, &["cls_token is [\"a\"]; expected a token"]);
    refused(
        "wordpiece",
        "bert",
        json!({}),
        &write("tokenizer_config.json", "{"),
        &["tokenizer_config.json: not valid JSON"],
    );
    refused(
        "bpe",
        "gpt2",
        json!({}),
        &write("merges.txt", "#version\na b c\n"),
        &["line 2 of the merges is \"a b c\""],
    );
    refused("bpe", "gpt2", json!({}), &write("merges.txt", "a zz\n"), &["vocab.json, merges.txt:", "zz"]);
    refused("bpe", "gpt2", json!({}), &write("vocab.json", "{\"a\": -1}"), &["the piece \"a\" has the id -1"]);
    refused(
        "spm",
        "deberta-v2",
        json!({}),
        &write("spm.model", "version https"),
        &["spm.model: not a SentencePiece model"],
    );
}
