//! `gelora generate`: continues a prompt.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gelora_model::{CausalLm, Config, Sampling};
use serde_json::{Value, json};

use super::{CAUSAL_LM, check_base, open_device, read_adapter};
use crate::args::GenerateArgs;
use crate::chat::{Message, SYSTEM, USER};
use crate::data;
use crate::profile::mark;
use crate::stop_strings::StopStrings;
use crate::tokenize::Tokenizer;
use crate::ui;

/// The top k of transformers where generation_config.json samples and names none.
const TOP_K: usize = 50;
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
    let generation_config = GenerationConfig::of(&args.model.path);
    let sampling = generation_config.sampling(args);
    generation_config.say(args, sampling);
    let positions_left = lm.transformer().config().max_positions.saturating_sub(ids.len());
    let default_max_tokens = generation_config.number("max_new_tokens").map_or(DEFAULT_MAX_TOKENS, |n| n as usize);
    let max_tokens = args.max_tokens.unwrap_or(default_max_tokens.min(positions_left).max(1));
    let mut stop = lm.transformer().config().stop.clone();
    if args.ignore_eos {
        stop.clear();
    } else if args.message.is_some() {
        match tokenizer.end_of_turn() {
            Ok(end) => stop.extend(end),
            Err(problem) => {
                ui::warn(format!("the template does not show which token ends an answer: {problem:#}"));
            }
        }
    }
    // Generate: silently for JSON, else piece by piece to standard output.
    let began = std::time::Instant::now();
    let mut to_first = None;
    let (tokens, text) = generate(args, &tokenizer, |on_token| {
        lm.generate(&ids, max_tokens, sampling, &stop, |token| {
            to_first.get_or_insert_with(|| began.elapsed());
            on_token(token)
        })
    })?;
    let seconds = began.elapsed().as_secs_f64();
    mark("tokens generated");
    if args.output.json {
        let prompt_seconds = to_first.map_or(seconds, |time| time.as_secs_f64());
        let line = json!({"prompt": prompt, "text": text, "tokens": tokens, "seconds": seconds,
            "prompt_tokens": ids.len(), "prompt_seconds": prompt_seconds});
        return Ok(ui::result(ui::with_warnings(line).to_string())?);
    }
    ui::result("")?;
    let rate = tokens.len() as f64 / seconds;
    ui::note(args.output.quiet, format!("{} tokens, {rate:.1} a second", tokens.len()));
    Ok(())
}

/// Generates tokens and their text up to a stop string. Prints the text as it comes, unless the output is JSON. `run`
/// generates tokens as long as the function that it is given returns true.
fn generate(
    args: &GenerateArgs,
    tokenizer: &Tokenizer,
    run: impl FnOnce(&mut dyn FnMut(u32) -> bool) -> gelora_model::Result<Vec<u32>>,
) -> Result<(Vec<u32>, String)> {
    let (mut out, mut text) = (std::io::stdout(), String::new());
    let (stops, failed) = (RefCell::new(StopStrings::new(&args.stop)), RefCell::new(Ok(())));
    let mut pass = |piece: String| {
        text.push_str(&piece);
        let mut failed = failed.borrow_mut();
        if !args.output.json && failed.is_ok() {
            *failed = write!(out, "{piece}").and_then(|()| out.flush());
        }
    };
    let tokens = {
        let mut on_token = tokenizer.stream(|piece| pass(stops.borrow_mut().push(piece)));
        run(&mut |token| {
            on_token(token);
            !stops.borrow().is_done() && failed.borrow().is_ok()
        })?
    };
    pass(stops.borrow_mut().finish());
    failed.into_inner()?;
    let decoded = tokenizer.decode(&tokens)?; // a token that the stream could not decode is an error here
    // Without a stop string, JSON has the text of all tokens, as a tokenizer decodes them together.
    Ok((tokens, if stops.into_inner().is_done() { text } else { decoded }))
}

/// What generation_config.json asks for.
struct GenerationConfig {
    path: PathBuf,
    config: Value,
}

impl GenerationConfig {
    fn of(model: &Path) -> Self {
        let path = model.join("generation_config.json");
        let config = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, config: config.unwrap_or_default() }
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.config[key].as_f64().filter(|number| *number > 0.0)
    }

    /// Whether transformers would draw tokens at random.
    fn samples(&self) -> bool {
        self.config["do_sample"].as_bool() == Some(true)
    }

    /// Returns the options of the command line, and for those that are not given what the file says. As in
    /// transformers, its temperature, top_k and top_p count only beside do_sample.
    fn sampling(&self, args: &GenerateArgs) -> Sampling {
        let asked_for = |key: &str| self.number(key).filter(|_| self.samples());
        // Whoever asks for top-k or top-p asks for sampling.
        let asked = args.top_k.is_some() || args.top_p.is_some();
        let unset = if self.samples() || asked { 1.0 } else { 0.0 };
        Sampling {
            temperature: args.temperature.or(asked_for("temperature")).unwrap_or(unset) as f32,
            top_k: args.top_k.or(asked_for("top_k").map(|k| k as usize)).unwrap_or(if self.samples() {
                TOP_K
            } else {
                0
            }),
            top_p: args.top_p.or(asked_for("top_p")).unwrap_or(1.0) as f32,
            repetition_penalty: args.repetition_penalty.or(self.number("repetition_penalty")).unwrap_or(1.0) as f32,
            seed: args.seed,
        }
    }

    /// Says what of the file is applied, and warns of what is not.
    fn say(&self, args: &GenerateArgs, sampling: Sampling) {
        if self.samples() && args.temperature.is_none() {
            let Sampling { temperature, top_k, top_p, .. } = sampling;
            ui::note(
                args.output.quiet,
                format!(
                    "sampling as {} asks: temperature {temperature}, top k {top_k}, top p {top_p}; --temperature 0 \
                     takes the most probable token",
                    self.path.display()
                ),
            );
        }
        const NOT_APPLIED: [(&str, f64); 11] = [
            ("no_repeat_ngram_size", 0.0),
            ("max_length", 20.0),
            ("min_length", 0.0),
            ("min_new_tokens", 0.0),
            ("bad_words_ids", 0.0),
            ("suppress_tokens", 0.0),
            ("begin_suppress_tokens", 0.0),
            ("forced_eos_token_id", 0.0),
            ("num_beams", 1.0),
            ("typical_p", 1.0),
            ("min_p", 0.0),
        ];
        for (key, neutral) in NOT_APPLIED {
            let value = &self.config[key];
            if !value.is_null() && value.as_f64() != Some(neutral) {
                let path = self.path.display();
                ui::warn(format!("{path}: {key} = {value} is not applied; transformers would apply it"));
            }
        }
    }
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
