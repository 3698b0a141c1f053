//! What is measured on the program itself, started as a user starts it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use gelora_kernels::DeviceKind;
use serde::Deserialize;
use serde_json::{Value, json};

use super::line::Line;
use super::memory;
use crate::{built, cargo};

/// Steps that come before the program runs evenly.
const WARM_UP: usize = 3;

#[derive(clap::Args)]
pub struct HiddenArgs {
    /// Folder of the model
    #[arg(long)]
    model: PathBuf,
    /// Rows as JSON lines
    #[arg(long, value_name = "FILE.jsonl")]
    data: PathBuf,
    /// The first so many rows
    #[arg(long, default_value_t = 2000)]
    samples: usize,
    #[arg(long, default_value_t = 64)]
    batch: usize,
    #[arg(long, default_value_t = 128)]
    max_length: usize,
    #[arg(long, value_delimiter = ',', default_value = "f32", value_name = "DTYPE,...")]
    dtypes: Vec<String>,
    /// cpu, wgpu or cuda
    #[arg(long, default_value_t = DeviceKind::Cpu)]
    device: DeviceKind,
    #[command(flatten)]
    program: ProgramArgs,
}

#[derive(clap::Args)]
pub struct TrainArgs {
    /// Folder of the model
    #[arg(long)]
    model: PathBuf,
    /// Rows as JSON lines
    #[arg(long, value_name = "FILE.jsonl")]
    data: PathBuf,
    #[arg(long, default_value_t = 40)]
    steps: usize,
    #[arg(long, default_value_t = 32)]
    batch: usize,
    #[arg(long, default_value_t = 128)]
    max_length: usize,
    /// Rank of every module
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// A rank for each layer, instead of --rank
    #[arg(long, value_delimiter = ',', value_name = "R,...")]
    ranks: Option<Vec<usize>>,
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16", value_name = "DTYPE,...")]
    dtypes: Vec<String>,
    /// cpu, wgpu or cuda
    #[arg(long, default_value_t = DeviceKind::Cpu)]
    device: DeviceKind,
    #[command(flatten)]
    program: ProgramArgs,
}

#[derive(clap::Args)]
pub struct ProgramArgs {
    /// The program to measure [default: target/release/gelora, built first]
    #[arg(long, value_name = "FILE")]
    gelora: Option<PathBuf>,
}

impl ProgramArgs {
    /// The program, built unless it is given.
    pub fn path(&self) -> Result<PathBuf> {
        if let Some(path) = &self.gelora {
            // A name without a folder would be looked for in PATH.
            return path.canonicalize().with_context(|| format!("--gelora {}", path.display()));
        }
        cargo(&["build", "--quiet", "--release", "-p", "gelora-cli"])?;
        Ok(built("gelora"))
    }
}

/// What `--profile=FILE` wrote, and what only the caller can see.
pub struct Run {
    pub profile: Profile,
    pub stdout: String,
    /// Seconds from before the program was started until its clock began.
    start: f64,
    pub peak_rss_mb: Option<f64>,
}

#[derive(Deserialize)]
pub struct Profile {
    started: f64,
    phases: Vec<Phase>,
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Phase {
    phase: String,
    end: f64,
}

#[derive(Deserialize)]
pub struct Step {
    pub ms: f64,
    pub tokens: usize,
}

impl Run {
    /// Seconds on the program's clock when a phase had ended.
    fn end_of(&self, phase: &str) -> Result<f64> {
        let found = self.profile.phases.iter().find(|p| p.phase == phase);
        Ok(found.with_context(|| format!("the profile has no phase `{phase}`"))?.end)
    }

