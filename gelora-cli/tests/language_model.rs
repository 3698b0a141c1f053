//! A language model on the command line: a tiny GGUF file with its tokenizer, trained on text and on instructions.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fixture, gelora, words};
use serde_json::{Value, json};

fn model() -> PathBuf {
    fixture("gguf/tiny.gguf")
}

/// Returns instructions that all have the same answer.
fn instructions(dir: &Path) -> PathBuf {
    let path = dir.join("rows.jsonl");
    let row = |i: usize| {
        let input = if i.is_multiple_of(2) { "" } else { "loud" };
        json!({"instruction": format!("Say {i}"), "input": input, "output": "the lane"})
    };
    let rows: Vec<String> = (0..24).map(|i| row(i).to_string()).collect();
    fs::write(&path, rows.join("\n")).expect("a data file");
    path
}

fn loss(run: common::Run) -> f64 {
    run.json()["loss"].as_f64().expect("a loss")
}

#[test]
fn instructions_are_trained_generated_and_merged() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, adapter) = (instructions(dir.path()), dir.path().join("adapter"));
    let base = loss(gelora(words("eval {} --data {} --task causal-lm --json", &[&model(), &data])));
    let line =
        "train {} --data {} --eval-data {} --rank 2 --lr 0.02 --epochs 8 --batch-size 8 --accumulate 2 --out {} -q";
    gelora(words(line, &[&model(), &data, &data, &adapter])).ok();
    let config: Value =
        serde_json::from_slice(&fs::read(adapter.join("adapter_config.json")).expect("written")).expect("JSON");
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("CAUSAL_LM"), &Value::Null));
    let trained = loss(gelora(words("eval {} --data {} --adapter {} --json", &[&model(), &data, &adapter])));
    assert!(trained < 0.5 * base, "{base} before, {trained} after");

    // Activation checkpointing takes the same steps.
    let again = dir.path().join("again");
    gelora(words(&format!("{line} --checkpoint-activations"), &[&model(), &data, &data, &again])).ok();
    let weights = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).expect("written");
    assert!(weights(&adapter) == weights(&again), "other weights");

    let ask = |extra: &str, paths: &[&Path]| {
        let mut all: Vec<&Path> = vec![&adapter];
        all.extend(paths);
        let mut args: Vec<String> =
            vec!["generate".into(), model().display().to_string(), "--instruction".into(), "Say 4".into()];
        args.extend(["--json".into(), "-q".into(), "--max-tokens".into(), "12".into()]);
        args.extend(["--adapter".into(), adapter.display().to_string()]);
        args.extend(extra.split_whitespace().map(Into::into));
        gelora(args).json()
    };
    let greedy = ask("", &[]);
    assert_eq!(greedy["prompt"], "### Instruction:\nSay 4\n\n### Response:\n");
    assert_eq!(greedy["tokens"], ask("--temperature 0.01", &[])["tokens"]);
    assert_eq!(ask("--temperature 3 --seed 5", &[])["tokens"], ask("--temperature 3 --seed 5", &[])["tokens"]);
    assert_ne!(ask("--temperature 3 --seed 5", &[])["tokens"], ask("--temperature 3 --seed 6", &[])["tokens"]);

    // A merged model is a folder of f32 weights.
    let merged = dir.path().join("merged");
    gelora(words("merge {} --adapter {} --out {}", &[&model(), &adapter, &merged])).ok();
    assert!(merged.join("model.safetensors").is_file() && merged.join("config.json").is_file());

    // Options of generation_config.json are applied, or reported.
    let run = |options: &str| {
        gelora(words(&format!("generate {{}} --max-tokens 40 --prompt lane {options}"), &[&merged])).ok()
    };
    let write = |text: &str| fs::write(merged.join("generation_config.json"), text).expect("a config");
    write(r#"{"repetition_penalty": 1.0, "temperature": 0.6, "max_new_tokens": 3}"#);
    let plain = run("");
    assert!(!plain.stderr.contains("not applied") && !plain.stderr.contains("sampling as"), "{}", plain.stderr);
    write(r#"{"repetition_penalty": 5.0}"#);
    assert_ne!(run("").stdout, plain.stdout);
    assert_eq!(run("--repetition-penalty 1").stdout, plain.stdout);
    write(r#"{"do_sample": true, "temperature": 9.0, "top_k": 50, "no_repeat_ngram_size": 3}"#);
    let sampled = run("");
    for words in ["temperature 9, top k 50, top p 1", "generation_config.json: no_repeat_ngram_size = 3 is not applied"]
    {
        assert!(sampled.stderr.contains(words), "{words} in {}", sampled.stderr);
    }
    assert_ne!(sampled.stdout, plain.stdout);
    assert_eq!((run("--temperature 0").stdout, run("--top-k 1").stdout), (plain.stdout.clone(), plain.stdout.clone()));
    write(r#"{"max_new_tokens": 3}"#);
    let tokens = |options: &str| {
        gelora(words(&format!("generate {{}} --json -q --prompt lane {options}"), &[&merged])).json()["tokens"].clone()
    };
    assert_eq!(tokens("").as_array().map(Vec::len), Some(3));

    // A stop text ends the text before it.
    let whole = plain.stdout.trim_end().to_owned();
    let letters = |c: &char| c.is_ascii_alphabetic();
    let stop: String = whole.chars().skip(1).skip_while(|c| !letters(c)).take_while(letters).take(2).collect();
    assert!(!stop.is_empty(), "{whole:?} has letters");
    let before = &whole[..whole.find(&stop).expect("it is there")];
    assert_eq!(run(&format!("--stop {stop}")).stdout.trim_end(), before.trim_end());
}

/// The rows differ only after their first 128 tokens, so they are the same points unless the model is a language model.
#[test]
fn ranks_are_measured_at_the_training_length() {
    let dir = tempfile::tempdir().expect("a folder");
    let (adapter, long, data) = (dir.path().join("adapter"), dir.path().join("long"), dir.path().join("rows.jsonl"));
    gelora(words(
        "train {} --data {} --rank 1 --steps 1 --out {} -q",
        &[&model(), &instructions(dir.path()), &adapter],
    ))
    .ok();
    gelora(words("merge {} --adapter {} --out {}", &[&model(), &adapter, &long])).ok();
    let config = long.join("config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config).expect("a config")).expect("JSON");
    json["max_position_embeddings"] = json!(600);
    fs::write(&config, json.to_string()).expect("a config");
    let row = |i: usize| json!({"instruction": "lane ".repeat(60), "output": format!("the {} lane {}", i * 7, i * i)});
    fs::write(&data, (0..40).map(|i| row(i).to_string()).collect::<Vec<_>>().join("\n")).expect("rows");
    let rank = |options: &str| {
        let out = dir.path().join("ranks");
        gelora(words(&format!("rank {{}} --data {{}} --out {{}} --no-cache {options}"), &[&long, &data, &out]))
    };
    rank("--max-length 128").fails_with(&["identical"]);
    rank("").ok();
    let trained = dir.path().join("trained");
    gelora(words("train {} --data {} --steps 1 --batch-size 4 --out {} -q", &[&long, &data, &trained])).ok();
    assert!(trained.join("ranks.json").is_file());
}

/// Number of positions of the tiny model.
const POSITIONS: usize = 128;

/// Without --max-tokens the generation fills the model's positions.
#[test]
fn long_prompts_leave_few_tokens() {
    let generated = |words_of_prompt: usize, options: &str| {
        let mut args = words(&format!("generate {{}} --json -q {options} --prompt"), &[&model()]);
        args.push("lane ".repeat(words_of_prompt));
        gelora(args)
    };
    let count = |run: common::Run| run.json()["tokens"].as_array().expect("tokens").len();
    let (few, more) = (count(generated(POSITIONS / 4, "")), count(generated(2, "")));
    assert!(few > 0 && few < more && more <= 128, "{few} {more}");
    generated(POSITIONS / 4, "--max-tokens 1000").fails_with(&["1000 more exceed the model's", "positions"]);
    generated(4 * POSITIONS, "").fails_with(&["exceed the model's", "positions"]);
}

#[test]
fn text_is_trained_in_blocks_and_measured_in_paragraphs() {
    let dir = tempfile::tempdir().expect("a folder");
    let (text, out) = (dir.path().join("play.txt"), dir.path().join("out"));
    let paragraph = |i: usize| format!("ACT {i}\nThere in lane {}, then the {} theatre.\n\n", i * 7 % 31, i * i % 17);
    fs::write(&text, (0..40).map(paragraph).collect::<String>()).expect("a text");
    let eval = gelora(words("eval {} --data {} --task causal-lm --max-length 64 --json", &[&model(), &text])).json();
    let (rows, tokens) = (eval["rows"].as_u64().expect("rows"), eval["tokens"].as_f64().expect("tokens"));
    assert!(tokens > 60.0 * (rows - 1) as f64 && tokens <= 63.0 * rows as f64, "{eval}");
    assert!(
        (eval["perplexity"].as_f64().expect("a number").ln() - eval["loss"].as_f64().expect("a number")).abs() < 1e-9
    );
    let ranks = gelora(words("rank {} --data {} --out {} --json", &[&model(), &text, &out])).json();
    let config: Value =
        serde_json::from_slice(&fs::read(out.join("adapter_config.json")).expect("written")).expect("JSON");
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("CAUSAL_LM"), &Value::Null));
    assert_eq!((ranks["samples"].as_u64(), ranks["states"].as_array().map(Vec::len)), (Some(40), Some(3)));
    let trained = dir.path().join("trained");
    let line = "train {} --data {} --ranks {} --max-length 64 --steps 4 --batch-size 4 --out {} --json -q";
    let ranks = out.join("ranks.json");
    gelora(words(line, &[&model(), &text, &ranks, &trained])).ok();
}

/// Returns conversations in the two usual forms.
fn conversations(dir: &Path) -> PathBuf {
    let path = dir.join("chats.jsonl");
    let row = |i: usize| match i.is_multiple_of(2) {
        true => {
            json!({"conversations": [
                {"from": "human", "value": format!("Say {i}")}, {"from": "gpt", "value": "the lane"}]})
        }
        false => {
            json!({"conversations": [
                {"role": "user", "content": "Say it"}, {"role": "assistant", "content": "the lane"},
                {"role": "user", "content": [{"type": "text", "text": "Again"}]},
                {"role": "assistant", "content": "there"}]})
        }
    };
    fs::write(&path, (0..24).map(|i| format!("{}\n", row(i))).collect::<String>()).expect("a data file");
    path
}

#[test]
fn conversations_are_trained_with_the_model_s_template() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, adapter) = (conversations(dir.path()), dir.path().join("adapter"));
    let base = gelora(words("eval {} --data {} --json", &[&model(), &data])).json();
    // The answer includes the token that ends a turn: "the", " ", "la", "ne" in every row, and "there" in every other
    // row.
    assert_eq!(base["tokens"], json!(f64::from(24 * 5 + 12 * 2)), "{base}");
    let line = "train {} --data {} --rank 2 --lr 0.02 --epochs 8 --batch-size 8 --out {} -q";
    gelora(words(line, &[&model(), &data, &adapter])).ok();
    let trained = gelora(words("eval {} --data {} --adapter {} --json", &[&model(), &data, &adapter])).json();
    assert!(trained["loss"].as_f64() < base["loss"].as_f64().map(|loss| 0.3 * loss), "{base} {trained}");

    let mut args =
        words("generate {} --adapter {} --json -q --max-tokens 12 --system s --message", &[&model(), &adapter]);
    args.push("Say 4".into());
    let output = gelora(args).json();
    assert_eq!(output["prompt"], "system:\ns<|end|>\nuser:\nSay 4<|end|>\nassistant:\n");
    assert_eq!(output["text"], "the lane");

    // The tokenizer and its template are copied with a merged model.
    let merged = dir.path().join("merged");
    gelora(words("merge {} --adapter {} --out {}", &[&model(), &adapter, &merged])).ok();
    let mut args = words("generate {} --json -q --max-tokens 12 --system s --message", &[&merged]);
    args.push("Say 4".into());
    let again = gelora(args).json();
    assert_eq!((&again["prompt"], &again["tokens"]), (&output["prompt"], &output["tokens"]));

    // A possible label column does not hide an explicitly requested answer.
    let labeled = dir.path().join("labeled.jsonl");
    let rows = fs::read_to_string(&data).expect("the data").replace("{\"conv", "{\"category\": \"chat\", \"conv");
    fs::write(&labeled, rows).expect("a file");
    let again = gelora(words("eval {} --data {} --task causal-lm --json", &[&model(), &labeled])).json();
    assert_eq!(again["loss"], base["loss"]);

    let row = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
    let half = dir.path().join("half.jsonl");
    fs::write(&half, format!("{row}\n{}\n", row.replace("}]", "}, {\"role\": \"assistant\", \"content\": \"b\"}]")))
        .expect("a file");
    let run = gelora(words("train {} --data {} --rank 1 --out {}", &[&model(), &half, &dir.path().join("o")]));
    run.fails_with(&["half.jsonl: row 1", "no message of the assistant answers"]);
    let run = gelora(words("rank {} --data {} --out {}", &[&model(), &half, &dir.path().join("o")]));
    run.fails_with(&["half.jsonl"]);
}

