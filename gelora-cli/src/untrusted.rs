//! Readers of files that may come from anyone, for the fuzz targets in `fuzz/` and the test of their seeds.
//!
//! A target reads one file to its end and returns the reader's error. It panics where gelora breaks a promise: if a
//! reader panics, or if an error has several lines.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_kernels::Tensor;
use gelora_lora::Adapter;
use gelora_model::{Batch, CausalLm, checkpoint};

use crate::chat::{ASSISTANT, Message, SYSTEM, Template, USER};
use crate::data::Example;
use crate::tokenize::Tokenizer;
use crate::{data, in_one_line, points};

/// A function that reads the files of a folder.
type Read = fn(&Path) -> Result<()>;

/// The targets: name, name of the file that the bytes are written to, and its reader.
const TARGETS: [(&str, &str, Read); 13] = [
    ("gguf", "model.gguf", gguf),
    ("torch", "pytorch_model.bin", checkpoint),
    ("safetensors", "model.safetensors", checkpoint),
    ("adapter", "adapter", adapter),
    ("sentencepiece", "spm.model", tokenizer),
    ("tokenizer", "tokenizer.json", tokenizer),
    ("template", "chat_template.jinja", template),
    ("npy", "points.npy", |folder| matrices(&folder.join("points.npy"))),
    ("npz", "points.npz", |folder| matrices(&folder.join("points.npz"))),
    ("csv", "rows.csv", |folder| table(&folder.join("rows.csv"))),
    ("json", "rows.json", |folder| rows(&folder.join("rows.json"))),
    ("jsonl", "rows.jsonl", |folder| rows(&folder.join("rows.jsonl"))),
    ("parquet", "rows.parquet", |folder| table(&folder.join("rows.parquet"))),
];

/// Returns the names of the targets.
pub fn targets() -> impl Iterator<Item = &'static str> {
    TARGETS.iter().map(|(name, ..)| *name)
}

/// Writes `bytes` to the file of a target in `folder` and reads it. Returns the error in the form that the program
/// prints.
///
/// # Errors
/// Returns an error if the target is not known, the folder cannot be written, or the reader refuses the file.
///
/// # Panics
/// Panics if the reader panics or its error has several lines.
pub fn read(target: &str, bytes: &[u8], folder: &Path) -> Result<(), String> {
    let read = || -> Result<()> {
        let found = TARGETS.iter().find(|(name, ..)| *name == target);
        let (_, file, read) = found.with_context(|| format!("no target is named {target:?}"))?;
        fs::create_dir_all(folder)?;
        fs::write(folder.join(file), bytes)?;
        read(folder)
    };
    read().map_err(|error| {
        let text = in_one_line(&error);
        assert!(!text.contains(char::is_control), "an error of several lines: {text:?}");
        text
    })
}

/// Reads the tensors with their values, the tokenizer and the chat template, and runs a forward pass of the model.
fn gguf(folder: &Path) -> Result<()> {
    let path = folder.join("model.gguf");
    let texts = texts(&path);
    let template = Template::of_gguf(&path).and_then(|template| template.map_or(Ok(()), |t| converse(&t)));
    checkpoint::read(&path)?.1.values().try_for_each(values)?;
    let model = CausalLm::load(&path)?;
    let batch = Batch::of_ids(&[[0, 1]])?;
    model.logits(&batch, &[1])?;
    texts.and(template)
}

/// Reads the tensors of a folder, with their values.
fn checkpoint(folder: &Path) -> Result<()> {
    checkpoint::read(folder)?.1.values().try_for_each(values)
}

/// Reads an adapter folder packed in one file: the config up to the first zero byte, then the tensors.
fn adapter(folder: &Path) -> Result<()> {
    let bytes = fs::read(folder.join("adapter"))?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    fs::write(folder.join("adapter_config.json"), &bytes[..end])?;
    fs::write(folder.join("adapter_model.safetensors"), bytes.get(end + 1..).unwrap_or_default())?;
    let adapter = Adapter::read(folder)?;
    adapter.saved.values().chain(adapter.layers.values().flat_map(|layer| [&layer.a, &layer.b])).try_for_each(values)
}

/// Opens a tokenizer and encodes some texts.
fn tokenizer(folder: &Path) -> Result<()> {
    fs::write(folder.join("config.json"), br#"{"model_type": "deberta-v2"}"#)?;
    texts(folder)
}

fn texts(model: &Path) -> Result<()> {
    const TEXTS: [&str; 6] = [
        "the film is good",
        "",
        " a\n\tb  1234 ",
        "naïve café \u{1f600}\u{0301} 日本語",
        "[CLS] <s> [MASK] <unk>",
        "it's\u{0}",
    ];
    let tokenizer = Tokenizer::open(model)?;
    let example = |text: &str, pair: Option<&str>| Example {
        text: text.to_owned(),
        pair: pair.map(str::to_owned),
        ..Example::default()
    };
    let mut first = Ok(());
    for text in TEXTS {
        for pair in [None, Some("not bad")] {
            match tokenizer.encode(&example(text, pair)) {
                Ok(encoded) => {
                    first = first.and(tokenizer.decode(&encoded.ids).map(|_| ()));
                    let mut push = tokenizer.stream(|_| {});
                    encoded.ids.iter().for_each(|id| push(*id));
                }
                Err(error) => first = first.and(Err(error)),
            }
        }
    }
    let all: Vec<Example> = TEXTS.iter().map(|text| example(text, None)).collect();
    first.and(tokenizer.encode_all(&all).map(|_| ()))
}

/// Reads a chat template and formats conversations with it.
fn template(folder: &Path) -> Result<()> {
    let Some(template) = Template::of_folder(folder)? else { bail!("{}: no template", folder.display()) };
    converse(&template)
}

fn converse(template: &Template) -> Result<()> {
    let turns = [(SYSTEM, "Be kind."), (USER, " one "), (ASSISTANT, "two"), (USER, "three"), (ASSISTANT, "four")];
    let turns = turns.map(|(role, content)| Message::new(role, content));
    template.prompt(&turns[..2])?;
    template.write(&turns).map(|_| ())
}

/// Reads a table both as rows of text and as points. One of the two must succeed.
fn table(path: &Path) -> Result<()> {
    let (rows, points) = (rows(path), matrices(path));
    rows.or(points)
}

/// Reads rows of text, and their classes if they have labels.
fn rows(path: &Path) -> Result<()> {
    let dataset = data::read(path, None, &data::ReadOptions::default())?;
    if dataset.labeled() == 0 {
        return Ok(());
    }
    let labels = data::labels(&[&dataset], None)?;
    labels.targets(&dataset).map(|_| ())
}

fn matrices(path: &Path) -> Result<()> {
    points::read_points(path, None, &[], &mut Vec::new())?.iter().try_for_each(|(_, matrix)| values(matrix))
}

/// Reads every value of a tensor.
fn values(tensor: &Tensor) -> Result<()> {
    let sum: f64 = tensor.to_vec()?.iter().map(|v| f64::from(*v)).sum();
    std::hint::black_box(sum);
    Ok(())
}
