//! `gelora generate`: continues a prompt.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail};
use gelora_model::{CausalLm, Config, Sampling};
use serde_json::json;

use super::{CAUSAL_LM, check_base, open_device, read_adapter};
use crate::args::GenerateArgs;
use crate::chat::{Message, SYSTEM, USER};
use crate::data;
use crate::profile::mark;
use crate::tokenize::Tokenizer;
use crate::ui;

/// Default of `--max-tokens`.
const DEFAULT_MAX_TOKENS: usize = 128;

pub fn run(args: &GenerateArgs) -> Result<()> {
    // Build the prompt before the model is loaded, so that its errors come early.
    let vocabulary = Config::load(&args.model.path)?.vocabulary;
    let tokenizer = Tokenizer::open(&args.model.path)?.with_vocabulary(vocabulary);
    let prompt = prompt(args, &tokenizer)?;
    let ids = tokenizer.prompt(&prompt, args.message.is_some())?;
    if ids.is_empty() {
        bail!("--prompt: has no tokens; expected a text to go on from");
    }
    let device = open_device(args.compute.device)?;
    let mut lm = match &args.adapter {
        Some(folder) => {
            let adapter = read_adapter(folder, &args.model.path)?;
            if let Some(other) = adapter.config.task_type.as_deref().filter(|task| *task != CAUSAL_LM) {
                bail!("{}: the adapter's task is {other}; expected a language model's, {CAUSAL_LM}", folder.display());
            }
            check_base(&adapter, folder, &args.model);
            CausalLm::with_adapter(&args.model.path, adapter).with_context(|| folder.display().to_string())?
        }
        None => CausalLm::load(&args.model.path)?,
    };
    lm.remarks().iter().for_each(ui::warn);
    lm.compute_in(args.compute.dtype.into())?;
    lm.move_to(&device)?;
    mark("model loaded");
    // Choose the sampling, the length limit and the stop tokens.
    let sampling = match args.temperature > 0.0 {
        true => Sampling::Nucleus { temperature: args.temperature as f32, top_p: args.top_p as f32, seed: args.seed },
        false => Sampling::Greedy,
    };
    let positions_left = lm.transformer().config().max_positions.saturating_sub(ids.len());
    let max_tokens = args.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS.min(positions_left).max(1));
    let mut stop = lm.transformer().config().stop.clone();
    if args.message.is_some() {
        match tokenizer.end_of_turn() {
            Ok(end) => stop.extend(end),
            Err(problem) => {
                ui::warn(format!("the template does not show which token ends an answer: {problem:#}"));
            }
        }
    }
    for option in not_applied(args) {
        ui::warn(format!("{option} is not applied; transformers would apply it"));
    }
    // Generate: silently for JSON, else piece by piece to standard output.
    let began = std::time::Instant::now();
    let tokens = if args.output.json {
        lm.generate(&ids, max_tokens, sampling, &stop, |_| true)?
    } else {
        let mut out = std::io::stdout();
        let mut failed = Ok(());
        let tokens = {
            let mut on_token = tokenizer.stream(|piece| {
                if failed.is_ok() {
                    failed = write!(out, "{piece}").and_then(|()| out.flush());
                }
            });
            lm.generate(&ids, max_tokens, sampling, &stop, |token| {
                on_token(token);
                true
            })?
        };
        failed?;
        tokens
    };
    let seconds = began.elapsed().as_secs_f64();
    mark("tokens generated");
    let text = tokenizer.decode(&tokens)?; // a token that the stream could not decode is an error here
    if args.output.json {
        let line = json!({"prompt": prompt, "text": text, "tokens": tokens, "seconds": seconds});
        return Ok(ui::result(ui::with_warnings(line).to_string())?);
    }
    ui::result("")?;
    let rate = tokens.len() as f64 / seconds;
    ui::note(args.output.quiet, format!("{} tokens, {rate:.1} a second", tokens.len()));
    Ok(())
}

/// Returns the options of generation_config.json that change which token is the most probable.
fn not_applied(args: &GenerateArgs) -> Vec<String> {
    const OPTIONS: [(&str, f64); 8] = [
        ("repetition_penalty", 1.0),
        ("no_repeat_ngram_size", 0.0),
        ("min_length", 0.0),
        ("min_new_tokens", 0.0),
        ("bad_words_ids", 0.0),
        ("suppress_tokens", 0.0),
        ("begin_suppress_tokens", 0.0),
        ("forced_eos_token_id", 0.0),
    ];
    let path = args.model.path.join("generation_config.json");
    let Ok(bytes) = std::fs::read(&path) else { return Vec::new() };
    let config: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let changes = |key: &str, neutral: f64| !config[key].is_null() && config[key].as_f64() != Some(neutral);
    let display = |key: &str| format!("{}: {key} = {}", path.display(), config[key]);
    OPTIONS.into_iter().filter(|(key, neutral)| changes(key, *neutral)).map(|(key, _)| display(key)).collect()
}

/// Returns the text to continue: --message in the model's chat template, --instruction in the form of instruction rows,
/// --prompt as given, or standard input.
fn prompt(args: &GenerateArgs, tokenizer: &Tokenizer) -> Result<String> {
    if let Some(message) = &args.message {
        let system = args.system.as_deref().map(|text| Message::new(SYSTEM, text));
        let turns: Vec<Message> = system.into_iter().chain([Message::new(USER, message)]).collect();
        let place = || format!("{}: --message", args.model.name.display());
        return tokenizer.template().and_then(|template| template.prompt(&turns)).with_context(place);
    }
    if let Some(instruction) = &args.instruction {
        return Ok(data::instruction(instruction, args.input.as_deref()));
    }
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.clone());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("standard input")?;
    Ok(text)
}