#[test]
fn errors_name_the_input() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = instructions(dir.path());
    let whole = fs::read(model()).expect("the fixture");
    let cut = dir.path().join("cut.gguf");
    for (bytes, said) in [
        (&whole[..whole.len() - 40_000], &["cut.gguf", "truncated"][..]),
        (&whole[..100], &["cut.gguf", "truncated"]),
        (&b"not a model"[..], &["cut.gguf", "not a GGUF file"]),
    ] {
        fs::write(&cut, bytes).expect("a file");
        gelora(words("eval {} --data {} --task causal-lm", &[&cut, &data])).fails_with(said);
    }
    let encoder = fixture("tiny-bert");
    let run = gelora(words("train {} --data {} --rank 1 --out {}", &[&encoder, &data, &dir.path().join("o")]));
    run.fails_with(&["tiny-bert", "an encoder; a language model needs a decoder"]);
    let run =
        gelora(words("train {} --data {} --rank 1 --max-length 8 --out {}", &[&model(), &data, &dir.path().join("o")]));
    run.fails_with(&["every answer is cut off at --max-length 8"]);
    let folder = dir.path().join("model");
    fs::create_dir_all(&folder).expect("a folder");
    let llama = fixture("families/llama");
    let mut config: Value = serde_json::from_slice(&fs::read(llama.join("config.json")).expect("JSON")).expect("JSON");
    config["logits_scaling"] = json!(8.0);
    fs::write(folder.join("config.json"), config.to_string()).expect("a file");
    fs::copy(llama.join("model.safetensors"), folder.join("model.safetensors")).expect("a copy");
    let run = gelora(words("eval {} --data {} --task causal-lm", &[&folder, &data]));
    fs::rename(folder.join("model.safetensors"), folder.join("other.safetensors")).expect("a file");
    let index = json!({"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("a file");
    run.fails_with(&["config.json", "the option logits_scaling = 8.0 is not known for llama"]);
    fs::copy(llama.join("config.json"), folder.join("config.json")).expect("a copy");
    let run = gelora(words("eval {} --data {} --task causal-lm", &[&folder, &data]));
    run.fails_with(&["model.safetensors.index.json", "names the shard model-00001-of-00002.safetensors"]);
}
