//! `gelora generate`: reading a prompt, and the tokens after it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use gelora_kernels::DeviceKind;
use serde::Deserialize;
use serde_json::json;

use super::line::Line;
use super::program::{ProgramArgs, run};

#[derive(clap::Args)]
pub struct GenerateArgs {
    /// Folder or .gguf file of the model
    #[arg(long)]
    model: PathBuf,
    /// File with the prompt
    #[arg(long, value_name = "FILE")]
    prompt_file: PathBuf,
    /// Tokens to generate
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Runs after one that is not counted
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// cpu, wgpu or cuda
    #[arg(long, default_value_t = DeviceKind::Cpu)]
    device: DeviceKind,
    #[command(flatten)]
    program: ProgramArgs,
}

/// The part of the program's JSON that is read.
#[derive(Deserialize)]
struct Generated {
    tokens: Vec<u32>,
    prompt_tokens: usize,
    prompt_seconds: f64,
    seconds: f64,
}

/// Times of reading the prompt, and of the tokens that follow the first.
pub fn generate(args: &GenerateArgs) -> Result<()> {
    let (runs, peak) = runs(args, args.tokens)?;
    prompt_line(&runs, peak).emit()?;
    let times: Vec<f64> = runs.iter().map(|run| (run.seconds - run.prompt_seconds) * 1e3).collect();
    let tokens = runs[0].tokens.len().saturating_sub(1);
    let line = Line::new("generate", json!({"prompt": runs[0].prompt_tokens, "tokens": args.tokens}), &times, peak);
    let per_token: Vec<f64> = times.iter().map(|ms| ms / tokens as f64).collect();
    line.with("tokens_per_s", 1e3 / super::median(&per_token), 1).emit()
}

/// Times of reading the prompt alone.
pub fn prompt(args: &GenerateArgs) -> Result<()> {
    let (runs, peak) = runs(args, 1)?;
    prompt_line(&runs, peak).emit()
}

fn prompt_line(runs: &[Generated], peak: Option<f64>) -> Line {
    let times: Vec<f64> = runs.iter().map(|run| run.prompt_seconds * 1e3).collect();
    let prompt = runs[0].prompt_tokens;
    let line = Line::new("prompt", json!({"prompt": prompt}), &times, peak);
    line.with("tokens_per_s", prompt as f64 * 1e3 / super::median(&times), 1)
}

fn runs(args: &GenerateArgs, tokens: usize) -> Result<(Vec<Generated>, Option<f64>)> {
    let gelora = args.program.path()?;
    let prompt = std::fs::read_to_string(&args.prompt_file).with_context(|| args.prompt_file.display().to_string())?;
    let line = format!("--max-tokens {tokens} --temperature 0 --ignore-eos --device {} --quiet --json", args.device);
    let mut words = vec!["generate".to_owned(), args.model.display().to_string(), "--prompt".into(), prompt];
    words.extend(line.split(' ').map(str::to_owned));
    let (mut all, mut peak) = (Vec::new(), None);
    for _ in 0..args.repeats.max(1) + 1 {
        let scratch = tempfile::tempdir()?;
        let run = run(&gelora, &words, scratch.path())?;
        all.push(serde_json::from_str(&run.stdout).context("the result of `gelora generate --json`")?);
        peak = run.peak_rss_mb;
    }
    all.remove(0);
    Ok((all, peak))
}