    /// Milliseconds of the steps, without the first few if there are enough.
    pub fn steady_ms(&self) -> Vec<f64> {
        let steps = &self.profile.steps;
        let skipped = if steps.len() > WARM_UP { WARM_UP } else { 0 };
        steps[skipped..].iter().map(|s| s.ms).collect()
    }
}

/// Runs the program in a scratch folder with `--profile`; its failure is an error that quotes it.
pub fn run(gelora: &Path, args: &[String], scratch: &Path) -> Result<Run> {
    let [out, err, profile] = ["stdout", "stderr", "profile.json"].map(|name| scratch.join(name));
    let mut command = Command::new(gelora);
    command.args(args).arg(format!("--profile={}", profile.display())).env("NODEVICE_SELECT", "1");
    command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
    let spawned = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let child = command.spawn().with_context(|| format!("{} cannot be started", gelora.display()))?;
    let (status, peak_rss_mb) = memory::wait(child)?;
    if !status.success() {
        let said = fs::read_to_string(&err)?;
        bail!("`gelora {}` failed ({status}):\n{}", args.join(" "), said.trim_end());
    }
    let profile: Profile = serde_json::from_slice(&fs::read(&profile)?).context("the profile")?;
    Ok(Run { start: profile.started - spawned, profile, stdout: fs::read_to_string(&out)?, peak_rss_mb })
}

/// From texts to points, without loading the model or the data.
pub fn hidden(args: &HiddenArgs) -> Result<()> {
    let gelora = args.program.path()?;
    for dtype in &args.dtypes {
        let scratch = tempfile::tempdir()?;
        let data = scratch.path().join("rows.jsonl");
        let samples = first_rows(&args.data, args.samples, &data)?;
        let out = scratch.path().join("out");
        let line = format!(
            "rank {{}} --data {{}} --out {{}} --samples {samples} --batch-size {} --max-length {} --device {} \
             --no-cache \
             --quiet{}",
            args.batch,
            args.max_length,
            args.device,
            dtype_option(dtype)
        );
        let run = run(&gelora, &words(&line, &[&args.model, &data, &out]), scratch.path())?;
        let ms = (run.end_of("hidden states")? - run.end_of("tokenizer loaded")?) * 1e3;
        let ranks: Value = serde_json::from_slice(&fs::read(out.join("ranks.json"))?)?;
        let layers = ranks["states"].as_array().map_or(0, Vec::len);
        let params = json!({"samples": samples, "batch": args.batch, "layers": layers, "dtype": dtype,
            "device": args.device.to_string()});
        Line::new("hidden", params, &[ms], run.peak_rss_mb)
            .with("examples_per_s", samples as f64 / ms * 1e3, 1)
            .emit()?;
    }
    Ok(())
}

/// Copies the first rows of a file; how many there were.
fn first_rows(from: &Path, rows: usize, to: &Path) -> Result<usize> {
    let file = BufReader::new(File::open(from).with_context(|| from.display().to_string())?);
    let mut out = File::create(to)?;
    let mut copied = 0;
    for line in file.lines().take(rows) {
        writeln!(out, "{}", line.with_context(|| from.display().to_string())?)?;
        copied += 1;
    }
    Ok(copied)
}

pub fn train(args: &TrainArgs) -> Result<()> {
    let gelora = args.program.path()?;
    for dtype in &args.dtypes {
        let scratch = tempfile::tempdir()?;
        let ranks = match &args.ranks {
            Some(ranks) => Ranks::Layers(layer_ranks(&gelora, args, ranks, scratch.path())?),
            None => Ranks::Same(args.rank),
        };
        let training = Training {
            model: &args.model,
            data: &args.data,
            steps: args.steps,
            batch: args.batch,
            dtype,
            ranks,
            device: args.device,
        };
        let run = training.run(&gelora, args.max_length, scratch.path())?;
        let losses = losses(&scratch.path().join("adapter/metrics.jsonl"))?;
        let last = &losses[losses.len().saturating_sub(10)..];
        let tokens: usize = run.profile.steps.iter().map(|s| s.tokens).sum();
        let all_ms: f64 = run.profile.steps.iter().map(|s| s.ms).sum();
        let result: Value = serde_json::from_str(&run.stdout).context("the result of `gelora train --json`")?;
        let params = json!({"steps": args.steps, "batch": args.batch, "dtype": dtype, "max_length": args.max_length,
            "adapter_parameters": result["parameters"], "device": args.device.to_string()});
        Line::new("train-step", params, &run.steady_ms(), run.peak_rss_mb)
            .with("tokens_per_s", tokens as f64 / all_ms * 1e3, 0)
            .with("process_start_to_first_step_s", run.start + run.end_of("first step")?, 2)
            .with("loss_first", losses.first().copied().unwrap_or(f64::NAN), 4)
            .with("loss_last10", last.iter().sum::<f64>() / last.len() as f64, 4)
            .emit()?;
    }
    Ok(())
}

/// One training, as both `train` and `scaling` ask for it.
pub struct Training<'a> {
    pub model: &'a Path,
    pub data: &'a Path,
    pub steps: usize,
    pub batch: usize,
    pub dtype: &'a str,
    pub ranks: Ranks,
    pub device: DeviceKind,
}

