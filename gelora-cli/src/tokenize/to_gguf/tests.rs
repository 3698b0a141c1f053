use std::path::PathBuf;

use gelora_model::CausalLm;
use gelora_model::gguf::{Gguf, StoredType};

use super::*;
use crate::args::ModelArgs;
use crate::commands::export::write_model;
use crate::tokenize::gguf::{as_files, tokenizer};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
}

/// Returns a folder with the tiny model of 288 embeddings and these tokenizer files.
fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let path = fixture("gguf/tiny.gguf");
    CausalLm::load(&path).expect("a model").write_merged(&path, folder.path()).expect("it is written");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    folder
}

/// Returns the folder's model as a GGUF file.
fn converted(folder: &Path) -> PathBuf {
    let path = folder.join("model.gguf");
    let lm = CausalLm::load(folder).expect("a model");
    let model = ModelArgs { name: folder.into(), revision: None, path: folder.into() };
    write_model(&lm, &model, &path, StoredType::F16).expect("it is written");
    path
}

#[test]
fn byte_level_tokenizers_keep_their_keys() {
    let original = fixture("gguf/tiny.gguf");
    let folder = folder(&as_files(&original).expect("its files"));
    let path = converted(folder.path());
    let (want, got) = (Gguf::open(&original).expect("a file"), Gguf::open(&path).expect("a file"));
    for key in ["model", "pre", "tokens", "merges", "token_type", "eos_token_id", "add_bos_token"] {
        let key = format!("tokenizer.ggml.{key}");
        assert_eq!(got.metadata().get(&key), want.metadata().get(&key), "{key}");
    }
    let template = "tokenizer.chat_template";
    assert_eq!(got.metadata()[template], want.metadata()[template]);
    assert!(!got.metadata().contains_key("tokenizer.ggml.bos_token_id"));
}

/// Pieces in the order of SentencePiece: unknown, begin, end, bytes, then merged pieces in merge order.
fn pieces(prefixed: bool, swapped: bool) -> String {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    let merged = [("▁", "t"), ("▁t", "h"), ("h", "e"), ("▁th", "e"), ("▁t", "he"), ("e", "r")];
    let order = if swapped { [0, 1, 3, 2, 4, 5] } else { [0, 1, 2, 3, 4, 5] };
    let merges: Vec<[&str; 2]> = order.iter().map(|i| [merged[*i].0, merged[*i].1]).collect();
    for (a, b) in merged {
        let piece = format!("{a}{b}");
        if !tokens.contains(&piece) {
            tokens.push(piece);
        }
    }
    tokens.extend(["▁", "t", "h", "e", "r", "a"].map(str::to_owned));
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let steps = if prefixed { json!([prepend, replace]) } else { json!([replace]) };
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false})
    };
    let begin = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    })
    .to_string()
}

#[test]
fn sentencepiece_merges_are_the_same() {
    for prefixed in [true, false] {
        let config = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#;
        let folder = folder(&[("tokenizer.json", pieces(prefixed, false)), ("tokenizer_config.json", config.into())]);
        let path = converted(folder.path());
        let (read, _) = tokenizer(&path).expect("a tokenizer");
        let original = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).expect("a tokenizer");
        for text in ["the there", " the  eater", "ther é\nthe", "h e", "<s>the</s> the"] {
            let ids = |of: &tokenizers::Tokenizer| of.encode(text, true).expect("tokens").get_ids().to_vec();
            assert_eq!(ids(&read), ids(&original), "{text:?}");
        }
        let metadata = Gguf::open(&path).expect("a file");
        let key = |name: &str| metadata.metadata()[&format!("tokenizer.ggml.{name}")].clone();
        assert_eq!((key("bos_token_id"), key("eos_token_id"), key("unknown_token_id")), (json!(1), json!(2), json!(0)));
        assert_eq!((key("add_bos_token"), key("add_eos_token")), (json!(true), json!(false)));
        let kinds: Vec<i64> = (0..288).map(|id| key("token_type")[id].as_i64().expect("a kind")).collect();
        assert_eq!((&kinds[..4], kinds[258], kinds[259], kinds[287]), (&[2, 3, 3, 6][..], 6, 1, 5));
    }
}

#[test]
fn tokenizers_that_gguf_cannot_express_are_errors() {
    let problem = |files: &[(&str, String)]| {
        let folder = folder(files);
        let error = keys(folder.path(), 288).err().expect("a problem");
        format!("{error:#}")
    };
    // "▁the" results from merges at two positions in the order.
    let message = problem(&[("tokenizer.json", pieces(true, true))]);
    assert!(message.contains("merges \"▁the\" at two places in its order"), "{message}");
    let missing = pieces(true, false).replace(r#"["▁t","he"],"#, "");
    let message = problem(&[("tokenizer.json", missing)]);
    assert!(message.contains("does not merge \"▁t\" and \"he\" into its piece \"▁the\""), "{message}");
    let stripped = pieces(true, false).replace(r#"{"prepend":"▁","type":"Prepend"}"#, r#"{"type":"NFC"}"#);
    assert!(problem(&[("tokenizer.json", stripped)]).contains("spaces become ▁ and whether one is put first"));
    let words = as_files(&fixture("gguf/tiny.gguf")).expect("its files").remove(0).1;
    let other = words.replace(r#""individual_digits": true"#, r#""individual_digits": false"#);
    assert_ne!(words, other);
    let message = problem(&[("tokenizer.json", other)]);
    assert!(message.contains("none of gpt-2, smollm, llama-bpe, qwen2, tekken"), "{message}");
    let bert = keys(&fixture("tiny-bert"), 69).err().expect("a problem");
    assert!(format!("{bert:#}").contains("is of the form WordPiece"), "{bert:#}");
}
