//! `cargo xtask gpu-report`: what a GPU does with gelora, in one command of at most ten minutes.
//!
//! Every part runs as a program of its own, under a limit of its own, and is appended to the report as soon as it ends:
//! a part that fails or hangs is recorded and does not end the rest, and a report that is cut short holds what was
//! measured until then. The checks run first and side by side, since they need no quiet machine; the timings follow,
//! alone on the GPU.
//!
//! `--prepare DIR` packs everything that the machine with the GPU needs, which then needs no cargo: both programs, a
//! tokenizer, texts, and a script.

mod part;
mod parts;
mod plan;
mod prepare;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gelora_kernels::{Device, DeviceKind};

use crate::say;
use part::Part;
use parts::Report;

/// What PyTorch's side runs, and what makes models of random weights.
const TORCH: &str = include_str!("torch_gpu.py");

#[derive(clap::Args)]
pub struct Args {
    /// Pack the programs, a tokenizer and texts into this folder, with a script run.sh for the machine with the GPU,
    /// and stop
    #[arg(long, value_name = "DIR", exclusive = true)]
    prepare: Option<PathBuf>,
    /// cuda or wgpu
    #[arg(long, default_value_t = DeviceKind::Cuda)]
    device: DeviceKind,
    /// A Python that has torch with CUDA, transformers and peft; without one, kernels alone are measured
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Folder with tokenizer.json of a BERT, for models of random weights; they are left out without it
    #[arg(long, value_name = "DIR", requires_all = ["python", "data"])]
    tokenizer: Option<PathBuf>,
    /// Labelled texts as JSON lines
    #[arg(long, value_name = "FILE.jsonl")]
    data: Option<PathBuf>,
    /// The gelora program
    #[arg(long, value_name = "FILE", default_value = "target/release/gelora")]
    gelora: PathBuf,
    /// Where the report goes; the same as JSON lines goes beside it, as .jsonl
    #[arg(long, default_value = "gpu-report.md", value_name = "FILE.md")]
    out: PathBuf,
    /// Seconds after which no further part begins
    #[arg(long, default_value_t = 540, value_name = "S")]
    seconds: u64,
    /// Only parts whose names contain one of these texts
    #[arg(long, value_name = "TEXT,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Small sizes, to see that it works
    #[arg(long)]
    quick: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(folder) = &args.prepare {
        return prepare::pack(folder);
    }
    let name = Device::open(args.device)?.name().to_string();
    let scratch = tempfile::tempdir()?;
    let script = scratch.path().join("torch_gpu.py");
    std::fs::write(&script, TORCH)?;
    let settings = plan::Settings {
        xtask: std::env::current_exe().context("this program")?,
        gelora: absolute("--gelora", &args.gelora)?,
        python: args.python.clone(),
        script,
        tokenizer: args.tokenizer.as_deref().map(|path| absolute("--tokenizer", path)).transpose()?,
        data: args.data.as_deref().map(|path| absolute("--data", path)).transpose()?,
        device: args.device,
        scratch: scratch.path().to_path_buf(),
        quick: args.quick,
    };
    let title = format!("# gelora {} on {name}\n\n", env!("CARGO_PKG_VERSION"));
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let mut report = Report::create(&args.out, &title, end)?;
    let wanted = |part: &Part| args.only.is_empty() || args.only.iter().any(|text| part.name.contains(text));
    let mut checks = plan::checks(&settings);
    checks.retain(wanted);
    let compares_losses = checks.iter().any(|part| part.name.starts_with("losses"));
    report.side_by_side("Checks", checks)?;
    if compares_losses {
        report.losses(&settings)?;
    }
    let mut timings = plan::timings(&settings);
    timings.retain(wanted);
    report.one_by_one("Timings", timings)?;
    say(format!("the report is in {}", args.out.display()));
    match report.failed() {
        [] => Ok(()),
        failed => bail!("failed or left out: {}", failed.join(", ")),
    }
}

fn absolute(option: &str, path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("{option} {}", path.display()))
}