/// Ranks of the modules.
pub enum Ranks {
    Same(usize),
    /// From a ranks.json.
    Layers(PathBuf),
}

impl Training<'_> {
    /// Trains into `adapter` inside the scratch folder.
    pub fn run(&self, gelora: &Path, max_length: usize, scratch: &Path) -> Result<Run> {
        let ranks = match &self.ranks {
            Ranks::Same(rank) => format!("--rank {rank}"),
            Ranks::Layers(_) => "--ranks {}".into(),
        };
        // A checkpoint that comes after the last step is none.
        let line = format!(
            "train {{}} --data {{}} --out {{}} {ranks} --steps {0} --checkpoint-every {0} --batch-size {1} \
             --max-length \
             {max_length} --lr 5e-4 --device {2} --quiet --json{3}",
            self.steps,
            self.batch,
            self.device,
            dtype_option(self.dtype)
        );
        let adapter = scratch.join("adapter");
        let mut paths = vec![self.model, self.data, &adapter];
        if let Ranks::Layers(path) = &self.ranks {
            paths.push(path);
        }
        run(gelora, &words(&line, &paths), scratch)
    }
}

/// A ranks.json with these ranks of layers: that of a measurement on few rows, rewritten.
fn layer_ranks(gelora: &Path, args: &TrainArgs, ranks: &[usize], scratch: &Path) -> Result<PathBuf> {
    let (data, out) = (scratch.join("rows.jsonl"), scratch.join("ranks"));
    first_rows(&args.data, 256, &data)?;
    let line = "rank {} --data {} --out {} --policy fixed --rank 1 --max-length 32 --device cpu --quiet";
    run(gelora, &words(line, &[&args.model, &data, &out]), scratch)?;
    let path = out.join("ranks.json");
    let mut measured: Value = serde_json::from_slice(&fs::read(&path)?)?;
    for (name, module) in measured["modules"].as_object_mut().context("ranks.json has no modules")? {
        let layer = name.split('.').find_map(|part| part.parse::<usize>().ok());
        let rank = layer.and_then(|l| ranks.get(l)).with_context(|| format!("--ranks: none for {name}"))?;
        *module = json!({"rank": rank, "alpha": 2 * rank});
    }
    fs::write(&path, measured.to_string())?;
    Ok(path)
}

/// The loss of every step that a training's log holds.
pub fn losses(path: &Path) -> Result<Vec<f64>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut losses = Vec::new();
    for line in text.lines() {
        losses.extend(serde_json::from_str::<Value>(line)?["loss"].as_f64());
    }
    Ok(losses)
}

/// f32 is what the program does unasked.
fn dtype_option(dtype: &str) -> String {
    if dtype == "f32" { String::new() } else { format!(" --dtype {dtype}") }
}

/// Arguments from words; `{}` stands for the next path.
fn words(line: &str, paths: &[&Path]) -> Vec<String> {
    let mut paths = paths.iter();
    line.split_whitespace()
        .map(|word| match word {
            "{}" => paths.next().map(|p| p.display().to_string()).unwrap_or_default(),
            word => word.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rows_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let [all, some] = ["all", "some"].map(|name| dir.path().join(name));
        fs::write(&all, "a\nb\nc\n").unwrap();
        assert_eq!(first_rows(&all, 2, &some).unwrap(), 2);
        assert_eq!(fs::read_to_string(&some).unwrap(), "a\nb\n");
        assert_eq!(first_rows(&all, 9, &some).unwrap(), 3);
    }

    #[test]
    fn evaluations_have_no_loss() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("metrics.jsonl");
        fs::write(&log, "{\"step\":1,\"loss\":0.5}\n{\"step\":1,\"eval\":{}}\n{\"step\":2,\"loss\":0.25}\n").unwrap();
        assert_eq!(losses(&log).unwrap(), [0.5, 0.25]);
    }

    #[test]
    fn paths_may_have_spaces() {
        assert_eq!(words("rank {} --data {}", &[Path::new("a b"), Path::new("c")]), ["rank", "a b", "--data", "c"]);
    }
}
